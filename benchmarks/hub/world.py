"""A hub with two releases and their packages, made once for a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoglm import patch
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.hub.worker import Worker
from autoglm.simulation.weights import write_release

DEVICE = "bench-device"
OLD, NEW = "v1.2", "v1.3"


@dataclass(frozen=True)
class World:
    """What the servers serve.

    Attributes:
        directory: the hub's.
        token: of the one device :data:`DEVICE`.
        package: the full package of :data:`NEW`.
    """

    directory: Path
    token: str
    package: str


def publish(
    hub: Hub, directory: Path, version: str, counter: int, size: int, weights: bytes | None = None
) -> None:
    """Publish a release of ``size`` bytes to everyone, with weights of its own if some are given."""
    names = {"model": hub.config.model, "variant": hub.config.variant}
    release = write_release(directory / version, version, counter, size=size, weights=weights, **names)
    package = directory / f"{version}.wpatch"
    patch.diff(None, release, package)
    hub.publish(package, percent=100)


def build_all(config: HubConfig) -> int:
    """Build what the ledger wants, to the end; return how many packages that were."""
    worker, count = Worker(config), 0
    try:
        while worker.run_once():
            count += 1
    finally:
        worker.close()
    return count


def make_world(directory: Path, size: int = 1 << 16, database_url: str | None = None) -> World:
    """Make a hub with :data:`OLD` and :data:`NEW`, both at 100 %, and the patch between them."""
    with Hub.open(HubConfig(directory / "hub", database_url=database_url)) as hub:
        for version, counter in ((OLD, 12), (NEW, 13)):
            publish(hub, directory, version, counter, size)
        build_all(hub.config)
        token = hub.issue_token(Claims("device", DEVICE, device_id=DEVICE))
        full = [row.sha256 for row in hub.packages() if row.to_version == NEW and row.from_version is None]
    return World(directory / "hub", token, full[0] or "")

"""The parts that a hub and a worker stand on: the store, the database, the signed metadata."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from sqlalchemy import select

from autoglm import files
from autoglm.hub.database import Database
from autoglm.hub.dialects import is_shared
from autoglm.hub.metadata import MetadataTable
from autoglm.hub.records import HubConfig
from autoglm.hub.store import Store, objects_of
from autoglm.hub.tables import PackageRow, ReleaseRow
from autoglm.releases import Manifest
from autoglm.trust.repository import Repository

TRUST_FOLDER = "trust"


@dataclass(frozen=True)
class Parts:
    """What was opened."""

    store: Store
    database: Database
    trust: Repository


def database_url(config: HubConfig) -> str:
    """Return where the database is."""
    return config.database_url or f"sqlite:///{config.directory.absolute() / 'hub.sqlite'}"


@contextlib.contextmanager
def opened(config: HubConfig, clock: Callable[[], float]) -> Generator[Parts]:
    """Make what is missing, migrate, and give the parts to a block that holds the store's lock.

    The database stays open behind the block, unless that raises.

    Raises:
        ConfigError: a setting is wrong.
        StorageError: the directory or the database cannot be used.
        TrustError: the signed metadata is damaged.
    """
    store = Store(config.directory, config.storage_url)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.lock())
        except OSError as error:
            raise files.storage_error(error, f"opening the hub in {store.directory}") from error
        _keep_private(config)
        database = Database(database_url(config))
        try:
            yield Parts(store, database, _open_trust(config, store, database, clock))
        except BaseException:
            database.close()
            raise


def _keep_private(config: HubConfig) -> None:
    """Let the database beside the store be its owner's alone: it holds the keys of download links."""
    if config.database_url is None:
        path = config.directory / "hub.sqlite"
        with contextlib.suppress(PermissionError):  # of another user, who decides
            path.touch(mode=0o600)
            path.chmod(0o600)


def _open_trust(
    config: HubConfig, store: Store, database: Database, clock: Callable[[], float]
) -> Repository:
    """Open the signed metadata: in the directory, or in a database that other machines share."""
    shared = MetadataTable(database, clock) if is_shared(config.database_url) else None
    return Repository.open(store.directory / TRUST_FOLDER, clock=clock, shared=shared, keys=config.keys)


def raise_versions(config: HubConfig, clock: Callable[[], float] = time.time) -> list[str]:
    """Sign a restored hub's metadata anew, above what devices may have seen before.

    Returns:
        The roles and bins that the keys of this machine cannot sign.

    Raises:
        ConfigError: a setting is wrong, or an online key is not here.
        StorageError: the directory or the database cannot be used.
    """
    with opened(config, clock) as parts:
        try:
            return parts.trust.leave_behind()
        finally:
            parts.database.close()


def recover(parts: Parts) -> None:
    """Remove what killed work left, and link release directories that are gone; under the store's lock."""
    with parts.database.read() as session:
        manifests = [Manifest.from_bytes(content) for content in session.scalars(select(ReleaseRow.manifest))]
        stored = select(PackageRow.sha256).where(PackageRow.state == "stored")
        packages = {sha256 for sha256 in session.scalars(stored) if sha256 is not None}
    store = parts.store
    objects = packages.union(*(objects_of(manifest) for manifest in manifests))
    store.sweep({manifest.folder for manifest in manifests}, objects)
    if not store.storage.is_remote:  # copies of what lies elsewhere are made when they are needed
        for manifest in manifests:
            store.restore_release(manifest)

"""A small world for the device SDK: real releases, real packages, a hub that decides, a runtime, a clock.

The hub here is a stand-in for the service's (the SDK must not import that one); packages are made by the
codec, and everything on the device side is the real thing.
"""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoglm import patch
from autoglm.device import LocalTransport, Updater, UpdateSettings
from autoglm.device.clock import Clock
from autoglm.errors import NetworkError
from autoglm.files import sha256_file
from autoglm.releases import EventAnswer, EventBatch, HealthCheck, Manifest, UpdateAnswer, UpdateRequest
from autoglm.trust.repository import Repository
from autoglm.trust.roles import release_path
from autoglm.trust.targets import SignedPackage, SignedRelease

NUM_WEIGHTS = 96_000
BEGINNING = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def write_release(directory: Path, version: str, counter: int, **names: Any) -> Path:
    """Write a release of one INT8 matrix, a tenth of which differs from one version to the next."""
    directory.mkdir(parents=True)
    weights = bytearray(random.Random(0).randbytes(NUM_WEIGHTS))
    change = random.Random(counter)
    for _ in range(NUM_WEIGHTS // 10):
        place = change.randrange(NUM_WEIGHTS)
        weights[place] = (weights[place] + change.choice((1, 255))) % 256
    tensor = {"dtype": "I8", "shape": [NUM_WEIGHTS // 64, 64], "data_offsets": [0, NUM_WEIGHTS]}
    header = json.dumps({"w": tensor}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (directory / "health.json").write_bytes(HealthCheck().to_bytes())
    named = {"model": "autoglm-phone-9b", "variant": "nano-int8", "name": "nano"} | names
    manifest = Manifest.of_directory(directory, version=version, counter=counter, **named)
    (directory / "manifest.json").write_bytes(manifest.to_bytes())
    return directory


@dataclass
class World:
    """Releases by version, and packages by (from, to); from None stands for the full one. All are signed."""

    root: Path
    trust: Repository
    releases: dict[str, Path] = field(default_factory=dict[str, Path])
    packages: dict[tuple[str | None, str], Path] = field(default_factory=dict[tuple[str | None, str], Path])

    def add(self, version: str, counter: int, *bases: str, label: str | None = None, **names: Any) -> None:
        """Make a release, its full package and patches from ``bases``; ``label`` keys it in their place."""
        key = label or version
        self.releases[key] = write_release(self.root / key, version, counter, **names)
        for base in (None, *bases):
            package = self.root / f"{base}-{key}.wpatch"
            patch.diff(None if base is None else self.releases[base], self.releases[key], package)
            self.packages[base, key] = package
        self._sign(key, bases)

    def _sign(self, key: str, bases: tuple[str, ...]) -> None:
        manifest = self.manifest(key)
        self.trust.sign_release(SignedRelease.of(manifest))
        signed: list[SignedPackage] = []
        for base in (None, *bases):
            package, source = self.packages[base, key], None if base is None else self.manifest(base).sha256
            info, sha256 = patch.inspect(package), sha256_file(package)
            pins = (info.package_bytes, info.header_length, info.header_sha256, manifest.sha256, source)
            signed.append(SignedPackage(sha256, *pins))
        self.trust.add_packages(signed)

    def manifest(self, key: str) -> Manifest:
        return Manifest.read(self.releases[key])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """v1.2, v1.3 and v1.4, with every forward patch."""
    root = tmp_path_factory.mktemp("world")
    world = World(root, Repository.open(root / "trust", clock=BEGINNING.timestamp))
    world.add("v1.2", 12)
    world.add("v1.3", 13, "v1.2")
    world.add("v1.4", 14, "v1.2", "v1.3")
    return world


class Hub:
    """Offers ``target`` to whoever may have it, and keeps what it is told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.target: str | None = None
        self.requests: list[UpdateRequest] = []
        self.reports: list[dict[str, Any]] = []
        self.control: Any = "continue"
        self.lost_answers = 0
        self.change: Callable[[UpdateAnswer], UpdateAnswer] = lambda answer: answer
        self.files = {sha256_file(path): path for path in world.packages.values()}

    def check(self, request: UpdateRequest) -> UpdateAnswer:
        self.requests.append(request)
        target = self.target
        if target is None or target in request.failed or request.current_version == target:
            return UpdateAnswer(False)
        return self.change(self.offer(request.current_version, target))

    def offer(self, current: str | None, target: str) -> UpdateAnswer:
        manifest = self.world.manifest(target)
        full = self._pin(None, target)
        common = {
            "need_update": True,
            "target_version": manifest.version,
            "manifest": release_path(manifest.model, manifest.variant, manifest.version),
            "manifest_sha256": manifest.sha256,
            "counter": manifest.counter,
            "rollout_id": "r1",
            "attempt_id": f"a{len(self.requests)}",
        }
        if (current, target) not in self.world.packages or current is None:
            return UpdateAnswer.from_json(common | {"kind": "full"} | full)
        extra = {"full_url": full.pop("download_url")} | {f"full_{key}": full[key] for key in full}
        return UpdateAnswer.from_json(common | {"kind": "patch"} | self._pin(current, target) | extra)

    def _pin(self, current: str | None, target: str) -> dict[str, Any]:
        package = self.world.packages[current, target]
        info, sha256 = patch.inspect(package), sha256_file(package)
        return {
            "download_url": f"/v1/model/packages/{sha256}.wpatch",
            "sha256": sha256,
            "size": info.package_bytes,
            "header_length": info.header_length,
            "header_sha256": info.header_sha256,
        }

    def record(self, batch: EventBatch) -> EventAnswer:
        self.reports += [event.to_json() for event in batch.events]
        if self.lost_answers:
            self.lost_answers -= 1
            raise NetworkError("the answer was lost on its way")
        return EventAnswer(tuple(event.event_id for event in batch.events), self.control)

    def package(self, sha256: str) -> Path:
        return self.files[sha256]

    def metadata(self, name: str) -> bytes:
        return self.world.trust.read(name)

    @property
    def transport(self) -> LocalTransport:
        return LocalTransport(
            check=lambda request: self.check(request),
            report=lambda batch: self.record(batch),
            package=lambda sha256: self.package(sha256),
            metadata=lambda name: self.metadata(name),
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was told, each event once."""
        return list({event["event_id"]: event for event in self.reports}.values())

    def outcomes(self) -> list[tuple[str, str | None, str | None]]:
        """(result, version, code) of the events that end an attempt."""
        return [(e["result"], e.get("to"), e.get("code")) for e in self.events if e["result"] != "progress"]


@pytest.fixture
def hub(world: World) -> Hub:
    """A hub that offers nothing yet."""
    return Hub(world)


class StillClock(Clock):
    """A clock that moves only when told to, or when someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self.seconds - 1000)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> StillClock:
    """A clock that the test moves."""
    return StillClock()


@dataclass
class Report:
    """A self-test's report."""

    ok: bool = True
    failures: tuple[str, ...] = ()
    score: float = 1.0
    first_token_s: float = 0.25
    tokens_per_s: float = 12.0
    peak_memory_bytes: int = 1 << 20


class Runtime:
    """Serves versions instead of a model; ``faults`` maps a method's name to what it raises."""

    def __init__(self, serving: str | None) -> None:
        self.serving, self.previous = serving, None
        self.calls: list[str] = []
        self.report = Report()
        self.live_report = Report()
        self.faults: dict[str, Exception] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.faults:
            raise self.faults[name]

    def stage(self, directory: Path) -> str:
        self._call("stage")
        manifest = Manifest.read(directory)
        manifest.verify(directory)
        return manifest.version

    def self_test(self, staged: str) -> Report:
        self._call("self_test")
        return self.report

    def swap(self, staged: str) -> SimpleNamespace:
        self._call("swap")
        self.serving, self.previous = staged, self.serving
        return SimpleNamespace(pause_s=0.01)

    def discard(self, staged: str) -> None:
        self._call("discard")

    def rollback(self) -> None:
        self._call("rollback")
        self.serving, self.previous = self.previous, None

    def release_previous(self) -> None:
        self._call("release_previous")
        self.previous = None

    def live_self_test(self) -> Report:
        self._call("live_self_test")
        return self.live_report


@dataclass
class Lab:
    """Opens updaters on one data directory, as one start of the app after the other."""

    root: Path
    hub: Hub
    clock: StillClock
    settings: UpdateSettings = field(
        default_factory=lambda: UpdateSettings(chunk_bytes=1 << 16, trial_answers=2, trial_minutes=10)
    )
    opened: list[Updater] = field(default_factory=list[Updater])

    def open(self, **more: Any) -> Updater:
        for updater in self.opened:
            updater.close()
        arguments: dict[str, Any] = {
            "transport": self.hub.transport,
            "trust_root": self.hub.world.trust.root,
            "device_id": "d1",
            "settings": self.settings,
            "clock": self.clock,
            "random_source": random.Random(1),
        }
        updater = Updater(self.root, **(arguments | more))
        self.opened.append(updater)
        return updater

    def install(self, version: str) -> Updater:
        """Install and confirm a release, then start anew."""
        self.hub.target = version
        updater = self.open()
        assert updater.update().kind == "updated"
        updater = self.open()
        self.prove(updater)
        assert updater.status().confirmed
        self.hub.reports.clear()
        return updater

    def prove(self, updater: Updater) -> None:
        """Answer well for long enough."""
        for _ in range(self.settings.trial_answers):
            updater.answered(True)
        self.clock.seconds += self.settings.trial_minutes * 60
        updater.tick()

    def change(self, **settings: Any) -> None:
        self.settings = replace(self.settings, **settings)


@pytest.fixture
def lab(hub: Hub, clock: StillClock) -> Iterator[Lab]:
    """A device with nothing on it, in memory where the system has such a place: its syncs are many."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:
        lab = Lab(Path(root) / "device", hub, clock)
        yield lab
        for updater in lab.opened:
            updater.close()


@pytest.fixture
def make_runtime() -> Callable[[str | None], Runtime]:
    """Make a runtime that serves a version."""
    return Runtime


@pytest.fixture
def release_writer() -> Callable[..., Path]:
    """Write a release directory."""
    return write_release

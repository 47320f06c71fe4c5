"""Lives of a device for the sweeps: what it begins with, what it does, and how it must end, whatever happens.

A life is one run of the app from its start on. It may be cut off anywhere; the next one does the same and
must come to the same end. Everything on the device's side is real; the hub decides as in ``conftest.py``
and writes down, where nobody cuts it off, what it is told.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from autoglm.device import FileRuntime, LocalTransport, Updater, UpdateSettings
from autoglm.device.clock import Clock
from autoglm.device.slots import read_current
from autoglm.device.transport import FileBody
from autoglm.errors import NetworkError, NotFoundError
from autoglm.releases import EventAnswer, EventBatch, Manifest
from autoglm.trust.authority import Authority
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import Repository
from autoglm.trust.shelf import Picture, Shelf
from device.conftest import BEGINNING, Hub, World

SETTINGS = UpdateSettings(chunk_bytes=4096, trial_answers=1, tries=40, retries=2)
CUT_AFTER = 6000


class FastClock(Clock):
    """Time passes when the trial needs it to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class CutBody(FileBody):
    """A package whose connection breaks off after a while."""

    def chunks(self) -> Iterator[bytes]:
        content = b"".join(super().chunks())
        yield content[:CUT_AFTER]
        if len(content) > CUT_AFTER:
            raise NetworkError("the line was cut")


class Line(LocalTransport):
    """The way to the hub, with a package line that is cut now and then."""

    def fetch(self, url: str, offset: int, etag: str | None = None, /) -> FileBody:
        body = super().fetch(url, offset, etag)
        body.close()
        return CutBody(Path(body._file.name), offset)


class Records(Hub):
    """A hub whose metadata is a picture taken before, and whose reports go to a file that survives."""

    def __init__(self, world: World, metadata: dict[str, bytes], log: Path) -> None:
        super().__init__(world)
        self._signed, self._log = metadata, log
        self.heard: Callable[[str], None] = lambda text: None

    def metadata(self, name: str) -> bytes:
        if name not in self._signed:
            raise NotFoundError(name)
        return self._signed[name]

    def record(self, batch: EventBatch) -> EventAnswer:
        for event in batch.events:
            self.note(json.dumps(event.to_json()))
        return super().record(batch)

    def note(self, text: str) -> None:
        """Keep one report for good, as the hub's database does."""
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, text.encode() + b"\n")
        os.close(log)
        self.heard(text)

    @property
    def transport(self) -> Line:
        return Line(check=self.check, report=self.record, package=self.package, metadata=self.metadata)


class Detour(Records):
    """A hub whose patch is rotten: the device must find its way by the full package."""

    def package(self, sha256: str) -> Path:
        path = super().package(sha256)
        patches = [self.world.packages[key] for key in self.world.packages if key[0] is not None]
        if path not in patches:
            return path
        rotten = self._log.with_name("rotten")
        rotten.write_bytes(bytes(path.stat().st_size))
        return rotten


@dataclass
class Phone:
    """One device, start after start."""

    root: Path
    hub: Records
    clock: FastClock = field(default_factory=FastClock)

    def open(self) -> Updater:
        return Updater(
            self.root,
            transport=self.hub.transport,
            trust_root=self.hub.metadata("1.root.json"),
            device_id="d1",
            settings=SETTINGS,
            clock=self.clock,
            random_source=random.Random(1),
        )

    def prove(self, updater: Updater, ok: bool = True) -> None:
        updater.answered(ok)
        self.clock.seconds += 3600
        updater.tick()
        updater.tick()


Live = Callable[[Phone], None]


def updates(phone: Phone) -> None:
    """Update, be started anew during the trial, answer well, be confirmed."""
    for _ in range(2):
        with phone.open() as updater:
            require_whole(phone.root)
            result = updater.update(FileRuntime())
            assert result.kind in ("updated", "none", "failed") or result.code == "E_TRIAL", result
            if result.kind == "updated":
                # As if the app were killed: the trial goes on at the next start.
                updater.close(in_order=False)
            else:
                phone.prove(updater)


def arrives(phone: Phone) -> None:
    """The same for a phone with nothing on it."""
    with phone.open() as updater:
        result = updater.update(FileRuntime())
        assert result.kind in ("updated", "none", "failed") or result.code == "E_TRIAL", result
    with phone.open() as updater:
        phone.prove(updater)


def falls_back(phone: Phone) -> None:
    """Update to a release whose first live answer fails."""
    with phone.open() as updater:
        require_whole(phone.root)
        result = updater.update(FileRuntime())
        assert result.kind in ("updated", "none", "failed") or result.code in ("E_TRIAL", "E_QUARANTINED")
        phone.prove(updater, ok=False)


def rolls_back(phone: Phone) -> None:
    """Go back by hand."""
    with phone.open() as updater:
        require_whole(phone.root)
        if updater.status().current == "v1.2":
            updater.rollback(FileRuntime())
        updater.tick()


@dataclass(frozen=True)
class Story:
    """What a device begins with, does, and ends with.

    Attributes:
        begins: ``v1.2`` or ``nothing``.
        target: what the hub offers.
        live: one life.
        ends: current, previous, quarantined.
        result: of the one event that ends the attempt.
        hub: how the hub behaves.
    """

    begins: str
    target: str | None
    live: Live
    ends: tuple[str, str | None, tuple[str, ...]]
    result: tuple[str, str, str | None]
    hub: type[Records] = Records


STORIES = {
    "update": Story("v1.2", "v1.3", updates, ("v1.3", "v1.2", ()), ("ok", "v1.3", None)),
    "detour": Story("v1.2", "v1.3", updates, ("v1.3", "v1.2", ()), ("ok", "v1.3", None), Detour),
    "arrival": Story("nothing", "v1.3", arrives, ("v1.3", None, ()), ("ok", "v1.3", None)),
    "failure": Story("v1.2", "v1.3", falls_back, ("v1.2", None, ("v1.3",)), ("fail", "v1.3", "E_HEALTH")),
    "rollback": Story("v1.2", None, rolls_back, ("v1.1", None, ("v1.2",)), ("fail", "v1.2", "E_ROLLBACK")),
}


@dataclass(frozen=True)
class Stage:
    """Everything that the stories need, made once.

    Attributes:
        old, new: signed metadata before and after v1.3, between which every role's version and the root's
            keys changed.
    """

    root: Path
    world: World
    old: dict[str, bytes]
    new: dict[str, bytes]

    @property
    def phone(self) -> Path:
        """Where the device of a story lives."""
        return self.root / "phone"

    @property
    def reports(self) -> Path:
        """What the hub was told, one event a line."""
        return self.root / "reports"

    def template(self, story: Story) -> Path:
        return self.root / f"begins-{story.begins}"

    def set(self, story: Story) -> None:
        """Put the device where the story begins."""
        shutil.rmtree(self.phone, ignore_errors=True)
        self.reports.unlink(missing_ok=True)
        copy_tree(self.template(story), self.phone)

    def hub(self, story: Story) -> Records:
        hub = story.hub(self.world, self.new, self.reports)
        hub.target = story.target
        return hub

    def live(self, story: Story) -> None:
        """Live one life."""
        story.live(Phone(self.phone, self.hub(story)))

    def require_end(self, story: Story) -> None:
        """Check that the last life brought the story to its end, and left nothing lying about."""
        with Phone(self.phone, self.hub(story)).open() as updater:
            status = updater.status()
        assert (status.current, status.previous, status.quarantined) == story.ends, status
        assert (status.state, status.confirmed) == ("IDLE", True), status
        assert list((self.phone / "staging").iterdir()) == []
        versions = [version for version in story.ends[:2] if version is not None]
        manifests = [Manifest.read(self.phone / f"releases/nano-{version}") for version in versions]
        wanted = {file.sha256 for manifest in manifests for file in manifest.files}
        assert {path.name for path in (self.phone / "objects").iterdir()} == wanted
        assert {path.name for path in (self.phone / "releases").iterdir()} == {m.folder for m in manifests}
        assert not [*self.phone.rglob(".tmp-*"), *self.phone.rglob("tmp*")]
        self.require_reported(story)

    def require_reported(self, story: Story) -> None:
        """Check that the hub knows the outcome, and knows it once."""
        told = [json.loads(line) for line in self.reports.read_text().splitlines()]
        events = {event["event_id"]: event for event in told}.values()
        outcomes = [(e["result"], e["to"], e.get("code")) for e in events if e["result"] != "progress"]
        assert outcomes == [story.result], outcomes


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree whose files may be names of one another."""
    seen: dict[int, Path] = {}
    target.mkdir()
    for parent, folders, names in os.walk(source):
        here = target / Path(parent).relative_to(source)
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink():
                (here / name).symlink_to(path.readlink())
            elif path.is_dir():
                (here / name).mkdir()
            elif (inode := path.stat().st_ino) in seen:
                (here / name).hardlink_to(seen[inode])
            else:
                (here / name).write_bytes(path.read_bytes())
                seen[inode] = here / name


def require_whole(root: Path, *, may_be_empty: bool = False) -> str | None:
    """Check that the release to load is there, byte for byte; return its version."""
    now = read_current(root)
    if may_be_empty and not (root / "current.json").exists():
        return None
    assert now is not None, "current.json is damaged"
    if now.current is None:
        assert may_be_empty, "no release is left"
        return None
    directory = root / "releases" / now.current.folder
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    assert manifest.sha256 == now.current.manifest_sha256
    assert manifest.version in ("v1.1", "v1.2", "v1.3")
    return manifest.version


def require_safe(stage: Stage, story: Story) -> None:
    """Check what an accident left, before anything is repaired."""
    version = require_whole(stage.phone, may_be_empty=story.begins == "nothing")
    assert version in (None, story.begins, story.ends[0], story.target), version


def prepare(root: Path) -> Stage:
    """Make the releases, what is signed about them, and the devices that the stories begin with."""
    trust = Repository.open(root / "trust", clock=BEGINNING.timestamp)
    world = World(root / "world", trust)
    world.root.mkdir()
    world.add("v1.1", 11)
    world.add("v1.2", 12, "v1.1")
    old = _picture(trust)
    stage = Stage(root, world, old, old)
    (root / "begins-nothing").mkdir()
    _install(stage, root / "begins-v1.2", "v1.1", "v1.2")
    _rotate_root(trust)
    world.add("v1.3", 13, "v1.1", "v1.2")
    return Stage(root, world, old, _picture(trust))


def _picture(trust: Repository) -> dict[str, bytes]:
    trust.read("timestamp.json")
    return {path.name: path.read_bytes() for path in (trust.directory / "metadata").iterdir()}


def _rotate_root(trust: Repository) -> None:
    keys = trust.directory / "keys"
    authority = Authority(Picture.published(Shelf(trust.directory / "metadata")), KeyRing([keys]), BEGINNING)
    trust.accept(authority.replace_keys("root", keys))


def _install(stage: Stage, root: Path, *versions: str) -> None:
    hub = Records(stage.world, stage.old, stage.root / "early-reports")
    phone = Phone(root, hub)
    for version in versions:
        hub.target = version
        with phone.open() as updater:
            assert updater.update(FileRuntime()).kind == "updated"
            phone.prove(updater)
            assert updater.status().confirmed
    with suppress(FileNotFoundError):
        (root / "lock").unlink()

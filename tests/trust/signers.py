"""A hub's repository, an operator with keys of his own, devices that read through anything, and a thief."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from autoglm.errors import NotFoundError
from autoglm.trust import documents
from autoglm.trust.authority import Authority
from autoglm.trust.client import MetadataClient, Verified
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import Repository
from autoglm.trust.roles import TIMESTAMP_NAME, metadata_name
from autoglm.trust.shelf import Picture, Shelf
from autoglm.trust.targets import SignedPackage, SignedRelease

MODEL = ("autoglm-phone-9b", "nano-int8")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def release(version: str, counter: int, **more: object) -> SignedRelease:
    return SignedRelease(*MODEL, version, sha256(f"manifest {version}"), 500, counter, **more)  # type: ignore[arg-type]


def package(name: str, version: str, base: str | None = None) -> SignedPackage:
    output, source = sha256(f"manifest {version}"), None if base is None else sha256(f"manifest {base}")
    return SignedPackage(sha256(name), 1000, 50, sha256(f"head {name}"), output, source)


@dataclass
class Clock:
    """Seconds since 1970, moved by the test."""

    time: datetime = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

    def __call__(self) -> float:
        return self.time.timestamp()

    def now(self) -> datetime:
        return self.time

    def advance(self, **duration: float) -> None:
        self.time += timedelta(**duration)


@dataclass
class Device:
    """One device: its directory, and what it reads through."""

    directory: Path
    read: Callable[[str, int], bytes]
    clock: Clock
    root: bytes | None
    fetched: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def client(self) -> MetadataClient:
        def read(name: str, limit: int) -> bytes:
            content = self.read(name, limit)
            self.fetched.append((name, len(content)))
            return content

        self.directory.mkdir(exist_ok=True)
        return MetadataClient(
            self.cache, self.directory / "floor.json", read=read, root=self.root, now=self.clock.now
        )

    def refresh(self) -> Verified:
        """One start of the app and one refresh."""
        return self.client().refresh()

    @property
    def cache(self) -> Path:
        return self.directory / "tuf"

    def zero_the_cache(self) -> None:
        """Leave the cache as a power cut leaves files that were never synced: there, and empty."""
        for path in self.cache.rglob("*"):
            if path.is_file() and path.name != "bootstrap":
                target = path.resolve()
                target.write_bytes(b"\0" * target.stat().st_size)


@dataclass
class Lab:
    """A hub whose offline keys lie with an operator, and devices that know its root."""

    root: Path
    clock: Clock
    repository: Repository

    @property
    def room(self) -> Path:
        """The operator's directory."""
        return self.root / "room"

    @property
    def metadata(self) -> Path:
        return self.repository.directory / "metadata"

    def authority(self, *places: Path) -> Authority:
        """The operator, before a copy of what the hub has."""
        picture = Picture.published(Shelf(self.metadata))
        return Authority(picture, KeyRing([self.room / "keys", *places]), self.clock.now())

    def publish(self, *releases: SignedRelease) -> None:
        for each in releases:
            self.repository.accept(self.authority().sign_release(each))

    def device(self, name: str = "phone", read: Callable[[str, int], bytes] | None = None) -> Device:
        through = read or (lambda name, _limit: self.repository.read(name))
        return Device(self.root / name, through, self.clock, self.first_root)

    @property
    def first_root(self) -> bytes:
        return (self.metadata / "1.root.json").read_bytes()

    def copy(self) -> dict[str, bytes]:
        """Everything that the hub serves now, for a thief or a replay."""
        return {path.name: path.read_bytes() for path in self.metadata.iterdir()}


def reader(files: dict[str, bytes]) -> Callable[[str, int], bytes]:
    """Serve these files and nothing else."""

    def read(name: str, _limit: int) -> bytes:
        if name not in files:
            raise NotFoundError(name)
        return files[name]

    return read


class Thief:
    """Holds stolen keys and serves what he likes."""

    def __init__(self, lab: Lab, *roles: str) -> None:
        self.lab, self.files = lab, lab.copy()
        stolen = lab.root / "stolen"
        stolen.mkdir(exist_ok=True)
        for role in roles:
            for path in (lab.repository.directory / "online").glob(f"{role}-*.pem"):
                (stolen / path.name).write_bytes(path.read_bytes())
        self.ring = KeyRing([stolen])

    def signers(self, role: str) -> list[documents.Signer]:
        picture = Picture.published(Shelf(self.lab.metadata))
        return self.ring.signers(documents.role_of(picture.root, picture.targets, role).keyids)

    def forge(self, versions: dict[str, int], snapshot: int, timestamp: int) -> None:
        """Sign a snapshot of these versions and a timestamp, far into the future."""
        until = self.lab.clock.now() + timedelta(days=3650)
        signed = documents.new_snapshot(snapshot, versions, until)
        self.files[metadata_name("snapshot", snapshot)] = documents.sign(signed, self.signers("snapshot"))
        stamp = documents.new_timestamp(timestamp, snapshot, until, self.lab.clock.now())
        self.files[TIMESTAMP_NAME] = documents.sign(stamp, self.signers("timestamp"))

    @property
    def read(self) -> Callable[[str, int], bytes]:
        return reader(self.files)

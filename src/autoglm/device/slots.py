"""The releases on a device: which one to load, which one to go back to, and what is quarantined.

What it guarantees: ``current.json`` is the only commit point, replaced whole and durably; a release
directory appears under ``releases/`` only when it is complete; content lives once, under
``objects/<sha256>``, and the releases link to it. It never judges a release: that is done above.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from autoglm import files
from autoglm.errors import ConflictError, FormatError, IntegrityError, ManifestError, StorageError
from autoglm.releases import Manifest, canonical_json, is_name
from autoglm.trust import floor

MAX_QUARANTINED = 32
MAX_ROTTEN = 1000
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Slot:
    """One installed release: its directory name under ``releases/`` and its identity."""

    folder: str
    manifest_sha256: str


@dataclass(frozen=True)
class Current:
    """The content of ``current.json``.

    Attributes:
        current: the release to load, None before the first one.
        previous: the release to go back to.
        confirmed: whether the current one has proved itself.
        tries_left: starts left for it before the previous one is loaded instead.
    """

    current: Slot | None = None
    previous: Slot | None = None
    confirmed: bool = True
    tries_left: int = 0


@dataclass(frozen=True)
class Quarantined:
    """A release that failed on this device and is not installed again."""

    version: str
    manifest_sha256: str
    code: str
    at: str


def read_json(path: Path) -> Any:
    """Return the JSON in a small file of ours, or None when it is missing or damaged."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_JSON_BYTES))
        canonical_json(value)  # what cannot be written again, such as half a character, we did not write
        return value
    except (OSError, ValueError, RecursionError):
        return None


def read_current(root: Path) -> Current | None:
    """Return what ``current.json`` says, or None when it is missing or damaged."""
    value = read_json(root / "current.json")
    try:
        current, previous = (_read_slot(value[key]) for key in ("current", "previous"))
        confirmed, tries_left = value["confirmed"], value["tries_left"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(confirmed, bool) or not isinstance(tries_left, int):
        return None
    if current is None and (previous is not None or not confirmed):
        return None  # nothing leads there: whoever wrote it, a device that believed it would wait for ever
    return Current(current, previous, confirmed, tries_left)


def _read_slot(value: Any) -> Slot | None:
    if value is None:
        return None
    folder, sha256 = value["folder"], value["manifest_sha256"]
    if not isinstance(folder, str) or not files.safe_relative_path(folder) or not files.is_sha256(sha256):
        raise ValueError("no slot")
    return Slot(folder, sha256)


def read_quarantine(root: Path) -> tuple[Quarantined, ...]:
    """Return what is quarantined, oldest first; a damaged list counts as empty."""
    try:
        entries = [Quarantined(**entry) for entry in read_json(root / "quarantine.json")["releases"]]
    except (TypeError, KeyError):
        return ()
    return tuple(entry for entry in entries if is_name(entry.version))[-MAX_QUARANTINED:]


def read_rotten(root: Path) -> frozenset[str]:
    """Return the hashes of files that were found changed on the disk; a damaged list counts as empty."""
    try:
        return frozenset(text for text in read_json(root / "rotten.json")["files"] if files.is_sha256(text))
    except (TypeError, KeyError):
        return frozenset()


class Slots:
    """The releases under one data directory, whose lock the caller holds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects, self.releases, self.staging = (root / n for n in ("objects", "releases", "staging"))
        for directory in (self.objects, self.releases, self.staging):
            files.make_directory(directory)
            files.remove_temporaries(directory)
        files.remove_temporaries(root)
        self.now = read_current(root) or Current()
        self.quarantined = read_quarantine(root)
        self.rotten = read_rotten(root)
        self.floor_path = root / "floor.json"
        self.read_floor()

    def read_floor(self) -> None:
        """Take in what signed metadata has forbidden for good."""
        self.floor = floor.read_floor(self.floor_path)

    def is_forbidden(self, manifest: Manifest) -> bool:
        """Tell whether a release was called back, or is older than a signed release still allows."""
        return manifest.sha256 in self.floor.revoked or manifest.counter < self.floor.min_counter

    # -- what is there ------------------------------------------------------------------------------

    @property
    def active(self) -> Path | None:
        """The directory of the current release."""
        return None if self.now.current is None else self.releases / self.now.current.folder

    def directory(self, slot: Slot) -> Path:
        """Return where a release lies."""
        return self.releases / slot.folder

    def manifest(self, slot: Slot | None) -> Manifest | None:
        """Return the manifest of an installed release, or None when it is missing, damaged or another."""
        if slot is None:
            return None
        try:
            manifest = Manifest.read(self.directory(slot))
        except ManifestError:
            return None
        return manifest if manifest.sha256 == slot.manifest_sha256 else None

    def looks_intact(self, slot: Slot | None) -> bool:
        """Tell, without reading gigabytes, whether every file is there with its size."""
        manifest = self.manifest(slot)
        if slot is None or manifest is None:
            return False
        paths = ((self.directory(slot) / file.path, file.size) for file in manifest.files)
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def find(self, manifest_sha256: str) -> tuple[Slot, Manifest] | None:
        """Return the installed release of this identity, if there is one."""
        for folder in sorted(path.name for path in self.releases.iterdir()):
            slot = Slot(folder, manifest_sha256)
            if (manifest := self.manifest(slot)) is not None:
                return slot, manifest
        return None

    def may_fall_back(self) -> bool:
        """Tell whether the previous release is there, whole, and still allowed by the current one."""
        current, previous = self.manifest(self.now.current), self.manifest(self.now.previous)
        if previous is None or not self.looks_intact(self.now.previous) or self.is_forbidden(previous):
            return False
        if self.is_rotten(self.now.previous):
            return False
        return current is None or previous.counter >= current.min_counter

    def is_rotten(self, slot: Slot | None) -> bool:
        """Tell whether a file of a release was found changed, and still is."""
        manifest = self.manifest(slot) if self.rotten else None
        if slot is None or manifest is None:
            return False
        suspects = [file for file in manifest.files if file.sha256 in self.rotten]
        return any(not _verifies(self.directory(slot) / f.path, f.size, f.sha256) for f in suspects)

    # -- changes ------------------------------------------------------------------------------------

    def admit(self, directory: Path, manifest: Manifest) -> Slot:
        """Move a verified release from the staging area to its place; one that is in use is made whole.

        Raises:
            ConflictError: another release of the same name is in use.
            StorageError: the disk refused.
        """
        slot = Slot(manifest.folder, manifest.sha256)
        target = self.directory(slot)
        if slot in self._in_use() and self.manifest(slot) is not None:
            self._refresh(directory, manifest)
            return slot
        if target.exists():
            if slot.folder in {used.folder for used in self._in_use()}:
                raise ConflictError(f"another release is in use under the name {slot.folder}")
            files.remove(target)
        for file in manifest.files:
            self._adopt(directory / file.path, file.sha256)
        files.sync_directory(self.objects)
        files.publish_tree(directory, target)
        return slot

    def _refresh(self, directory: Path, manifest: Manifest) -> None:
        """Replace each file of an installed release, and of the other one that shares it, by a fresh copy."""
        for file in manifest.files:
            self._adopt(directory / file.path, file.sha256)
        files.sync_directory(self.objects)
        for slot in self._in_use():
            other = self.manifest(slot)
            for file in () if other is None else other.files:
                place, kept = self.directory(slot) / file.path, self.objects / file.sha256
                if kept.exists() and not (place.exists() and place.samefile(kept)):
                    files.replace_by_link(kept, place)
        files.remove(directory)
        self._note_rotten(frozenset())

    def _adopt(self, path: Path, sha256: str) -> None:
        """Make ``objects/<sha256>`` a name of the verified file ``path``, whatever lay there before."""
        kept = self.objects / sha256
        if kept.exists() and not kept.samefile(path):
            files.remove(kept)  # the same content, or rotten: the file at hand has just been verified
        files.link_file(path, kept)

    def commit(self, slot: Slot, *, tries: int) -> None:
        """Make ``slot`` the release to load, on trial: the only commit point of an update."""
        self._store(Current(slot, self.now.current, confirmed=False, tries_left=tries))

    def confirm(self) -> None:
        """Record that the current release has proved itself."""
        self._store(replace(self.now, confirmed=True, tries_left=0))

    def set_tries(self, tries: int) -> None:
        """Record how many starts the release on trial has left."""
        if tries != self.now.tries_left:
            self._store(replace(self.now, tries_left=tries))

    def fall_back(self) -> None:
        """Make the previous release the one to load; none, when it is not there or not allowed."""
        slot = self.now.previous if self.may_fall_back() else None
        self._store(Current(slot, None, confirmed=True))

    def choose_again(self) -> None:
        """Find a release to load when ``current.json`` was lost: the oldest one that is whole and allowed."""
        allowed = (found for found in self._whole() if not self.is_forbidden(found[1]))
        whole = sorted(allowed, key=lambda found: found[1].counter)
        self._store(Current(whole[0][0] if whole else None))

    def forget_previous(self) -> None:
        """Go without a release to fall back to: the one there is no good."""
        self._store(replace(self.now, previous=None))

    def mark_rotten(self, sha256: str) -> None:
        """Remember that a file of this hash was found changed on the disk."""
        self._note_rotten(self.rotten | {sha256})

    def _note_rotten(self, hashes: frozenset[str]) -> None:
        if hashes != self.rotten:
            body = {"files": sorted(hashes)[:MAX_ROTTEN]}
            files.write_durably(self.root / "rotten.json", canonical_json(body))
            self.rotten = hashes

    def quarantine(self, version: str, manifest_sha256: str, code: str, at: datetime) -> None:
        """Keep a failed release from being installed again."""
        entry = Quarantined(version, manifest_sha256, code, at.isoformat(timespec="seconds"))
        others = [e for e in self.quarantined if e.manifest_sha256 != manifest_sha256]
        kept = (*others, entry)[-MAX_QUARANTINED:]
        body = {"releases": [asdict(entry) for entry in kept]}
        files.write_durably(self.root / "quarantine.json", canonical_json(body))
        self.quarantined = kept

    def is_quarantined(self, manifest_sha256: str) -> bool:
        """Tell whether this release failed here before."""
        return any(entry.manifest_sha256 == manifest_sha256 for entry in self.quarantined)

    def collect_garbage(self, *, keep_staging: str | None = None, keep_package: str | None = None) -> None:
        """Remove what neither the current nor the previous release, nor an attempt under way, needs."""
        used = self._in_use()
        self._forget_healed()
        needed = {keep_package} | set(self._contents(used))
        for directory in self.releases.iterdir():
            if directory.name not in {slot.folder for slot in used}:
                files.remove(directory)
        for kept in self.objects.iterdir():
            if kept.name not in needed:
                files.remove(kept)
        for directory in self.staging.iterdir():
            if directory.name != keep_staging:
                files.remove(directory)

    def _forget_healed(self) -> None:
        """Drop from the list of rotten files those that no release here has any more."""
        if self.rotten and not any(self.is_rotten(slot) for slot in self._in_use()):
            self._note_rotten(frozenset())

    def _in_use(self) -> list[Slot]:
        return [slot for slot in (self.now.current, self.now.previous) if slot is not None]

    def _contents(self, used: list[Slot]) -> Iterator[str]:
        for slot in used:
            if (manifest := self.manifest(slot)) is not None:
                yield from (file.sha256 for file in manifest.files)

    def _whole(self) -> Iterator[tuple[Slot, Manifest]]:
        for directory in self.releases.iterdir():
            try:
                manifest = Manifest.read(directory)
                manifest.verify(directory)
            except (FormatError, IntegrityError, OSError):
                continue
            if directory.name == manifest.folder:
                yield Slot(manifest.folder, manifest.sha256), manifest

    def _store(self, current: Current) -> None:
        try:
            files.write_durably(self.root / "current.json", canonical_json(asdict(current)))
        except StorageError:
            self.now = read_current(self.root) or self.now  # the rename may have come before the refusal
            raise
        self.now = current


def is_damaged(root: Path) -> bool:
    """Tell whether ``current.json`` is there and cannot be read."""
    return (root / "current.json").exists() and read_current(root) is None


def _verifies(path: Path, size: int, sha256: str) -> bool:
    try:
        files.verify_file(path, size=size, sha256=sha256)
    except (IntegrityError, OSError):
        return False
    return True

"""The hub's signed metadata: kept, served, extended with the online keys, and replaced by what is uploaded.

::

    metadata/        every signed file; timestamp.json names the state that devices see. Several hubs that
                     share one database keep these files there; the directory is then only taken over once
    online/          private keys of snapshot, timestamp and patches, where no other place is named for them
    keys/            private keys of the other roles: only on a machine that made them all by itself
    root.json        the newest root, for whoever on this machine needs one to begin with
    highest.json     the highest versions signed here, to notice an old backup

What it guarantees: ``timestamp.json`` is replaced last, durably, so a crash leaves the old state or the new
one; whatever is uploaded is verified against what was trusted before, whole, before any of it is kept; a
release that was signed never disappears and never changes, but for being revoked.

    >>> repository = Repository.open(data / "trust")                           # doctest: +SKIP
    >>> repository.add_packages([SignedPackage(...)])                          # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tuf.api.metadata import Targets

from autoglm.errors import ConfigError, ConflictError, StorageError
from autoglm.files import make_directory, write_durably
from autoglm.trust import documents
from autoglm.trust.admission import Candidate, admit, is_sound, verify_offline
from autoglm.trust.authority import Authority, Documents
from autoglm.trust.beginning import begin
from autoglm.trust.highest import AHEAD_MINUTES, HIGHEST_NAME, is_behind, note_highest
from autoglm.trust.keys import KeyRing
from autoglm.trust.roles import (
    OFFLINE,
    ONLINE,
    PATCHES,
    RELEASES,
    ROOT,
    RULES,
    SNAPSHOT,
    TIMESTAMP,
    TIMESTAMP_NAME,
    metadata_name,
    owner_of,
    parse_name,
    release_path,
)
from autoglm.trust.shelf import MetadataPlace, Picture, Shelf
from autoglm.trust.targets import SignedPackage, SignedRelease
from autoglm.trust.watch import Watch

_log = logging.getLogger(__name__)

KEEP_SUPERSEDED_S = 3600.0
"""How long replaced files stay: a device in the middle of a check still asks for them."""


class Repository:
    """The metadata of one hub or of several that share it; safe for threads and processes."""

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float],
        shared: MetadataPlace | None = None,
        keys: Path | None = None,
    ) -> None:
        self.directory, self._clock = directory, clock
        self._shelf: MetadataPlace = Shelf(directory / "metadata") if shared is None else shared
        self._online = keys or directory / "online"
        self._ring = KeyRing([self._online, directory / "online", directory / "keys"])
        self._memory = threading.Lock()
        self._mark: object | None = None
        self._seen: Picture | None = None
        self._watch = Watch()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        shared: MetadataPlace | None = None,
        keys: Path | None = None,
    ) -> Self:
        """Open the repository, making all keys and the first metadata where there is none.

        Args:
            directory: of this machine.
            clock: seconds since 1970.
            shared: where the metadata lies when several hubs share it; None keeps it in ``directory``.
            keys: the directory of the online keys; None for ``online`` in ``directory``.

        Raises:
            TrustError: the metadata there is damaged.
            ConfigError: the online keys of shared metadata are not on this machine.
            StorageError: the disk refused.
        """
        repository = cls(directory, clock, shared, keys)
        make_directory(directory)
        with repository._shelf.lock():
            begin(repository._shelf, directory, repository._online, repository._now())
            repository._shelf.tidy()
            repository._recover()
            repository._publish_root()
        if shared is not None:
            repository._require_online()
        if is_behind(directory / HIGHEST_NAME, repository._picture()):
            _log.warning(
                "The signed metadata is older than what this machine has seen: it comes from an old backup. "
                "Its versions are raised; publish and revoke again what came after it (docs/operations.md)"
            )
            repository.leave_behind()
        repository.refresh()
        return repository

    def _require_online(self) -> None:
        """See that this machine can sign what the hub itself signs.

        Raises:
            ConfigError: it cannot.
        """
        picture = self._picture()
        if missing := [role for role in ONLINE if not self._can(picture, role)]:
            raise ConfigError(
                f"the private keys of {', '.join(missing)} are not in {self._online}: every machine needs "
                "the same ones; copy that directory from the first hub, or name it in hub.keys (--keys)"
            )

    def adopt(self) -> None:
        """Make the newest files here the state of devices: a new hub was given what was signed elsewhere.

        Raises:
            TrustError: they do not fit together.
            ConfigError: an online key is not here.
            StorageError: the disk refused.
        """
        make_directory(self.directory)
        with self._shelf.lock():
            newest = Picture.newest(self._shelf)
            verify_offline(newest)
            newest.versions[TIMESTAMP] = Picture.published(self._shelf).versions[TIMESTAMP]
            self._commit(newest, {})

    # -- reading ------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return a metadata file as devices get it; the timestamp is signed again first where that is due.

        Raises:
            NotFoundError: there is none of that name.
            StorageError: it cannot be read.
        """
        if name == TIMESTAMP_NAME:
            self.refresh()
        return self._shelf.read(name)

    @property
    def root(self) -> bytes:
        """The newest root, for devices to begin with."""
        return self._shelf.read(metadata_name(ROOT, self._picture().versions[ROOT]))

    @property
    def holds_release_key(self) -> bool:
        """Whether releases can be signed here, as on a machine that made all keys by itself."""
        return self._can(self._picture(), RELEASES)

    def release(self, model: str, variant: str, version: str) -> SignedRelease | None:
        """Return what is signed about a release."""
        target = self._picture().find(RELEASES, release_path(model, variant, version))
        return None if target is None else SignedRelease.from_target(target)

    def unsigned(self, releases: Iterable[SignedRelease]) -> list[SignedRelease]:
        """Return those of the releases under whose names nothing is signed."""
        picture, by_path = self._picture(), {release.path: release for release in releases}
        paths = picture.by_bin(RELEASES, by_path)
        return [by_path[path] for path in paths if picture.find(RELEASES, path) is None]

    def revoked(self) -> frozenset[str]:
        """Return the identities (SHA-256 of the manifest) of all revoked releases."""
        return self._watch.revoked(self._picture())

    def _picture(self) -> Picture:
        """Return the state that devices see, read again when any process has changed it."""
        with self._memory:
            if (mark := self._shelf.mark()) is None:
                raise StorageError(
                    f"{TIMESTAMP_NAME} is gone from {self._shelf.name}: restore it from a backup"
                )
            if self._seen is None or mark != self._mark:
                self._seen, self._mark = Picture.published(self._shelf), mark
            return self._seen

    # -- writing ------------------------------------------------------------------------------------

    def add_packages(self, packages: Iterable[SignedPackage]) -> None:
        """Sign packages with the patches key; those that are signed already stay as they are.

        Raises:
            ConfigError: the key is not here.
            StorageError: the disk refused; nothing has changed for devices.
        """
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            wanted = {package.path: package.to_target() for package in packages}
            paths = picture.by_bin(PATCHES, wanted)
            new = [wanted[path] for path in paths if picture.find(PATCHES, path) != wanted[path]]
            if new:
                changed = picture.with_entries(PATCHES, new, self._now())
                self._commit(picture, self._signed(picture, PATCHES, changed))

    def sign_release(self, release: SignedRelease) -> None:
        """Sign a release here, on a machine that made all keys by itself.

        Raises:
            ConfigError: the release key is not here.
            ConflictError: another release is signed under its names, or it was revoked.
        """
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            if made := self._authority(picture).sign_release(release):
                self._commit(picture, made)

    def revoke_release(self, model: str, variant: str, version: str) -> None:
        """Call a release back, with the release key of this machine.

        Raises:
            ConfigError: the release key is not here.
            NotFoundError: no such release was signed.
        """
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            if made := self._authority(picture).revoke_release(model, variant, version):
                self._commit(picture, made)

    def accept(self, uploaded: Mapping[str, bytes]) -> list[str]:
        """Take in metadata that was signed elsewhere, all of it or none.

        Args:
            uploaded: signed files by name; those that are here already count as accepted.

        Returns:
            The names of what is new.

        Raises:
            SignatureError, MetadataError, ExpiredError, RollbackError: it is not what may follow.
            ConflictError: it would change or drop a signed release, or the hub lacks a private key for it.
            StorageError: the disk refused; nothing has changed for devices.
        """
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            candidate = admit(picture, uploaded, self._now())
            if candidate.new:
                self._commit(candidate.picture, dict(candidate.new) | self._follow(candidate))
            return sorted(candidate.new)

    def _follow(self, candidate: Candidate) -> Documents:
        """Sign again, with the online keys, what the new metadata asks for."""
        picture = candidate.picture
        for role in ONLINE:
            found = documents.role_of(picture.root, picture.targets, role)
            try:
                self._ring.require(role, list(found.keyids), found.threshold)
            except ConfigError as error:
                raise ConflictError(
                    f"the hub lacks the new private key of {role}: put it into {self._online} "
                    "first, then upload again"
                ) from error
        return self._patches_anew(picture) if candidate.has_new_patches_key else {}

    def _patches_anew(self, picture: Picture) -> Documents:
        delegation = documents.role_of(picture.root, picture.targets, PATCHES)
        keys = [picture.targets.get_key(keyid) for keyid in delegation.keyids]
        delegated = documents.new_delegated(PATCHES, keys, self._now())
        changed = {PATCHES: picture.stamped(delegated, PATCHES, self._now())}
        changed |= {role: picture.next_bin(role, self._now()) for role in picture.bins(PATCHES)}
        return self._signed(picture, PATCHES, changed)

    # -- expiry -------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Sign again what will expire soon, as far as the keys here go; cheap when nothing is due.

        Returns:
            Whether anything was.

        Raises:
            StorageError: the disk refused.
        """
        picture = self._picture()
        if not self._watch.is_time(picture, self._clock()) or not self._due(picture):
            return False
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            due = self._due(picture)
            if due:
                self._commit(picture, self._renewed(picture, due), only_time=due == [TIMESTAMP])
            return bool(due)

    def expiring(self) -> list[tuple[str, datetime]]:
        """Return what should be signed again by keys that are not here, with the time of its expiry."""
        picture = self._picture()
        late = self._watch.late(picture, self._now())
        return [(role, expires) for role, expires in late.items() if not self._can(picture, role)]

    def leave_behind(self) -> list[str]:
        """Sign everything anew, above all versions that devices may have seen before a restore.

        What was published or called back after the backup is not known here and has to be done again.

        Returns:
            The roles and bins that the keys of this machine cannot sign; they are as they were.

        Raises:
            StorageError: the disk refused.
        """
        with self._shelf.lock():
            picture = Picture.published(self._shelf)
            picture.ahead_minutes = AHEAD_MINUTES
            roles = [RELEASES, *picture.bins(RELEASES), PATCHES, *picture.bins(PATCHES)]
            ours = [role for role in roles if self._can(picture, role)]
            self._commit(picture, self._renewed(picture, ours))
        return [role for role in roles if role not in ours]

    def _due(self, picture: Picture) -> list[str]:
        """Return what is due and can be signed here."""
        return [role for role in self._watch.late(picture, self._now()) if self._can(picture, role)]

    def _can(self, picture: Picture, role: str) -> bool:
        found = documents.role_of(picture.root, picture.targets, owner_of(role))
        return sum(self._ring.find(keyid) is not None for keyid in found.keyids) >= found.threshold

    def _renewed(self, picture: Picture, due: Iterable[str]) -> Documents:
        """Sign again what is due; the snapshot and the timestamp follow by themselves."""
        made = self._authority(picture).renew([role for role in due if owner_of(role) in OFFLINE])
        for role in [role for role in due if owner_of(role) == PATCHES]:
            signed = picture.delegated[PATCHES] if role == PATCHES else picture.read_targets(role)
            if signed is not None:
                made |= self._signed(picture, PATCHES, {role: picture.stamped(signed, role, self._now())})
        return made

    # -- the commit ---------------------------------------------------------------------------------

    def _commit(self, picture: Picture, changed: Documents, *, only_time: bool = False) -> None:
        """Keep new files, then sign the snapshot and the timestamp that make them the state of devices.

        A root takes effect by lying there, so it is kept after all that it needs, right before the timestamp.

        Args:
            picture: the state to follow, with the root and versions that will hold.
            changed: signed files by name.
            only_time: sign the timestamp alone.
        """
        named = {name: parse_name(name) or ("", 0) for name in changed}
        roots = {name: changed[name] for name, (role, _) in named.items() if role == ROOT}
        if changed or not only_time:
            picture.versions |= {role: version for role, version in named.values() if role != ROOT}
            picture.versions[SNAPSHOT] = picture.next_version(SNAPSHOT, self._now())
            changed = changed | self._snapshot(picture)
        self._shelf.write({name: content for name, content in changed.items() if name not in roots})
        self._shelf.write(dict(sorted(roots.items(), key=lambda item: named[item[0]])))
        self._shelf.write(self._timestamp(picture))
        self._publish_root()
        note_highest(self.directory / HIGHEST_NAME, picture)
        self._sweep()

    def _snapshot(self, picture: Picture) -> Documents:
        version = picture.versions[SNAPSHOT]
        below = {r: v for r, v in picture.versions.items() if owner_of(r) not in (ROOT, SNAPSHOT, TIMESTAMP)}
        snapshot = documents.new_snapshot(version, below, self._until(SNAPSHOT))
        return {metadata_name(SNAPSHOT, version): documents.sign(snapshot, self._signers(picture, SNAPSHOT))}

    def _timestamp(self, picture: Picture) -> Documents:
        version = picture.versions[TIMESTAMP] = picture.next_version(TIMESTAMP, self._now())
        snapshot = picture.versions[SNAPSHOT]
        timestamp = documents.new_timestamp(version, snapshot, self._until(TIMESTAMP), self._now())
        return {TIMESTAMP_NAME: documents.sign(timestamp, self._signers(picture, TIMESTAMP))}

    def _signed(self, picture: Picture, owner: str, changed: Mapping[str, Targets]) -> Documents:
        signers = self._signers(picture, owner)
        return {
            metadata_name(role, each.version): documents.sign(each, signers) for role, each in changed.items()
        }

    def _signers(self, picture: Picture, role: str) -> list[documents.Signer]:
        found = documents.role_of(picture.root, picture.targets, role)
        return self._ring.require(role, list(found.keyids), found.threshold)

    def _authority(self, picture: Picture) -> Authority:
        return Authority(picture, self._ring, self._now())

    def _recover(self) -> None:
        """Finish a commit that was cut off behind its root; drop what an earlier cut left."""
        published = Picture.published(self._shelf)
        if not is_sound(published):
            newest = Picture.newest(self._shelf)
            newest.versions[TIMESTAMP] = published.versions[TIMESTAMP]
            self._commit(newest, {})
            return
        found = self._shelf.versions().items()
        names = [(role, version) for role, versions in found for version in versions]
        left = [each for each in names if each[1] > published.versions.get(each[0], 0)]
        self._shelf.remove(metadata_name(role, version) for role, version in left)

    def _sweep(self) -> None:
        """Remove replaced files, but for roots, once no device in the middle of a check can want them."""
        replaced = {
            metadata_name(role, version): metadata_name(role, following)
            for role, versions in self._shelf.versions().items()
            if role != ROOT
            for version, following in itertools.pairwise(versions)
        }
        limit, since = self._clock() - KEEP_SUPERSEDED_S, self._shelf.written_at(list(replaced.values()))
        self._shelf.remove(name for name, by in replaced.items() if since[by] < limit)

    def _publish_root(self) -> None:
        path, root = self.directory / "root.json", self._shelf.read(self._newest_root())
        if not path.exists() or path.read_bytes() != root:
            write_durably(path, root)

    def _newest_root(self) -> str:
        return metadata_name(ROOT, self._shelf.versions()[ROOT][-1])

    def _until(self, role: str) -> datetime:
        return (self._now() + RULES[role].lifetime).replace(microsecond=0)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

"""Publishing: a package becomes a release, whole or not at all.

The package is copied where nobody can change it, applied, and everything it makes is verified; only then
are files moved into the store and rows written, in one transaction that is the moment of publication.
Killed at any point before it, the hub is as it was; the next open removes what was left lying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm import files, patch
from autoglm.errors import ConflictError, ManifestError, NotFoundError
from autoglm.hub.audit import LOCAL, Actor, audit
from autoglm.hub.database import Database
from autoglm.hub.decision import StoredPackage
from autoglm.hub.guard import describe
from autoglm.hub.ledger import find_row, queue_packages, requeue_failed, store_package
from autoglm.hub.records import Audience, HubConfig, Publication
from autoglm.hub.rollouts import Draft, put_rollout
from autoglm.hub.signing import Signing
from autoglm.hub.store import Store, objects_of
from autoglm.hub.tables import ReleaseRow
from autoglm.releases import HEALTH_NAME, MANIFEST_NAME, HealthCheck, Manifest


@dataclass(frozen=True)
class _Candidate:
    """A package that was applied and verified, in a workspace.

    Attributes:
        manifest: of the release it makes.
        directory: the release's files.
        file: the package.
        package: its row-to-be.
        base_id: the release it was made against, None for a full package.
        base_sha256: that release's identity.
    """

    manifest: Manifest
    directory: Path
    file: Path
    package: StoredPackage
    base_id: int | None
    base_sha256: str | None


class Publisher:
    """Takes packages in; safe in any number of threads and processes."""

    def __init__(
        self,
        config: HubConfig,
        store: Store,
        database: Database,
        signing: Signing,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._store, self._database, self._clock = config, store, database, clock
        self._signing = signing

    def publish(self, package: Path, audience: Audience | None, actor: Actor = LOCAL) -> Publication:
        """Take a package in and, with an audience, offer it; the same release again changes nothing.

        Raises:
            NotFoundError: no such file, or its base is not in this hub.
            PackageError, BaseMismatchError, IntegrityError, ManifestError: the package is broken.
            ConflictError: the version or counter is taken by another release, or it is of another model.
            SignatureError: no release key has signed it, and none is here; RevokedError: it was called back.
            StorageError: the disk refused; nothing was published.
        """
        try:
            with self._store.workspace() as work:
                candidate = self._examine(package, work)
                self._store.send_release(candidate.manifest, candidate.directory)
                self._store.storage.send(candidate.file, candidate.package.sha256)
                with self._store.lock():
                    return self._register(candidate, audience, work, actor)
        except OSError as error:
            raise files.storage_error(error, f"publishing {package.name}") from error

    def _examine(self, package: Path, work: Path) -> _Candidate:
        held, sha256 = self._store.take(package, work)
        info = patch.inspect(held)
        base_id, base, base_sha256 = self._find_base(info)
        directory = work / "release"
        patch.apply(base, held, directory, link_unchanged=True)
        manifest = Manifest.read(directory)
        manifest.verify(directory)
        self._check(manifest, directory)
        size = held.stat().st_size
        stored = StoredPackage(sha256, size, info.header_length, info.header_sha256)
        return _Candidate(manifest, directory, held, stored, base_id, base_sha256)

    def _find_base(self, info: patch.PackageInfo) -> tuple[int | None, Path | None, str | None]:
        if info.kind == "full":
            return None, None, None
        wanted = [file.sha256 for file in info.base_files if file.path == MANIFEST_NAME]
        if not wanted:
            raise NotFoundError("the package was not made against a release: its base has no manifest.json")
        with self._database.read() as session:
            found = select(ReleaseRow).where(ReleaseRow.manifest_sha256 == wanted[0])
            row = session.scalars(found).one_or_none()
            if row is None:
                raise NotFoundError(
                    f"the package's base, the release with manifest {wanted[0]}, is not in this hub: "
                    "publish that one first, or publish a full package"
                )
            base_id, manifest = row.id, Manifest.from_bytes(row.manifest)
        return base_id, self._store.release_path(manifest), wanted[0]

    def _check(self, manifest: Manifest, directory: Path) -> None:
        ours = (self._config.model, self._config.variant)
        if (manifest.model, manifest.variant) != ours:
            raise ConflictError(
                f"this hub serves {ours[0]} {ours[1]}, the package is of {manifest.model} {manifest.variant}"
            )
        if not manifest.files:
            raise ManifestError("the release has no files")
        if any(file.path == HEALTH_NAME for file in manifest.files):
            HealthCheck.from_bytes((directory / HEALTH_NAME).read_bytes())

    def _register(
        self, candidate: _Candidate, audience: Audience | None, work: Path, actor: Actor
    ) -> Publication:
        """Make files and rows agree, under the store's lock."""
        manifest, now = candidate.manifest, self._clock()
        with self._database.read() as session:
            known = self._known(session, manifest)
            new_package = known is None or self._is_wanted(session, candidate, known.id)
        self._signing.require_release(manifest)
        if new_package:
            self._signing.add_package(candidate.package, manifest.sha256, candidate.base_sha256)
        if known is None:
            self._store.add_release(manifest, candidate.directory, work)
        if new_package:
            self._store.add_object(candidate.file, candidate.package.sha256)
        with self._database.write() as session:
            known = self._known(session, manifest)  # another hub may have been faster
            self._store.storage.require({*objects_of(manifest), candidate.package.sha256})
            release = known or self._new_release(session, manifest, now)
            if new_package:
                store_package(session, candidate.base_id, release.id, candidate.package, now)
            requeue_failed(session, release.id, now)
            queue_packages(session, release, now)
            rollout = None
            if audience is not None:
                draft = Draft(actor=actor)
                rollout = describe(session, put_rollout(session, release, audience, now, draft), now)
            publication = Publication(manifest, known is None, rollout)
            audit(session, actor, "release.publish", manifest.version, publication.to_json(), at=now)
            return publication

    @staticmethod
    def _is_wanted(session: Session, candidate: _Candidate, target_id: int) -> bool:
        row = find_row(session, candidate.base_id, target_id)
        return row is None or row.state != "stored"

    @staticmethod
    def _new_release(session: Session, manifest: Manifest, now: float) -> ReleaseRow:
        row = ReleaseRow(
            model=manifest.model,
            variant=manifest.variant,
            version=manifest.version,
            counter=manifest.counter,
            folder=manifest.folder,
            manifest_sha256=manifest.sha256,
            manifest=manifest.to_bytes(),
            created_at=now,
        )
        session.add(row)
        session.flush()
        return row

    @staticmethod
    def _known(session: Session, manifest: Manifest) -> ReleaseRow | None:
        """Return the row of exactly this release.

        Raises:
            ConflictError: another release stands in its place.
        """
        of_model = (ReleaseRow.model == manifest.model, ReleaseRow.variant == manifest.variant)
        rows = session.scalars(select(ReleaseRow).where(*of_model)).all()
        if same := [row for row in rows if row.manifest_sha256 == manifest.sha256]:
            return same[0]
        version, counter = manifest.version, manifest.counter
        if any(row.version == version for row in rows):
            raise ConflictError(f"{version} is published already with other bytes: choose a new version")
        highest = max(rows, key=lambda row: row.counter, default=None)
        if highest is not None and counter <= highest.counter:
            raise ConflictError(
                f"{version} has the counter {counter}, but {highest.version} has {highest.counter}: "
                f"counters must grow, so give it {highest.counter + 1} or more"
            )
        taken = select(ReleaseRow.model).where(ReleaseRow.folder == manifest.folder)
        if (owner := session.scalars(taken).first()) is not None:
            raise ConflictError(f"the folder {manifest.folder} belongs to a release of {owner}: rename it")
        return None

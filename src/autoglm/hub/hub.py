"""The hub: keeps every release, builds patches between them, and tells each device what is for it.

One object a process, safe in any number of threads, and next to other processes on the same directory.
Everything that it promises is durable before a call returns, but for last-seen times, which follow within
about a second.

    >>> hub = Hub.open(HubConfig(Path("data/hub")))                             # doctest: +SKIP
    >>> hub.publish(Path("v1.2.wpatch"), percent=100).created                   # doctest: +SKIP
    True
    >>> hub.check(UpdateRequest("dev_12345", "v1.1")).target_version            # doctest: +SKIP
    'v1.2'
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from autoglm import files
from autoglm.errors import NotFoundError, PermissionDeniedError
from autoglm.hub.audit import LOCAL, Actor, AuditLog
from autoglm.hub.behind import WriteBehind
from autoglm.hub.decision import Choice, decide
from autoglm.hub.devices import Devices, Sighting
from autoglm.hub.dialects import is_shared
from autoglm.hub.enrolment import Enrolment
from autoglm.hub.fleet import Fleet
from autoglm.hub.ledger import list_packages
from autoglm.hub.links import PACKAGE_PATH, Links
from autoglm.hub.parts import Parts, opened, recover
from autoglm.hub.publication import Publisher
from autoglm.hub.records import (
    Audience,
    Claims,
    Device,
    HubConfig,
    HubInfo,
    PackageRecord,
    Publication,
    Release,
    Rollout,
    RolloutState,
)
from autoglm.hub.rollback import Rollback
from autoglm.hub.rollout_control import RolloutControl, Wanted
from autoglm.hub.signing import Signing
from autoglm.hub.snapshot import SnapshotCache
from autoglm.hub.tables import PackageRow, ReleaseRow
from autoglm.hub.tokens import EMBEDDED_ADMIN, Tokens, ensure_admin_token
from autoglm.releases import EventAnswer, EventBatch, Manifest, UpdateAnswer, UpdateRequest
from autoglm.trust.roles import release_path


class Hub:
    """Releases, packages, roll-outs and devices of one model. Made by :meth:`open`.

    Attributes:
        tokens: who may do what.
        enrolment: registers devices.
        fleet: lists them.
        audit: what was done, by whom.
        links: addresses of packages that work for one device and a short time.
        behind: takes notes of refused attempts.
    """

    def __init__(self, config: HubConfig, parts: Parts, clock: Callable[[], float]) -> None:
        store, database, trust = parts.store, parts.database, parts.trust
        self._config, self._store, self._database, self._clock = config, store, database, clock
        self._signing = Signing(trust, database, clock)
        self._snapshots = SnapshotCache(database, config.model, config.variant, trust.revoked)
        self._publisher = Publisher(config, store, database, self._signing, clock)
        self.links = Links(database, clock)
        self._devices = Devices(database, config.model, config.variant)
        rollback = Rollback(config, store, database, self._publisher, self._signing, clock)
        self._rollouts = RolloutControl(
            config, database, self._devices, self._snapshots, self._signing, rollback, clock
        )
        self.behind = WriteBehind(database, clock)
        self.tokens = Tokens(database, self.behind, clock)
        self.enrolment = Enrolment(database, clock)
        self.fleet = Fleet(database, config.model, config.variant, self._devices.flush)
        self.audit = AuditLog(database, clock)
        self._admin_token = ""

    @classmethod
    def open(cls, config: HubConfig, *, clock: Callable[[], float] = time.time) -> Self:
        """Open a hub: make what is missing, migrate, and clean up after interrupted work.

        Args:
            config: the settings.
            clock: seconds since 1970.

        Raises:
            ConfigError: a setting is wrong.
            StorageError: the directory or the database cannot be used.
            TrustError: the signed metadata is damaged.
        """
        try:
            with opened(config, clock) as parts:
                recover(parts)
                path = parts.store.directory / "admin.token"
                token = ensure_admin_token(parts.database, path, clock(), name=_token_name(config))
        except OSError as error:
            raise files.storage_error(error, f"opening the hub in {config.directory}") from error
        hub = cls(config, parts, clock)
        hub._admin_token = token
        try:
            hub._signing.catch_up()
        except BaseException:
            hub.close()
            raise
        return hub

    def close(self) -> None:
        """Write what waits to be written, and let go of everything.

        Raises:
            StorageError: the database refused.
        """
        try:
            self._devices.close()
        finally:
            try:
                self.behind.close()
            finally:
                self.links.close()
                self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> HubConfig:
        """The settings it was opened with."""
        return self._config

    # Releases and packages

    @contextlib.contextmanager
    def upload(self) -> Generator[Path]:
        """Give a path on the store's disk to write a package to before publishing it.

        The file is removed after the block.

        Raises:
            StorageError: the disk refused.
        """
        with self._store.workspace() as work:
            yield work / "upload.wpatch"

    def publish(
        self,
        package: Path,
        *,
        percent: float | None = None,
        groups: Sequence[str] = (),
        regions: Sequence[str] = (),
        actor: Actor = LOCAL,
    ) -> Publication:
        """Take a ``.wpatch`` in as a release; with any of the keywords, offer it in the same transaction.

        It may take minutes for a large model: never call it on an event loop.

        Args:
            package: a full package, or a patch against a release that is here.
            percent: share of the devices in ``groups`` and ``regions`` that it is offered to.
            groups: any of these; none means all devices.
            regions: any of these; none means all devices.
            actor: who does it, for the audit log.

        Raises:
            ConfigError: a keyword is out of its range.
            NotFoundError: no such file, or its base is not in this hub.
            PackageError, BaseMismatchError, IntegrityError, ManifestError: the package is broken.
            ConflictError: the version or counter is taken, the model is another, or its roll-out is paused.
            SignatureError: no release key has signed it, and none is on this machine.
            RevokedError: it was called back.
            StorageError: the disk refused. After any of these, nothing was published.
        """
        offered = percent is not None or groups or regions
        audience = Audience.of(percent, tuple(groups), tuple(regions)) if offered else None
        self._devices.flush()  # what devices run now decides which patches are built
        return self._publisher.publish(package, audience, actor)

    def releases(self) -> list[Release]:
        """Return all releases, oldest counter first."""
        revoked = self._signing.repository.revoked()
        with self._database.read() as session:
            rows = session.scalars(self._all_releases().order_by(ReleaseRow.counter))
            return [self._as_release(row, revoked) for row in rows]

    def release(self, version: str) -> Release:
        """Return one release.

        Raises:
            NotFoundError: there is none of that version.
        """
        revoked = self._signing.repository.revoked()
        with self._database.read() as session:
            return self._as_release(self._find_release(session, version), revoked)

    def packages(self) -> list[PackageRecord]:
        """Return the ledger: every package that is there or wanted."""
        with self._database.read() as session:
            return list_packages(session, self._config.model, self._config.variant)

    def package_path(self, sha256: str) -> Path:
        """Return a file with a stored package; never any other file of the store.

        With cloud storage it is fetched first, which may take long: see :meth:`package_link`.

        Raises:
            NotFoundError: ``sha256`` is no hash of a package of this hub.
            StorageError: it cannot be fetched.
        """
        self._require_package(sha256)
        return self._store.object_path(sha256)

    def package_link(self, sha256: str) -> str | None:
        """Return an address where anybody may fetch a stored package for a quarter of an hour.

        Returns:
            None where packages lie on this machine.

        Raises:
            NotFoundError: ``sha256`` is no hash of a package of this hub.
            StorageError: no address can be made.
        """
        self._require_package(sha256)
        return self._store.storage.link(sha256)

    def package_stream(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a stored package from ``start`` up to, not including, ``end``.

        Raises:
            NotFoundError: it is not there (any more).
            StorageError: it cannot be read.
        """
        return self._store.storage.stream(sha256, start, end)

    @property
    def is_remote(self) -> bool:
        """Whether packages lie in cloud storage."""
        return self._store.storage.is_remote

    def package_size(self, sha256: str) -> int:
        """Return how many bytes a stored package has.

        Raises:
            NotFoundError: ``sha256`` is no hash of a package of this hub.
        """
        return self._require_package(sha256)

    def _require_package(self, sha256: str) -> int:
        if files.is_sha256(sha256):
            stored = (PackageRow.sha256 == sha256, PackageRow.state == "stored")
            with self._database.read() as session:
                if (size := session.scalars(select(PackageRow.size).where(*stored)).first()) is not None:
                    return size
        raise NotFoundError(f"there is no package {sha256[:80]!r}")

    @property
    def trust(self) -> Signing:
        """What is signed here: the metadata that devices read, and what is uploaded to it."""
        return self._signing

    def revoke_release(self, version: str, actor: Actor = LOCAL) -> Release:
        """Call a release back with the release key of this machine: it is never installed again.

        Raises:
            NotFoundError: there is no such release.
            SignatureError: the release key is not on this machine.
            StorageError: the disk refused.
        """
        self._signing.revoke(self.release(version).manifest, actor)
        return self.release(version)

    def info(self) -> HubInfo:
        """Return the hub at a glance."""
        snapshot = self._snapshots.current()
        newest = max(snapshot.releases.values(), key=lambda release: release.counter, default=None)
        unfinished = [entry for entry in snapshot.ledger.values() if entry.state in ("pending", "running")]
        return HubInfo(
            model=self._config.model,
            variant=self._config.variant,
            version=None if newest is None else newest.version,
            releases=len(snapshot.releases),
            active_rollouts=len(snapshot.rules),
            unfinished_packages=len(unfinished),
        )

    # Devices

    def check(self, request: UpdateRequest, claims: Claims | None = None, base_url: str = "") -> UpdateAnswer:
        """Answer a device that asks for an update. In memory, so it may be called on an event loop.

        Args:
            request: what the device says.
            claims: what its token proves; None where it needs none and showed none. A question with a
                token that is not the device's own is answered, and nothing of it is kept.
            base_url: what the download URL begins with.

        Raises:
            PermissionDeniedError: the token belongs to another device.
            StorageError: the database refused.
        """
        counts = _speaks_for(claims, request.device_id)
        now = self._clock()
        choice = decide(self._snapshots.current(), request, claims, now)
        answer = self._answer(choice, base_url)
        if counts and self._is_ours(request):
            sighting = Sighting(
                device_id=request.device_id,
                version=request.current_version,
                manifest_sha256=request.current_sha256,
                seen_at=now,
                rollout_id=answer.rollout_id,
                attempt_id=answer.attempt_id,
                wanted=choice.queue,
            )
            self._devices.see(sighting)
        return answer

    def explain(self, request: UpdateRequest, claims: Claims | None = None) -> Choice:
        """Return the decision for a device and its reason, changing nothing."""
        return decide(self._snapshots.current(), request, claims, self._clock())

    def record(self, batch: EventBatch, claims: Claims | None = None) -> EventAnswer:
        """Store what a device reports, each event exactly once, and say whether it should go on.

        Raises:
            PermissionDeniedError: the token is not that device's own.
            StorageError: the database refused; nothing of the batch is stored.
        """
        if not _speaks_for(claims, batch.device_id):
            raise PermissionDeniedError("only a device's own token may report what happened on it")
        control = self._devices.record(batch, self._clock())
        accepted = dict.fromkeys(event.event_id for event in batch.events)
        return EventAnswer(tuple(accepted), control)

    def devices(self, *, limit: int | None = None) -> list[Device]:
        """Return the devices ever seen, newest sight first; all of them without a limit."""
        return self._devices.list(limit)

    def forget_device(self, device_id: str, actor: Actor = LOCAL) -> int:
        """Drop what is known of a device but its events, and revoke its tokens; return how many there were.

        Raises:
            NotFoundError: there is no such device.
            StorageError: the database refused.
        """
        self._devices.flush()
        return self.enrolment.forget(device_id, actor)

    def now(self) -> float:
        """Return the hub's time, seconds since 1970."""
        return self._clock()

    # Roll-outs

    @property
    def rollout_control(self) -> RolloutControl:
        """All that can be done with roll-outs: stages, promotion, rollback, dry runs, their history."""
        return self._rollouts

    def rollouts(self) -> list[Rollout]:
        """Return all roll-outs with their counts, oldest first."""
        return self._rollouts.all()

    def create_rollout(
        self,
        version: str,
        percent: float,
        groups: Sequence[str] = (),
        regions: Sequence[str] = (),
        actor: Actor = LOCAL,
    ) -> Rollout:
        """Offer a release at once; for the same release, groups and regions again, set the percentage.

        Raises:
            ConfigError: an argument is out of its range.
            NotFoundError: there is no such release.
            ConflictError: the same roll-out is paused or halted, or goes by stages.
            RevokedError: the release was called back.
        """
        return self._rollouts.create(version, Wanted(percent, tuple(groups), tuple(regions)), actor)

    def set_rollout_state(self, rollout_id: str, state: RolloutState, actor: Actor = LOCAL) -> Rollout:
        """Pause, resume or abort a roll-out; aborting is final.

        Raises:
            ConfigError: ``state`` is none that can be asked for.
            NotFoundError: there is no such roll-out.
            ConflictError: it was aborted, or is halted already.
        """
        return self._rollouts.set_state(rollout_id, state, actor)

    # Tokens

    @property
    def admin_token(self) -> str:
        """The embedded admin token, which also lies in ``admin.token`` for the owner of this machine."""
        return self._admin_token

    def verify_token(self, token: str) -> Claims | None:
        """Return what a token proves, None for an unknown, malformed, expired or revoked one."""
        return self.tokens.verify(token, self._snapshots.current().revision)

    def issue_token(self, claims: Claims, actor: Actor = LOCAL) -> str:
        """Make a token; only its hash is kept, so it can be shown this once.

        Raises:
            ConfigError: the claims break a rule.
            PermissionDeniedError: it could do more than the actor's own.
        """
        return self.tokens.create(claims, actor)[0]

    def revoke_token(self, name: str, actor: Actor = LOCAL) -> int:
        """Revoke all tokens of a name, or the one of an id, and return how many there were.

        Raises:
            NotFoundError: there is no such live token.
        """
        return self.tokens.revoke(name, actor)

    def _all_releases(self) -> Select[ReleaseRow]:
        ours = (ReleaseRow.model == self._config.model, ReleaseRow.variant == self._config.variant)
        return select(ReleaseRow).where(*ours)

    def _find_release(self, session: Session, version: str) -> ReleaseRow:
        row = session.scalars(self._all_releases().where(ReleaseRow.version == version)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no release {version[:80]!r}; publish it first")
        return row

    def _as_release(self, row: ReleaseRow, revoked: frozenset[str]) -> Release:
        directory, is_revoked = self._store.releases / row.folder, row.manifest_sha256 in revoked
        return Release(Manifest.from_bytes(row.manifest), directory, row.created_at, is_revoked)

    def _is_ours(self, request: UpdateRequest) -> bool:
        asked = (request.model or self._config.model, request.variant or self._config.variant)
        return asked == (self._config.model, self._config.variant)

    def _answer(self, choice: Choice, base_url: str) -> UpdateAnswer:
        if choice.package is None or choice.rule is None:
            return UpdateAnswer(False, retry_after_s=choice.retry_after_s)
        package, release = choice.package, choice.rule.release
        full = choice.full
        return UpdateAnswer(
            need_update=True,
            target_version=release.version,
            download_url=base_url + PACKAGE_PATH.format(sha256=package.sha256),
            kind="patch" if choice.kind == "patch" else "full",
            manifest=release_path(self._config.model, self._config.variant, release.version),
            manifest_sha256=release.manifest_sha256,
            counter=release.counter,
            sha256=package.sha256,
            size=package.size,
            header_length=package.header_length,
            header_sha256=package.header_sha256,
            full_url=full and base_url + PACKAGE_PATH.format(sha256=full.sha256),
            full_sha256=full and full.sha256,
            full_size=full and full.size,
            full_header_length=full and full.header_length,
            full_header_sha256=full and full.header_sha256,
            rollout_id=choice.rule.rollout_id,
            attempt_id=secrets.token_hex(12),
            retry_after_s=self._config.retry_after_s,
        )


def _speaks_for(claims: Claims | None, device_id: str) -> bool:
    """Tell whether the caller counts as the device; without a token, where none is needed, anyone does."""
    if claims is None:
        return True
    if claims.device_id not in (None, device_id):
        raise PermissionDeniedError(f"this token belongs to {claims.device_id}, not to {device_id}")
    return claims.role == "device" and claims.device_id is not None


def _token_name(config: HubConfig) -> str:
    """Return the name of this machine's admin token; hubs that share a database have one each."""
    if not is_shared(config.database_url):
        return EMBEDDED_ADMIN
    place = f"{socket.gethostname()} {config.directory.absolute()}"
    return f"{EMBEDDED_ADMIN}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

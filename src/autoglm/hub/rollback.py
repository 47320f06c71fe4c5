"""Take a release back: offer its devices the old bytes again, as a new release.

Devices refuse to go to a lower counter, so going back is going on: the release before is published once
more, signed, under a new version and with the next counter, and offered to the devices that run the bad one.
Nothing is rewritten: what was published stays published, and what was done stays in the log.

The release key has to be here for that. Where it lies elsewhere, the error says what to run there; the
rollback then goes on with the release that this has published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import Session

from autoglm import files, patch
from autoglm.errors import ConflictError, NotFoundError, SignatureError
from autoglm.hub.audit import Actor
from autoglm.hub.database import Database
from autoglm.hub.history import log_act
from autoglm.hub.publication import Publisher
from autoglm.hub.records import ALL_BASIS_POINTS, Audience, HubConfig
from autoglm.hub.rollouts import Draft, find, move, put_rollout, same_rollout
from autoglm.hub.signing import Signing
from autoglm.hub.snapshot import rollout_name
from autoglm.hub.store import Store
from autoglm.hub.tables import EventRow, OfferRow, ReleaseRow, RolloutRow
from autoglm.releases import MANIFEST_NAME, Manifest

_FORMER = re.compile(r"(\.r\d+)+$")  # what an earlier rollback put after a version's name


@dataclass(frozen=True)
class _Way:
    """How to go back.

    Attributes:
        bad: the release that is taken back.
        old: manifest of the release whose bytes replace it.
        folder: where these lie in the store.
        counter: the next free one.
        remedy: a published release with these bytes that devices of the bad one may go to, if there is one.
    """

    bad: Manifest
    old: Manifest
    folder: str
    counter: int
    remedy: Manifest | None


class Rollback:
    """Takes releases of one hub back; safe in any number of threads and processes."""

    def __init__(
        self,
        config: HubConfig,
        store: Store,
        database: Database,
        publisher: Publisher,
        signing: Signing,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._store, self._database, self._clock = config, store, database, clock
        self._publisher, self._signing = publisher, signing

    def roll_back(self, name: str, *, to: str | None, version: str | None, actor: Actor) -> str:
        """End all roll-outs of a roll-out's release, and offer the old bytes to the devices that run it.

        Asked for again, it goes on where it was broken off, or returns what there is.

        Args:
            name: the roll-out.
            to: the release to return to; None for the one that most of its devices came from. A release with
                a higher counter than the bad one is offered as it is.
            version: how the new release is called; None for ``VERSION.rCOUNTER``, without an
                earlier ``.rCOUNTER``.
            actor: who asks.

        Returns:
            The id of the roll-out that takes the devices back.

        Raises:
            NotFoundError: there is no such roll-out or release, or nothing to return to.
            ConflictError: ``to`` was called back, or is the bad release itself.
            SignatureError: the release key is not here; the roll-outs are ended, and the message says what
                to run where it lies.
            StorageError: the disk refused.
        """
        with self._database.read() as session:
            way = self._way(session, name, to)
        self._end(way.bad, actor)
        remedy = way.remedy or self._publish(name, way, version, actor)
        return self._offer(name, way.bad, remedy, actor)

    def _end(self, bad: Manifest, actor: Actor) -> None:
        with self._database.write() as session:
            release = self._release(session, bad.version)
            rows = select(RolloutRow).where(
                RolloutRow.release_id == release.id, RolloutRow.state != "aborted"
            )
            for row in session.scalars(rows).all():
                move(session, row, "abort", actor, self._clock(), reason=f"{bad.version} is taken back")

    def _offer(self, name: str, bad: Manifest, remedy: Manifest, actor: Actor) -> str:
        with self._database.write() as session:
            self._signing.require_standing(remedy.version, remedy.sha256)
            row, release, now = find(session, name), self._release(session, remedy.version), self._clock()
            audience = Audience(ALL_BASIS_POINTS, from_versions=(bad.version,))
            known = same_rollout(session, release.id, audience)
            if known is None:
                known = put_rollout(session, release, audience, now, Draft(rollback_of=row.id, actor=actor))
                log_act(session, row, "rollback", actor, now)
            return rollout_name(known.id)

    def _way(self, session: Session, name: str, to: str | None) -> _Way:
        row = find(session, name)
        bad = Manifest.from_bytes(session.get_one(ReleaseRow, row.release_id).manifest)
        chosen = self._before(session, row, bad) if to is None else self._release(session, to)
        old = Manifest.from_bytes(chosen.manifest)
        self._signing.require_standing(old.version, old.sha256)
        if old.version == bad.version:
            raise ConflictError(f"{bad.version} cannot be taken back to itself")
        newer = [
            manifest
            for manifest in map(
                Manifest.from_bytes, session.scalars(self._all().with_only_columns(ReleaseRow.manifest))
            )
            if manifest.counter > bad.counter and manifest.files == old.files
        ]
        standing = [each for each in newer if each.sha256 not in self._signing.repository.revoked()]
        remedy = max(standing, key=lambda manifest: manifest.counter, default=None)
        highest = session.scalars(select(func.max(ReleaseRow.counter)).where(*self._ours())).one() or 0
        return _Way(bad, old, chosen.folder, highest + 1, remedy)

    def _before(self, session: Session, row: RolloutRow, bad: Manifest) -> ReleaseRow:
        """Return the release that most devices of a roll-out came from, else the newest before it.

        Only devices that were offered the release are asked where they came from: anybody may send events.
        Of the others before it, those that were stopped themselves come last.
        """
        was_offered = (OfferRow.rollout_id == EventRow.rollout_id) & (
            OfferRow.device_id == EventRow.device_id
        )
        came_from = (
            select(ReleaseRow, func.count(EventRow.device_id.distinct()).label("devices"))
            .join(EventRow, EventRow.from_version == ReleaseRow.version)
            .join(OfferRow, was_offered)
            .where(*self._ours(), EventRow.rollout_id == row.id, ReleaseRow.counter < bad.counter)
            .group_by(ReleaseRow.id)
            .order_by(func.count(EventRow.device_id.distinct()).desc(), ReleaseRow.counter.desc())
        )
        older = (
            self._all()
            .where(ReleaseRow.counter < bad.counter)
            .order_by(ReleaseRow.id.in_(_stopped()), ReleaseRow.counter.desc())
        )
        revoked = self._signing.repository.revoked()
        for release in (*session.scalars(came_from), *session.scalars(older)):
            if release.manifest_sha256 not in revoked:
                return release
        raise NotFoundError(f"there is no release before {bad.version} to return to")

    def _publish(self, name: str, way: _Way, version: str | None, actor: Actor) -> Manifest:
        """Publish the old bytes as a new release: a patch that changes nothing but the manifest."""
        wanted = version or f"{_FORMER.sub('', way.old.version)}.r{way.counter}"
        if not self._signing.repository.holds_release_key:
            raise SignatureError(
                f"{way.bad.version} is offered no more, but the release key is not here, so nothing can be "
                f"published in its place. Where the key lies, run: autoglm publish {way.folder} "
                f"--version {wanted} --keys DIR --hub URL --token T (the folder of {way.old.version}); "
                f"then: autoglm rollout rollback {name} --to {wanted}"
            )
        manifest = replace(way.old, version=wanted, counter=way.counter)
        base = self._store.release_path(way.old)
        with self._store.workspace() as work:
            self._publisher.publish(_package(base, manifest, work), None, actor)
        return manifest

    def _ours(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return (ReleaseRow.model == self._config.model, ReleaseRow.variant == self._config.variant)

    def _all(self):
        return select(ReleaseRow).where(*self._ours())

    def _release(self, session: Session, version: str) -> ReleaseRow:
        row = session.scalars(self._all().where(ReleaseRow.version == version)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no release {version[:80]!r}; publish it first")
        return row


def _stopped() -> Select[int]:
    """Select the releases that were rolled out, and of whose roll-outs each was halted or aborted."""
    is_left = case((RolloutRow.state.not_in(("halted", "aborted")), 1))
    return select(RolloutRow.release_id).group_by(RolloutRow.release_id).having(func.count(is_left) == 0)


def _package(base: Path, manifest: Manifest, work: Path) -> Path:
    """Return a patch from ``base`` to the same files under another manifest."""
    release = work / "again"
    files.make_directory(release)
    for file in manifest.files:
        place = release / file.path
        files.make_directory(place.parent)
        place.hardlink_to(base / file.path)
    (release / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    package = work / "again.wpatch"
    patch.diff(base, release, package)
    return package

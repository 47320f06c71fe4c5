"""What the hub does with signed metadata: require it of releases, add it for packages, act on it.

What it guarantees: a release that is in the hub is signed and was not called back when it came in; a package
in the ledger is signed; a release that is called back is offered to nobody, and its roll-outs are over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from autoglm.errors import ConfigError, RevokedError, SignatureError
from autoglm.hub.audit import LOCAL, Actor, audit
from autoglm.hub.database import Database
from autoglm.hub.decision import StoredPackage
from autoglm.hub.rollouts import change_state
from autoglm.hub.snapshot import package_of, rollout_name
from autoglm.hub.tables import PackageRow, ReleaseRow, RolloutRow
from autoglm.releases import Manifest
from autoglm.trust.repository import Repository
from autoglm.trust.targets import SignedPackage, SignedRelease

_log = logging.getLogger(__name__)


def signed_package(package: StoredPackage, output: str, base: str | None) -> SignedPackage:
    """Return what there is to sign about a package.

    Args:
        package: what is stored.
        output: identity of the release that it makes.
        base: identity of the release that it is applied to, None for a full package.
    """
    return SignedPackage(
        package.sha256, package.size, package.header_length, package.header_sha256, output, base
    )


class Signing:
    """The hub's signed metadata beside its tables.

    Attributes:
        repository: the metadata itself, for reading: its changes go through here.
    """

    def __init__(self, repository: Repository, database: Database, clock: Callable[[], float]) -> None:
        self.repository = self._trust = repository
        self._database, self._clock = database, clock

    def accept(self, uploaded: Mapping[str, bytes], actor: Actor = LOCAL) -> list[str]:
        """Take in metadata signed by offline keys, all of it or none, and act on what it calls back.

        Returns:
            The names of what is new.

        Raises:
            TrustError: it is not what may follow.
            ConflictError: it changes or drops a signed release, or needs a private key that is not here.
            StorageError: the disk refused.
        """
        accepted = self._trust.accept(uploaded)
        self.end_revoked(actor, "metadata.accept", f"{len(accepted)} files", {"names": accepted[:50]})
        return accepted

    def require_release(self, manifest: Manifest) -> None:
        """See that exactly this release is signed and not called back; sign it where the key is here.

        Raises:
            SignatureError: it is not signed, or another one is under its names.
            RevokedError: it was called back.
        """
        wanted = SignedRelease.of(manifest)
        signed = self._trust.release(manifest.model, manifest.variant, manifest.version)
        if signed is None and self._trust.holds_release_key:
            self._trust.sign_release(wanted)
            return
        if signed is None:
            raise SignatureError(
                f"{manifest.version} is not signed: publish it where the release key lies (--keys DIR)"
            )
        if signed.revoked:
            raise RevokedError(f"{manifest.version} was called back: publish under a new version")
        found = (signed.manifest_sha256, signed.manifest_length, signed.counter, signed.channel)
        if found != (wanted.manifest_sha256, wanted.manifest_length, wanted.counter, wanted.channel):
            raise SignatureError(f"what is signed as {manifest.version} is another release than this one")

    def require_standing(self, version: str, manifest_sha256: str) -> None:
        """See that a release was not called back.

        Raises:
            RevokedError: it was.
        """
        if manifest_sha256 in self._trust.revoked():
            raise RevokedError(f"{version} was called back: publish under a new version")

    def add_package(self, package: StoredPackage, output: str, base: str | None) -> None:
        """Sign a package with the online key; before it is in the ledger."""
        self._trust.add_packages([signed_package(package, output, base)])

    def revoke(self, manifest: Manifest, actor: Actor = LOCAL) -> None:
        """Call a release back with the release key of this machine.

        Raises:
            SignatureError: the key is not on this machine.
        """
        try:
            self._trust.revoke_release(manifest.model, manifest.variant, manifest.version)
        except ConfigError as error:
            raise SignatureError(
                f"the release key is not here: call {manifest.version} back where it lies (--keys DIR)"
            ) from error
        self.end_revoked(actor, "release.revoke", manifest.version)

    def end_revoked(
        self, actor: Actor, act: str, subject: str, details: Mapping[str, object] | None = None
    ) -> None:
        """Let every process of this hub notice what was called back, end its roll-outs, and note the act."""
        revoked = self._trust.revoked()
        with self._database.write() as session:
            rows = session.execute(
                select(RolloutRow, ReleaseRow.manifest_sha256)
                .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
                .where(RolloutRow.state != "aborted")
            )
            ended = [rollout_name(row.id) for row, sha256 in rows if sha256 in revoked]
            for name in ended:
                change_state(session, name, "aborted", self._clock(), actor, "the release was called back")
            audit(session, actor, act, subject, {**(details or {}), "aborted": ended}, at=self._clock())

    def catch_up(self) -> None:
        """Sign what is here without a signature: an older version of this program, or a backup, left it."""
        with self._database.read() as session:
            manifests = [Manifest.from_bytes(row) for row in session.scalars(select(ReleaseRow.manifest))]
            packages = list(self._packages(session))
        for release in self._trust.unsigned(SignedRelease.of(manifest) for manifest in manifests):
            if self._trust.holds_release_key:
                self._trust.sign_release(release)
            else:
                _log.warning("%s is not signed: no device takes it; publish it again", release.version)
        self._trust.add_packages(packages)

    @staticmethod
    def _packages(session: Session) -> list[SignedPackage]:
        base, target = aliased(ReleaseRow), aliased(ReleaseRow)
        rows = session.execute(
            select(PackageRow, base.manifest_sha256, target.manifest_sha256)
            .join(target, PackageRow.target_id == target.id)
            .outerjoin(base, PackageRow.base_id == base.id)
            .where(PackageRow.state == "stored")
        )
        return [signed_package(package_of(row), output, source) for row, source, output in rows]

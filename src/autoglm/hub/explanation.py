"""Why a device is offered what it is offered: the decision itself, and each roll-out's part in it.

It asks the functions that decide, so it cannot tell another story than they do. Groups and region are those
that the device's token proves; what it would say of itself beyond its version is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.errors import NotFoundError
from autoglm.hub.decision import Offerable, Snapshot, bucket, decide
from autoglm.hub.population import device_claims
from autoglm.hub.records import Claims
from autoglm.hub.rollouts import of_hub
from autoglm.hub.snapshot import OFFERING, rollout_name, rule_of
from autoglm.hub.stages import stage_name
from autoglm.hub.tables import DeviceRow, OfferRow, ReleaseRow, RolloutRow
from autoglm.releases import UpdateRequest


@dataclass(frozen=True)
class Explanation:
    """Why a device is offered what it is offered.

    Attributes:
        device_id: which.
        version: what it runs as far as the hub knows, or what was asked about.
        claims: what its token proves.
        kind, reason: the decision, see :class:`autoglm.hub.decision.Choice`.
        target, rollout_id: of the decision, where it offers something.
        failed: releases that it reported a failure of.
        rules: for each roll-out that is not over, why the device is in or out.
    """

    device_id: str
    version: str | None
    claims: Claims
    kind: str
    reason: str
    target: str | None
    rollout_id: str | None
    failed: tuple[str, ...]
    rules: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as the admin API shows it."""
        return {
            "device_id": self.device_id,
            "version": self.version,
            "groups": list(self.claims.groups),
            "region": self.claims.region,
            "kind": self.kind,
            "reason": self.reason,
            "target_version": self.target,
            "rollout_id": self.rollout_id,
            "failed": list(self.failed),
            "rollouts": list(self.rules),
        }


def explain(
    session: Session, snapshot: Snapshot, device_id: str, version: str | None, now: float
) -> Explanation:
    """Explain the decision for one device.

    Args:
        session: any view.
        snapshot: of now.
        device_id: which.
        version: as if it ran this one; None for what it ran when last seen.
        now: seconds since 1970.

    Raises:
        NotFoundError: the hub has never seen it, and no version was given.
    """
    request = _request(session, snapshot, device_id, version)
    claims = device_claims(session, now, device_id).get(device_id, Claims("device"))
    choice = decide(snapshot, request, claims, now)
    rows = of_hub(session, snapshot.model, snapshot.variant)
    return Explanation(
        device_id=device_id,
        version=request.current_version,
        claims=claims,
        kind=choice.kind,
        reason=choice.reason,
        target=None if choice.rule is None else choice.rule.release.version,
        rollout_id=None if choice.rule is None else choice.rule.rollout_id,
        failed=request.failed,
        rules=tuple(_part(session, snapshot, row, request, claims) for row in rows if row.state != "aborted"),
    )


def _request(session: Session, snapshot: Snapshot, device_id: str, version: str | None) -> UpdateRequest:
    """Return what the device would ask, as far as the hub knows."""
    seen = session.get(DeviceRow, (snapshot.model, snapshot.variant, device_id))
    if seen is None and version is None:
        raise NotFoundError(
            f"the hub has never seen the device {device_id[:128]!r}; say which version it runs (--version)"
        )
    failed = (
        select(ReleaseRow.version)
        .join(RolloutRow, RolloutRow.release_id == ReleaseRow.id)
        .join(OfferRow, OfferRow.rollout_id == RolloutRow.id)
        .where(OfferRow.device_id == device_id, OfferRow.result == "fail")
    )
    known = seen if version is None else None
    return UpdateRequest(
        device_id,
        version if known is None else known.version,
        current_sha256=None if known is None else known.manifest_sha256,
        failed=tuple(dict.fromkeys(session.scalars(failed))),
    )


def _part(
    session: Session, snapshot: Snapshot, row: RolloutRow, request: UpdateRequest, claims: Claims
) -> dict[str, Any]:
    """Return whether and why one roll-out is for the device."""
    release = session.get_one(ReleaseRow, row.release_id)
    rule = rule_of(row, Offerable(release.version, release.counter, release.manifest_sha256))
    outside = rule.exclusion(request.device_id, claims, request.current_version)
    runs = snapshot.releases.get(request.current_version or "")
    if row.state not in OFFERING:
        outside = f"it is {row.state}" + (f": {row.reason}" if row.reason else "")
    elif release.version in request.failed:
        outside = "the release failed on this device"
    return {
        "rollout_id": rollout_name(row.id),
        "version": release.version,
        "state": row.state,
        "stage": stage_name(row.stages[row.stage]) if row.stages else None,
        "bucket": bucket(row.salt, request.device_id),
        "basis_points": row.basis_points,
        "is_in": outside is None,
        "why": outside
        or ("in" if not runs or runs.counter < release.counter else "it has that or a newer one"),
    }

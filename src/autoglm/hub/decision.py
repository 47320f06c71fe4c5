"""Which package a device is offered: a pure function of what is published, who asks, and the clock.

It reads no database and no clock of its own, so the same inputs give the same answer in every process.

The rules, in order:

1. A device follows the highest release among the active roll-outs that it is in. Groups and regions come
   from its claims alone; the percentage from ``bucket``, which is fixed for a device and a salt, so raising
   a percentage adds devices and loses none.
2. Releases that failed on it are passed over. It is never led to a lower counter than it has.
3. Nothing is offered before the release's full package is stored: without it a device could be stranded.
4. From a known release the direct patch is offered when it is stored and saves enough. While it is being
   built, the device waits a few seconds rather than downloading everything, but not for ever.
5. An unknown version, or a known one whose files differ, gets the full package.

    >>> bucket("salt", "dev_12345") == bucket("salt", "dev_12345") < 10_000
    True
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoglm.hub.records import ALL_BASIS_POINTS, Audience, Claims, PackageState
from autoglm.releases import PACKAGE_FORMAT, UpdateRequest

MAX_PATCH_SHARE = 0.6
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Offerable:
    """A release as the decision sees it."""

    version: str
    counter: int
    manifest_sha256: str


@dataclass(frozen=True)
class StoredPackage:
    """A package that can be downloaded now; sizes in bytes."""

    sha256: str
    size: int
    header_length: int
    header_sha256: str


@dataclass(frozen=True)
class LedgerEntry:
    """One row of the ledger: ``package`` is set when, and only when, it is stored."""

    state: PackageState
    queued_at: float
    package: StoredPackage | None = None

    def is_coming(self, now: float) -> bool:
        """Tell whether it will be there soon enough to wait for."""
        return self.state in ("pending", "running") and now - self.queued_at < PATIENCE_S


@dataclass(frozen=True)
class Rule:
    """One roll-out that offers something.

    Attributes:
        rollout_id: as on the wire.
        release: what it offers.
        audience: whom it may reach, and the share that it reaches now.
        salt: of its buckets.
        stage_groups: groups that are in whatever the share, since a stage let them in.
    """

    rollout_id: str
    release: Offerable
    audience: Audience
    salt: str
    stage_groups: tuple[str, ...] = ()

    def includes(self, device_id: str, claims: Claims | None, version: str | None = None) -> bool:
        """Tell whether a device with these claims, which runs ``version``, is in."""
        return self.exclusion(device_id, claims, version) is None

    def exclusion(self, device_id: str, claims: Claims | None, version: str | None = None) -> str | None:
        """Return why a device is not in, None when it is."""
        groups = set(claims.groups if claims else ())
        wanted = self.audience
        if wanted.from_versions and version not in wanted.from_versions:
            return f"only for devices that run {', '.join(wanted.from_versions)}"
        if wanted.groups and not groups & set(wanted.groups):
            return f"only for the groups {', '.join(wanted.groups)}"
        if wanted.regions and (claims is None or claims.region not in wanted.regions):
            return f"only for the regions {', '.join(wanted.regions)}"
        points = wanted.basis_points
        if points >= ALL_BASIS_POINTS or groups & set(self.stage_groups):
            return None
        place = bucket(self.salt, device_id)
        return None if place < points else f"its bucket {place} is not below {points}"


@dataclass(frozen=True)
class Snapshot:
    """Everything that a decision needs, read once and kept in memory.

    Attributes:
        revision: the database's, to tell when to read again.
        model, variant: what the hub serves.
        releases: by version.
        rules: the roll-outs that offer something, highest counter first.
        ledger: by (from, to); from is None for full packages.
    """

    revision: int
    model: str
    variant: str
    releases: Mapping[str, Offerable] = field(default_factory=dict[str, Offerable])
    rules: tuple[Rule, ...] = ()
    ledger: Mapping[tuple[str | None, str], LedgerEntry] = field(
        default_factory=dict[tuple[str | None, str], LedgerEntry]
    )


@dataclass(frozen=True)
class Choice:
    """What was decided, and why.

    Attributes:
        kind: ``none``, ``wait``, ``patch`` or ``full``.
        reason: for the operator, in one sentence.
        rule: the roll-out that decided.
        package: what to download.
        full: the full package beside a patch.
        retry_after_s: when to ask again, of a device that waits.
        queue: a pair whose patch should be built.
    """

    kind: Literal["none", "wait", "patch", "full"]
    reason: str
    rule: Rule | None = None
    package: StoredPackage | None = None
    full: StoredPackage | None = None
    retry_after_s: int | None = None
    queue: tuple[str, str] | None = None


def bucket(salt: str, device_id: str) -> int:
    """Return a device's fixed place, 0 to 9,999, in a roll-out."""
    digest = hashlib.sha256(f"{salt}:{device_id}".encode()).digest()
    return int.from_bytes(digest, "big") % ALL_BASIS_POINTS


def decide(snapshot: Snapshot, request: UpdateRequest, claims: Claims | None, now: float) -> Choice:
    """Choose what this device is offered.

    Args:
        snapshot: what is published.
        request: what the device says; none of it grants anything.
        claims: what its token proves, None without one.
        now: seconds since 1970.
    """
    if PACKAGE_FORMAT not in request.accept:
        return Choice("none", f"the device does not accept {PACKAGE_FORMAT}")
    if (request.model or snapshot.model) != snapshot.model:
        return Choice("none", "the device follows another model")
    if (request.variant or snapshot.variant) != snapshot.variant:
        return Choice("none", "the device follows another variant")
    return _follow(snapshot, request, claims, now)


def _follow(snapshot: Snapshot, request: UpdateRequest, claims: Claims | None, now: float) -> Choice:
    claimed = snapshot.releases.get(request.current_version or "")
    current = claimed if claimed and _is_intact(claimed, request) else None
    for rule in snapshot.rules:
        target = rule.release
        if current and target.counter <= current.counter:
            return Choice("none", "the device is up to date")
        if claimed and target.counter < claimed.counter:
            return Choice("none", "the device is ahead of its target, and never led back")
        if target.version in request.failed:
            continue
        if not rule.includes(request.device_id, claims, request.current_version):
            continue
        full = snapshot.ledger.get((None, target.version))
        if full is not None and full.package is not None:
            return _offer(snapshot, request, rule, current, full.package, now)
        # A device with nothing at all is better served by an older release now; others wait.
        if request.current_version is not None and full is not None and full.state != "skipped":
            return _wait(request, rule, full, now, "the full package is being built")
    return Choice("none", "no active roll-out offers this device anything")


def _is_intact(release: Offerable, request: UpdateRequest) -> bool:
    return request.current_sha256 in (None, release.manifest_sha256)


def _offer(
    snapshot: Snapshot,
    request: UpdateRequest,
    rule: Rule,
    current: Offerable | None,
    full: StoredPackage,
    now: float,
) -> Choice:
    if current is None:
        return Choice("full", "the hub does not know what the device has", rule, full)
    pair = (current.version, rule.release.version)
    entry = snapshot.ledger.get(pair)
    if entry is None:
        return Choice("full", "there is no patch yet", rule, full, queue=pair)
    if entry.package is not None and entry.package.size <= MAX_PATCH_SHARE * full.size:
        return Choice("patch", "a direct patch is stored", rule, entry.package, full)
    if entry.is_coming(now):
        return _wait(request, rule, entry, now, "the patch is being built")
    return Choice("full", "a patch would not pay or cannot be had", rule, full)


def _wait(request: UpdateRequest, rule: Rule, entry: LedgerEntry, now: float, reason: str) -> Choice:
    """Say when to come back: spread over a few seconds, or a minute for a build that takes long."""
    spread = bucket(rule.salt, request.device_id)
    seconds = 2 + spread % 4 if entry.is_coming(now) else 60 + spread % 60
    return Choice("wait", reason, rule, retry_after_s=seconds)

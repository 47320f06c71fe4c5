"""What the hub tells its callers: plain, frozen values, never database rows.

A caller may keep, compare and serialise them; none of them changes when the database does.

    >>> Claims(role="device", groups=("staff",)).region is None
    True
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from autoglm.errors import ConfigError
from autoglm.hub.permissions import ROLES as ROLES
from autoglm.hub.permissions import Permission, granted
from autoglm.hub.permissions import Role as Role
from autoglm.releases import Manifest, is_name

RolloutState = Literal["active", "paused", "halted", "aborted", "done"]
PackageState = Literal["pending", "running", "stored", "skipped"]

ALL_BASIS_POINTS = 10_000
DATABASE_VARIABLE = "AUTOGLM_DATABASE_URL"
STORAGE_VARIABLE = "AUTOGLM_STORAGE_URL"


@dataclass(frozen=True)
class HubConfig:
    """The hub's settings.

    Attributes:
        directory: where everything lies; made when it is not there.
        database_url: an SQLAlchemy URL of an SQLite file or a PostgreSQL database; None for ``hub.sqlite`` in
            the directory.
        storage_url: the bucket of the objects, ``s3://BUCKET/FOLDER``; None for ``objects`` in the directory.
        keys: the directory of the online keys, which all machines need alike; None for the one in
            ``trust/online``.
        model: the public name of the model that this hub serves.
        variant: which build of it.
        retry_after_s: when a device that was offered something should ask again.
    """

    directory: Path
    database_url: str | None = None
    model: str = "autoglm-phone-9b"
    variant: str = "nano-int8"
    retry_after_s: int = 60
    storage_url: str | None = None
    keys: Path | None = None

    def __post_init__(self) -> None:
        for key in ("model", "variant"):
            if not is_name(getattr(self, key)):
                raise ConfigError(f"hub: {key} must be a name of letters, digits, '.', '_' or '-'")
        if not 1 <= self.retry_after_s <= 7 * 24 * 3600:
            raise ConfigError("hub: retry_after_s must be 1 to 604800 seconds")


@dataclass(frozen=True)
class Claims:
    """What a token proves; the only source of a device's groups and region.

    Attributes:
        role: what the bearer may do.
        name: whom or what the token was made for.
        device_id: the one device that may use it; None for tokens of people.
        groups: the device's groups.
        region: the device's region.
        scopes: the permissions that it is narrowed to; none means all of its role's.
        expires_at: when it proves nothing any more, seconds since 1970; None for never.
    """

    role: Role
    name: str = ""
    device_id: str | None = None
    groups: tuple[str, ...] = ()
    region: str | None = None
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the bearer may do."""
        return granted(self.role, self.scopes)

    def may(self, permission: Permission) -> bool:
        """Tell whether the bearer may do this."""
        return permission in self.permissions


@dataclass(frozen=True)
class Audience:
    """Whom a roll-out reaches: a share of the devices in some groups and regions.

    Attributes:
        basis_points: hundredths of a per cent, 0 to 10,000.
        groups: any of these; none named means every device.
        regions: any of these; none named means every device.
        from_versions: only devices that run one of these; none named means whatever they run.
    """

    basis_points: int
    groups: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    from_versions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, percent: float | None, groups: tuple[str, ...] = (), regions: tuple[str, ...] = ()
    ) -> Audience:
        """Make an audience out of what an operator typed; no percentage means all of the groups and regions.

        Raises:
            ConfigError: a percentage out of range, or a group or region that is no name.
        """
        share = 100.0 if percent is None else percent
        if isinstance(cast("Any", share), bool) or not isinstance(cast("Any", share), int | float):
            raise ConfigError("roll-out: percent must be a number from 0 to 100")
        if not 0 <= share <= 100:
            raise ConfigError(f"roll-out: percent must be from 0 to 100, not {share:g}")
        for kind, names in (("group", groups), ("region", regions)):
            if bad := [name for name in names if not is_name(name)]:
                raise ConfigError(
                    f"roll-out: {kind} {bad[0]!r} is not a name of letters, digits, '.', '_', '-'"
                )
        return cls(round(share * 100), tuple(sorted(set(groups))), tuple(sorted(set(regions))))


@dataclass(frozen=True)
class Release:
    """One release in the store.

    Attributes:
        manifest: what it is made of.
        directory: its files; never write there.
        created_at: when it was published, seconds since 1970.
        revoked: whether its publisher has called it back.
    """

    manifest: Manifest
    directory: Path
    created_at: float
    revoked: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the release as the admin API shows it."""
        return {
            "version": self.manifest.version,
            "name": self.manifest.name,
            "counter": self.manifest.counter,
            "channel": self.manifest.channel,
            "manifest_sha256": self.manifest.sha256,
            "total_bytes": self.manifest.total_bytes,
            "created_at": self.created_at,
            "revoked": self.revoked,
        }


@dataclass(frozen=True)
class PackageRecord:
    """One row of the patch ledger: the truth about one package.

    Attributes:
        from_version: the base, None for a full package.
        to_version: the release it leads to.
        state: ``pending``, ``running``, ``stored`` or ``skipped``.
        reason: why it was skipped, or what went wrong last.
        size: in bytes, when it was built.
        sha256: of the package.
        seconds: what the build took.
        memory_bytes: the build's peak memory.
        attempts: how often a worker began it.
    """

    from_version: str | None
    to_version: str
    state: PackageState
    reason: str | None
    size: int | None
    sha256: str | None
    seconds: float | None
    memory_bytes: int | None
    attempts: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as the admin API shows it."""
        row = asdict(self)
        return {"from": row.pop("from_version"), "to": row.pop("to_version")} | row


@dataclass(frozen=True)
class Rollout:
    """A roll-out, and what came of it.

    Attributes:
        id: as on the wire, such as ``r42``.
        version: the release offered.
        audience: whom it reaches now.
        state: ``active``, ``paused``, ``halted``, ``aborted`` or ``done``.
        created_at: seconds since 1970.
        offered: devices that were offered it.
        succeeded: devices that reported success.
        failed: devices that reported a failure and no success after it.
        began: devices that have reported anything.
        crash_loops: of those that failed, did not survive their starts.
        silent: began, and were not heard of for longer than the soak time.
        expected: were offered it within the soak time and have not reported a result.
        stages: as written; none when it stays as it is.
        stage: the present one, from 0.
        soak_s: how long a stage lasts at least.
        soak_left_s: of the present stage; 0 when it has lasted long enough, None without stages to come.
        threshold: the failure rate that is allowed, 0 to 1.
        judged: results that count towards a halt, and how many of them are failures.
        lower_bound: of the failure rate, None without results.
        regressions: for each metric, (name, devices compared, devices that got worse).
        holding: why the next stage does not come, None when nothing but the clock is in its way.
        reason: why it was halted, paused or ended, where that was not an operator's plain wish.
        rollback_of: the roll-out whose devices it takes back.
    """

    id: str
    version: str
    audience: Audience
    state: RolloutState
    created_at: float
    offered: int = 0
    succeeded: int = 0
    failed: int = 0
    began: int = 0
    crash_loops: int = 0
    silent: int = 0
    expected: int = 0
    stages: tuple[str, ...] = ()
    stage: int = 0
    soak_s: float = 0.0
    soak_left_s: float | None = None
    threshold: float = 0.02
    judged: tuple[int, int] = (0, 0)
    lower_bound: float | None = None
    regressions: tuple[tuple[str, int, int], ...] = ()
    holding: str | None = None
    reason: str | None = None
    rollback_of: str | None = None

    @property
    def percent(self) -> float:
        """The share of the audience's groups and regions that is in."""
        return self.audience.basis_points / 100

    def to_json(self) -> dict[str, Any]:
        """Return the roll-out as the admin API shows it."""
        return {
            "id": self.id,
            "version": self.version,
            "percent": self.percent,
            "groups": list(self.audience.groups),
            "regions": list(self.audience.regions),
            "from_versions": list(self.audience.from_versions),
            "state": self.state,
            "reason": self.reason,
            "created_at": self.created_at,
            "stages": list(self.stages),
            "stage": self.stage,
            "soak_s": self.soak_s,
            "soak_left_s": self.soak_left_s,
            "holding": self.holding,
            "rollback_of": self.rollback_of,
            **self._counts(),
        }

    def _counts(self) -> dict[str, Any]:
        return {
            "offered": self.offered,
            "began": self.began,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "crash_loops": self.crash_loops,
            "silent": self.silent,
            "expected": self.expected,
            "threshold_percent": self.threshold * 100,
            "judged_results": self.judged[0],
            "judged_failures": self.judged[1],
            "lower_bound_percent": None if self.lower_bound is None else self.lower_bound * 100,
            "regressions": [
                {"metric": name, "devices": pairs, "worse": worse} for name, pairs, worse in self.regressions
            ],
        }


@dataclass(frozen=True)
class Device:
    """One device as last seen.

    Attributes:
        device_id: its own name.
        version: what it runs.
        first_seen_at, seen_at: seconds since 1970.
        state, result, code: of its newest event.
    """

    device_id: str
    version: str | None
    first_seen_at: float
    seen_at: float
    state: str | None = None
    result: str | None = None
    code: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the device as the admin API shows it."""
        return asdict(self)


@dataclass(frozen=True)
class Publication:
    """What a publish did.

    Attributes:
        manifest: of the release.
        created: False when exactly this release was there already.
        rollout: the roll-out made or changed with it, if one was asked for.
    """

    manifest: Manifest
    created: bool
    rollout: Rollout | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the publication as the admin API answers it."""
        return {
            "version": self.manifest.version,
            "counter": self.manifest.counter,
            "manifest_sha256": self.manifest.sha256,
            "created": self.created,
            "rollout": None if self.rollout is None else self.rollout.to_json(),
        }


@dataclass(frozen=True)
class HubInfo:
    """The hub at a glance.

    Attributes:
        model, variant: what it serves.
        version: the newest release, None of none.
        releases: how many there are.
        active_rollouts: how many offer something now.
        unfinished_packages: pending and running rows of the ledger.
    """

    model: str
    variant: str
    version: str | None
    releases: int
    active_rollouts: int
    unfinished_packages: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as the admin API shows it."""
        return asdict(self)

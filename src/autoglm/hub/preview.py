"""What a roll-out would do, before it is made: whom each stage adds, and how much is sent.

It changes nothing. The devices are those that the hub knows; the place of each in a roll-out that is still to
be made is drawn anew when it is made, so the numbers are those of one such draw.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from autoglm.hub.decision import Rule, Snapshot, decide
from autoglm.hub.population import People, Person, Reach, is_for, reach_of, stage_of
from autoglm.hub.records import ALL_BASIS_POINTS, Audience
from autoglm.hub.snapshot import audience_of
from autoglm.hub.stages import Plan, stage_name
from autoglm.hub.tables import RolloutRow
from autoglm.releases import UpdateRequest


@dataclass
class StagePreview:
    """What one stage adds.

    Attributes:
        stage: its name.
        devices: that it adds.
        total: that are in with it.
        patches: of those added, would be sent a patch.
        full: would be sent the full package, since no stored patch fits or pays.
        waiting: would have to wait for a package that is being built; their bytes are not known yet.
        bytes: sent to the others.
    """

    stage: str
    devices: int = 0
    total: int = 0
    patches: int = 0
    full: int = 0
    waiting: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Preview:
    """A dry run.

    Attributes:
        version: the release.
        known: devices seen lately.
        not_for: devices that the groups, regions or versions of the roll-out leave out.
        ahead: devices that run this release or a newer one.
        places: by (region, group), devices in at the end, and out.
        stages: what each adds.
    """

    version: str
    known: int
    not_for: int
    ahead: int
    places: Mapping[tuple[str, str], tuple[int, int]]
    stages: tuple[StagePreview, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the preview as the admin API shows it."""
        patches, full = sum(each.patches for each in self.stages), sum(each.full for each in self.stages)
        return {
            "version": self.version,
            "known": self.known,
            "not_for": self.not_for,
            "ahead": self.ahead,
            "devices": sum(each.devices for each in self.stages),
            "waiting": sum(each.waiting for each in self.stages),
            "bytes": sum(each.bytes for each in self.stages),
            "patch_hit_rate": patches / (patches + full) if patches + full else None,
            "stages": [asdict(each) for each in self.stages],
            "places": [
                {"region": region, "group": group, "in": inside, "out": outside}
                for (region, group), (inside, outside) in sorted(self.places.items())
            ],
        }


def preview(people: People, row: RolloutRow, snapshot: Snapshot, version: str, now: float) -> Preview:
    """Run a roll-out dry.

    Args:
        people: the hub's devices.
        row: the roll-out, which need not be in the database.
        snapshot: of now.
        version: of the release, which is in the snapshot.
        now: seconds since 1970.
    """
    counter = snapshot.releases[version].counter
    plan = Plan(tuple(row.stages)) if row.stages else Plan((f"{row.basis_points / 100:g}",))
    wanted = {person for person in people.devices if is_for(audience_of(row), counter, person)}
    added, places = _sort(people, wanted, reach_of(plan), row.salt)
    ahead = sum(person.counter >= counter for person in people.devices)
    return Preview(
        version=version,
        known=len(people.devices),
        not_for=len(people.devices) - ahead - len(wanted),
        ahead=ahead,
        places=places,
        stages=tuple(_stages(plan, added, _Costs(snapshot, version, now))),
    )


def _stages(plan: Plan, added: Mapping[int, Counter[str | None]], costs: _Costs) -> list[StagePreview]:
    stages = [StagePreview(stage_name(stage)) for stage in plan.stages]
    total = 0
    for place, stage in enumerate(stages):
        for source, devices in added.get(place, Counter[str | None]()).items():
            kind, size = costs.of(source)
            stage.devices += devices
            stage.bytes += devices * size
            stage.patches += devices * (kind == "patch")
            stage.full += devices * (kind == "full")
            stage.waiting += devices * (kind not in ("patch", "full"))
        stage.total = total = total + stage.devices
    return stages


def _sort(
    people: People, wanted: Collection[Person], reach: Reach, salt: str
) -> tuple[Mapping[int, Counter[str | None]], Mapping[tuple[str, str], tuple[int, int]]]:
    """Put each device into its stage, by version, and count it in its region and groups."""
    added: defaultdict[int, Counter[str | None]] = defaultdict(Counter)
    inside: Counter[tuple[str, str]] = Counter()
    outside: Counter[tuple[str, str]] = Counter()
    for person in people.devices:
        stage = stage_of(reach, salt, person) if person in wanted else None
        (outside if stage is None else inside).update(_places(person))
        if stage is not None:
            added[stage][person.version] += 1
    return added, {place: (inside[place], outside[place]) for place in inside.keys() | outside.keys()}


def _places(person: Person) -> list[tuple[str, str]]:
    """Return where a device is counted: under each of its groups, or under none."""
    return [(person.claims.region or "-", group) for group in person.claims.groups or ("-",)]


class _Costs:
    """What a device on each version would be sent, asked of the decision itself, once a version."""

    def __init__(self, snapshot: Snapshot, version: str, now: float) -> None:
        everyone = Rule("", snapshot.releases[version], Audience(ALL_BASIS_POINTS), "")
        self._snapshot = replace(snapshot, rules=(everyone,))
        self._now = now
        self._known: dict[str | None, tuple[str, int]] = {}

    def of(self, version: str | None) -> tuple[str, int]:
        """Return ``patch``, ``full``, ``wait`` or ``none``, and bytes."""
        if version not in self._known:
            choice = decide(self._snapshot, UpdateRequest("preview", version), None, self._now)
            self._known[version] = (choice.kind, 0 if choice.package is None else choice.package.size)
        return self._known[version]

"""The decision for one device: a pure function, so a table of cases covers it."""

from __future__ import annotations

import pytest

from autoglm.hub.decision import (
    PATIENCE_S,
    LedgerEntry,
    Offerable,
    Rule,
    Snapshot,
    StoredPackage,
    bucket,
    decide,
)
from autoglm.hub.records import Audience, Claims, PackageState
from autoglm.releases import UpdateRequest

NOW = 1_800_000_000.0
RELEASES = {
    version: Offerable(version, counter, f"{counter:064x}")
    for version, counter in (("v1.1", 11), ("v1.2", 12), ("v1.3", 13))
}
FULL_BYTES = 1000


def stored(size: int = FULL_BYTES) -> LedgerEntry:
    return LedgerEntry("stored", NOW, StoredPackage(f"{size:064x}", size, 10, "a" * 64))


def unfinished(state: PackageState, age_s: float = 0.0) -> LedgerEntry:
    return LedgerEntry(state, NOW - age_s)


def rule(
    version: str, percent: float = 100, *, groups: tuple[str, ...] = (), regions: tuple[str, ...] = ()
) -> Rule:
    return Rule(f"r-{version}", RELEASES[version], Audience.of(percent, groups, regions), "salt")


def snapshot(*rules: Rule, **changes: LedgerEntry | None) -> Snapshot:
    """All full packages are stored and v1.2 -> v1.3 has a small patch, but for ``changes`` by 'pFROM_TO'."""
    ledger: dict[tuple[str | None, str], LedgerEntry] = {(None, version): stored() for version in RELEASES}
    ledger["v1.2", "v1.3"] = stored(100)
    for key, entry in changes.items():
        source, target = (f"v1.{digit}" if digit else None for digit in key.removeprefix("p").split("_"))
        assert target is not None
        ledger.pop((source, target), None)
        if entry is not None:
            ledger[source, target] = entry
    ordered = tuple(sorted(rules, key=lambda item: -item.release.counter))
    return Snapshot(1, "autoglm-phone-9b", "nano-int8", RELEASES, ordered, ledger)


def ask(version: str | None, **more: object) -> UpdateRequest:
    return UpdateRequest("dev_12345", version, **more)  # type: ignore[arg-type]


TO_ALL = rule("v1.3")
CASES = {
    "a stored patch that saves enough": (snapshot(TO_ALL), ask("v1.2"), "patch"),
    "a patch of exactly 60 % of the full package": (snapshot(TO_ALL, p2_3=stored(600)), ask("v1.2"), "patch"),
    "a patch above 60 % of the full package": (snapshot(TO_ALL, p2_3=stored(601)), ask("v1.2"), "full"),
    "a patch that was skipped": (snapshot(TO_ALL, p2_3=unfinished("skipped")), ask("v1.2"), "full"),
    "a patch that is queued": (snapshot(TO_ALL, p2_3=unfinished("pending")), ask("v1.2"), "wait"),
    "a patch that is being built": (snapshot(TO_ALL, p2_3=unfinished("running")), ask("v1.2"), "wait"),
    "a patch that never comes": (
        snapshot(TO_ALL, p2_3=unfinished("pending", PATIENCE_S)),
        ask("v1.2"),
        "full",
    ),
    "no row in the ledger": (snapshot(TO_ALL), ask("v1.1"), "full"),
    "an unknown version": (snapshot(TO_ALL), ask("v0.9-rc"), "full"),
    "no version at all": (snapshot(TO_ALL), ask(None), "full"),
    "an empty version": (snapshot(TO_ALL), ask(""), "full"),
    "a known version with other files": (snapshot(TO_ALL), ask("v1.2", current_sha256="f" * 64), "full"),
    "a known version with the right files": (
        snapshot(TO_ALL),
        ask("v1.2", current_sha256=RELEASES["v1.2"].manifest_sha256),
        "patch",
    ),
    "the target itself with broken files": (snapshot(TO_ALL), ask("v1.3", current_sha256="f" * 64), "full"),
    "up to date": (snapshot(TO_ALL), ask("v1.3"), "none"),
    "no roll-out": (snapshot(), ask("v1.1"), "none"),
    "a target below the device": (snapshot(rule("v1.1")), ask("v1.2"), "none"),
    "a target below the device, whose files are broken": (
        snapshot(rule("v1.1")),
        ask("v1.2", current_sha256="f" * 64),
        "none",
    ),
    "a release that failed on it": (snapshot(TO_ALL), ask("v1.2", failed=("v1.3",)), "none"),
    "the full package is being built": (snapshot(TO_ALL, p_3=unfinished("running")), ask("v1.2"), "wait"),
    "the full package was given up": (snapshot(TO_ALL, p_3=unfinished("skipped")), ask("v1.2"), "none"),
    "no package format in common": (snapshot(TO_ALL), ask("v1.2", accept=("wpatch-9",)), "none"),
    "another model": (snapshot(TO_ALL), ask("v1.2", model="other"), "none"),
    "another variant": (snapshot(TO_ALL), ask("v1.2", variant="9b-int4"), "none"),
    "the hub's model by name": (
        snapshot(TO_ALL),
        ask("v1.2", model="autoglm-phone-9b", variant="nano-int8"),
        "patch",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_device_is_offered_what_the_table_says(case: str) -> None:
    """Each situation has one answer."""
    world, request, kind = CASES[case]
    assert decide(world, request, None, NOW).kind == kind


def test_an_offer_carries_the_full_package_beside_a_patch() -> None:
    """A device on which the patch fails can go on without asking again."""
    choice = decide(snapshot(TO_ALL), ask("v1.2"), None, NOW)
    assert choice.package is not None and choice.package.size == 100
    assert choice.full is not None and choice.full.size == FULL_BYTES


def test_a_missing_patch_is_asked_for_once_a_known_device_needs_it() -> None:
    """A retired version in the field gets the full package, and its patch is wanted."""
    assert decide(snapshot(TO_ALL), ask("v1.1"), None, NOW).queue == ("v1.1", "v1.3")
    assert decide(snapshot(TO_ALL), ask("v0"), None, NOW).queue is None


def test_a_waiting_device_comes_back_in_seconds() -> None:
    """Waiting for a build takes 2 to 5 seconds at a time."""
    choice = decide(snapshot(TO_ALL, p2_3=unfinished("pending")), ask("v1.2"), None, NOW)
    assert choice.retry_after_s is not None and 2 <= choice.retry_after_s <= 5


def test_the_highest_matching_release_wins() -> None:
    """Of two active roll-outs the newer release is offered, and the older one where that failed."""
    both = snapshot(rule("v1.2"), TO_ALL)
    for failed, version in (((), "v1.3"), (("v1.3",), "v1.2")):
        chosen = decide(both, ask("v1.1", failed=failed), None, NOW).rule
        assert chosen is not None and chosen.release.version == version


def test_an_empty_device_takes_an_older_release_rather_than_wait() -> None:
    """While the newest full package is being built, a device with nothing starts with the one before."""
    world = snapshot(rule("v1.2"), TO_ALL, p_3=unfinished("pending"))
    chosen = decide(world, ask(None), None, NOW).rule
    assert chosen is not None and chosen.release.version == "v1.2"
    assert decide(world, ask("v1.1"), None, NOW).kind == "wait"


@pytest.mark.parametrize(
    ("claims", "matches"),
    [
        (None, False),
        (Claims("device"), False),
        (Claims("device", groups=("staff",)), False),
        (Claims("device", region="cn-east"), False),
        (Claims("device", groups=("beta", "staff"), region="cn-east"), True),
        (Claims("device", groups=("staff",), region="eu"), False),
    ],
)
def test_groups_and_regions_come_from_the_claims(claims: Claims | None, matches: bool) -> None:
    """A roll-out to a group and a region reaches only devices whose token names both."""
    world = snapshot(rule("v1.3", groups=("staff",), regions=("cn-east", "cn-north")))
    assert (decide(world, ask("v1.2"), claims, NOW).kind == "patch") is matches


def test_buckets_spread_evenly_and_a_raise_loses_nobody() -> None:
    """Of 100,000 devices 10 % +- 0.5 points are in at 10 %, and all of them still at 25 %."""
    devices = [f"dev_{number}" for number in range(100_000)]
    at_10, at_25 = rule("v1.3", 10), rule("v1.3", 25)
    first = {device for device in devices if at_10.includes(device, None)}
    second = {device for device in devices if at_25.includes(device, None)}
    assert abs(len(first) - 10_000) < 500
    assert first < second and abs(len(second) - 25_000) < 750


def test_two_salts_choose_independently() -> None:
    """Devices that were first in one roll-out are not first in the next."""
    devices = [f"dev_{number}" for number in range(20_000)]
    both = sum(bucket("a", device) < 1000 and bucket("b", device) < 1000 for device in devices)
    assert 100 < both < 300


def test_nobody_is_in_at_zero_and_everybody_at_a_hundred() -> None:
    """The ends of the scale are exact."""
    devices = [f"dev_{number}" for number in range(2_000)]
    assert not any(rule("v1.3", 0).includes(device, None) for device in devices)
    assert all(rule("v1.3", 100).includes(device, None) for device in devices)

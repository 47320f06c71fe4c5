"""A whole fleet against a real hub: everyone ends right, nothing is lost, and it can be repeated."""

from __future__ import annotations

import dataclasses

import pytest

from autoglm.errors import PermissionDeniedError
from autoglm.simulation import Outcome, Scenario, simulate, simulate_at
from autoglm.simulation.remote import RemoteHub
from autoglm.simulation.scenario import HOUR
from autoglm.simulation.wire import Place
from service.running import RunningService

ROUGH = Scenario(
    devices=60,
    bad_share=0.6,
    stages=("staff", "25", "100"),
    soak_s=2 * HOUR,
    repair_s=HOUR,
    every_s=HOUR,
    fetch_share=0.5,
    bad_networks=0.5,
    slow_phones=0.3,
    crash_rate=0.05,
    noise=0.0,
    tick_s=300.0,
)


@pytest.fixture(scope="module")
def rough() -> Outcome:
    """A rough life: half of the devices with bad networks, many restarts, and a release bad for most."""
    return simulate(ROUGH)


def test_every_device_ends_on_the_right_release(rough: Outcome) -> None:
    """However bad networks and phones are, all arrive, and by patches."""
    assert rough.on_target == 60
    assert rough.tally.by_version[rough.target] == 60
    assert rough.tally.cuts > 0
    assert rough.tally.restarts > 0
    assert rough.saved > 0.7


def test_the_hub_halts_the_bad_release(rough: Outcome) -> None:
    """It is stopped before the last stage, and its repair is not."""
    bad, repair = rough.trials
    assert bad.is_bad
    assert bad.rollout["state"] == "halted"
    assert bad.halted_percent is not None
    assert bad.halted_percent < 100
    assert bad.installed < 60
    assert not repair.is_bad
    assert repair.halted_hours is None
    assert repair.installed == 60


def test_a_good_release_that_is_halted_ends_the_run() -> None:
    """When every second attempt fails by bad luck, the guard halts it, and nobody waits for thirty days."""
    unlucky = dataclasses.replace(ROUGH, bad_share=0.0, noise=0.5, stages=("100",))
    outcome = simulate(unlucky)
    assert outcome.trials[0].rollout["state"] == "halted"
    assert not outcome.is_good
    assert outcome.events_agree


def test_no_event_is_lost_or_counted_twice(rough: Outcome) -> None:
    """The hub's table has exactly the devices' events, though many were sent more than once."""
    assert rough.events_agree
    assert rough.hub_events == rough.tally.events
    assert rough.tally.sent_events > rough.tally.events


def test_real_downloads_have_the_promised_bytes(rough: Outcome) -> None:
    """Those that really downloaded, in pieces, got what the hub had promised."""
    assert rough.fetched_bytes > 0
    assert rough.broken_fetches == 0


def test_the_same_seed_gives_the_same_run(rough: Outcome) -> None:
    """But for the seconds it took, everything is equal."""
    again = simulate(ROUGH)
    assert dataclasses.replace(again, wall_s=0.0) == dataclasses.replace(rough, wall_s=0.0)


def test_a_fleet_follows_a_hub_that_is_there_already(busy_service: RunningService) -> None:
    """Against another hub the devices take what is offered, and its counts are compared with theirs."""
    scenario = Scenario(devices=25, fetch_share=0.2, bad_networks=0.3)
    outcome = simulate_at(RemoteHub(Place(busy_service.url), busy_service.token), scenario)
    assert outcome.on_target == 25
    assert outcome.tally.by_version["v1.3"] == 25
    assert outcome.events_agree
    assert outcome.hub_events is None


def test_a_hub_refuses_a_wrong_token(busy_service: RunningService) -> None:
    """Who may not see the roll-outs is told so."""
    with pytest.raises(PermissionDeniedError, match="token"):
        simulate_at(RemoteHub(Place(busy_service.url), "wrong"), Scenario(devices=1))

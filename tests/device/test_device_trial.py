"""The trial of a new release: confirmed by answers and time, left after failures or crashes."""

from __future__ import annotations

from typing import Any

import pytest

from autoglm.device import Updater
from autoglm.errors import OverloadedError
from autoglm.releases import Manifest

MINUTES = 60.0


def start_trial(lab: Any, hub: Any, runtime: Any) -> Updater:
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    assert updater.update(runtime).kind == "updated"
    return updater


def current(updater: Updater) -> str:
    assert updater.active is not None
    return Manifest.read(updater.active).version


def test_answers_and_time_confirm(lab: Any, hub: Any, clock: Any, make_runtime: Any) -> None:
    """Enough good answers confirm only once the time is over; then the old model is let go."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    assert not updater.answered(True)
    assert updater.answered(True)
    clock.seconds += 9 * MINUTES
    updater.tick()
    assert not updater.status().confirmed
    clock.seconds += 1 * MINUTES
    updater.tick()
    status = updater.status()
    assert (status.confirmed, status.state, status.previous) == (True, "IDLE", "v1.2")
    assert runtime.calls[-1] == "release_previous"
    assert hub.outcomes() == [("ok", "v1.3", None)]


def test_a_first_release_is_proved_in_the_process_that_installed_it(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """An app that installs, loads and serves without a restart sees its release confirmed."""
    hub.target, updater = "v1.2", lab.open()
    assert updater.update().kind == "updated"
    updater.attach(make_runtime("v1.2"))
    lab.prove(updater)
    assert updater.status().confirmed


def test_a_failed_answer_sends_the_release_back(lab: Any, hub: Any, make_runtime: Any) -> None:
    """The live model is swapped back, the release quarantined and reported."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    assert updater.answered(False)
    updater.tick()
    assert (current(updater), runtime.serving) == ("v1.2", "v1.2")
    assert updater.status().quarantined == ("v1.3",)
    assert hub.outcomes() == [("fail", "v1.3", "E_HEALTH")]


def test_late_answers_of_the_old_release_do_not_count(
    lab: Any, hub: Any, clock: Any, make_runtime: Any
) -> None:
    """Requests that finish on the release they began with say nothing about the new one."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    assert not updater.answered(False, "v1.2")
    assert not updater.answered(True, "v1.3")
    clock.seconds += 11 * MINUTES
    runtime.faults["live_self_test"] = OverloadedError("busy")
    updater.tick()
    assert (current(updater), updater.status().confirmed) == ("v1.3", False)


def test_an_idle_device_confirms_by_asking_itself(lab: Any, hub: Any, clock: Any, make_runtime: Any) -> None:
    """With nobody asking, the release's own prompts through the live path decide."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    updater.tick()
    assert "live_self_test" not in runtime.calls
    clock.seconds += 10 * MINUTES
    updater.tick()
    assert updater.status().confirmed


def test_an_idle_device_whose_release_fails_goes_back(
    lab: Any, hub: Any, clock: Any, make_runtime: Any
) -> None:
    """A live self-test that fails, or breaks, ends the trial."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    runtime.faults["live_self_test"] = RuntimeError("NaN")
    clock.seconds += 10 * MINUTES
    updater.tick()
    assert (current(updater), runtime.serving) == ("v1.2", "v1.2")


def test_a_release_that_kills_its_process_is_left_after_its_tries(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """It passes its self-test and dies on its first live answer, start after start: the third start loads
    the previous release, reports, and neither hub nor device brings the bad one back."""
    start_trial(lab, hub, make_runtime("v1.2"))  # the process dies here: nothing is closed in order
    assert current(lab.open()) == "v1.3"
    assert current(lab.open()) == "v1.3"
    updater = lab.open()
    assert current(updater) == "v1.2"
    assert updater.status().confirmed
    result = updater.update(make_runtime("v1.2"))
    assert result.kind == "none"
    assert hub.outcomes() == [("fail", "v1.3", "E_CRASH_LOOP")]
    assert hub.requests[-1].failed == ("v1.3",)
    hub.target = "v1.4"
    assert updater.update(make_runtime("v1.2")).to_version == "v1.4"


def test_tries_are_counted_before_anything_loads(lab: Any, hub: Any, make_runtime: Any) -> None:
    """The count on the disk has gone down when the constructor returns."""
    start_trial(lab, hub, make_runtime("v1.2"))
    assert lab.open().status().tries_left == 2
    assert lab.open().status().tries_left == 1


def test_a_process_that_does_not_load_the_model_costs_no_try(lab: Any, hub: Any, make_runtime: Any) -> None:
    """Commands that only look or fetch do not count as starts."""
    start_trial(lab, hub, make_runtime("v1.2"))
    for _ in range(5):
        assert lab.open(boot=False).status().tries_left == 3


def test_stopping_an_app_that_answers_well_costs_no_try(lab: Any, hub: Any, make_runtime: Any) -> None:
    """Restarts by hand are no crashes, once the release has answered; an exception on the way out is one."""
    start_trial(lab, hub, make_runtime("v1.2"))
    for _ in range(5):
        updater = lab.open()
        updater.answered(True)
        updater.close()
        updater.close()
    assert lab.open().status().tries_left == 2
    with pytest.raises(ZeroDivisionError), lab.open() as updater:
        updater.answered(True)
        raise ZeroDivisionError
    assert lab.open(boot=False).status().tries_left == 1


def test_restarts_in_order_before_any_answer_cost_no_try(lab: Any, hub: Any, make_runtime: Any) -> None:
    """A release gets its try back at an orderly end, unless it was never loaded or an answer failed."""
    start_trial(lab, hub, make_runtime("v1.2"))
    for _ in range(5):
        updater = lab.open()
        updater.attach(make_runtime("v1.3"))
        updater.close()
    assert lab.open(boot=False).status().tries_left == 3
    lab.open().close()
    updater = lab.open()
    updater.attach(make_runtime("v1.3"))
    updater.answered(False)
    updater.close()
    assert lab.open(boot=False).status().tries_left == 1
    updater = lab.open()
    assert current(updater) == "v1.2"


def test_healthy_uptime_gives_the_tries_back(lab: Any, hub: Any, clock: Any, make_runtime: Any) -> None:
    """A release that runs for the whole time, asked too little to be confirmed, does not run out of tries."""
    start_trial(lab, hub, make_runtime("v1.2"))
    lab.open()
    updater = lab.open()
    assert updater.status().tries_left == 1
    clock.seconds += 10 * MINUTES
    updater.tick()
    assert (updater.status().tries_left, updater.status().confirmed) == (3, False)


def test_the_only_release_is_never_left(lab: Any, hub: Any) -> None:
    """A first release has nothing to fall back to: better one that may work than none."""
    hub.target = "v1.2"
    lab.open().update()
    for _ in range(8):
        updater = lab.open()
        assert current(updater) == "v1.2"
    updater.answered(False)
    updater.tick()
    assert current(updater) == "v1.2"


def test_without_a_swap_the_trial_begins_at_the_next_start(lab: Any, hub: Any) -> None:
    """Answers given by the old release, which this process still serves, do not confirm the new one; the
    start that loads it is the first of its tries."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    updater.update()
    lab.prove(updater)
    assert not updater.status().confirmed
    updater = lab.open()
    assert updater.status().tries_left == 3
    lab.prove(updater)
    assert updater.status().confirmed


def test_one_unproven_release_at_a_time(lab: Any, hub: Any, make_runtime: Any) -> None:
    """During a trial a further update is held, and says for how long."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    hub.target = "v1.4"
    result = updater.update(runtime)
    assert (result.kind, result.code, result.retry_after_s) == ("held", "E_TRIAL", 601)
    lab.prove(updater)
    assert updater.update(runtime).to_version == "v1.4"


def test_going_back_after_a_restart_loads_the_previous_release(lab: Any, hub: Any, make_runtime: Any) -> None:
    """A runtime that started on the new release does not hold the old one: it is staged and swapped in."""
    start_trial(lab, hub, make_runtime("v1.2"))
    runtime = make_runtime("v1.3")
    updater = lab.open(runtime=runtime)
    updater.answered(False)
    updater.tick()
    assert (runtime.calls, runtime.serving) == (["stage", "self_test", "swap", "release_previous"], "v1.2")


def test_a_runtime_that_cannot_swap_back_loads_the_previous_release(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """When rollback breaks, the previous release is loaded from the disk instead."""
    runtime = make_runtime("v1.2")
    updater = start_trial(lab, hub, runtime)
    runtime.faults["rollback"] = RuntimeError("the old weights are gone")
    updater.answered(False)
    updater.tick()
    assert runtime.serving == "v1.2"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"state":"DANCING"}',
        b'{"state":"TRIAL"}',
        b'{"state":"IDLE","attempt":null,"wire_bytes":Infinity,"last_error":null}',
        b'{"state":"TRIAL","attempt":{"uid":7},"wire_bytes":0,"last_error":null}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
)
def test_an_unknown_saved_state_rolls_back(lab: Any, hub: Any, make_runtime: Any, content: bytes) -> None:
    """A state that this version cannot read ends in the last proven release."""
    start_trial(lab, hub, make_runtime("v1.2"))
    lab.opened[-1].close()
    (lab.root / "state.json").write_bytes(content)
    updater = lab.open()
    assert (current(updater), updater.status().state) == ("v1.2", "IDLE")
    updater.check()
    assert hub.outcomes() == [("fail", "v1.3", "E_STATE")]


def test_a_lost_state_still_counts_the_tries(lab: Any, hub: Any, make_runtime: Any) -> None:
    """current.json alone is enough to leave a crash-looping release."""
    start_trial(lab, hub, make_runtime("v1.2"))
    for _ in range(3):
        lab.opened[-1].close()
        (lab.root / "state.json").unlink(missing_ok=True)
        updater = lab.open()
    assert current(updater) == "v1.2"
    updater.check()
    assert hub.outcomes() == [("fail", "v1.3", "E_CRASH_LOOP")]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"current":{"folder":"../..","manifest_sha256":"0"}}'])
def test_a_damaged_commit_record_leads_to_the_oldest_whole_release(
    lab: Any, hub: Any, content: bytes
) -> None:
    """Of the two releases on the disk the proven one is taken."""
    lab.install("v1.2")
    lab.install("v1.3").close()
    (lab.root / "current.json").write_bytes(content)
    updater = lab.open()
    assert (current(updater), updater.status().confirmed) == ("v1.2", True)


def test_a_release_with_missing_files_is_left(lab: Any, hub: Any, make_runtime: Any) -> None:
    """A current release that lost a file gives way to the previous one before anything loads."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    (updater.active / "model.safetensors").unlink()
    updater = lab.open()
    assert current(updater) == "v1.2"
    assert updater.status().last_error["code"] == "E_INTEGRITY"


def test_nothing_whole_left_means_a_cold_start(lab: Any, hub: Any) -> None:
    """With its only release damaged the device has none, and fetches the head in full."""
    updater = lab.install("v1.2")
    (updater.active / "manifest.json").write_text("{}")
    updater = lab.open()
    assert updater.active is None
    assert updater.update().kind == "updated"
    assert current(updater) == "v1.2"

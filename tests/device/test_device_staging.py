"""An update in two steps: staged, and committed to when somebody says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import Agent, FileRuntime
from autoglm.device.states import E_STAGED
from autoglm.errors import ConflictError, EngineError, HealthError, OutOfMemoryError, OverloadedError


@pytest.fixture
def staged(lab: Any, make_runtime: Callable[..., Any]) -> tuple[Any, Any]:
    """An updater on v1.2 with v1.3 staged, and its runtime."""
    lab.install("v1.2")
    lab.hub.target = "v1.3"
    updater, runtime = lab.open(), make_runtime("v1.2")
    result = updater.stage(runtime)
    assert (result.kind, result.from_version, result.to_version) == ("staged", "v1.2", "v1.3")
    return updater, runtime


def test_staging_changes_nothing_that_anybody_sees(lab: Any, staged: tuple[Any, Any]) -> None:
    """The new release is loaded and examined; the old one serves, and is what a restart loads."""
    updater, runtime = staged
    assert (runtime.serving, runtime.calls) == ("v1.2", ["stage", "self_test"])
    status = updater.status()
    assert (status.current, status.confirmed, status.staged) == ("v1.2", True, "v1.3")
    again = lab.open()
    assert (again.status().current, again.status().staged) == ("v1.2", None)
    assert again.update(runtime).kind == "updated"


def test_a_commit_swaps_and_begins_the_trial(lab: Any, staged: tuple[Any, Any]) -> None:
    """Nothing is fetched or examined again; the trial is judged as ever."""
    updater, runtime = staged
    result = updater.commit()
    assert (result.kind, result.to_version, result.pause_s) == ("updated", "v1.3", 0.01)
    assert (runtime.serving, runtime.calls) == ("v1.3", ["stage", "self_test", "swap"])
    status = updater.status()
    assert (status.current, status.confirmed, status.staged) == ("v1.3", False, None)
    lab.prove(updater)
    assert updater.status().confirmed


def test_a_commit_with_nothing_staged_is_a_conflict(lab: Any, staged: tuple[Any, Any]) -> None:
    """Before a stage, after a discard, and a second time."""
    updater, _ = staged
    assert updater.discard() and not updater.discard()
    with pytest.raises(ConflictError, match="nothing is staged"):
        updater.commit()
    updater.stage()
    updater.commit()
    with pytest.raises(ConflictError, match="nothing is staged"):
        updater.commit()


def test_staging_twice_keeps_the_first(staged: tuple[Any, Any]) -> None:
    """The release that the hub still offers is not loaded a second time."""
    updater, runtime = staged
    assert updater.stage(runtime).kind == "staged"
    assert runtime.calls == ["stage", "self_test"]


def test_a_scheduled_update_leaves_a_staged_release_alone(staged: tuple[Any, Any]) -> None:
    """It says that one waits."""
    updater, runtime = staged
    result = updater.update(runtime)
    assert (result.kind, result.code, result.to_version) == ("held", E_STAGED, "v1.3")
    assert updater.commit().kind == "updated"


def test_what_the_hub_withdraws_is_dropped(lab: Any, staged: tuple[Any, Any]) -> None:
    """When nothing is offered any more, nothing is staged any more."""
    updater, runtime = staged
    lab.hub.target = None
    assert updater.update(runtime).kind == "none"
    assert runtime.calls[-1] == "discard"
    with pytest.raises(ConflictError):
        updater.commit()


def test_a_halted_roll_out_stops_the_commit(lab: Any, staged: tuple[Any, Any]) -> None:
    """Paused, the release stays staged; called off, it is dropped."""
    updater, runtime = staged
    for control, waits in (("pause", "v1.3"), ("continue", None)):
        lab.hub.control = control
        updater._device.queue_event(updater._device.machine.attempt, "APPLYING", "progress", name=control)
        result = updater.commit()
        assert updater.status().staged == waits
    assert result.kind == "updated"
    assert runtime.serving == "v1.3"


def test_a_roll_out_that_is_called_off_drops_what_is_staged(lab: Any, staged: tuple[Any, Any]) -> None:
    """The commit is held back, and the release is gone."""
    updater, runtime = staged
    lab.hub.control = "cancel"
    updater._device.queue_event(updater._device.machine.attempt, "APPLYING", "progress", name="told")
    assert updater.commit().code == "E_CANCELLED"
    assert (updater.status().staged, runtime.calls[-1], runtime.serving) == (None, "discard", "v1.2")


def test_a_release_that_fails_its_self_test_is_not_staged(lab: Any, make_runtime: Any) -> None:
    """It is quarantined, and the old one serves."""
    lab.install("v1.2")
    lab.hub.target = "v1.3"
    updater, runtime = lab.open(), make_runtime("v1.2")
    runtime.report = replace(runtime.report, ok=False, failures=("it babbles",))
    result = updater.stage(runtime)
    assert (result.kind, result.code) == ("failed", HealthError.code)
    assert updater.status().quarantined == ("v1.3",)
    assert (updater.status().staged, runtime.serving) == (None, "v1.2")


def test_a_staged_release_that_rots_is_not_committed_to(staged: tuple[Any, Any]) -> None:
    """Its files are looked at again; nothing is quarantined for it."""
    updater, runtime = staged
    folder = next(path for path in (updater.root / "releases").iterdir() if "v1.3" in path.name)
    next(path for path in folder.iterdir() if path.name != "manifest.json").unlink()
    assert updater.commit().kind == "failed"
    assert (runtime.serving, runtime.calls[-1]) == ("v1.2", "discard")
    assert updater.status().quarantined == ()


def test_a_rollback_drops_what_is_staged(lab: Any, staged: tuple[Any, Any]) -> None:
    """Back to the release before, with nothing waiting."""
    updater, runtime = staged
    updater.commit()
    lab.prove(updater)
    lab.hub.target = "v1.4"
    assert updater.stage(runtime).kind == "staged"
    assert updater.rollback(runtime).to_version == "v1.2"
    assert updater.status().staged is None
    assert updater.status().current == "v1.2"


def test_a_runtime_that_closes_is_no_fault_of_the_release(staged: tuple[Any, Any], lab: Any) -> None:
    """Committed while the app ends: the next start loads the new release, on trial."""
    updater, runtime = staged
    runtime.faults["swap"] = OverloadedError("the engine is closed")
    assert updater.commit().kind == "updated"
    status = lab.open().status()
    assert (status.current, status.confirmed, status.quarantined) == ("v1.3", False, ())


def test_a_failing_swap_falls_back(staged: tuple[Any, Any]) -> None:
    """As in an update: the old release is the current one again."""
    updater, runtime = staged
    runtime.faults["swap"] = EngineError("it breaks")
    assert updater.commit().kind == "failed"
    assert (updater.status().current, updater.status().staged) == ("v1.2", None)


def test_where_memory_holds_one_model_the_commit_loads(lab: Any) -> None:
    """Staging ends with the files on the disk; no request has waited for it."""
    log: list[str] = []
    lab.install("v1.2")
    lab.change(swap_mode="exclusive")
    lab.hub.target = "v1.3"
    runtime = FileRuntime(lambda directory: log.append(directory.name), unload=lambda: log.append("unload"))
    updater = lab.open()
    assert updater.stage(runtime).kind == "staged"
    assert log == []
    assert updater.commit().kind == "updated"
    assert log[0] == "unload" and "v1.3" in log[1]


def test_a_release_that_does_not_fit_after_all_waits_on_the_disk(lab: Any, make_runtime: Any) -> None:
    """A runtime that runs out of memory while staging is asked again at the commit, alone."""
    lab.install("v1.2")
    lab.hub.target = "v1.3"

    class Tight(type(make_runtime(None))):  # type: ignore[misc]
        def room(self, directory: Path) -> Any:
            raise OSError("not known")

        def stage(self, directory: Path, *, instead_of: Path | None = None) -> Any:
            if instead_of is None:
                raise OutOfMemoryError("too large")
            return super().stage(directory)

    updater, runtime = lab.open(), Tight("v1.2")
    assert updater.stage(runtime).kind == "staged"
    assert runtime.calls == []
    assert updater.commit().kind == "updated"
    assert runtime.serving == "v1.3"


def test_one_thing_at_a_time(staged: tuple[Any, Any]) -> None:
    """While an update runs in another thread, the others are told so instead of waiting."""
    updater, runtime = staged
    inside, done = threading.Event(), threading.Event()

    def slow(_: object) -> Any:
        inside.set()
        assert done.wait(60)
        return type(runtime).swap(runtime, "v1.3")

    runtime.swap = slow
    committing = threading.Thread(target=updater.commit)
    committing.start()
    assert inside.wait(60)
    for step in (updater.stage, updater.commit, updater.discard, updater.rollback):
        with pytest.raises(ConflictError, match="under way"):
            step(wait_s=0.01)
    done.set()
    committing.join(60)
    assert (runtime.serving, updater.status().current) == ("v1.3", "v1.3")


def test_nothing_is_staged_without_a_runtime(lab: Any) -> None:
    """There is nothing to stage beside."""
    lab.install("v1.2")
    with pytest.raises(ConflictError, match="nothing runs a model"):
        lab.open().stage()


def test_a_closed_updater_stages_nothing(staged: tuple[Any, Any]) -> None:
    """Closing drops what waits; afterwards every step is a conflict."""
    updater, runtime = staged
    updater.close()
    assert runtime.calls[-1] == "discard"
    with pytest.raises(ConflictError, match="closed"):
        updater.stage()


def test_an_agent_that_is_not_automatic_only_watches(lab: Any, staged: tuple[Any, Any]) -> None:
    """It asks the hub only when told to, and still judges the trial."""
    updater, runtime = staged
    updater.commit()
    agent = Agent(updater, runtime, automatic=False)
    asked = len(lab.hub.requests)
    assert agent.step() > 0
    assert len(lab.hub.requests) == asked
    for _ in range(lab.settings.trial_answers):
        agent.answered(True)
    lab.clock.seconds += 600
    agent.step()
    assert updater.status().confirmed
    agent.update_now()
    agent.step()
    assert len(lab.hub.requests) > asked

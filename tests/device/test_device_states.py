"""The state machine: its table, its bound, its durability; and the walls around the SDK."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoglm import device
from autoglm.device.states import MAX_CHANGES, TABLE, Attempt, GiveUpError, Machine, Saved, State
from autoglm.errors import FormatError


def attempt() -> Attempt:
    return Attempt("u1", "v1.3", "0" * 64)


def test_the_table_has_a_row_for_every_state_and_a_way_to_the_end() -> None:
    """From every state IDLE can be reached."""
    assert set(TABLE) == set(State)
    reached = {State.IDLE}
    while more := {state for state in State if TABLE[state].next & reached} - reached:
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize("state", list(State))
def test_transitions_outside_of_the_table_are_refused(tmp_path: Path, state: State) -> None:
    """The machine never goes where the table does not lead."""
    for target in set(State) - TABLE[state].next:
        machine = Machine(tmp_path / "state.json")
        machine.saved = Saved(state, None if state is State.IDLE else attempt())
        with pytest.raises(FormatError, match="cannot go"):
            machine.move(target, attempt())
        assert not (tmp_path / "state.json").exists()


def test_a_change_is_on_the_disk_when_the_call_returns(tmp_path: Path) -> None:
    """Another machine over the same file stands where the first one went."""
    first, second = Machine(tmp_path / "state.json"), Machine(tmp_path / "state.json")
    first.move(State.DOWNLOADING, attempt())
    first.note(failures=1)
    first.count_wire_bytes(70)
    assert second.load()
    assert second.saved == first.saved
    assert (second.state, second.attempt.failures, second.attempt.wire_bytes) == (State.DOWNLOADING, 1, 70)


def test_an_attempt_cannot_change_state_for_ever(tmp_path: Path) -> None:
    """After the bound only an end is allowed."""
    machine = Machine(tmp_path / "state.json")
    machine.move(State.DOWNLOADING, attempt())
    machine.move(State.APPLYING)
    for _ in range(MAX_CHANGES - 2):
        machine.move(State.APPLYING)
    with pytest.raises(GiveUpError):
        machine.move(State.APPLYING)
    machine.move(State.FAILED)


def test_a_device_that_dies_while_applying_gives_up_in_the_end(
    lab: Any, hub: Any, make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that kills the process each time it is staged is quarantined, not tried for ever."""

    class Killed(BaseException):
        """Stands for the end of the process."""

    lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    monkeypatch.setattr(runtime, "stage", lambda directory: (_ for _ in ()).throw(Killed()))
    for _ in range(MAX_CHANGES + 2):
        updater = lab.open()
        try:
            result = updater.update(runtime)
        except Killed:
            continue
        break
    assert (result.kind, result.code) == ("failed", "E_LOOP")
    assert updater.status().quarantined == ("v1.3",)


def test_stops_in_order_while_applying_never_end_an_attempt(lab: Any, hub: Any) -> None:
    """A device that has to stop in the middle again and again goes on again and again."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"

    def reason_to_stop() -> str | None:
        return "no Wi-Fi" if updater.status().state == "APPLYING" else None

    for _ in range(2 * MAX_CHANGES):
        assert updater.update(gate=reason_to_stop).code == "E_HELD"
    assert updater.update().kind == "updated"


def test_the_sdk_runs_where_a_phone_has_no_heavy_libraries() -> None:
    """With numpy, torch and the service's libraries blocked the SDK imports and opens a directory."""
    blocked = (
        "numpy torch pydantic msgspec cryptography fastapi starlette sqlalchemy typer rich safetensors "
        "tokenizers httpx requests"
    )
    program = f"""
import sys, tempfile
for name in {blocked.split()!r}:
    sys.modules[name] = None
from autoglm.device import Agent, FileRuntime, Updater
with Updater(tempfile.mkdtemp(), hub_url="https://hub.example") as updater:
    Agent(updater, FileRuntime(), every="6h")
    print(updater.active, updater.status().state)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["None", "IDLE"]


def test_the_exports_are_these() -> None:
    """What an app may import from the package is a deliberate list."""
    assert sorted(device.__all__) == [
        "Agent",
        "Body",
        "Change",
        "Control",
        "Environment",
        "ExclusiveRuntime",
        "FileRuntime",
        "FileTokenStore",
        "Gate",
        "HttpTransport",
        "LinuxEnvironment",
        "LocalTransport",
        "Progress",
        "Reading",
        "Runtime",
        "SelfTestReport",
        "SettableEnvironment",
        "State",
        "Status",
        "TokenStore",
        "Transport",
        "UpdateResult",
        "UpdateSettings",
        "Updater",
        "enrol",
        "parse_every",
        "read_status",
    ]
    assert all(hasattr(device, name) for name in device.__all__)

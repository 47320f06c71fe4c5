"""Staged roll-outs, rollbacks and the fleet's history from the command line, against a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoglm.cli.fleet_explain import parse_time
from autoglm.cli.rollout import parse_duration
from autoglm.cli.rollout_view import as_duration
from autoglm.errors import ConfigError


@pytest.fixture
def data(autoglm: Any, cli_service: Any, cli_store: Path) -> Path:
    """The data directory of a service that has v1.3 and offers it to nobody; one phone has asked."""
    directory = cli_service.state.settings.data_path
    assert autoglm("publish", cli_store / "v1.3.wpatch", "--data", directory).status == 0
    cli_service.post("/v1/model/update", {"device_id": "dev_1", "current_version": "v1.2"})
    return directory


def test_a_staged_roll_out_from_beginning_to_end(autoglm: Any, data: Path) -> None:
    """Made, shown, promoted and ended, each in words and as JSON."""
    options = ("--stages", "staff,0.01,100", "--soak", "24h", "--threshold", "2", "--data", data)
    made = autoglm("rollout", "create", "v1.3", *options, "--json").json
    assert made["stages"] == ["staff", "0.01", "100"] and made["soak_s"] == 86400
    rollout = made["id"]
    listed = autoglm("rollout", "status", "--data", data)
    assert rollout in listed.output and "fails at least" in listed.output
    shown = autoglm("rollout", "status", rollout, "--data", data)
    assert "staff > 0.01 > [100]" in shown.output and "create" in shown.output
    assert autoglm("rollout", "status", rollout, "--data", data, "--json").json["log"][0]["act"] == "create"
    again = autoglm("rollout", "promote", rollout, "--data", data)
    assert again.status == 1 and "last stage" in again.error
    assert autoglm("rollout", "abort", rollout, "--data", data).status == 0
    watched = autoglm("rollout", "status", rollout, "--watch", "--data", data)
    assert watched.status == 0 and "aborted" in watched.output
    assert autoglm("rollout", "status", "--watch", "--json", "--data", data).status == 1


def test_nothing_named_goes_by_the_default_stages(autoglm: Any, data: Path) -> None:
    """A bare `rollout create` is a careful one."""
    made = autoglm("rollout", "create", "v1.3", "--data", data, "--json").json
    assert made["stages"] == ["staff", "1", "5", "25", "50", "100"]
    assert "stage" in autoglm("rollout", "create", "v1.3", "--data", data).output


def test_a_dry_run_makes_nothing(autoglm: Any, data: Path) -> None:
    """It prints devices, bytes and stages, and there is no roll-out afterwards."""
    shown = autoglm("rollout", "create", "v1.3", "--percent", "100", "--dry-run", "--data", data)
    assert shown.status == 0, shown.error
    assert "2 of 2 devices" in shown.output and "region" in shown.output and "being built" in shown.output
    found = autoglm("rollout", "create", "v1.3", "--dry-run", "--data", data, "--json").json
    assert found["devices"] == 2 and len(found["stages"]) == 6
    assert len(autoglm("rollout", "status", "--data", data, "--json").json["rollouts"]) == 1


def test_a_release_is_taken_back(autoglm: Any, data: Path) -> None:
    """The command answers with the roll-out that offers the old bytes again."""
    rollout = autoglm("rollout", "create", "v1.3", "--percent", "100", "--data", data, "--json").json["id"]
    back = autoglm("rollout", "rollback", rollout, "--data", data)
    assert back.status == 0, back.error
    assert "v1.2.r14" in back.output and "on v1.3" in back.output
    assert autoglm("rollout", "rollback", "r99", "--data", data).status == 1


def test_a_device_is_explained(autoglm: Any, data: Path) -> None:
    """What it runs, what it is offered, and each roll-out's reason."""
    autoglm("rollout", "create", "v1.3", "--percent", "0", "--data", data)
    shown = autoglm("fleet", "explain", "dev_1", "--data", data)
    assert shown.status == 0, shown.error
    assert "dev_1 runs v1.2" in shown.output and "bucket" in shown.output
    assert autoglm("fleet", "explain", "dev_1", "--data", data, "--json").json["kind"] == "none"
    assert autoglm("fleet", "explain", "nobody", "--data", data).status == 1
    assert autoglm("fleet", "explain", "nobody", "--version", "v1.2", "--data", data).status == 0


def test_the_past_is_shown(autoglm: Any, data: Path) -> None:
    """Versions by device, roll-outs by state; before the beginning there was nothing."""
    shown = autoglm("fleet", "who", "--version", "v1.2", "--data", data)
    assert shown.status == 0, shown.error
    assert "dev_1" in shown.output and "r1" in shown.output
    before = autoglm("fleet", "who", "--at", "2001-01-01T00:00", "--data", data)
    assert "no device had been seen yet" in before.output
    assert autoglm("fleet", "who", "--at", "yesterday", "--data", data).status == 1


def test_lengths_of_time_are_read_and_shown() -> None:
    """Units from seconds to days; a bare number, which could mean anything, is refused."""
    assert [parse_duration(text) for text in ("0", "90s", "1.5m", "24h", "7d")] == [0, 90, 90, 86400, 604800]
    for text in ("24", "-1h", "soon", "", "1w"):
        with pytest.raises(ConfigError, match="length of time"):
            parse_duration(text)
    assert [as_duration(seconds) for seconds in (None, 5, 600, 86400)] == [
        None,
        "5 s",
        "10 min",
        "24 h 0 min",
    ]


def test_times_are_read() -> None:
    """ISO 8601 with a zone or without, and seconds since 1970."""
    assert parse_time("2026-11-22T20:00+00:00") == 1795377600
    assert parse_time("1795377600.5") == 1795377600.5
    for text in ("soon", "99999-01-01", "1.2.3"):
        with pytest.raises(ConfigError, match="no time"):
            parse_time(text)

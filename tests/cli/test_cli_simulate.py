"""``autoglm fleet simulate``: the table, the curve, JSON."""

from __future__ import annotations

from pathlib import Path

from cli.conftest import Run

QUICK = ("--stages", "100", "--soak", "1h", "--every", "1h")


def test_a_small_fleet_is_shown_with_its_curve(autoglm: Run, tmp_path: Path) -> None:
    """The table says what happened, the curve is drawn, and the last line is the verdict."""
    picture = tmp_path / "curve.png"
    result = autoglm("fleet", "simulate", "--devices", "20", "--bad", "0", *QUICK, "--plot", picture)
    assert result.status == 0
    assert "100 % |" in result.output
    assert "20 of 20 devices ended on v1.1. No event was lost or counted twice." in result.output
    assert picture.exists()


def test_a_fleet_for_scripts_is_one_json_document(autoglm: Run) -> None:
    """--json has the counts and the curve."""
    result = autoglm("fleet", "simulate", "--devices", "10", "--bad", "0", *QUICK, "--seed", "2", "--json")
    assert result.json["ok"] is True
    assert result.json["scenario"]["seed"] == 2
    assert result.json["samples"][-1]["by_version"]["v1.1"] == 10


def test_a_hub_without_a_token_is_refused(autoglm: Run) -> None:
    """The roll-outs of a hub are never open, so a token is asked for before anything is sent."""
    result = autoglm("fleet", "simulate", "--hub", "http://127.0.0.1:9")
    assert (result.status, "--token" in result.error) == (1, True)

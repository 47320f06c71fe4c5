"""A running service's release swapped step by step from the command line."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from autoglm.cli.engine import _rows
from service.running import running_service, tiny_settings


@pytest.fixture
def data(autoglm: Any, cli_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The data directory of a service on v1.2 that operators update; v1.3 is offered to everyone."""
    settings = tiny_settings(
        cli_store, tmp_path_factory.mktemp("manual"), update={"automatic": False, "trial_minutes": 10}
    )
    with running_service(settings) as service:
        published = autoglm(
            "publish", cli_store / "v1.3.wpatch", "--data", settings.data_path, "--percent", "100"
        )
        assert published.status == 0, published.error
        service.build_packages()
        yield settings.data_path


def test_a_swap_step_by_step(autoglm: Any, data: Path) -> None:
    """Each step says what it did, in words and as JSON; out of order, it is one line of error."""

    def engine(*words: str) -> Any:
        return autoglm("engine", *words, "--data", data)

    assert engine("commit").error == "error: nothing is staged: stage a release first\n"
    staged = engine("stage")
    assert "v1.3 is staged" in staged.output, staged.error
    shown = engine("status")
    assert all(word in shown.output for word in ("v1.2", "v1.3", "staged", "quarantined"))
    assert engine("discard").output == "dropped\n"
    assert engine("discard").output == "nothing was staged\n"
    assert engine("stage", "--json").json["result"] == "staged"
    committed = engine("commit")
    assert committed.output.startswith("v1.2 -> v1.3, "), committed.error
    assert engine("status", "--json").json["engine"]["active"] == "v1.3"
    assert engine("rollback").output == "v1.2 answers\n"
    nothing = engine("stage").output
    assert "nothing newer" in nothing
    assert "failed or was rolled back here: v1.3" in nothing


def test_a_package_in_preparation_is_said_to_be(autoglm: Any, tmp_path: Path, cli_store: Path) -> None:
    """As long as the hub builds it, staging says so, and not that there is nothing newer."""
    settings = tiny_settings(cli_store, tmp_path, update={"automatic": False})
    with running_service(settings):
        package = cli_store / "v1.3.wpatch"
        assert autoglm("publish", package, "--data", settings.data_path, "--percent", "100").status == 0
        staged = autoglm("engine", "stage", "--data", settings.data_path)
        assert "still preparing" in staged.output, staged.error


def test_the_previous_release_is_the_one_on_the_disk() -> None:
    """A rollback returns to it after a restart too, when memory holds one release only."""
    engine = {"active": "v1.3", "previous": None, "running": 0, "waiting": 0, "swaps": 0}
    rows = dict(_rows(engine, {"confirmed": True, "previous": "v1.2"}))
    assert rows["previous"] == "v1.2"
    assert dict(_rows(engine | {"previous": "v1.1"}, {}))["previous"] == "v1.1"

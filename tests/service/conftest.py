"""A real service over a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from autoglm.engine.scheduler import Scheduler
from service.running import RunningService, running_service, tiny_settings
from service.tiny import write_store

StartService = Callable[..., RunningService]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with v1.2 (full) and v1.3 (patch), beside the release directories themselves."""
    return write_store(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def service(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningService]:
    """A service on v1.2 that tests share: they must not publish to it or change it."""
    with running_service(tiny_settings(store, tmp_path_factory.mktemp("shared"))) as running:
        yield running


@pytest.fixture
def start_service(store: Path, tmp_path: Path) -> Generator[StartService]:
    """Start a service of the test's own: ``start_service(auth={"required": True})``."""
    with ExitStack() as stack:
        yield lambda **sections: stack.enter_context(
            running_service(tiny_settings(store, tmp_path, **sections))
        )


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tiny model a large one's pace: no long answer ends before a test has hung up on it."""
    step = Scheduler.step

    def paced(scheduler: Scheduler) -> Any:
        time.sleep(0.01)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", paced)

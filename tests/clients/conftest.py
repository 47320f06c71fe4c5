"""A real server process on the shipped model, for real clients."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.running import RunningService, running_service, tiny_settings
from service.tiny import write_store
from story.processes import Process, Project


@pytest.fixture(scope="session")
def url(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a service on v1.2, in a process of its own."""
    processes: list[Process] = []
    autoglm = str(Path(sys.executable).with_name("autoglm"))
    project = Project(project_root, autoglm, tmp_path_factory.mktemp("clients"), processes)
    try:
        yield project.serve()[1]
    finally:
        for process in processes:
            process.stop()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, for what a client does when the service refuses."""
    return write_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start_tiny(tiny_store: Path, tmp_path: Path) -> Generator[Any]:
    """Start a service of the test's own: ``start_tiny(limits={"queue": 1})``."""
    with ExitStack() as stack:

        def start(**sections: Any) -> RunningService:
            return stack.enter_context(running_service(tiny_settings(tiny_store, tmp_path, **sections)))

        yield start

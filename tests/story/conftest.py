"""The project as a user has it, for the stories."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from story.processes import Process, Project


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Generator[Project]:
    processes: list[Process] = []
    yield Project(project_root, str(Path(sys.executable).with_name("autoglm")), tmp_path, processes)
    for process in processes:
        if process.running:
            process.process.kill()
            process.process.wait()
    shutil.rmtree(tmp_path, ignore_errors=True)

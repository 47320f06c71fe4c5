"""The command line as a user has it, against a real service; in this process, which is faster than many."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoglm.cli import main
from service.running import RunningService, running_service, tiny_settings
from service.tiny import write_store


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    status: int
    output: str
    error: str

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.output)


Run = Callable[..., Result]


@pytest.fixture
def autoglm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``autoglm`` in an empty directory of the test's own: ``autoglm("device", "status")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str | Path, text: str = "") -> Result:
        output, error = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            try:
                main([str(argument) for argument in arguments])
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Result(status, output.getvalue(), error.getvalue())

    return run


@pytest.fixture(scope="session")
def cli_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny v1.2 and v1.3: packages in ``store``, release directories beside it."""
    return write_store(tmp_path_factory.mktemp("cli-model"))


@pytest.fixture
def cli_service(cli_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningService]:
    """A service on tiny v1.2, of the test's own."""
    directory = tmp_path_factory.mktemp("cli-service")
    with running_service(tiny_settings(cli_store, directory)) as running:
        yield running

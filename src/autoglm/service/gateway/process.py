"""A vLLM server that is started, ended and started again from here.

What it guarantees: the server and all its workers are one process group and end together; one that an earlier
service left behind (it was killed) is ended before a new one takes its port; it listens on loopback only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from autoglm.errors import ConfigError
from autoglm.files import remove, write_durably

HOST = "127.0.0.1"
MAX_LOG_BYTES = 16 << 20
_END_S = 20.0
_TAIL_BYTES = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """How a server is started.

    Attributes:
        command: its first words, such as ``vllm serve``.
        arguments: what comes after the words given here.
        environment: variables beside those of this process.
        port: where it listens, on loopback.
        served_name: under which it serves the model.
        log: the file that gets what it prints.
    """

    command: Sequence[str]
    port: int
    served_name: str
    log: Path
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def words(self, checkpoint: str) -> list[str]:
        """Return the whole command line for a checkpoint."""
        fixed = ["--host", HOST, "--port", str(self.port), "--served-model-name", self.served_name]
        return [*self.command, checkpoint, *fixed, *self.arguments]


class Supervised:
    """One server process; called from one thread at a time."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._note = program.log.with_suffix(".pid")
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it is there."""
        return self._child is not None and self._child.poll() is None

    def start(self, checkpoint: str) -> None:
        """Start it on a checkpoint; a running one is ended first.

        Raises:
            ConfigError: there is no such program.
        """
        self.stop()
        self._end_leftover()
        words = self._program.words(checkpoint)
        _log.info("starting %s", " ".join(words))
        try:
            with self._open_log() as log:
                self._child = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **self._program.environment},
                )
        except OSError as error:
            message = f"backend.command: {words[0]} cannot be started: {error.strerror or error}"
            raise ConfigError(message) from error
        note = {"pid": self._child.pid, "began": _began(self._child.pid)}
        write_durably(self._note, json.dumps(note).encode() + b"\n")

    def stop(self) -> None:
        """End it with all its workers; harmless when it is not there."""
        child, self._child = self._child, None
        if child is None:
            return
        _signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_S)
        _signal_group(child.pid, signal.SIGKILL)  # also workers that outlived it
        child.wait()
        remove(self._note)

    def last_words(self) -> str:
        """Return how it ended and the end of what it printed."""
        status = None if self._child is None else self._child.poll()
        try:
            with self._program.log.open("rb") as log:
                log.seek(max(0, self._program.log.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"status {status}; {self._program.log} ends with: {' | '.join(lines[-3:])}"

    def _open_log(self) -> IO[bytes]:
        path = self._program.log
        is_full = path.exists() and path.stat().st_size > MAX_LOG_BYTES
        return path.open("wb" if is_full else "ab")

    def _end_leftover(self) -> None:
        """End the server that an earlier service started and could not end."""
        try:
            note = cast("dict[str, Any]", json.loads(self._note.read_bytes()))
            pid, began = int(note["pid"]), note["began"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if began is not None and _began(pid) == began:  # the same process, not another one of its number
            _log.warning("ending a vLLM server that an earlier service left behind, process %d", pid)
            _signal_group(pid, signal.SIGKILL)
        remove(self._note)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _began(pid: int) -> str | None:
    """Return when a process began, in the kernel's own count; None where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]

"""Processes to measure, and the load on them: pinned, timed by their own CPU seconds."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Server:
    """A process that listens.

    Attributes:
        process: with all its threads.
        port: on the loopback.
    """

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has taken, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Turn:
    """One turn of load.

    Attributes:
        rate: requests a second.
        cpu_us: microseconds of the server's CPU time a request.
        requests: in all.
        cpu_s: of the server in all.
    """

    rate: float
    cpu_us: float
    requests: int
    cpu_s: float


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return the command on one core, if the machine has that many."""
    return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > core else [*command]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[Server]:
    """Run a server on the first core until the block ends."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(pinned(0, command), env=environment)
    try:
        _await(process, port)
        yield Server(process, port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def target(kind: str, directory: Path | None = None) -> tuple[list[str], int]:
    """Return the command of one of :mod:`target`'s servers, and its port."""
    port = free_port()
    command = [sys.executable, str(HERE / "target.py"), kind, "--port", str(port)]
    return [*command, *(["--directory", str(directory)] if directory else [])], port


def wrk(
    server: Server,
    path: str,
    *,
    seconds: float,
    script: str = "",
    connections: int = 16,
    environment: Mapping[str, str] | None = None,
) -> Turn:
    """Load a server from the second core.

    Args:
        server: which.
        path: what is asked for.
        seconds: how long.
        script: name of a Lua script beside this file.
        connections: that are kept busy.
        environment: for the script.

    Raises:
        RuntimeError: an answer was no success, or wrk failed.
    """
    options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", *(["-s", str(HERE / script)] if script else [])]
    if seconds < 1 or seconds != int(seconds):
        options[2] = f"-d{max(1, round(seconds))}s"
    before = server.cpu_seconds()
    done = subprocess.run(
        pinned(1, ["wrk", *options, server.url + path]),
        env=os.environ | dict(environment or {}),
        capture_output=True,
        text=True,
        check=True,
    )
    cpu_s = server.cpu_seconds() - before
    requests = int(_found(r"(\d+) requests in", done.stdout))
    if "Non-2xx" in done.stdout or not requests:
        raise RuntimeError(f"{path} was not answered well:\n{done.stdout}")
    return Turn(
        float(_found(r"Requests/sec: +([\d.]+)", done.stdout)), 1e6 * cpu_s / requests, requests, cpu_s
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk said nothing of {pattern!r}:\n{text}")
    return match[1]


def median(turns: Sequence[Turn], of: str) -> float:
    """Return the median of one figure of the turns."""
    return statistics.median(getattr(turn, of) for turn in turns)

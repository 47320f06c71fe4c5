"""Real processes for the stories: a service, a device, a wire that counts, and people who keep asking."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import requests

T = TypeVar("T")

DEADLINE_SECONDS = 240


def wait_for(condition: Callable[[], T | None], what: str) -> T:
    """Return the condition's first true value; a slow machine gets minutes before the test gives up."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {DEADLINE_SECONDS} s")


class Process:
    """A command whose output is kept and watched."""

    def __init__(self, *command: str | Path, cwd: Path | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Return the match of the first output line that fits, failing if the process ends before."""

        def look() -> re.Match[str] | None:
            ended = not self.running
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            assert not ended, f"ended with {self.process.returncode}:\n{self.output}"
            return None

        return wait_for(look, f"a line like {pattern!r}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.running:
            self.process.send_signal(number)
        try:
            code = self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(DEADLINE_SECONDS)
        return code


class CountingWire:
    """A TCP relay on loopback that counts what passes, both ways."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.bytes = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self.target)
            except OSError:
                return
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    self.bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()

    def reset(self) -> None:
        with self._lock:
            self.bytes = 0

    def close(self) -> None:
        self._server.close()


@dataclass
class Answer:
    """One finished stream: what was said, by which release, and how it ended."""

    text: str
    version: str
    finish_reason: str | None
    done: bool
    status: int


@dataclass
class Asker:
    """Someone who keeps a stream of questions going, until told to stop."""

    url: str
    question: str
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Asker:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(DEADLINE_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask(self.url, self.question))
            except Exception as error:  # noqa: BLE001 - every failure of any kind is a lost request
                self.errors.append(repr(error))
                return


def ask(url: str, question: str, **body: object) -> Answer:
    """Stream one chat completion and read it to its end."""
    request = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": True,
    }
    text, reason, done = "", None, False
    with requests.post(
        f"{url}/v1/chat/completions", json=request | body, stream=True, timeout=DEADLINE_SECONDS
    ) as response:
        version = response.headers.get("x-autoglm-version", "")
        for raw in response.iter_lines():
            if not raw.startswith(b"data: "):
                continue
            if raw == b"data: [DONE]":
                done = True
                continue
            for choice in json.loads(raw[6:])["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice.get("finish_reason") or reason
        return Answer(text, version, reason, done, response.status_code)


@dataclass(frozen=True)
class Project:
    """The project as a user has it, with data directories of the test's own."""

    root: Path
    command: str
    directory: Path
    processes: list[Process]

    @property
    def shipped(self) -> Path:
        return self.root / "models" / "autoglm-phone-nano"

    def autoglm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [self.command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            cwd=self.directory,
            check=False,
        )

    def start(self, *arguments: str | Path) -> Process:
        """Start a command that stays."""
        process = Process(self.command, *arguments, cwd=self.directory)
        self.processes.append(process)
        return process

    def serve(self, *arguments: str | Path, data: Path | None = None) -> tuple[Process, str]:
        """Start the service on a free port; return it and its address."""
        process = self.start(
            "serve", "--config", self.root / "config.yaml", "--host", "127.0.0.1", "--port", "0",
            "--data", data or self.directory / "service", *arguments,
        )  # fmt: skip
        url = process.wait_for_line(r"Server listening on (http://\S+)")[1]
        process.wait_for_line("Hot-update endpoint available")
        return process, url

    def device(self, hub: str, *arguments: str | Path, data: Path | None = None) -> tuple[Process, str]:
        """Start a device that serves chat on a free port; return it and its address.

        The hub is this machine's, so its root is read from its data directory.
        """
        process = self.start(
            "device", "run", "--hub", hub, "--data", data or self.directory / "device",
            "--root", self.directory / "service" / "trust" / "root.json",
            "--listen", "127.0.0.1:0", *arguments,
        )  # fmt: skip
        url = process.wait_for_line(r"listening on (http://\S+)")[1]
        return process, url


def version_of(url: str) -> str:
    return requests.get(f"{url}/v1/model/info", timeout=DEADLINE_SECONDS).json()["version"]

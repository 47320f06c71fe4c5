"""The service as a process: its start, its log, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from autoglm.errors import ConfigError, FormatError, PackageError
from autoglm.hub import Hub, HubConfig
from autoglm.service.machine import bind, check_data_directory, check_machine
from autoglm.service.server import make_server
from autoglm.service.settings import parse_settings
from autoglm.service.store import import_baseline
from service.tiny import TINY
from tiny_model import random_state, tokenizer_text

TIMEOUT_S = 120

START_LINES = [
    r"\[INFO\] Initializing AutoGLM-Phone-9B server\.\.\.",
    r"\[INFO\] Loading model from (/\S+autoglm-phone-nano-v1\.2)",
    r"\[INFO\] Using device: cpu",
    r"\[INFO\] Model loaded successfully in \d+\.\ds",
    r"\[INFO\] Fast tokenizer enabled for GLM architecture",
    r"\[INFO\] Server listening on http://127\.0\.0\.1:\d+",
    r"\[INFO\] Hot-update endpoint available at /v1/model/update",
]


class Process:
    """A service process; ``lines`` grows as it speaks."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "autoglm.cli", "serve", "--config", "c.yaml", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.directory = directory
        self.lines: list[str] = []

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read lines up to the first that fits."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if match := re.search(pattern, line):
                return match
        raise AssertionError("\n".join(self.lines))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait(TIMEOUT_S)


Launch = Callable[..., Process]


@pytest.fixture
def launch(store: Path, tmp_path: Path) -> Generator[Launch]:
    """Start ``autoglm serve`` in a fresh directory; further settings as YAML."""
    running: list[Process] = []

    def start(settings: str = "", *arguments: str, store: Path = store) -> Process:
        model = f"model: {{store: {store}, device: cpu, threads: 1}}"
        (tmp_path / "c.yaml").write_text(f"{model}\nhost: 127.0.0.1\nport: 0\n{settings}")
        running.append(Process(tmp_path, *arguments))
        return running[-1]

    yield start
    for process in running:
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


def test_the_start_says_exactly_the_seven_lines(launch: Launch, tmp_path: Path) -> None:
    """On console and in the log file, in order, true, only warnings besides; a second start says the same.

    TERM and Ctrl-C both end with status 0; a second service on the directory is refused meanwhile.
    """
    process = launch()
    process.read_until("Hot-update endpoint")
    url = re.search(r"http://\S+", process.lines[-2]).group()  # type: ignore[union-attr]
    assert requests.get(f"{url}/health", timeout=TIMEOUT_S).json() == {"status": "ok"}
    described = json.loads((tmp_path / "data" / "service.json").read_text())
    assert described == {"url": url, "pid": process.process.pid}
    assert "in use by another process" in failed(launch())
    assert process.end() == 0
    assert not (tmp_path / "data" / "service.json").exists()
    written = (tmp_path / "data" / "autoglm.log").read_text().splitlines()
    for lines in (process.lines, written):
        spoken = [line for line in lines if not line.startswith("[WARNING]")]
        assert len(spoken) == len(START_LINES), spoken
        assert all(re.fullmatch(*pair) for pair in zip(START_LINES, spoken, strict=True)), spoken
        assert sum("AUTHENTICATION IS OFF" in line for line in lines) == 1
    loaded = re.search(r"from (\S+)", process.lines[1]).group(1)  # type: ignore[union-attr]
    assert (Path(loaded) / "model.safetensors").is_file()

    again = launch()
    again.read_until("Hot-update endpoint")
    assert again.lines[1] == process.lines[1]
    assert again.end(signal.SIGINT) == 0


def test_a_service_ends_its_answers_and_logs_json(launch: Launch) -> None:
    """A stream running when TERM comes is served to its end; log_format: json makes each line an object."""
    process = launch("log_format: json\nauth: {required: true}\n")
    url = process.read_until(r"listening on (http://[0-9.:]+)")[1]
    process.read_until("Hot-update endpoint")
    headers = {"authorization": f"Bearer {(process.directory / 'data' / 'admin.token').read_text().strip()}"}
    body = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 900,
        "stream": True,
    }
    ended: list[int] = []
    with requests.post(
        f"{url}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=TIMEOUT_S
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        stopper = threading.Thread(target=lambda: ended.append(process.end()))
        stopper.start()
        rest = [line for line in lines if line]
    stopper.join(TIMEOUT_S)
    assert rest[-1] == b"data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] in ("length", "stop")
    assert ended == [0]
    entries = [json.loads(line) for line in process.lines]
    assert entries[0]["message"] == "Initializing AutoGLM-Phone-9B server..."
    assert all(set(entry) >= {"ts", "level", "logger", "message"} for entry in entries)
    warnings = [entry["message"] for entry in entries if entry["level"] != "INFO"]
    assert [text[:20] for text in warnings] == ["ALL SIGNING KEYS ARE"], "there is nothing else to warn of"


def failed(process: Process) -> str:
    """The one line that a process which could not start ended with."""
    output, _ = process.process.communicate(timeout=TIMEOUT_S)
    assert process.process.returncode == 1, output
    assert "Traceback" not in output
    return next(line for line in output.splitlines() if line.startswith("error: "))


def test_a_taken_port_is_one_clear_line(launch: Launch) -> None:
    """Who starts on a port in use is told so before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = failed(launch("", "--port", port))
    assert port in message
    assert "--port" in message


def test_an_unknown_host_is_a_config_error() -> None:
    """A host that is not this machine's is named."""
    with pytest.raises(ConfigError, match="host"):
        bind("no.such.host.invalid", 0)


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where the directory should be is a ConfigError with its path."""
    (tmp_path / "blocked").write_text("")
    with pytest.raises(ConfigError, match="blocked"):
        check_data_directory(tmp_path / "blocked")


@pytest.mark.parametrize("kind", ["missing", "empty", "patch only", "broken", "damaged"])
def test_a_store_without_a_baseline_is_named(tmp_path: Path, store: Path, kind: str) -> None:
    """No directory, nothing in it, only a patch, or a package that does not unpack: the place is named.

    A store that is repaired is taken at the next start.
    """
    other = tmp_path / "other-store"
    if kind != "missing":
        other.mkdir()
    if kind == "patch only":
        (other / "v1.3.wpatch").write_bytes((store / "v1.3.wpatch").read_bytes())
    if kind == "broken":
        (other / "v1.2.wpatch").write_bytes((store / "v1.2.wpatch").read_bytes()[:1000])
    if kind == "damaged":
        content = bytearray((store / "v1.2.wpatch").read_bytes())
        content[len(content) // 2] ^= 1
        (other / "v1.2.wpatch").write_bytes(content)
    with pytest.raises(PackageError if kind == "broken" else ConfigError, match=str(other)):
        import_from(other, tmp_path)
    assert import_from(store, tmp_path) == ["v1.2"]


def import_from(store: Path, directory: Path) -> list[str]:
    """Import a store's baseline into a fresh hub; return the versions that it then has."""
    settings = parse_settings({"model": {"store": str(store)}}, where="the test", directory=directory)
    with Hub.open(HubConfig(directory / "hub")) as hub:
        import_baseline(hub, settings)
        return [release.manifest.version for release in hub.releases()]


def test_the_lowest_full_package_is_the_baseline(tmp_path: Path, store: Path) -> None:
    """Of v1.2 (full) and v1.3 (a patch) the first is imported, and only into an empty hub."""
    assert import_from(store, tmp_path) == ["v1.2"]
    assert import_from(tmp_path / "gone", tmp_path) == ["v1.2"]


def test_a_store_may_hold_a_checkpoint(tmp_path: Path) -> None:
    """``autoglm-phone-9b-v1.2.pt`` is converted and published as v1.2."""
    other = tmp_path / "pt"
    other.mkdir()
    config = json.loads(json.dumps(asdict(TINY)))
    content = {"config": config, "tokenizer": tokenizer_text(), "weights": random_state(3)}
    torch.save(content, other / "autoglm-phone-9b-v1.2.pt")
    assert import_from(other, tmp_path) == ["v1.2"]


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_is_refused_unexecuted(tmp_path: Path) -> None:
    """A pickle that runs code when it is loaded is refused, and ran nothing."""
    other, executed = tmp_path / "pt", tmp_path / "executed"
    other.mkdir()
    torch.save({"weights": _Hostile(executed)}, other / "autoglm-phone-9b-v1.2.pt")
    with pytest.raises(FormatError, match="refused"):
        import_from(other, tmp_path)
    assert not executed.exists()


@pytest.mark.needs("openssl")
def test_tls_serves_https(start_service: Any, tmp_path: Path) -> None:
    """With a certificate the service speaks https; a key that is none, or not there, is a ConfigError."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    service = start_service(tls={"cert": str(certificate), "key": str(key)})
    assert service.get("/health", verify=str(certificate)).json() == {"status": "ok"}
    key.write_text("no key")
    with pytest.raises(ConfigError, match="tls"):
        make_server(service.state, lambda: None)
    key.unlink()
    with pytest.raises(ConfigError, match=r"tls\.key.*k\.pem"):
        check_machine(service.state.settings)

"""A device from the command line: installed, updated, rolled back, and serving while it is updated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import requests

from service.running import running_service, tiny_settings

DEADLINE_S = 120


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Start ``autoglm device run`` with these options."""
    running: list[subprocess.Popen[str]] = []

    def launch(*arguments: str | Path) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "autoglm.cli", "device", "run", *map(str, arguments)],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
        )
        return running[-1]

    yield launch
    for process in running:
        process.kill()
        process.communicate()


def root_of(service: Any) -> Path:
    return service.state.settings.data_path / "trust" / "root.json"


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_device_is_installed_updated_and_rolled_back(
    autoglm: Any, cli_service: Any, cli_store: Path, tmp_path: Path
) -> None:
    """check, update, status and rollback in a row on one directory, each with and without --json."""
    (tmp_path / "config.yaml").write_text("data_dir: nowhere\n")
    where = ("--data", tmp_path / "phone")
    hub = ("--hub", cli_service.url)
    root = ("--root", root_of(cli_service))
    assert "v1.2 is there: a full package" in autoglm("device", "check", *hub, *where).output
    assert "no trusted root" in autoglm("device", "update", *hub, *where).error
    assert autoglm("device", "update", *hub, *where, *root, "--json").json["to_version"] == "v1.2"
    assert autoglm("device", "check", *hub, *where, "--json").json["need_update"] is False
    assert "nothing newer" in autoglm("device", "update", *hub, *where).output

    cli_service.state.hub.publish(cli_store / "v1.3.wpatch", percent=100)
    cli_service.build_packages()
    assert "installed v1.3 over v1.2" in autoglm("device", "update", *hub, *where).output
    status = autoglm("device", "status", *where, "--json").json
    assert (status["current"], status["previous"], status["confirmed"]) == ("v1.3", "v1.2", False)
    assert "on trial" in autoglm("device", "status", *where).output

    assert "back from v1.3 to v1.2" in autoglm("device", "rollback", *where).output
    assert autoglm("device", "status", *where, "--json").json["quarantined"] == ["v1.3"]
    nothing = autoglm("device", "rollback", *where)
    assert nothing.status == 1
    assert "no previous release" in nothing.error


class Asker:
    """Asks a device one question after the other; ``statuses`` is what it was answered with."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.statuses: list[int] = []
        self._url, self._body, self._done = url, body, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._done.is_set():
            answer = requests.post(f"{self._url}/v1/chat/completions", json=self._body, timeout=60)
            self.statuses.append(answer.status_code)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize("mode", ["side_by_side", "exclusive"])
def test_a_device_serves_while_it_is_updated(
    autoglm: Any, start: Any, cli_service: Any, cli_store: Path, tmp_path: Path, mode: str
) -> None:
    """``--listen`` answers chat from the installed release, swaps the new one in live, and confirms it; no
    request is lost, neither beside the old model nor in its place."""
    data = tmp_path / "phone"
    trial = ("--trial-answers", "2", "--trial-minutes", "0")
    (tmp_path / "config.yaml").write_text("model: {device: cpu, threads: 1}\n")
    process = start(
        *("--hub", cli_service.url, "--data", data, "--listen", "127.0.0.1:0", "--every", "1s", *trial),
        *("--root", root_of(cli_service), "--swap-mode", mode),
    )
    url = ""
    for line in process.stdout:
        if found := re.search(r"listening on (http://\S+)", line):
            url = found[1]
            break
    assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    assert requests.post(f"{url}/v1/model/update", json={"device_id": "d"}, timeout=60).status_code == 404
    busy = autoglm("device", "update", "--hub", cli_service.url, "--data", data)
    assert "in use by another process" in busy.error

    def version() -> str:
        return requests.get(f"{url}/v1/model/info", timeout=60).json()["version"]

    assert version() == "v1.2"
    cli_service.state.hub.publish(cli_store / "v1.3.wpatch", percent=100)
    cli_service.build_packages()
    body = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
    }
    with Asker(url, body) as asker:
        wait_for(lambda: version() == "v1.3", process)
    assert set(asker.statuses) == {200}
    for _ in range(2):
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.headers["x-autoglm-version"] == "v1.3"
    wait_for(lambda: autoglm("device", "status", "--data", data, "--json").json["confirmed"], process)
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_device_without_a_model_installs_only(
    autoglm: Any, start: Any, cli_service: Any, tmp_path: Path
) -> None:
    """Without ``--listen`` nothing but the files is kept up to date, and no torch is needed."""
    data = tmp_path / "phone"
    process = start(
        *("--hub", cli_service.url, "--data", data, "--every", "1s", "--json", "--trust-first-use")
    )
    wait_for(
        lambda: data.is_dir() and autoglm("device", "status", "--data", data, "--json").json["current"],
        process,
    )
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_device_is_paused_and_told_to_update(
    autoglm: Any, start: Any, cli_service: Any, tmp_path: Path
) -> None:
    """pause, now and resume, said to a directory that another process holds; all of it outlives that one."""
    data = tmp_path / "phone"
    where, hub = ("--data", data), ("--hub", cli_service.url)
    assert "there is no device" in autoglm("device", "pause", *where).error
    autoglm("device", "check", *hub, *where)
    assert "paused" in autoglm("device", "pause", *where, "--reason", "field test").output
    assert autoglm("device", "status", *where, "--json").json["paused"] is True
    assert "autoglm device resume" in autoglm("device", "status", *where).output

    process = start(*hub, *where, "--every", "1s", "--trust-first-use", "--wifi-only", "--when-unknown", "go")
    assert autoglm("device", "now", *where, "--force", "--json").json == {"asked": True, "force": True}

    def status() -> Any:
        return autoglm("device", "status", *where, "--json").json

    wait_for(lambda: status()["current"] == "v1.2", process)
    assert status()["paused"] is True
    assert autoglm("device", "resume", *where, "--json").json == {"paused": False}
    assert status()["paused"] is False
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_rules_that_make_no_sense_are_refused(autoglm: Any, cli_service: Any, tmp_path: Path) -> None:
    """The error names the setting and how to write it."""
    run = ("device", "run", "--hub", cli_service.url, "--data", tmp_path / "phone")
    assert "22:30-07:00" in autoglm(*run, "--quiet-hours", "22-7").error
    assert "when_unknown" in autoglm(*run, "--when-unknown", "guess").error
    assert "swap_mode" in autoglm(*run, "--swap-mode", "both").error
    assert "min_battery" in autoglm(*run, "--min-battery", "101").error


def test_a_device_that_serves_obeys_a_pause_from_its_first_release_on(
    autoglm: Any, start: Any, cli_service: Any, tmp_path: Path
) -> None:
    """``--listen`` with nothing installed waits for the pause to end, then for what its rules wait for."""
    data = tmp_path / "phone"
    where, hub = ("--data", data), ("--hub", cli_service.url)
    autoglm("device", "check", *hub, *where)
    autoglm("device", "pause", *where)
    (tmp_path / "config.yaml").write_text("model: {device: cpu, threads: 1}\n")
    process = start(
        *(*hub, *where, "--listen", "127.0.0.1:0", "--every", "1s", "--root", root_of(cli_service)),
        *("--quiet-hours", "00:00-12:00", "--quiet-hours", "12:00-00:00"),
    )
    lines = iter(process.stdout)
    assert "updates are paused" in next(line for line in lines if "no release yet" in line)
    autoglm("device", "resume", *where)
    assert "quiet hours" in next(line for line in lines if "no release yet" in line)
    assert autoglm("device", "status", *where, "--json").json["current"] is None
    autoglm("device", "now", *where, "--force")
    assert any("listening on" in line for line in lines)
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_device_whose_token_is_refused_does_not_ask_for_ever(
    start: Any, cli_store: Path, tmp_path: Path
) -> None:
    """``--listen`` with nothing installed ends with what the hub said, since no try would be another."""
    (tmp_path / "config.yaml").write_text("model: {device: cpu, threads: 1}\n")
    settings = tiny_settings(cli_store, tmp_path / "hub", role="hub", auth={"required": True})
    with running_service(settings) as hub:
        process = start(
            *("--hub", hub.url, "--data", tmp_path / "phone", "--listen", "127.0.0.1:0"),
            *("--root", root_of(hub), "--token", "agt_wrong"),
        )
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "no release could be installed" in output and "token" in output

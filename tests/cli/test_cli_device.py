"""A device from the command line: installed, updated, rolled back, and serving while it is updated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import requests

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


def test_a_device_serves_while_it_is_updated(
    autoglm: Any, start: Any, cli_service: Any, cli_store: Path, tmp_path: Path
) -> None:
    """``--listen`` answers chat from the installed release, swaps the new one in live, and confirms it."""
    data = tmp_path / "phone"
    trial = ("--trial-answers", "2", "--trial-minutes", "0")
    (tmp_path / "config.yaml").write_text("model: {device: cpu, threads: 1}\n")
    process = start(
        *("--hub", cli_service.url, "--data", data, "--listen", "127.0.0.1:0", "--every", "1s", *trial),
        *("--root", root_of(cli_service)),
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
    wait_for(lambda: version() == "v1.3", process)
    body = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
    }
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

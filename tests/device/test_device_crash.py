"""Crashes and disk errors at every durable operation of an update."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import Updater
from autoglm.errors import StorageError
from autoglm.releases import Manifest, canonical_json
from device.disk import build_shim, run_with_shim

OPERATIONS = ("fsync", "fdatasync", "replace", "rename", "link", "mkdir", "posix_fallocate")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def points(output: str) -> dict[str, int]:
    """Return how many points were tried, by mode."""
    tried: Counter[str] = Counter()
    for line in output.splitlines():
        _, mode, number = line.split()
        tried[mode] += int(number)
    return tried


@pytest.mark.needs("cc")
def test_lives_cut_off_anywhere_leave_a_whole_release_and_go_on(shim: Path) -> None:
    """Updates, a fall-back, a roll-back and a first installation, killed or refused at a spread of their
    operations on the disk: the old or the new release is whole, and the next life comes to the same end."""
    tried = points(run_with_shim(shim, "crash_sweep.py", "--every", "97"))
    assert min(tried.values()) >= 4
    assert sum(tried.values()) >= 80


@pytest.mark.long
@pytest.mark.needs("cc")
@pytest.mark.parametrize("mode", ["kill", "half", "eio", "enospc", "full"])
def test_lives_cut_off_everywhere_go_on(shim: Path, mode: str) -> None:
    """The same at every single operation, in each way."""
    tried = points(run_with_shim(shim, "crash_sweep.py", "--modes", mode))
    assert tried[mode] >= (500 if mode == "half" else 1900)


@pytest.mark.long
@pytest.mark.needs("cc")
def test_a_second_kill_in_the_next_life_changes_nothing(shim: Path) -> None:
    """Whatever is being recovered may be cut off itself."""
    run_with_shim(shim, "crash_sweep.py", "--modes", "kill,half", "--again")


class Refusal:
    """Makes the ``point``-th durable operation of this process fail once."""

    def __init__(self, point: int, code: int, patched: pytest.MonkeyPatch) -> None:
        self.left, self.code, self.met = point, code, False
        for name in OPERATIONS:
            patched.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.met = True
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **named)

        return operation


def require_whole(updater: Updater) -> None:
    """Check that the release to load is whole, old or new."""
    manifest = Manifest.read(updater.active)
    manifest.verify(updater.active)
    assert manifest.version in ("v1.2", "v1.3")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    "point", [*range(1, 120, 12), *(pytest.param(p, marks=pytest.mark.long) for p in range(1, 140))]
)
def test_a_disk_that_refuses_once_stops_nothing_for_good(
    lab: Any,
    hub: Any,
    make_runtime: Any,
    point: int,
    code: int,
    restart: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ENOSPC and EIO at a durable operation of update and confirmation: a result or a typed error, a whole
    release, and it goes on, in the same process or in the next."""
    updater, runtime = lab.install("v1.2"), make_runtime("v1.2")
    hub.target = "v1.3"
    with monkeypatch.context() as patched:
        refusal = Refusal(point, code, patched)
        try:
            assert updater.update(runtime).kind in ("updated", "failed")
            lab.prove(updater)
        except StorageError:
            assert refusal.met
    require_whole(updater)
    if restart:
        updater, runtime = lab.open(), make_runtime(updater.status().current)
    result = updater.update(runtime)
    require_whole(updater)
    assert result.kind in ("updated", "none") or result.code == "E_TRIAL"
    assert runtime.serving == updater.status().current == "v1.3"
    lab.prove(updater)
    assert (updater.status().current, updater.status().confirmed) == ("v1.3", True)
    assert updater.status().state == "IDLE"


def test_a_file_size_limit_is_a_storage_error(lab: Any, hub: Any, tmp_path: Path) -> None:
    """A real limit of the kernel, not a simulated one: the update says so and the old release stays."""
    lab.install("v1.2").close()
    program = f"""
import resource, sys
from datetime import UTC, datetime
from autoglm.device import LocalTransport, Updater
from autoglm.device.clock import Clock
from autoglm.errors import NotFoundError
from autoglm.releases import UpdateAnswer
from pathlib import Path
answer = UpdateAnswer.from_bytes(Path(sys.argv[1]).read_bytes())
def metadata(name):
    try:
        return (Path(sys.argv[3]) / name).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(name) from error
transport = LocalTransport(
    check=lambda r: answer, report=lambda b: None, package=lambda s: Path(sys.argv[2]), metadata=metadata
)
clock = Clock()
clock.now = lambda: datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
with Updater({str(lab.root)!r}, transport=transport, boot=False, clock=clock) as updater:
    updater._device.outbox.flush = lambda *a: "continue"
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    result = updater.update()
    print(result.kind, result.code, updater.status().current)
"""
    answer = tmp_path / "answer.json"
    answer.write_bytes(canonical_json(hub.offer("v1.2", "v1.3").to_json()))
    package = hub.world.packages["v1.2", "v1.3"]
    signed = hub.world.trust.directory / "metadata"
    command = [sys.executable, "-c", program, str(answer), str(package), str(signed)]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["failed", "E_STORAGE", "v1.2"]
    hub.target = "v1.3"
    assert lab.open().update().kind == "updated"

"""Crashes and disk errors at every durable operation of an update."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import Updater
from autoglm.errors import StorageError
from autoglm.releases import Manifest, UpdateAnswer, canonical_json

OPERATIONS = ("fsync", "fdatasync", "replace", "rename", "link", "mkdir", "posix_fallocate")


def sweep(lab: Any, answer: UpdateAnswer, *options: str) -> int:
    """Run the crash sweep in a process of its own, from v1.2 to v1.3; return the points tried."""
    lab.install("v1.2").close()
    work = lab.root.parent
    (work / "answer.json").write_bytes(canonical_json(answer.to_json()))
    (work / "packages").mkdir()
    for sha256, path in lab.hub.files.items():
        (work / "packages" / sha256).symlink_to(path)
    lab.root.rename(work / "template")
    signed = lab.hub.world.trust.directory / "metadata"
    arguments = [work / "template", work / "answer.json", work / "packages", signed, work, *options]
    command = [sys.executable, Path(__file__).with_name("crash_sweep.py"), *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


def test_a_kill_at_any_time_leaves_a_whole_release(lab: Any, hub: Any) -> None:
    """SIGKILL at a spread of the durable operations: old or new release whole, and the next run finishes."""
    assert sweep(lab, hub.offer("v1.2", "v1.3"), "--every", "9") >= 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("base", "options", "num_points"), [("v1.2", (), 90), ("v1.2", ("--again",), 90), (None, (), 250)]
)
def test_a_kill_at_every_durable_operation(
    lab: Any, hub: Any, base: str | None, options: tuple[str, ...], num_points: int
) -> None:
    """The same at every single one: with a patch, with a second kill in the next run, with a full package."""
    assert sweep(lab, hub.offer(base, "v1.3"), *options) >= num_points


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
    if result.code == "E_TRIAL" and runtime.serving == "v1.2":
        updater = lab.open()  # committed, but not swapped in: that needs a start
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

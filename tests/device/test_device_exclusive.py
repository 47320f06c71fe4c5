"""Updates on a device whose memory holds one model: the SDK's side of an exclusive swap."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoglm import memory
from autoglm.device import FileRuntime
from autoglm.device.room import choose_mode
from autoglm.errors import OutOfMemoryError
from autoglm.releases import Manifest


@dataclass(frozen=True)
class Room:
    """What a runtime says of its memory."""

    needed_bytes: int
    free_bytes: int


class App:
    """An app that loads weights by itself and holds at most one model; keeps what it was told."""

    def __init__(self, directory: Path | None) -> None:
        self.loaded = None if directory is None else version_of(directory)
        self.log: list[str] = []
        self.faults: list[Exception | None] = []

    def load(self, directory: Path) -> None:
        assert self.loaded is None, "two models at once"
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.loaded = version_of(directory)
        self.log.append(f"load {self.loaded}")

    def unload(self) -> None:
        self.log.append(f"unload {self.loaded}")
        self.loaded = None

    def runtime(self, **more: Any) -> FileRuntime:
        return FileRuntime(self.load, unload=self.unload, **more)


def version_of(directory: Path) -> str:
    return Manifest.read(directory).version


@pytest.fixture
def started(lab: Any) -> Callable[..., tuple[Any, App]]:
    """Install v1.2 and start the app on it, with exclusive swaps."""

    def start(**settings: Any) -> tuple[Any, App]:
        lab.install("v1.2")
        lab.change(**({"swap_mode": "exclusive"} | settings))
        updater = lab.open()
        lab.hub.target = "v1.3"
        return updater, App(updater.active)

    return start


def test_the_old_model_leaves_before_the_new_one_comes(lab: Any, started: Any) -> None:
    """Unload, load, examine, commit; the gap is reported, and the trial goes on as ever."""
    updater, app = started()
    runtime = app.runtime(
        examine=lambda directory: [] if app.loaded == version_of(directory) else ["not loaded"]
    )
    result = updater.update(runtime)
    assert (result.kind, result.to_version, app.loaded) == ("updated", "v1.3", "v1.3")
    assert result.pause_s is not None and result.pause_s >= 0
    assert app.log == ["unload v1.2", "load v1.3"]
    lab.prove(updater)
    assert updater.status().confirmed


def test_a_release_that_fails_its_examination_makes_way_for_the_old_one(started: Any) -> None:
    """An output check of the app's own refuses it: the old one is loaded again, the new one quarantined."""
    updater, app = started()
    result = updater.update(app.runtime(examine=lambda directory: ["the output is wrong"]))
    assert (result.kind, result.code, app.loaded) == ("failed", "E_HEALTH", "v1.2")
    assert app.log == ["unload v1.2", "load v1.3", "unload v1.3", "load v1.2"]
    assert updater.status().quarantined == ("v1.3",)
    assert updater.status().current == "v1.2"


def test_a_release_that_does_not_load_makes_way_for_the_old_one(started: Any) -> None:
    """The app's loader raises on the new release: the old one is loaded again."""
    updater, app = started()
    app.faults = [ValueError("no such operator"), None]
    result = updater.update(app.runtime())
    assert (result.kind, app.loaded) == ("failed", "v1.2")
    assert "no such operator" in str(result.message)


def test_a_failed_trial_goes_back_by_loading_the_previous_release(lab: Any, started: Any) -> None:
    """Nothing of it is in memory any more, so it is read from the disk."""
    updater, app = started()
    updater.update(app.runtime())
    app.log.clear()
    updater.answered(False, "v1.3")
    updater.tick()
    assert app.log == ["unload v1.3", "load v1.2"]
    assert (updater.status().current, app.loaded) == ("v1.2", "v1.2")


def test_going_back_by_hand_is_exclusive_too(started: Any) -> None:
    """A rollback loads the previous release in the place of the present one."""
    updater, app = started()
    runtime = app.runtime()
    updater.update(runtime)
    assert updater.rollback(runtime).to_version == "v1.2"
    assert app.loaded == "v1.2"


def test_a_power_cut_in_the_gap_starts_with_the_right_release(lab: Any, started: Any) -> None:
    """Killed while nothing is loaded, and right after the commit: the old release, then the new one."""
    updater, _ = started()
    updater.close()
    for point, expected in (("load", "v1.2"), ("swap", "v1.3")):
        child = os.fork()
        if child == 0:
            app = App(None)
            runtime = app.runtime()

            def die(*_: object) -> Any:
                os.kill(os.getpid(), signal.SIGKILL)

            if point == "load":
                app.load = die  # type: ignore[method-assign]
                runtime = FileRuntime(app.load, unload=app.unload)
            else:
                runtime.swap = die  # type: ignore[method-assign]
            try:
                lab.opened.clear()
                lab.open().update(runtime)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        restarted = lab.open()
        assert version_of(restarted.active) == expected
        restarted.close()


def test_the_mode_follows_the_memory(tmp_path: Path, make_runtime: Any) -> None:
    """A tenth more than needed must be free; a runtime that knows nothing of rooms loads side by side."""
    runtime = make_runtime("v1.2")
    assert choose_mode(runtime, tmp_path, "exclusive") == "side_by_side"
    runtime.room = lambda directory: Room(100, 110)
    assert choose_mode(runtime, tmp_path, "auto") == "side_by_side"
    runtime.room = lambda directory: Room(100, 109)
    assert choose_mode(runtime, tmp_path, "auto") == "exclusive"
    assert choose_mode(runtime, tmp_path, "side_by_side") == "side_by_side"
    runtime.room = lambda directory: Room(1, 1 << 40)
    assert choose_mode(runtime, tmp_path, "exclusive") == "exclusive"


def test_a_sum_that_was_too_hopeful_is_corrected(lab: Any, hub: Any) -> None:
    """Side by side was chosen and memory ran out all the same: then one after the other."""
    lab.install("v1.2")
    updater = lab.open()
    hub.target = "v1.3"
    app = App(updater.active)

    class Hopeful(FileRuntime):
        def stage(self, directory: Path, /, *, instead_of: Path | None = None) -> Any:
            if instead_of is None:
                raise OutOfMemoryError("no room")
            return super().stage(directory, instead_of=instead_of)

    assert updater.update(Hopeful(app.load, unload=app.unload)).kind == "updated"
    assert app.loaded == "v1.3"


def test_an_app_that_cannot_unload_is_never_asked_to(lab: Any, started: Any) -> None:
    """Whatever the settings say, a runtime without ``unload`` just loads."""
    updater, _ = started()
    loaded: list[str] = []
    result = updater.update(FileRuntime(lambda directory: loaded.append(version_of(directory))))
    assert (result.kind, loaded) == ("updated", ["v1.3"])


# Free memory


def test_the_smallest_limit_counts(tmp_path: Path) -> None:
    """Available memory, both versions of control groups along the path, reclaimable pages added."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write(proc / "meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert memory.free_bytes(proc, groups) == 8000 * 1024
    write(proc / "self/cgroup", "4:cpu,memory:/phone\n0::/app/inner\n")
    write(groups / "app/memory.max", "max\n")
    write(groups / "app/memory.current", "5\n")
    assert memory.free_bytes(proc, groups) == 8000 * 1024
    write(groups / "app/memory.max", str(5000 * 1024))
    write(groups / "app/memory.current", str(3000 * 1024))
    write(groups / "app/memory.stat", f"anon 1\ninactive_file {500 * 1024}\n")
    assert memory.free_bytes(proc, groups) == 2500 * 1024
    write(groups / "memory/phone/memory.limit_in_bytes", str(1000 * 1024))
    write(groups / "memory/phone/memory.usage_in_bytes", str(999 * 1024))
    assert memory.free_bytes(proc, groups) == 1024
    write(groups / "memory/phone/memory.usage_in_bytes", str(2000 * 1024))
    assert memory.free_bytes(proc, groups) == 0


def test_this_machine_has_some_memory() -> None:
    """The real files of the kernel can be read."""
    assert memory.free_bytes() > 0

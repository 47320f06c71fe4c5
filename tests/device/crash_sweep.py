"""Kill an update by SIGKILL at each of its durable operations, and see what is left and whether it goes on.

Run as a program of its own (it forks, which a test process with threads must not do):

    crash_sweep.py TEMPLATE ANSWER PACKAGES METADATA WORK [--every N] [--again]

TEMPLATE is the data directory of a device on v1.2, ANSWER the hub's answer as JSON, PACKAGES a directory
of packages named by their SHA-256, METADATA one of what is signed about them. With --again the next run is
killed too, somewhere. Prints the number of points tried; fails on the first one that is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoglm.device import FileRuntime, LocalTransport, Updater, UpdateSettings
from autoglm.device.clock import Clock
from autoglm.device.slots import read_current
from autoglm.errors import NotFoundError
from autoglm.releases import EventAnswer, EventBatch, Manifest, UpdateAnswer, UpdateRequest

OPERATIONS = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir")


class FastClock(Clock):
    """Time passes when the trial needs it to."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class World:
    """The hub's side, from the files that the test prepared; keeps events in memory."""

    def __init__(self, answer: Path, packages: Path, signed: Path) -> None:
        self.answer, self.packages = UpdateAnswer.from_bytes(answer.read_bytes()), packages
        self.signed = signed
        self.events: list[dict[str, Any]] = []

    def check(self, request: UpdateRequest) -> UpdateAnswer:
        return UpdateAnswer(False) if request.current_version == "v1.3" else self.answer

    def record(self, batch: EventBatch) -> EventAnswer:
        self.events += [event.to_json() for event in batch.events]
        return EventAnswer(tuple(event.event_id for event in batch.events))

    def metadata(self, name: str) -> bytes:
        if not (self.signed / name).is_file():
            raise NotFoundError(name)
        return (self.signed / name).read_bytes()

    def run(self, root: Path, log: Path) -> None:
        """One life of the app: start, update, answer well, confirm."""
        clock = FastClock()
        transport = LocalTransport(
            check=self.check,
            report=self.record,
            package=lambda sha256: self.packages / sha256,
            metadata=self.metadata,
        )
        settings = UpdateSettings(chunk_bytes=1024, trial_answers=1, tries=100)
        with Updater(
            root, transport=transport, settings=settings, clock=clock, random_source=random.Random(1)
        ) as updater:
            result = updater.update(FileRuntime())
            assert result.kind in ("updated", "none") or result.code == "E_TRIAL", result
            updater.answered(True)
            clock.seconds += 3600
            updater.tick()
            updater.tick()
            log.write_text(json.dumps([updater.status().to_json(), self.events]))


def kill_at(point: int) -> None:
    """Make this process die right before its ``point``-th durable operation."""
    count = 0

    def hooked(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return operation

    for name in OPERATIONS:
        setattr(os, name, hooked(getattr(os, name)))


def in_child(action: Callable[[], None]) -> int:
    """Run ``action`` in a forked child; return how that ended: 0, or minus the signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001 - a child has no other way to say what went wrong
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(root: Path) -> str:
    """Check what a crash has left: the release to load is whole, and is the old one or the new one."""
    now = read_current(root)
    assert now is not None, "current.json is damaged"
    assert now.current is not None, "no release is left"
    directory = root / "releases" / now.current.folder
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    assert manifest.sha256 == now.current.manifest_sha256
    assert manifest.version in ("v1.2", "v1.3")
    return manifest.version


def finished(root: Path, log: Path) -> None:
    """Check that the next life brought the update to its end, and left nothing lying about."""
    status, _ = json.loads(log.read_text())
    assert look(root) == "v1.3"
    assert (status["state"], status["confirmed"], status["previous"]) == ("IDLE", True, "v1.2"), status
    assert list((root / "staging").iterdir()) == []
    wanted = {f.sha256 for v in ("v1.2", "v1.3") for f in Manifest.read(root / f"releases/nano-{v}").files}
    assert {path.name for path in (root / "objects").iterdir()} == wanted
    assert not list(root.rglob(".tmp-*"))


def try_point(point: int, template: Path, world: World, work: Path, again: bool) -> bool:
    """Crash at one point and go on; return False when the update ended before it was reached."""
    root, log = work / "device", work / "log"
    shutil.rmtree(root, ignore_errors=True)
    log.unlink(missing_ok=True)
    subprocess.run(["cp", "-a", str(template), str(root)], check=True)

    def life(until: int) -> None:
        kill_at(until)
        world.run(root, log)

    ended = in_child(lambda: life(point))
    if again:
        look(root)
        in_child(lambda: life(random.Random(point).randrange(1, 60)))
    assert ended in (0, -signal.SIGKILL), f"the update itself broke: {ended}"
    look(root)
    assert in_child(lambda: world.run(root, log)) == 0, "the next run broke"
    finished(root, log)
    return ended != 0


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("template", "answer", "packages", "metadata", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    world = World(arguments.answer, arguments.packages, arguments.metadata)
    point, tried = 1, 0
    while True:
        try:
            if not try_point(point, arguments.template, world, arguments.work, arguments.again):
                break
        except AssertionError as error:
            raise SystemExit(f"point {point}: {error}") from error
        point += arguments.every
        tried += 1
    print(tried)


if __name__ == "__main__":
    main()

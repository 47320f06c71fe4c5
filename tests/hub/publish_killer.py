"""Kill a publish at every durable step it takes, and look at what is left. Run as a script by the tests.

Every attempt is a forked process of its own, so that SIGKILL is real and nothing in memory survives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine

from autoglm.hub import Hub, HubConfig

STEPS = ("fsync", "replace", "rename", "link", "rmdir", "chmod")


class Killer:
    """Counts the steps of this process and kills it at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        for name in STEPS:
            setattr(os, name, self._before(getattr(os, name)))
        event.listen(Engine, "commit", lambda _connection: self.step())

    def _before(self, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.step()
            return function(*arguments, **options)

        return counted


def in_child(work: Callable[[], int]) -> int:
    """Run ``work`` in a forked process; return its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def publish(directory: Path, package: Path, at: int) -> int:
    hub = Hub.open(HubConfig(directory))
    killer = Killer(at)
    killer.arm()
    hub.publish(package, percent=100)
    os._exit(0)  # not at the end: closing takes steps that are not part of the publish


def judge(directory: Path, package: Path, files: dict[str, int]) -> int:
    """Return 10 when the release is absent, 11 when it is there, whole; 1 to 9 when something is wrong."""
    with Hub.open(HubConfig(directory)) as hub:
        versions = [release.manifest.version for release in hub.releases()]
        if versions not in (["v1.2"], ["v1.2", "v1.3"]):
            return 1
        for release in hub.releases():
            release.manifest.verify(release.directory)
        here = len(versions) == 2
        if len(hub.rollouts()) != len(versions):
            return 2
        left = {name: len(list((directory / name).iterdir())) for name in ("objects", "releases", "uploads")}
        if not here and left != files:
            return 3
        again = hub.publish(package, percent=100)
        if again.created is here or hub.release("v1.3").manifest != again.manifest:
            return 4
    return 11 if here else 10


def main(base: Path, package: Path, scratch: Path, stride: int) -> None:
    """Publish into copies of the hub in ``base`` over and over, killed at every stride-th step."""
    names = ("objects", "releases", "uploads")
    files = {name: len(list((base / name).iterdir())) for name in names}
    seen: dict[int, int] = {}
    for at in range(1, 1000, stride):
        directory = scratch / str(at)
        shutil.copytree(base, directory)
        status = in_child(lambda directory=directory, at=at: publish(directory, package, at))
        verdict = in_child(lambda directory=directory: judge(directory, package, files))
        seen[verdict] = seen.get(verdict, 0) + 1
        if verdict not in (10, 11):
            print(f"killed at step {at}: verdict {verdict}", file=sys.stderr)
        shutil.rmtree(directory)
        if status != -signal.SIGKILL:
            break
    print(
        json.dumps(
            {"absent": seen.pop(10, 0), "whole": seen.pop(11, 0), "wrong": sum(seen.values()), "last": status}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

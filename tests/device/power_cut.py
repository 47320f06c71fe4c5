"""Cut the power at each operation of a device's life, in many ways, and see whether it starts and goes on.

Run under the shim, as a program of its own (it forks, which a test process with threads must not do):

    power_cut.py [--stories update,failure,...] [--every N] [--random N] [--ignore-syncs]

One life of each story is recorded. After every N-th operation the states that the disk may then be in are
made (see ``power_model.py``), each once. In each, the release to load must be whole, old or new; where the
floor has reached the disk, metadata from before it must be refused, also with an emptied cache; and the
next life must bring the story to its end. Prints, for each story, operations recorded, states tried, and in
how many of them the replay was refused; says which states went wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
from pathlib import Path

from autoglm.errors import AutoGLMError, ExpiredError, RollbackError
from autoglm.trust.floor import read_floor
from device.crash_sweep import in_child
from device.disk import Disk, Operation, memory_directory, read_log
from device.lives import STORIES, Phone, Records, Stage, Story, prepare, require_safe, require_whole
from device.power_model import Model, State, states


def record(stage: Stage, story: Story, disk: Disk, log: Path) -> tuple[Model, list[Operation]]:
    """Record one life that nothing disturbs; return the disk before it, and what was done to it."""
    stage.set(story)
    model = Model(stage.phone)

    def life() -> None:
        hub = stage.hub(story)
        hub.heard = disk.mark
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        disk.watch(stage.phone)
        disk.record(file)
        story.live(Phone(stage.phone, hub))
        disk.record(-1)

    assert in_child(life) == 0, "the recorded life broke"
    return model, read_log(log)


class Cuts:
    """One story, its power cut."""

    def __init__(self, stage: Stage, story: Story) -> None:
        self._stage, self._story = stage, story
        self.seen: set[bytes] = set()
        self.num_refused = 0

    def try_state(self, state: State, marks: list[str]) -> None:
        """Find the disk in this state: look, replay old metadata, and go on; once for each state."""
        if state.digest in self.seen:
            return
        self.seen.add(state.digest)
        stage, story = self._stage, self._story
        shutil.rmtree(stage.phone, ignore_errors=True)
        state.write(stage.phone)
        stage.reports.write_text("".join(f"{mark}\n" for mark in marks))
        require_safe(stage, story)
        if self._knows_new():
            assert in_child(self._replay) == 0, "old metadata was believed"
            self.num_refused += 1
        assert in_child(lambda: stage.live(story)) == 0, "the next life broke"
        stage.require_end(story)

    def _knows_new(self) -> bool:
        """Tell whether the floor on the disk comes from the new metadata, as far as that story has any."""
        floor = read_floor(self._stage.phone / "floor.json")
        return "root" in floor.marks and floor.marks["root"].version == 2

    def _replay(self) -> None:
        """Start beside a hub that was set back, every cached file emptied."""
        stage = self._stage
        for path in (stage.phone / "tuf").rglob("*.json"):
            if path.is_file():
                path.resolve().write_bytes(bytes(path.stat().st_size))
        phone = Phone(stage.phone, Records(stage.world, stage.old, stage.reports))
        with phone.open() as updater:
            before = require_whole(stage.phone, may_be_empty=True)
            try:
                updater._device.trust.refresh(phone.hub.transport)
            except (RollbackError, ExpiredError):
                assert require_whole(stage.phone, may_be_empty=True) == before
                return
            raise AssertionError("metadata from before the floor was believed")


def run(stage: Stage, name: str, disk: Disk, options: argparse.Namespace) -> list[str]:
    """Try one story; return what went wrong."""
    story, wrong = STORIES[name], list[str]()
    model, operations = record(stage, story, disk, stage.root / "log")
    if options.ignore_syncs:
        operations = [each for each in operations if each.what not in ("fsync", "fdatasync")]
    cuts, chance = Cuts(stage, story), random.Random(name)
    for number, operation in enumerate(operations):
        model.apply(operation)
        for way, state in enumerate(() if number % options.every else states(model, chance, options.random)):
            try:
                cuts.try_state(state, model.marks)
            except (AssertionError, AutoGLMError) as error:
                wrong.append(f"{name}: after {number} {operation.what} {operation.path}, way {way}: {error}")
    print(name, len(operations), len(cuts.seen), cuts.num_refused, flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", default=",".join(STORIES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--random", type=int, default=3)
    parser.add_argument("--ignore-syncs", action="store_true")
    options = parser.parse_args()
    logging.disable()
    with memory_directory() as root:
        stage, disk = prepare(root), Disk()
        wrong = [line for name in options.stories.split(",") for line in run(stage, name, disk, options)]
    print(*wrong, sep="\n", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

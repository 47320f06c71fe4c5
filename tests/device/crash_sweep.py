"""Cut a device's lives off at each of their operations on the disk, and see whether they go on.

Run under the shim, as a program of its own (it forks, which a test process with threads must not do):

    crash_sweep.py [--stories update,failure,...] [--modes kill,half,...] [--every N] [--again]

The modes: ``kill`` (SIGKILL before the operation), ``half`` (SIGKILL in the middle of a write), ``eio`` and
``enospc`` (the operation fails, once), ``full`` (no room from there on). After each the release to load must
be whole, old or new, and the next life must bring the story to its end. With --again that one is killed too,
somewhere. Prints, for each story and mode, the number of points tried; says which points went wrong.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable

import autoglm.trust.client  # noqa: F401 - imported before the forks, not in each of them
from autoglm.errors import AutoGLMError, StorageError
from device.disk import FULL, KILL, KILL_HALF, OFF, REFUSE, Disk, memory_directory
from device.lives import STORIES, Stage, Story, prepare, require_safe

MODES = {
    "kill": (KILL, 0),
    "half": (KILL_HALF, 0),
    "eio": (REFUSE, errno.EIO),
    "enospc": (REFUSE, errno.ENOSPC),
    "full": (FULL, errno.ENOSPC),
}


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


class Sweep:
    """One story, cut off in one way at point after point."""

    def __init__(self, stage: Stage, story: Story, mode: str, again: bool) -> None:
        self._stage, self._story, self._again = stage, story, again
        self._mode, self._error = MODES[mode]
        self._disk = Disk()
        self._disk.watch(stage.phone)

    def length(self) -> int:
        """Return how many operations a life has that nothing disturbs."""
        self._stage.set(self._story)
        reader, writer = os.pipe()

        def count() -> None:
            self._disk.arm(KILL, -1)
            self._stage.live(self._story)
            os.write(writer, str(self._disk.count).encode())

        assert in_child(count) == 0
        self._stage.require_end(self._story)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            return int(pipe.read())

    def try_point(self, point: int) -> bool:
        """Cut a life off at one point, look, and go on; return False where there was nothing to cut off."""
        self._stage.set(self._story)
        ended = in_child(lambda: self._life(self._mode, point))
        assert ended in (0, -signal.SIGKILL), "the life itself broke"
        if ended == 0 and self._mode == KILL_HALF:
            return False
        require_safe(self._stage, self._story)
        if self._again:
            in_child(lambda: self._life(KILL, random.Random(point).randrange(1, 250)))
            require_safe(self._stage, self._story)
        assert in_child(lambda: self._life(OFF, 0)) == 0, "the next life broke"
        self._stage.require_end(self._story)
        return True

    def _life(self, mode: int, point: int) -> None:
        self._disk.arm(mode, point, self._error)
        try:
            self._stage.live(self._story)
        except StorageError:
            if mode not in (REFUSE, FULL):
                raise
        finally:
            self._disk.arm(OFF)


def run(sweep: Sweep, every: int) -> tuple[int, list[str]]:
    """Try every so many points; return how many were tried, and what went wrong at which."""
    tried, wrong = 0, list[str]()
    for point in range(1, sweep.length() + 1, every):
        try:
            tried += sweep.try_point(point)
        except (AssertionError, AutoGLMError) as error:
            wrong.append(f"point {point}: {error}")
    return tried, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", default=",".join(STORIES))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    logging.disable()
    all_wrong: list[str] = []
    with memory_directory() as root:
        stage = prepare(root)
        for name in arguments.stories.split(","):
            for mode in arguments.modes.split(","):
                tried, wrong = run(Sweep(stage, STORIES[name], mode, arguments.again), arguments.every)
                print(name, mode, tried, flush=True)
                all_wrong += [f"{name} {mode} {line}" for line in wrong]
    print(*all_wrong, sep="\n", file=sys.stderr)
    sys.exit(bool(all_wrong))


if __name__ == "__main__":
    main()

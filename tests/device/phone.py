"""One start of an app that embeds the SDK, as a process of its own.

    phone.py HUB_URL DIRECTORY ROOT.JSON [--deadly VERSION] [--wait] [--only MODULE ...]

It opens its data directory, updates, answers five times, lets an hour pass (by its own clock), does what is
due, prints its status as JSON, and ends. A release named by --deadly kills the process inside its first live
answer, as the system does for want of memory. With --wait it stays after the update until its input ends.
With --only, imports of anything but the standard library and these modules fail.
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType


class Refusing(importlib.abc.MetaPathFinder):
    """Lets in the standard library and the modules named."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = {*sys.stdlib_module_names, *allowed}

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] not in self._allowed:
            raise ModuleNotFoundError(f"{name} is not for phones", name=name)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("hub", "directory", "root"):
        parser.add_argument(name)
    parser.add_argument("--deadly")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    if options.only is not None:
        sys.meta_path.insert(0, Refusing(options.only))

    from autoglm.device import FileRuntime, Updater, UpdateSettings
    from autoglm.device.clock import Clock

    class SkippingClock(Clock):
        skipped = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.skipped

    clock = SkippingClock()
    settings = UpdateSettings(trial_answers=3, trial_minutes=10, tries=3)
    runtime = FileRuntime()
    with Updater(
        options.directory,
        hub_url=options.hub,
        trust_root=options.root,
        device_id="d1",
        settings=settings,
        clock=clock,
    ) as updater:
        if updater.active is not None:
            updater.attach(runtime)
        result = updater.update(runtime)
        if options.wait:
            print("waiting", flush=True)
            sys.stdin.read()
        for _ in range(5):
            if (version := updater.status().current) == options.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            updater.answered(True, version)
        clock.skipped += 3600
        updater.tick()
        modules = sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))
        said = {"result": result.kind, "code": result.code, "modules": modules}
        print(json.dumps(updater.status().to_json() | said))


if __name__ == "__main__":
    main()

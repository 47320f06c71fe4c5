"""Load a release and print what was planned and what it took at its peak, as JSON.

Run as a program of its own: loading_memory.py RELEASE MIN_PACKED NATIVE
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch

from autoglm.engine import devices
from autoglm.engine.release import Placement, load_resident, plan_release
from autoglm.model import step


def anonymous() -> int:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def main(directory: Path, min_packed: int, is_native: bool) -> None:
    devices.MIN_WEIGHTS = min_packed
    pays = step.pays
    step.pays = lambda config: is_native and pays(config)
    torch.set_num_threads(1)
    placement = Placement(max_batch=1, max_context=256)
    plan = plan_release(directory, placement)
    before = peak = anonymous()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.0005):
            peak = max(peak, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    with torch.inference_mode():
        resident = load_resident(directory, placement)
    ended.set()
    watching.join()
    held = anonymous() - before
    found = {"needed": plan.needed_bytes, "packing": plan.packing, "peak": max(peak - before, held)}
    print(json.dumps(found | {"held": held, "loaded": resident.release.version}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "native")

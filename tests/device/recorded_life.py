"""Live one life under the shim and record it: ``recorded_life.py STORY DIRECTORY``.

The device is ``DIRECTORY/phone``, the record ``DIRECTORY/log``. Another witness may watch the same process.
"""

from __future__ import annotations

import sys
from pathlib import Path

from device.disk import Disk
from device.lives import STORIES, prepare
from device.power_cut import record

if __name__ == "__main__":
    directory = Path(sys.argv[2]).resolve()
    record(prepare(directory), STORIES[sys.argv[1]], Disk(), directory / "log")

"""Whether a new release is loaded beside the live one, or in its place.

The rule: side by side when the runtime cannot make room, or when a tenth more than the release needs is
free; else exclusive. What is free is measured by the runtime: the machine's available memory, the limits of
the control groups and of the process, the memory of its devices.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from autoglm.device.runtime import ExclusiveRuntime, Runtime
from autoglm.errors import AutoGLMError, OutOfMemoryError

_log = logging.getLogger(__name__)

Mode = Literal["side_by_side", "exclusive"]

MARGIN_PERCENT = 10
"""Loading takes a little more for a moment than what stays loaded."""


def can_make_room(runtime: Runtime) -> bool:
    """Tell whether a runtime knows of exclusive swaps."""
    return callable(getattr(runtime, "room", None))


def choose_mode(runtime: Runtime, directory: Path, wanted: str) -> Mode:
    """Return how to load the release in ``directory``.

    Args:
        wanted: ``side_by_side``, ``exclusive``, or ``auto`` to measure.
    """
    if not can_make_room(runtime) or wanted == "side_by_side":
        return "side_by_side"
    if wanted == "exclusive":
        return "exclusive"
    try:
        room = cast("ExclusiveRuntime", runtime).room(directory)
    except (AutoGLMError, OSError) as error:
        _log.warning("the memory that %s needs is not known: %s", directory.name, error)
        return "side_by_side"  # loading it will say what is wrong with it
    if room.needed_bytes * (100 + MARGIN_PERCENT) <= room.free_bytes * 100:
        return "side_by_side"
    _log.info("%s needs %d bytes, %d are free: exclusive", directory.name, room.needed_bytes, room.free_bytes)
    return "exclusive"


@dataclass(frozen=True)
class Loaded:
    """A release that the runtime has staged.

    Attributes:
        handle: the runtime's own.
        mode: which way it was loaded.
    """

    handle: Any
    mode: Mode


def load(runtime: Runtime, directory: Path, live: Path | None, wanted: str) -> Loaded:
    """Let the runtime stage a release in the way that fits.

    Args:
        live: the release to load again when an exclusive one is no good; None when nothing is loaded, and
            then nothing is in the way.
        wanted: as in :func:`choose_mode`.

    Raises:
        Exception: whatever the runtime raises.
    """
    loaded = load_beside(runtime, directory, live, wanted)
    if loaded is not None:
        return loaded
    handle = cast("ExclusiveRuntime", runtime).stage(directory, instead_of=live)
    return Loaded(handle, "exclusive")


def load_beside(runtime: Runtime, directory: Path, live: Path | None, wanted: str) -> Loaded | None:
    """Let the runtime stage a release beside the live one; None when only an exclusive swap fits.

    Args and errors are those of :func:`load`.
    """
    if live is not None and choose_mode(runtime, directory, wanted) == "exclusive":
        return None
    try:
        return Loaded(runtime.stage(directory), "side_by_side")
    except (MemoryError, OutOfMemoryError) as error:
        if live is None or wanted != "auto" or not can_make_room(runtime):
            raise
        _log.info("%s does not fit beside the live one after all: %s", directory.name, error)
        return None

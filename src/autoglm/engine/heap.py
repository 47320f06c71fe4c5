"""Weights that leave memory when they are let go: what the C library must be told for that (glibc).

Left alone, it keeps freed blocks of up to 32 MiB for later, by thread: a quarter of a model then stays behind
when the model goes. Blocks that were mapped one by one go back to the system at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Generator

import torch

_M_MMAP_THRESHOLD = -3
_WHILE_LOADING, _OTHERWISE = 1 << 18, 32 << 20


@contextlib.contextmanager
def mapped_one_by_one() -> Generator[None]:
    """Map each block of 256 KiB or more that is allocated inside; afterwards, those of 32 MiB or more.

    Working memory is better reused than mapped anew for each step, so this is for loading only.
    """
    _set_threshold(_WHILE_LOADING)
    try:
        yield
    finally:
        _set_threshold(_OTHERWISE)


def give_back() -> None:
    """Return what was freed to the system, and to the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_threshold(num_bytes: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, num_bytes)

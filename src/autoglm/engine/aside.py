"""Run work beside the live model: on a thread of its own and for a bounded time.

The thread keeps its normal priority on purpose: lowered, it would be put off by the system while it holds
Python's lock, and the live model would wait for it. For the same reason that lock changes hands ten times as
often as usual meanwhile: each operation of a decode step gives it away and then waits to have it back. When
the work rests is the business of :mod:`autoglm.engine.pace`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

import torch

from autoglm.errors import EngineError

T = TypeVar("T")

_SWITCH_S = 0.0005


def run_aside(work: Callable[[], T], what: str, *, timeout_s: float | None = None) -> T:
    """Run ``work`` on a new thread, without gradients, and return its result.

    Work that outlasts ``timeout_s`` is abandoned: nothing it does later is looked at.

    Raises:
        EngineError: it took longer than ``timeout_s`` seconds.
        Exception: whatever ``work`` raises.
    """
    future: Future[T] = Future()
    thread = threading.Thread(target=_work, args=(work, future), name=f"autoglm-{what}", daemon=True)
    try:
        with changing_hands_often():
            thread.start()
            return future.result(timeout_s)
    except FutureTimeoutError as error:
        if future.done():
            raise
        raise EngineError(f"{what} took longer than {timeout_s:g} s and was abandoned") from error


@contextlib.contextmanager
def changing_hands_often() -> Generator[None]:
    """Let threads wait shorter for Python's lock; of several at once, the first one sets and resets it."""
    before = sys.getswitchinterval()
    is_ours = before > _SWITCH_S
    if is_ours:
        sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        if is_ours:
            sys.setswitchinterval(before)


def _work(work: Callable[[], T], future: Future[T]) -> None:
    try:
        torch.set_num_threads(1)  # this thread's alone: the cores belong to the live model
        with torch.inference_mode():
            future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
        future.set_exception(error)

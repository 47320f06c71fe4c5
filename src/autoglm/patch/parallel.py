"""Run jobs on threads and hand their results back in order, never more than a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def in_order(jobs: Iterable[Callable[[], _T]], threads: int) -> Iterator[_T]:
    """Yield what the jobs return, in their order; ``threads`` run at a time, one runs without a thread.

    The iterable is consumed on the caller's thread, as far ahead as there are threads.
    """
    if threads <= 1:
        for job in jobs:
            yield job()
        return
    running: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                if len(running) > threads:
                    yield running.popleft().result()
                running.append(pool.submit(job))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

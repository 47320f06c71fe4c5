"""Calls the guard of roll-outs every few seconds, on a thread of its own.

>>> with GuardTimer(hub.rollout_control.tend): ...          # doctest: +SKIP
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from autoglm.errors import AutoGLMError

_log = logging.getLogger(__name__)

EVERY_S = 5.0


class GuardTimer:
    """A thread that calls ``tend`` until the block ends; an error is logged, and the next call comes.

    Args:
        tend: looks at every roll-out once.
        every_s: seconds between two calls.
    """

    def __init__(self, tend: Callable[[], object], *, every_s: float = EVERY_S) -> None:
        self._tend, self._every_s = tend, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout-guard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._tend()
            except AutoGLMError as error:
                _log.warning("The roll-outs could not be looked at: %s", error)
            except Exception:  # noqa: BLE001  a guard that is dead would let a bad release through
                _log.exception("The roll-outs could not be looked at")

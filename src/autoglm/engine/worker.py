"""The one thread that owns the model: it steps the scheduler, and obeys commands between two steps."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from autoglm.engine.scheduler import Scheduler
from autoglm.errors import EngineError, OverloadedError

_log = logging.getLogger(__name__)

_LOOK_S = 0.5


class Worker:
    """Runs a scheduler until closed.

    Attributes:
        is_closing: whether the end was announced.
    """

    def __init__(self, scheduler: Scheduler, *, threads: int | None) -> None:
        self.is_closing = False
        self._scheduler = scheduler
        self._threads = threads
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._deadline_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="autoglm-engine", daemon=True)
        self._thread.start()
        # Python ends by unwinding threads that are left; out of torch's frames that aborts the process.
        atexit.register(self.close, 0.0)

    def wake(self) -> None:
        """Look at the queue again: a sequence was put there."""
        with self._changed:
            self._changed.notify()

    def call(self, command: Callable[[], Any]) -> Any:
        """Run ``command`` on the worker's thread between two steps and return its result.

        Raises:
            OverloadedError: the worker is closed.
            Exception: whatever ``command`` raises.
        """
        if threading.current_thread() is self._thread:
            return command()
        future: Future[Any] = Future()
        with self._changed:
            if self.is_closing:
                raise OverloadedError("the engine is closed", retry_after_s=5)
            self._commands.append((command, future))
            self._changed.notify()
        return future.result()

    def post(self, command: Callable[[], None]) -> None:
        """Run ``command`` on the worker's thread between two steps, without waiting; not once closed."""
        with self._changed:
            if not self.is_closing:
                self._commands.append((command, Future()))
                self._changed.notify()

    def close(self, grace_s: float) -> None:
        """Go on for at most ``grace_s`` seconds while there is work, then end the rest with an error."""
        with self._changed:
            if not self.is_closing:
                self._deadline_s = time.monotonic() + grace_s
            self.is_closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            while self._thread.is_alive() and not self._scheduler.timer.is_given_up:
                self._thread.join(_LOOK_S)
            atexit.unregister(self.close)

    def leave(self) -> list[tuple[Callable[[], Any], Future[Any]]]:
        """Take the commands that wait from a worker whose step was given up; it obeys no more."""
        with self._changed:
            self.is_closing = True
            commands = list(self._commands)
            self._commands.clear()
        atexit.unregister(self.close)
        return commands

    def take_over(self, commands: list[tuple[Callable[[], Any], Future[Any]]]) -> None:
        """Obey these commands before all others."""
        with self._changed:
            self._commands.extendleft(reversed(commands))
            self._changed.notify()

    def _serve(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._wait_for_work():
                self._obey()
                self._step()
                if self._scheduler.timer.is_given_up:
                    return
            self._scheduler.fail_all(EngineError("the engine was closed before the answer was complete"))
            self._obey()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; return False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._commands or self._scheduler.has_work or self.is_closing)
            if not self.is_closing:
                return True
            return self._scheduler.has_work and time.monotonic() < self._deadline_s

    def _step(self) -> None:
        if not self._scheduler.has_work:
            return
        try:
            self._scheduler.step()
        except Exception as error:  # noqa: BLE001 - logged, and told to every caller; the engine goes on
            _log.exception("a step broke; every request in flight is ended")
            self._scheduler.fail_all(EngineError(f"the engine broke on this step: {error}"))

    def _obey(self) -> None:
        """Run the commands that came since the last step."""
        while self._commands:
            command, future = self._commands.popleft()
            try:
                future.set_result(command())
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
                future.set_exception(error)

"""Working beside the live model: in short pieces between two of its steps, with long rests.

Two threads that compute at the same time hand Python's lock to and fro at every operation, and both get slow:
steps took up to three times as long. So a piece of work waits for its turn: the engine's thread lets it go
first and waits for it, for a bounded time, in case it is long or never comes back.

How long a piece is depends on the steps. Where they are long, a piece is a quarter of one, and four times as
much time is left to the steps. Where they are short, no piece of work is: then one in 200 steps waits for a
longer piece, which takes no longer than reading a short prompt does.

    >>> with Pace(is_busy, num_steps, worker.post) as pace:              # doctest: +SKIP
    ...     for part in parts: part.work(); pace()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event
from types import TracebackType
from typing import Self

_USUAL_STEP_S, _LONG_STEP_S = 0.0005, 0.002
_PIECE_OF_STEP = 0.25
_RESTS = 4
_LONGEST_PIECE_S = 0.008
_STEPS_A_PIECE = 200
_LONGEST_REST_S = 0.4
_LONGEST_TURN_S = 0.02
_LONGEST_WAIT_S = 0.05  # for a turn: where steps take longer than that, a piece beside them does not matter


class Turn:
    """A gap between two steps for one piece of other work."""

    def __init__(self) -> None:
        self._begun, self._ended = Event(), Event()

    def give(self) -> None:
        """Let the other thread work until it ends its turn, or for as long as one may last."""
        self._begun.set()
        self._ended.wait(_LONGEST_TURN_S)

    def take(self) -> None:
        """Wait until it is given; work goes on without it when it is not."""
        if not self._begun.wait(_LONGEST_WAIT_S):
            self.end()

    def end(self) -> None:
        """Let the engine go on."""
        self._ended.set()


class Pace:
    """Called between two pieces of work, rests and waits for the next turn, if it is time.

    When no request runs, work just goes on. It belongs to the thread that makes it.

    Args:
        is_busy: whether requests run.
        num_steps: the engine's steps so far.
        post: has the engine's thread run a command between two steps, without waiting for it; None: no turns.
        most_s: all rests together are no longer than about this, in seconds.
        clock, sleep: of this machine.

    Attributes:
        rested_s: seconds of all rests so far, waiting included.
    """

    def __init__(
        self,
        is_busy: Callable[[], bool],
        num_steps: Callable[[], int] = lambda: 0,
        post: Callable[[Callable[[], None]], object] | None = None,
        *,
        most_s: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.rested_s = 0.0
        self._is_busy, self._num_steps, self._post = is_busy, num_steps, post
        self._most_s, self._clock, self._sleep = most_s, clock, sleep
        self._turn: Turn | None = None
        self._step_s = _USUAL_STEP_S  # until the first rest has shown it
        self._since = clock()

    def __call__(self) -> None:
        """Rest, if there is reason to."""
        now = self._clock()
        if not self._is_busy() or self.rested_s >= self._most_s:
            self._since = now
            self._end_turn()
        elif now - self._since >= self._piece_s:
            self._rest(now)

    def __enter__(self) -> Self:
        """Begin with a rest: even the first piece waits for its turn."""
        if self._is_busy():
            self._rest(self._clock())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_turn()

    @property
    def _is_long(self) -> bool:
        return self._step_s >= _LONG_STEP_S

    @property
    def _piece_s(self) -> float:
        return min(_LONGEST_PIECE_S, _PIECE_OF_STEP * self._step_s) if self._is_long else _LONGEST_PIECE_S

    def _rest(self, now: float) -> None:
        self._end_turn()
        steps = self._num_steps()
        rest_s = _RESTS * (now - self._since)
        if not self._is_long:
            rest_s = max(rest_s, _STEPS_A_PIECE * self._step_s)
        self._sleep(min(_LONGEST_REST_S, rest_s))
        self._step_s = (self._clock() - now) / max(1, self._num_steps() - steps)
        self._take_turn()
        self._since = self._clock()
        self.rested_s += self._since - now

    def _take_turn(self) -> None:
        if self._post is not None:
            self._turn = Turn()
            self._post(self._turn.give)
            self._turn.take()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None

"""A request on its way through the engine, and the bounded queue where it waits."""

from __future__ import annotations

import threading
import time
from collections import deque

from autoglm.engine.generation import Event, Finished, Generation, GenerationRequest, Reason, Usage
from autoglm.engine.release import Resident
from autoglm.engine.sampling import Choice, Sampler
from autoglm.engine.transcript import Transcript
from autoglm.errors import OverloadedError, RequestError
from autoglm.model.prompt import Prompt


class Sequence:
    """One request with all its state; after it was queued, the engine's thread alone touches it.

    Attributes:
        resident: the release that it began on and stays on.
        prompt: what it continues.
        generation: the caller's handle.
        sampler: chooses its tokens.
        slot: its place in the release's cache, -1 while it waits.
        token_ids: the tokens generated so far, markers included.
        reason: how it ended; None while it runs.
    """

    def __init__(self, request: GenerationRequest, resident: Resident) -> None:
        release = resident.release
        prompt = release.processor.prompt(
            request.messages, enable_thinking=request.enable_thinking, max_tokens=resident.max_context
        )
        self.num_prompt_tokens = len(prompt.token_ids)
        room = resident.max_context - self.num_prompt_tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {self.num_prompt_tokens} tokens, but prompt and answer together may have "
                f"{resident.max_context}: shorten the conversation",
                param="messages",
            )
        self.resident = resident
        self.prompt: Prompt = prompt
        self.generation = Generation(release.version, release.fingerprint)
        self.sampler = Sampler(request.sampling)
        self.slot = -1
        self.token_ids: list[int] = []
        self.reason: Reason | None = None
        self._max_tokens = min(request.max_tokens or room, room)
        opening = release.markers.opening(prompt.token_ids.tolist())
        self._transcript = Transcript(release.tokenizer, release.markers, opening, request.stop)
        self._submitted_s = time.monotonic()
        self._first_token_s = 0.0

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last one generated."""
        return self.num_prompt_tokens + len(self.token_ids) - 1

    @property
    def position(self) -> int:
        """Rotary position of the last generated token."""
        return self.prompt.next_position + len(self.token_ids) - 1

    def append(self, choice: Choice) -> list[Event]:
        """Take the next token; return what the caller is to hear. Sets ``reason`` when it was the last."""
        if not self.token_ids:
            self._first_token_s = time.monotonic() - self._submitted_s
        self.token_ids.append(choice.token_id)
        is_end = choice.token_id in self.resident.release.markers.ends
        deltas = [] if is_end else self._transcript.push(choice)
        if is_end or self._transcript.stopped:
            return [*deltas, *self._transcript.finish(), self.end("stop")]
        if len(self.token_ids) >= self._max_tokens:
            return [*deltas, *self._transcript.finish(), self.end("length")]
        return list(deltas)

    def end(self, reason: Reason) -> Finished:
        """End it; return its last event."""
        self.reason = "stop" if self._transcript.stopped else reason
        usage = Usage(self.num_prompt_tokens, len(self.token_ids), self._transcript.thought_tokens)
        total_s = time.monotonic() - self._submitted_s
        return Finished(self.reason, usage, self.generation.release, self._first_token_s, total_s)


class WaitingQueue:
    """First come, first served, with a limit; safe to use from every thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Sequence] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sequence: Sequence) -> None:
        """Add a sequence at the end.

        Raises:
            OverloadedError: the queue is full or was closed.
        """
        with self._lock:
            if self._closed:
                raise OverloadedError("the engine is shutting down", retry_after_s=5)
            if len(self._waiting) >= self.limit:
                raise OverloadedError(f"{self.limit} requests wait already: try again later", retry_after_s=1)
            self._waiting.append(sequence)

    def take(self) -> Sequence | None:
        """Remove and return the first sequence, if there is one."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def take_cancelled(self) -> list[Sequence]:
        """Remove and return the sequences whose callers gave up."""
        with self._lock:
            cancelled = [sequence for sequence in self._waiting if sequence.generation.is_cancelled]
            if cancelled:
                self._waiting = deque(s for s in self._waiting if not s.generation.is_cancelled)
            return cancelled

    def close(self) -> None:
        """Refuse further sequences; those in it may still be taken."""
        with self._lock:
            self._closed = True

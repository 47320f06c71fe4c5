"""One request to the engine as its caller sees it: what is asked, the events that come back, the handle.

What it guarantees: the events of a generation come in order and end with exactly one :class:`Finished` or
one error; they can be taken from any one thread or from one asyncio task; whoever stops taking them
cancels, so that no abandoned request keeps computing. A generation belongs to the release named by its
``release`` from submission to the end, whatever is swapped meanwhile.

    >>> for event in engine.submit(GenerationRequest(messages)):      # doctest: +SKIP
    ...     if isinstance(event, TextDelta): print(event.text, end="")
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from autoglm.engine.sampling import Sampling
from autoglm.engine.structure import Structure
from autoglm.errors import EngineError, RequestError
from autoglm.model.prompt import Message, Prompt

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256

Kind = Literal["thought", "answer"]
Reason = Literal["stop", "length", "cancelled"]


class SharedPrompt:
    """The prompt of one request with several choices: made for the first, taken by the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[str, Prompt] | None = None

    def get(self, fingerprint: str, make: Callable[[], Prompt]) -> Prompt:
        """Return the prompt for the release with this fingerprint."""
        with self._lock:
            if self._made is None or self._made[0] != fingerprint:
                self._made = (fingerprint, make())
            return self._made[1]


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate; checked when made.

    Attributes:
        messages: the conversation, the last turn to be answered.
        enable_thinking: ask for a thought before the answer.
        sampling: how tokens are chosen.
        max_tokens: bound on the generated tokens, thought included; None: what the context holds.
        stop: the answer ends before the first of these strings, which is never emitted.
        release: a loaded version such as ``v1.2``; None takes the active one.
        structure: the form that the answer must have; None leaves it free.
        shared: given to all choices of one request, so that their prompt is made once.

    Raises:
        RequestError: a value is out of its range.
    """

    messages: Sequence[Message]
    enable_thinking: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    release: str | None = None
    structure: Structure | None = None
    shared: SharedPrompt | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise RequestError("messages must hold at least one message", param="messages")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {self.max_tokens}", param="max_tokens")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop may hold at most {MAX_STOP_STRINGS} strings", param="stop")
        if any(not 0 < len(text) <= MAX_STOP_LENGTH for text in self.stop):
            raise RequestError(f"a stop string must have 1 to {MAX_STOP_LENGTH} characters", param="stop")


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token with its log-probability.

    Attributes:
        token_id: the token.
        text: its own text; a part of a character shows as U+FFFD.
        logprob: natural logarithm of its probability.
        top: (token id, text, log-probability) of the likeliest tokens, best first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """More text.

    Attributes:
        kind: part of the thought or of the answer.
        text: what is new, never empty, always whole characters.
        token_ids: the tokens that began in this text.
        logprobs: the same tokens with log-probabilities, if these were asked for.
    """

    kind: Kind
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, as they are billed: markers included.

    Attributes:
        prompt_tokens: tokens of the prompt, media included.
        completion_tokens: tokens generated.
        thought_tokens: of these, tokens of the thought.
        cached_tokens: tokens of the prompt that were found in the cache.
    """

    prompt_tokens: int
    completion_tokens: int
    thought_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of a generation that did not fail.

    Attributes:
        reason: ``stop`` (the model ended, or a stop string came), ``length`` or ``cancelled``.
        usage: its tokens.
        release: the version whose weights computed all of it.
        first_token_s: seconds from submission to the first token, 0 when there was none.
        total_s: seconds from submission to the end.
    """

    reason: Reason
    usage: Usage
    release: str
    first_token_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed after the first token, 0 when fewer than two tokens came."""
        decoding_s = self.total_s - self.first_token_s
        later = self.usage.completion_tokens - 1
        return later / decoding_s if later > 0 and decoding_s > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """A whole generation.

    Attributes:
        thought: text of the thought.
        answer: text of the answer.
        token_ids: of both, markers excluded.
        logprobs: of both, if asked for.
        finished: how it ended.
    """

    thought: str
    answer: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished


Event = TextDelta | Finished
_Delivery = TextDelta | Finished | EngineError


class Generation:
    """The handle of a submitted request: iterate it, from a thread or a task, or take the whole result.

    One consumer only. Leaving the iteration early cancels the request.

    Attributes:
        release: the version that computes all of it.
        fingerprint: identity of that release's bytes.
    """

    def __init__(self, release: str, fingerprint: str) -> None:
        self.release = release
        self.fingerprint = fingerprint
        self._cancelled = threading.Event()
        self._deliveries: deque[_Delivery] = deque()
        self._arrived = threading.Condition()
        self._listener: Callable[[_Delivery], object] | None = None
        self._finished: Finished | None = None
        self._on_finished: Callable[[Finished], object] = _ignore
        self._ended = False

    def cancel(self) -> None:
        """End the request within one step of the engine; harmless when it has ended already."""
        self._cancelled.set()

    async def begun(self) -> None:
        """Wait until it is sure that the request is being computed; here it is from the beginning.

        Raises:
            EngineError: it was refused after it was submitted.
        """

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled."""
        return self._cancelled.is_set()

    def on_finished(self, listener: Callable[[Finished], object]) -> None:
        """Call ``listener`` with the last event, also when the consumer is gone by then; not after an error.

        It is called at once when that has come already, else on the engine's thread: it must not block.
        """
        with self._arrived:
            if self._finished is None:
                self._on_finished = listener
                return
        listener(self._finished)

    def deliver(self, delivery: _Delivery) -> None:
        """Hand an event or the final error to the consumer; called by the engine only, never blocks."""
        if isinstance(delivery, Finished):
            with self._arrived:
                self._finished = delivery
            self._on_finished(delivery)
        with self._arrived:
            if self._listener is None:
                self._deliveries.append(delivery)
                self._arrived.notify()
                return
            try:
                self._listener(delivery)
            except RuntimeError:  # the consumer's event loop is closed: nobody listens any more
                self.cancel()

    def __iter__(self) -> Iterator[Event]:
        """Yield the events as they come, in the calling thread.

        Raises:
            EngineError: the request failed.
        """
        return self._events(deadline=None)

    def result(self, timeout_s: float | None = None) -> Completion:
        """Wait for the whole generation.

        Raises:
            EngineError: the request failed, or took longer than ``timeout_s`` and was cancelled.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return _complete(list(self._events(deadline)))

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events as they come, in the running asyncio loop.

        Raises:
            EngineError: the request failed.
        """
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[_Delivery] = asyncio.Queue()
        self._listen(lambda delivery: loop.call_soon_threadsafe(inbox.put_nowait, delivery))
        try:
            while not self._ended:
                yield self._open(await inbox.get())
        finally:
            self.cancel()

    async def complete(self) -> Completion:
        """Wait for the whole generation in the running asyncio loop.

        Raises:
            EngineError: the request failed.
        """
        return _complete([event async for event in self])

    def _events(self, deadline: float | None) -> Iterator[Event]:
        try:
            while not self._ended:
                yield self._open(self._take(deadline))
        finally:
            self.cancel()

    def _take(self, deadline: float | None) -> _Delivery:
        with self._arrived:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._arrived.wait_for(lambda: self._deliveries, remaining):
                raise EngineError("the answer took longer than the time given for it; it was cancelled")
            return self._deliveries.popleft()

    def _listen(self, listener: Callable[[_Delivery], object]) -> None:
        with self._arrived:
            while self._deliveries:
                listener(self._deliveries.popleft())
            self._listener = listener

    def _open(self, delivery: _Delivery) -> Event:
        if isinstance(delivery, TextDelta):
            return delivery
        self._ended = True
        if isinstance(delivery, Finished):
            return delivery
        raise delivery


def _ignore(finished: Finished) -> None:
    """Nobody asked."""


def _complete(events: list[Event]) -> Completion:
    deltas = [event for event in events if isinstance(event, TextDelta)]
    finished = events[-1] if events else None
    if not isinstance(finished, Finished):
        raise EngineError("the generation was already taken by someone else")
    return Completion(
        thought="".join(delta.text for delta in deltas if delta.kind == "thought"),
        answer="".join(delta.text for delta in deltas if delta.kind == "answer"),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finished=finished,
    )

"""A request on its way through the engine, and the bounded queue where it waits."""

from __future__ import annotations

import threading
import time
from collections import deque

import torch
from torch import Tensor

from autoglm.engine.generation import Event, Finished, Generation, GenerationRequest, Reason, Usage
from autoglm.engine.pages import media_digests, page_keys
from autoglm.engine.release import Resident
from autoglm.engine.sampling import Choice, Sampler
from autoglm.engine.transcript import Transcript
from autoglm.errors import EngineError, OverloadedError, RequestError
from autoglm.model.pages import PageTable
from autoglm.model.prompt import SHORTEN, Prompt

# A piece of a prompt has at least this many tokens: fewer rows go through other matrix products.
MIN_PIECE = 4


class Sequence:
    """One request with all its state; after it was queued, the engine's thread alone touches it.

    Attributes:
        resident: the release that it began on and stays on.
        prompt: what it continues.
        generation: the caller's handle.
        sampler: chooses its tokens.
        constraint: the form of its answer; None leaves it free.
        table: its pages in the release's cache; None while it waits.
        num_cached: tokens whose keys and values are in them.
        token_ids: the tokens generated so far, markers included.
        page_keys: the key of each full page of the prompt.
        reason: how it ended; None while it runs.
        is_answer: whether it ends in an answer, by which a release on trial is judged.
    """

    is_answer = True

    def __init__(self, request: GenerationRequest, resident: Resident) -> None:
        release = resident.release
        self.prompt = _prompt(request, resident)
        self.num_prompt_tokens = len(self.prompt)
        room = resident.max_context - self.num_prompt_tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {self.num_prompt_tokens} tokens, but prompt and answer together may have "
                f"{resident.max_context}: {SHORTEN}",
                param="messages",
            )
        self.resident = resident
        self.generation = Generation(release.version, release.fingerprint)
        self.sampler = Sampler(request.sampling, self.prompt.token_ids.tolist())
        self.constraint = resident.grammars.constrain(request.structure) if request.structure else None
        self.table: PageTable | None = None
        self.num_cached = 0
        self.token_ids: list[int] = []
        self.digests = media_digests(self.prompt)
        self.page_keys = page_keys(resident.key_seed, self.prompt, self.digests, resident.cache.page)
        self.reason: Reason | None = None
        self._text = self.prompt
        self._reused_tokens = -1
        self._max_tokens = min(request.max_tokens or room, room)
        self._markers = release.markers
        opening = release.markers.opening(self.prompt.token_ids.tolist())
        self._transcript = Transcript(release.tokenizer, release.markers, opening, request.stop)
        self._submitted_s = time.monotonic()
        self._first_token_s = 0.0
        self._last_token_s = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer; all must be in the cache before the next one is chosen."""
        return self.num_prompt_tokens + len(self.token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether its next token needs a step of one token only."""
        return bool(self.token_ids) and self.num_cached == self.num_tokens - 1

    @property
    def position(self) -> int:
        """Rotary position of the last generated token."""
        return self.prompt.next_position + len(self.token_ids) - 1

    @property
    def reusable_keys(self) -> list[bytes]:
        """Keys of the pages that it may find in the cache: the last tokens are always computed anew."""
        return self.page_keys[: (self.num_tokens - MIN_PIECE) // self.resident.cache.page]

    def enter(self, table: PageTable) -> None:
        """Begin to run on pages whose tokens were found in the cache."""
        self.table = table
        self.num_cached = len(table) * self.resident.cache.page
        self._text = self.prompt.continued(self.token_ids) if self.token_ids else self.prompt
        if self._reused_tokens < 0:
            self._reused_tokens = self.num_cached

    def next_piece(self, max_tokens: int) -> tuple[int, int]:
        """Return the tokens (start, stop) to read next: about ``max_tokens``, whole pages, whole media spans.

        However a text is cut, each token is then computed in the same way, bit by bit: a span's tokens see
        each other, the Top-K gate chooses for a page of queries at a time, and matrix products treat a few
        rows differently.
        """
        page, grows = self.resident.cache.page, False
        stop = (self.num_cached + max(page, max_tokens)) // page * page
        while self.num_tokens - stop >= MIN_PIECE and (span := self._cut_span(stop)):
            places = (self._text.spans == span).nonzero()
            before, after = int(places[0]) // page * page, -(-(int(places[-1]) + 1) // page) * page
            # Back to before the span; or past it, and then never back, for spans may share a page.
            grows = grows or before <= self.num_cached
            stop = after if grows else before
        return self.num_cached, self.num_tokens if self.num_tokens - stop < MIN_PIECE else stop

    def _cut_span(self, stop: int) -> int:
        """Return the media span that a piece ending here would cut in two, 0 for none."""
        spans = self._text.spans
        return int(spans[stop]) if spans[stop - 1] == spans[stop] else 0

    def read(self, start: int, stop: int) -> Tensor:
        """Put a piece of the text into the cache; return the last token's hidden state (width,)."""
        resident, table = self.resident, self.table
        if table is None:
            raise EngineError("a request without pages cannot run")
        return resident.release.model.prefill(
            self._text, resident.cache, table, start, stop, media=self._encoding
        )

    def _encoding(self, prompt: Prompt, span: int) -> Tensor:
        model = self.resident.release.model
        return self.resident.encodings.get(self.digests[span], lambda: model.embed_span(prompt, span))

    def advance(self, stop: int) -> None:
        """Note that all tokens before ``stop`` are in the cache, and let the prompt's pages be found.

        Pages of the answer are not: decoding sums in another order than reading, and an answer must not
        depend on what the cache happens to hold.
        """
        table, page = self.table, self.resident.cache.page
        before, self.num_cached = self.num_cached // page, stop
        for index in range(before, min(stop // page, len(self.page_keys))):
            if table is not None:
                self.resident.pages.publish(table.pages[index], self.page_keys[index])

    def leave(self, *, is_clean: bool = True) -> None:
        """Give the pages back; harmless when it has none."""
        table, self.table = self.table, None
        self.num_cached = 0
        if table is not None:
            self.resident.pages.close(table, is_clean=is_clean)

    def since_last_token(self) -> tuple[float, bool]:
        """Return the seconds since its last token, or since submission, and whether this is the first one."""
        now, before = time.monotonic(), self._last_token_s or self._submitted_s
        is_first, self._last_token_s = not self._last_token_s, now
        return now - before, is_first

    def append(self, choice: Choice) -> list[Event]:
        """Take the next token; return what the caller is to hear. Sets ``reason`` when it was the last."""
        if not self.token_ids:
            self._first_token_s = time.monotonic() - self._submitted_s
        self.token_ids.append(choice.token_id)
        is_bound = self._transcript.kind == "answer" and choice.token_id not in self._markers.kinds
        if self.constraint and is_bound:
            self.constraint.accept(choice.token_id)
        is_end = choice.token_id in self._markers.ends
        deltas = [] if is_end else self._transcript.push(choice)
        is_end = is_end or (self.constraint is not None and self.constraint.is_complete)
        if is_end or self._transcript.stopped:
            return [*deltas, *self._transcript.finish(), self.end("stop")]
        if len(self.token_ids) >= self._max_tokens:
            return [*deltas, *self._transcript.finish(), self.end("length")]
        return list(deltas)

    def allowed(self, vocab_size: int) -> Tensor | None:
        """Return which tokens may come next, (vocab_size,) bool; None: all.

        A thought may not end the turn: an answer follows. Where that must have a form, a marker opens it.

        Raises:
            RequestError: the form is too complex to follow.
        """
        if self._transcript.kind == "thought":
            mask = torch.ones(vocab_size, dtype=torch.bool)
            mask[list(self._markers.ends)] = False
            return mask
        if self.constraint is None:
            return None
        if (self.token_ids or [-1])[-1] != self._markers.end_think:
            return self.constraint.allowed(vocab_size)
        mask = torch.zeros(vocab_size, dtype=torch.bool)
        mask[self._markers.answer] = True
        return mask

    def is_settled_by(self, token_id: int) -> bool:
        """Tell whether the likeliest token is the one to take: nothing is drawn, and nothing forbids it."""
        is_free = self._transcript.kind == "answer" or token_id not in self._markers.ends
        return is_free and self.constraint is None and self.sampler.sampling.is_plain

    def end(self, reason: Reason) -> Finished:
        """End it; return its last event."""
        self.reason = "stop" if self._transcript.stopped else reason
        usage = Usage(
            self.num_prompt_tokens,
            len(self.token_ids),
            self._transcript.thought_tokens,
            max(0, self._reused_tokens),
        )
        total_s = time.monotonic() - self._submitted_s
        return Finished(self.reason, usage, self.generation.release, self._first_token_s, total_s)


def _prompt(request: GenerationRequest, resident: Resident) -> Prompt:
    """Make the prompt of a request, or take the one made for another choice of it."""

    def make() -> Prompt:
        return resident.release.processor.prompt(
            request.messages, enable_thinking=request.enable_thinking, max_tokens=resident.max_context
        )

    return request.shared.get(resident.release.fingerprint, make) if request.shared else make()


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

    def put_back(self, sequence: Sequence) -> None:
        """Add a sequence that had its turn already at the front, whatever the limit."""
        with self._lock:
            self._waiting.appendleft(sequence)

    def move(self, old: Resident, new: Resident) -> int:
        """Let those that wait for ``old`` run on ``new``, the same release; return how many they are."""
        with self._lock:
            moved = [sequence for sequence in self._waiting if sequence.resident is old]
            for sequence in moved:
                sequence.resident = new
            return len(moved)

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

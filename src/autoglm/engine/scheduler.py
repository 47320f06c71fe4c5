"""Continuous batching: at every step decide what runs, run it, hand out the tokens.

One step decodes one token for every running sequence, batched by release, and reads at most
:attr:`Limits.prefill_tokens` of prompts, a long one piece by piece, so that those already running keep their
pace. Pages are given out as they are needed; when they are used up the newest sequence goes back to the
queue and is computed again later. A request that breaks, or whose release computes NaN, fails alone: when a
batch breaks, each of its sequences takes the step once more by itself, from the same cache, so that those
that are sound go on with the very tokens they would have had. The scheduler belongs to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from autoglm.engine.figures import Counters
from autoglm.engine.generation import Finished
from autoglm.engine.release import Placement, Resident
from autoglm.engine.sampling import Choice, all_finite
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.engine.watch import StepTimer
from autoglm.errors import EngineError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        max_batch: sequences that run at the same time, over all releases.
        prefill_tokens: prompt tokens read in a step, in whole pages; an image or a clip is read whole.
        idle_tokens: the same in a step that writes no token, where nobody waits for the next one; None: no
            more than otherwise.
    """

    max_batch: int = 8
    prefill_tokens: int = 128
    idle_tokens: int | None = None

    @classmethod
    def of(cls, placement: Placement) -> Limits:
        """Choose for devices: a CPU is busy with few tokens, a GPU wants many at once."""
        tokens = 128 if placement.devices[0].type == "cpu" else 1024
        return cls(placement.max_batch, tokens, 4 * tokens)


@dataclass(frozen=True)
class Batch:
    """Sequences of one release that take one step together.

    Attributes:
        resident: the release.
        sequences: who takes part; exactly one when a piece is read.
        piece: tokens (start, stop) of the prompt to read; None: one token is decoded for each.
    """

    resident: Resident
    sequences: tuple[Sequence, ...]
    piece: tuple[int, int] | None = None

    def one_by_one(self) -> Iterator[Batch]:
        """Yield a batch of one for each sequence."""
        return (replace(self, sequences=(sequence,)) for sequence in self.sequences)


Outcome = Choice | EngineError | None  # None: the prompt is not read to its end
OnEnd = Callable[[Sequence, Finished | EngineError], None]


class Scheduler:
    """Runs sequences from a queue to their end.

    Args:
        waiting: where sequences come from.
        limits: its bounds.
        on_end: called once a sequence, before its caller hears that it ended.
    """

    def __init__(self, waiting: WaitingQueue, limits: Limits, on_end: OnEnd) -> None:
        self.waiting = waiting
        self.running: list[Sequence] = []
        self.counters = Counters()
        self.timer = StepTimer()
        self.computing: Resident | None = None
        self._limits = limits
        self._on_end = on_end

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.running or len(self.waiting))

    def step(self) -> None:
        """Advance every running sequence by one token and let waiting ones in."""
        self._drop_cancelled()
        for batch in self.schedule():
            self.computing = batch.resident
            self.timer.begin()
            outcomes = self.run(batch)
            if not self.timer.end():
                return
            self.postprocess(batch, outcomes)
        self.counters.steps += 1

    def schedule(self) -> Iterator[Batch]:
        """Yield what this step runs: a decode batch a release, then pieces of prompts."""
        decoding = [s for s in tuple(self.running) if s.is_decoding and self._make_room(s, s.num_tokens)]
        ready = sorted((s for s in decoding if s.table), key=_place)
        for _, group in groupby(ready, key=lambda sequence: id(sequence.resident)):
            sequences = tuple(group)
            yield Batch(sequences[0].resident, sequences)
        tokens_left = self._limits.prefill_tokens
        if not ready:
            tokens_left = self._limits.idle_tokens or tokens_left
        while tokens_left > 0 and (sequence := self._next_reader()):
            start, stop = sequence.next_piece(tokens_left)
            if not self._make_room(sequence, stop):
                return
            tokens_left -= stop - start
            yield Batch(sequence.resident, (sequence,), (start, stop))

    def _next_reader(self) -> Sequence | None:
        """Return the first sequence whose text is not read to its end, a waiting one if there is room."""
        reading = next((s for s in self.running if not s.is_decoding and s.num_cached < s.num_tokens), None)
        return reading or self._admit()

    def _admit(self) -> Sequence | None:
        """Let the first waiting sequence in, with the pages that are in the cache already."""
        if len(self.running) >= self._limits.max_batch or (sequence := self.waiting.take()) is None:
            return None
        if sequence.resident.is_lost:  # it came just when the step was given up
            self.fail(sequence, EngineError("the release was set up anew meanwhile: ask again"))
            return None
        pool, keys = sequence.resident.pages, sequence.reusable_keys
        keys = keys[: pool.find(keys)]
        if not pool.has_room(keys, sequence.resident.pages_for(sequence.num_tokens)):
            self.waiting.put_back(sequence)
            return None
        self.running.append(sequence)
        try:
            sequence.enter(pool.open(keys))
        except Exception as error:  # noqa: BLE001 - it fails, not those that run
            self.fail(sequence, _failure(sequence, error))
            return None
        if not sequence.token_ids:
            self.counters.prompt_tokens += sequence.num_prompt_tokens
            self.counters.reused_tokens += sequence.num_cached
        return sequence

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence pages for this many tokens; return False when it had to give up its own."""
        pool, needed = sequence.resident.pages, sequence.resident.pages_for(num_tokens)
        while sequence.table is not None and len(sequence.table) < needed:
            if not pool.grow(sequence.table):
                self._preempt(sequence.resident)
        return sequence.table is not None

    def _preempt(self, resident: Resident) -> None:
        """Put the newest sequence of a release back into the queue; its tokens are computed again later."""
        newest = next(s for s in reversed(self.running) if s.resident is resident)
        self.running.remove(newest)
        newest.leave()
        self.waiting.put_back(newest)
        self.counters.preempted += 1

    def run(self, batch: Batch) -> list[Outcome]:
        """Compute the next token of each sequence of a batch, or why there is none."""
        try:
            logits = _decode(batch) if batch.piece is None else _read(batch.sequences[0], *batch.piece)
            return [None] if logits is None else _choose(batch.sequences, logits)
        except Exception as error:  # noqa: BLE001 - whatever breaks ends requests, never the engine
            if len(batch.sequences) == 1:
                return [_failure(batch.sequences[0], error)]
            # Whose fault it is shows alone. What the broken step wrote is what each of them writes again.
            _log.warning("a step of %d requests broke, each takes it alone: %s", len(batch.sequences), error)
            return [outcome for alone in batch.one_by_one() for outcome in self.run(alone)]

    def postprocess(self, batch: Batch, outcomes: list[Outcome]) -> None:
        """Hand the tokens to their callers and end what is complete."""
        if batch.piece is not None:
            self.counters.computed_tokens += batch.piece[1] - batch.piece[0]
        for sequence, outcome in zip(batch.sequences, outcomes, strict=True):
            if isinstance(outcome, EngineError):
                self.fail(sequence, outcome)
                continue
            sequence.advance(sequence.num_tokens if batch.piece is None else batch.piece[1])
            if outcome is not None:
                self._hand_out(sequence, outcome)

    def _hand_out(self, sequence: Sequence, choice: Choice) -> None:
        if sequence.is_answer:
            self.counters.generated_tokens += 1
            seconds, is_first = sequence.since_last_token()
            (self.counters.first_token if is_first else self.counters.next_token).add(seconds)
        try:
            events = sequence.append(choice)
        except Exception as error:  # noqa: BLE001 - such as a form that cannot be followed any further
            self.fail(sequence, _failure(sequence, error))
            return
        if events and isinstance(events[-1], Finished):
            self._leave(sequence, events[-1])
        for event in events:
            sequence.generation.deliver(event)

    def fail(self, sequence: Sequence, error: EngineError) -> None:
        """End a sequence with an error for its caller."""
        self._leave(sequence, error)
        sequence.generation.deliver(error)

    def fail_all(self, error: EngineError) -> None:
        """End everything, running and waiting."""
        while sequence := self.waiting.take():
            self.fail(sequence, error)
        for sequence in list(self.running):
            self.fail(sequence, error)

    def settle(self, stuck: Scheduler, lost: Resident | None, error: EngineError) -> None:
        """Fail what ran on a scheduler whose step was given up; the cache of the ``lost`` release is gone."""
        for sequence in list(stuck.running):
            if sequence.resident is lost:
                sequence.table = None
            elif sequence.table is not None:
                sequence.leave()
            self.counters.failed += 1
            self._on_end(sequence, error)
            sequence.generation.deliver(error)

    def _drop_cancelled(self) -> None:
        cancelled = [sequence for sequence in self.running if sequence.generation.is_cancelled]
        for sequence in cancelled + self.waiting.take_cancelled():
            finished = sequence.end("cancelled")
            self._leave(sequence, finished)
            sequence.generation.deliver(finished)

    def _leave(self, sequence: Sequence, ending: Finished | EngineError) -> None:
        """Free the pages and settle the books; the caller may be told after this."""
        is_failed = isinstance(ending, EngineError)
        if sequence in self.running:
            self.running.remove(sequence)
        sequence.leave(is_clean=not is_failed)
        self.counters.failed += is_failed
        self.counters.cancelled += sequence.reason == "cancelled"
        self.counters.finished += sequence.reason in ("stop", "length")
        self._on_end(sequence, ending)


def _place(sequence: Sequence) -> tuple[int, int]:
    """Return what sequences are sorted by before they decode: by release, then as they lie in its cache."""
    table = sequence.table
    return id(sequence.resident), table.pages[0] if table else -1


def _failure(sequence: Sequence, error: Exception) -> EngineError:
    """Return what a sequence's caller is told when ``error`` ended it."""
    if isinstance(error, EngineError):
        return error
    failure = EngineError(f"release {sequence.resident.release.version} failed on this request: {error}")
    failure.__cause__ = error
    return failure


def _read(sequence: Sequence, start: int, stop: int) -> Tensor | None:
    """Read a piece of a text; return the logits (1, V) after it when it was the last one."""
    hidden = sequence.read(start, stop)  # (D,)
    return sequence.resident.release.model.logits(hidden[None]) if stop == sequence.num_tokens else None


def _decode(batch: Batch) -> Tensor:
    """Advance each sequence by its last token; return the logits (B, V).

    A row that is not finite is computed again alone: a view of neighbouring rows is padded with what lies
    behind the shorter ones, which may be another's page, and 0 times NaN is NaN.
    """
    logits = _advance(batch.resident, batch.sequences)
    if len(batch.sequences) > 1:
        for row in (~all_finite(logits)).nonzero()[:, 0].tolist():
            logits[row] = _advance(batch.resident, batch.sequences[row : row + 1])[0]
    return logits


def _advance(resident: Resident, sequences: tuple[Sequence, ...]) -> Tensor:
    """Run one decode step; return the logits (B, V)."""
    model, graphs = resident.release.model, resident.graphs
    tables, lengths = [s.table for s in sequences if s.table is not None], [s.num_tokens for s in sequences]
    if graphs is not None and graphs.fits(lengths):
        tokens, places = [s.token_ids[-1] for s in sequences], [s.position for s in sequences]
        return graphs.step(tokens, places, tables, lengths).clone()
    ids, positions = torch.tensor([(s.token_ids[-1], s.position) for s in sequences]).T.contiguous()  # (B,)
    rows = resident.cache.rows(tables, lengths)
    return model.logits(model.decode(ids, positions, resident.cache, rows))


def _choose(sequences: tuple[Sequence, ...], logits: Tensor) -> list[Outcome]:
    """Choose a token from each row of logits (B, V); plain greedy rows are decided all at once."""
    likeliest = logits.argmax(-1).tolist()
    finite = all_finite(logits).tolist()
    outcomes: list[Outcome] = []
    for row, sequence in enumerate(sequences):
        if not finite[row]:
            version = sequence.resident.release.version
            outcomes.append(EngineError(f"release {version} computed values that are not finite"))
            continue
        try:
            outcomes.append(_choose_one(sequence, logits[row], likeliest[row]))
        except Exception as error:  # noqa: BLE001 - those before it have drawn: the row fails, not the batch
            outcomes.append(_failure(sequence, error))
    return outcomes


def _choose_one(sequence: Sequence, logits: Tensor, likeliest: int) -> Choice:
    """Choose a token from logits (V,) under the sequence's settings and the form of its answer."""
    if sequence.is_settled_by(likeliest):
        return sequence.sampler.accept(likeliest)
    return sequence.sampler.choose(logits, sequence.allowed(len(logits)))

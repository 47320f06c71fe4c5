"""Continuous batching: at every step decide what runs, run it, hand out the tokens.

One step decodes one token for every running sequence, batched by release, and lets waiting sequences in
(prefill) as slots come free, never more prompt tokens a step than :attr:`Limits.prefill_tokens` so that
those already running keep their pace. A request that breaks, or whose release computes NaN, fails alone;
the engine goes on. The scheduler belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from autoglm.engine.generation import Finished
from autoglm.engine.release import Resident
from autoglm.engine.sampling import Choice, all_finite
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.errors import EngineError


@dataclass(frozen=True)
class Limits:
    """Bounds of a scheduler.

    Attributes:
        max_batch: sequences that run at the same time, over all releases.
        prefill_tokens: prompt tokens let in a step; one prompt always is.
    """

    max_batch: int = 8
    prefill_tokens: int = 512


@dataclass(frozen=True)
class Batch:
    """Sequences of one release that take one step together.

    Attributes:
        resident: the release.
        sequences: who takes part; exactly one when ``is_prefill``.
        is_prefill: whether the prompt is read (first token) or one token is decoded.
    """

    resident: Resident
    sequences: tuple[Sequence, ...]
    is_prefill: bool = False


Outcome = Choice | EngineError
OnEnd = Callable[[Sequence, Finished | EngineError], None]


@dataclass
class Counters:
    """What a scheduler has done since it was made; plain numbers, read by any thread."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


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
            outcomes = self.run(batch)
            self.postprocess(batch, outcomes)
        self.counters.steps += 1

    def schedule(self) -> Iterator[Batch]:
        """Yield what this step runs: a decode batch a release, then the prompts let in."""
        running = sorted(self.running, key=lambda sequence: (id(sequence.resident), sequence.slot))
        for _, group in groupby(running, key=lambda sequence: id(sequence.resident)):
            sequences = tuple(group)
            yield Batch(sequences[0].resident, sequences)
        tokens_left = self._limits.prefill_tokens
        while tokens_left > 0 and len(self.running) < self._limits.max_batch:
            sequence = self.waiting.take()
            if sequence is None:
                return
            tokens_left -= sequence.num_prompt_tokens
            sequence.slot = sequence.resident.take_slot()
            self.running.append(sequence)
            yield Batch(sequence.resident, (sequence,), is_prefill=True)

    def run(self, batch: Batch) -> list[Outcome]:
        """Compute the next token of each sequence of a batch, or why there is none."""
        try:
            logits = _prefill(batch) if batch.is_prefill else _decode(batch)
            return _choose(batch.sequences, logits)
        except EngineError as error:
            return [error for _ in batch.sequences]
        except Exception as error:  # noqa: BLE001 - whatever breaks ends these requests, never the engine
            failure = EngineError(f"release {batch.resident.release.version} failed on this request: {error}")
            failure.__cause__ = error
            return [failure for _ in batch.sequences]

    def postprocess(self, batch: Batch, outcomes: list[Outcome]) -> None:
        """Hand the tokens to their callers and end what is complete."""
        self.counters.prompt_tokens += batch.sequences[0].num_prompt_tokens if batch.is_prefill else 0
        for sequence, outcome in zip(batch.sequences, outcomes, strict=True):
            if isinstance(outcome, EngineError):
                self.fail(sequence, outcome)
                continue
            self.counters.generated_tokens += 1
            events = sequence.append(outcome)
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

    def _drop_cancelled(self) -> None:
        cancelled = [sequence for sequence in self.running if sequence.generation.is_cancelled]
        for sequence in cancelled + self.waiting.take_cancelled():
            finished = sequence.end("cancelled")
            self._leave(sequence, finished)
            sequence.generation.deliver(finished)

    def _leave(self, sequence: Sequence, ending: Finished | EngineError) -> None:
        """Free the slot and settle the books; the caller may be told after this."""
        is_failed = isinstance(ending, EngineError)
        if sequence.slot >= 0:
            self.running.remove(sequence)
            sequence.resident.return_slot(sequence.slot, is_clean=not is_failed)
            sequence.slot = -1
        self.counters.failed += is_failed
        self.counters.cancelled += sequence.reason == "cancelled"
        self.counters.finished += sequence.reason in ("stop", "length")
        self._on_end(sequence, ending)


def _prefill(batch: Batch) -> Tensor:
    """Read one prompt; return the logits (1, V) after it."""
    model, sequence = batch.resident.release.model, batch.sequences[0]
    hidden = model.prefill(sequence.prompt, batch.resident.cache, sequence.slot)  # (D,)
    return model.logits(hidden[None])


def _decode(batch: Batch) -> Tensor:
    """Advance each sequence by its last token; return the logits (B, V)."""
    model = batch.resident.release.model
    rows = [(s.token_ids[-1], s.position, s.slot, s.num_cached) for s in batch.sequences]
    token_ids, positions, slots, lengths = torch.tensor(rows).T.contiguous()  # each (B,)
    hidden = model.decode(token_ids, positions, batch.resident.cache, slots, lengths)  # (B, D)
    return model.logits(hidden)


def _choose(sequences: tuple[Sequence, ...], logits: Tensor) -> list[Outcome]:
    """Choose a token from each row of logits (B, V); plain greedy rows are decided all at once."""
    likeliest = logits.argmax(-1).tolist()
    finite = all_finite(logits).tolist()
    outcomes: list[Outcome] = []
    for row, sequence in enumerate(sequences):
        if not finite[row]:
            version = sequence.resident.release.version
            outcomes.append(EngineError(f"release {version} computed values that are not finite"))
        elif sequence.sampler.sampling.is_plain:
            outcomes.append(sequence.sampler.accept(likeliest[row]))
        else:
            outcomes.append(sequence.sampler.choose(logits[row]))
    return outcomes

"""Screens drawn ahead of time by other processes: drawing is plain Python, and a training step need not wait.

What it guarantees: the same screens as without, since each step's come from the seed and the step alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from autoglm.model.config import ModelConfig
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.intents import Release
from autoglm.training.news import teacher_of
from autoglm.training.rows import Batch
from autoglm.training.teaching import Manner, Teacher

_DEPTH = 3  # steps that each process may be ahead


@dataclass(frozen=True)
class Order:
    """What to draw for one step.

    Attributes:
        tokenizer: file of the run's tokenizer.
        config: the model's sizes.
        release: whose labels are shown.
        seed: the generator's, the step in it.
        count: screens.
        manner: how far rows stray from the plain form.
        primer: share of easy screens.
        labels_only: no questions.
    """

    tokenizer: Path
    config: ModelConfig
    release: Release
    seed: str
    count: int
    manner: Manner
    primer: float
    labels_only: bool


Drawn = Batch | tuple[Tensor, Tensor, Tensor]


def draw(order: Order) -> Drawn:
    """Return the screens of an order: a batch of questions, or pixels and what the patches show."""
    teacher = _teacher(order.tokenizer, order.config, order.release)
    rng = random.Random(order.seed)
    if order.labels_only:
        return teacher.labels(teacher.scenes(rng, order.count, order.primer))
    return teacher.screens(rng, order.count, order.manner)


@functools.cache
def _teacher(tokenizer: Path, config: ModelConfig, release: Release) -> Teacher:
    return teacher_of(Tokenizer.from_file(tokenizer), config, release)


class Ahead:
    """A pool of processes that draw the orders of coming steps; without processes, draws on demand."""

    def __init__(self, workers: int) -> None:
        """Args: processes; 0 for none."""
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._coming: dict[Order, Future[Drawn]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, {}

    def get(self, order: Order, coming: list[Order]) -> Drawn:
        """Return what was ordered, and see to it that the coming orders are under way."""
        if not self._workers:
            return draw(order)
        for each in (order, *coming[: _DEPTH * self._workers]):
            if each not in self._coming:
                self._coming[each] = self._started().submit(draw, each)
        return self._coming.pop(order).result()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_settle)
        return self._pool


def _settle() -> None:
    """Make a drawing process modest: one thread, and behind the one that trains."""
    import torch

    torch.set_num_threads(1)
    os.nice(2)

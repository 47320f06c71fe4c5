"""The training loop of a course: seeded, resumable after any kill, with gates and a curve on disk.

Every step's data depends only on the seed, the lesson and the step, so a run that was killed goes on from its
last checkpoint as if nothing had happened. The run directory holds ``checkpoint.pt`` (replaced durably about
once a minute, and at the first SIGTERM or interrupt), ``curve.jsonl`` (one line a report) and
``tokenizer.json``. It runs on a graphics card where there is one, else on the CPU.

    >>> Loop(Path("runs/teacher"), Classroom(...), course.lessons, seed=0).run()   # doctest: +SKIP
"""

from __future__ import annotations

import io
import json
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoglm.errors import ConfigError, EngineError
from autoglm.files import make_directory, write_durably
from autoglm.training.course import Lesson

CHECKPOINT_NAME, CURVE_NAME = "checkpoint.pt", "curve.jsonl"
_CHECKPOINT_SECONDS = 60.0
_REPORT_STEPS = 20
_SMOOTHING = 0.95
_WEIGHT_DECAY, _BETAS, _CLIP = 0.05, (0.9, 0.98), 1.0

Progress = Callable[[Lesson, int, dict[str, float]], None]


class Task(Protocol):
    """What is trained and on what: the loop knows neither models nor data."""

    @property
    def name(self) -> str:
        """What the checkpoint belongs to."""
        ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All that has weights, by name; their states make the checkpoint."""
        ...

    def begin(self, lesson: Lesson) -> None:
        """Prepare the weights for a lesson's first step."""
        ...

    def loss(self, lesson: Lesson, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one step, and what to measure."""
        ...


class Loop:
    """One run in one directory.

    Attributes:
        measures: smoothed measures by name.
        lesson_index: the lesson under way.
        step: steps done of it.
        seconds: of training, over all processes that worked on the run.
    """

    def __init__(self, directory: Path, task: Task, lessons: Sequence[Lesson], *, seed: int = 0) -> None:
        """Prepare a run, from its checkpoint where there is one.

        Raises:
            ConfigError: the checkpoint belongs to another run.
        """
        make_directory(directory)
        self.directory, self.task, self.lessons, self.seed = directory, task, tuple(lessons), seed
        self.measures: dict[str, float] = {}
        self.lesson_index, self.step, self.seconds = 0, 0, 0.0
        self._parameters = [p for module in task.modules.values() for p in module.parameters()]
        self._optimizer = self._new_optimizer()
        self._stopped = False
        self._resume()

    def run(self, progress: Progress | None = None) -> dict[str, float]:
        """Train to the end of the course.

        Args:
            progress: called after every step with the lesson, the step and the measures.

        Returns:
            The last measures.

        Raises:
            EngineError: a loss is not finite, or a lesson fell short of a gate.
            KeyboardInterrupt: stopped by a signal, after a checkpoint.
        """
        with self._stopping_softly():
            while self.lesson_index < len(self.lessons):
                lesson = self.lessons[self.lesson_index]
                if self.step == 0:
                    self._begin(lesson)
                self._run_lesson(lesson, progress)
                self.lesson_index, self.step = self.lesson_index + 1, 0
                self.save()
        return dict(self.measures)

    @contextmanager
    def _stopping_softly(self) -> Generator[None]:
        """Turn the first SIGTERM or SIGINT into a checkpoint and a stop between two steps."""

        def stop(*_: object) -> None:
            self._stopped = True

        try:
            before = {sign: signal.signal(sign, stop) for sign in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals are someone else's
            yield
            return
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _begin(self, lesson: Lesson) -> None:
        self._optimizer = self._new_optimizer()
        self.measures = {}
        self.task.begin(lesson)

    def _run_lesson(self, lesson: Lesson, progress: Progress | None) -> None:
        saved = time.monotonic()
        while self.step < lesson.steps:
            began = time.monotonic()
            self._train_step(lesson)
            self.step += 1
            self.seconds += time.monotonic() - began
            if self.step % _REPORT_STEPS == 0 or self.step == lesson.steps:
                self._report(lesson)
            self._check(lesson)
            if progress is not None:
                progress(lesson, self.step, self.measures)
            if self._stopped or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            if self._stopped:
                raise KeyboardInterrupt

    def _train_step(self, lesson: Lesson) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(lesson, self.step)
        for module in self.task.modules.values():
            module.train()
        loss, measures = self.task.loss(lesson, self.step)
        if not math.isfinite(loss.item()):
            raise EngineError(f"the loss is {loss.item()} in lesson {lesson.name} at step {self.step}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self._optimizer.step()
        for name, value in measures.items():
            self._measure(name, value.item())

    def _new_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self._parameters if p.dim() > 1]
        others = [p for p in self._parameters if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": _WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=_BETAS, fused=True)

    def _measure(self, name: str, number: float) -> None:
        if math.isfinite(number):
            self.measures[name] = _SMOOTHING * self.measures.get(name, number) + (1 - _SMOOTHING) * number

    def _check(self, lesson: Lesson) -> None:
        for name, step, least in lesson.gates:
            reached = self.measures.get(name, 0.0)
            if step == self.step and reached < least:
                self.save()
                raise EngineError(
                    f"lesson {lesson.name} reached {name} {reached:.3f} at step {step}, less than {least}: "
                    f"it will not recover; see the curve in {self.directory}"
                )

    def _report(self, lesson: Lesson) -> None:
        line: dict[str, Any] = {"stage": lesson.name, "step": self.step, "seconds": round(self.seconds, 1)}
        line |= {name: round(value, 4) for name, value in self.measures.items()}
        with (self.directory / CURVE_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the checkpoint, durably.

        Raises:
            StorageError: the disk refused; the last checkpoint is untouched.
        """
        content = {
            "task": self.task.name,
            "seed": self.seed,
            "lesson": self.lesson_index,
            "step": self.step,
            "seconds": self.seconds,
            "measures": self.measures,
            "optimizer": self._optimizer.state_dict(),
            **{name: module.state_dict() for name, module in self.task.modules.items()},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_durably(self.directory / CHECKPOINT_NAME, buffer.getvalue())

    def _resume(self) -> None:
        path = self.directory / CHECKPOINT_NAME
        if not path.exists():
            return
        content = torch.load(path, weights_only=True, map_location="cpu")
        if (content.get("task"), content["seed"]) != (self.task.name, self.seed):
            raise ConfigError(f"{path} belongs to another run: give another directory")
        for name, module in self.task.modules.items():
            module.load_state_dict(content[name])
        self.lesson_index, self.step = content["lesson"], content["step"]
        if self.step > 0:  # a lesson begins with a fresh optimiser
            self._optimizer.load_state_dict(content["optimizer"])
        self.seconds, self.measures = content["seconds"], content["measures"]


def learning_rate(lesson: Lesson, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine."""
    warm = min(1.0, (step + 1) / max(1, lesson.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
    return lesson.learning_rate * warm * (lesson.last_rate + (1 - lesson.last_rate) * cosine)

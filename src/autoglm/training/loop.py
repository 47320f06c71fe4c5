"""The training loop of a course: seeded, resumable after any kill, with gates and a curve on disk.

Every step's data depends only on the seed, the lesson and the step, so a run that was killed goes on from its
last checkpoint as if nothing had happened. The run directory holds ``checkpoint.pt`` (replaced durably about
once a minute, and at the first SIGTERM or interrupt), ``curve.jsonl`` (one line a report) and
``tokenizer.json``. It runs on a graphics card where there is one, else on the CPU, and on several processes
started by ``torchrun`` (see :mod:`autoglm.training.distributed`); the first of them writes.

    >>> Loop(Path("runs/teacher"), Classroom(...), course.lessons, seed=0).run()   # doctest: +SKIP
"""

from __future__ import annotations

import io
import json
import math
import re
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoglm.errors import ConfigError, EngineError
from autoglm.files import make_directory, write_durably
from autoglm.training import distributed
from autoglm.training.course import Lesson
from autoglm.training.sharding import clip_gradients, is_sharded, load_optimizer, load_whole, whole

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

    def stepping(self, lesson: Lesson) -> AbstractContextManager[None]:
        """Surround the loss and the gradients of a step."""
        ...

    def loss(self, lesson: Lesson, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one step, and what to measure."""
        ...

    def settle(self, lesson: Lesson, rate: float) -> None:
        """Change the weights after a step of this learning rate."""
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
        self._named = {
            f"{part}.{name}": parameter
            for part, module in task.modules.items()
            for name, parameter in module.named_parameters()
        }
        self._optimizer = self._new_optimizer(self.lessons[0])
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
        self._optimizer = self._new_optimizer(lesson)
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
            late = time.monotonic() - saved > _CHECKPOINT_SECONDS
            self._stopped, late = distributed.any_of(self._stopped, late)  # all of them save, and all stop
            if self._stopped or late:
                self.save()
                saved = time.monotonic()
            if self._stopped:
                raise KeyboardInterrupt

    def _train_step(self, lesson: Lesson) -> None:
        rate = learning_rate(lesson, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        for module in self.task.modules.values():
            module.train()
            if lesson.fine_tune:
                freeze_statistics(module)
        with self.task.stepping(lesson):
            loss, measures = self.task.loss(lesson, self.step)
            if not math.isfinite(loss.item()):
                raise EngineError(f"the loss is {loss.item()} in lesson {lesson.name} at step {self.step}")
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
        distributed.average_gradients(self._named.values())
        clip_gradients(self._named.values(), _CLIP)
        self._optimizer.step()
        self.task.settle(lesson, rate)
        for name, value in measures.items():
            self._measure(name, value.item())

    def _new_optimizer(self, lesson: Lesson) -> torch.optim.AdamW:
        """Return AdamW over what a lesson trains, a group for each rate; vectors never decay."""
        grouped: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self._named.items():
            trained = not lesson.trained or any(re.match(pattern, name) for pattern in lesson.trained)
            parameter.requires_grad_(trained)
            parameter.grad = None
            if trained:
                rate = next((r for pattern, r in lesson.rates if re.match(pattern, name)), 1.0)
                grouped.setdefault((parameter.dim() <= 1, rate), []).append(parameter)
        groups = [
            {
                "params": parameters,
                "rate": rate,
                "weight_decay": 0.0 if vectors or lesson.fine_tune else _WEIGHT_DECAY,
            }
            for (vectors, rate), parameters in sorted(grouped.items(), key=lambda entry: entry[0])
        ]
        fused = not is_sharded(self._named.values())  # the fused form takes no mixture of whole and spread
        return torch.optim.AdamW(
            groups, lr=1e-3, betas=_BETAS, eps=lesson.adam_eps, fused=fused, foreach=None if fused else False
        )

    def _measure(self, name: str, number: float) -> None:
        if math.isfinite(number):
            self.measures[name] = _SMOOTHING * self.measures.get(name, number) + (1 - _SMOOTHING) * number

    def _check(self, lesson: Lesson) -> None:
        for name, step, least in lesson.gates:
            if step != self.step:
                continue
            reached = distributed.average_measures(self.measures).get(name, 0.0)
            if reached < least:
                self.save()
                raise EngineError(
                    f"lesson {lesson.name} reached {name} {reached:.3f} at step {step}, less than {least}: "
                    f"it will not recover; see the curve in {self.directory}"
                )

    def _report(self, lesson: Lesson) -> None:
        line: dict[str, Any] = {"stage": lesson.name, "step": self.step, "seconds": round(self.seconds, 1)}
        measures = distributed.average_measures(self.measures)
        line |= {name: round(value, 4) for name, value in measures.items()}
        if not distributed.is_first():
            return
        with (self.directory / CURVE_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the checkpoint, durably; all processes must call it, the first one writes.

        Raises:
            StorageError: the disk refused; the last checkpoint is untouched.
        """
        content = {
            "task": self.task.name,
            "seed": self.seed,
            "lesson": self.lesson_index,
            "lessons": [lesson.name for lesson in self.lessons[: self.lesson_index + (self.step > 0)]],
            "step": self.step,
            "seconds": self.seconds,
            "measures": distributed.average_measures(self.measures),
            "optimizer": whole(self._optimizer.state_dict()),
            **{name: whole(dict(module.state_dict())) for name, module in self.task.modules.items()},
        }
        if not distributed.is_first():
            return
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
        begun = content.get("lessons", ["those of another version"])
        if begun != [lesson.name for lesson in self.lessons[: len(begun)]]:
            raise ConfigError(f"{path} has had other lessons, {', '.join(begun)}: give another directory")
        for name, module in self.task.modules.items():
            load_whole(module, content[name])
        self.lesson_index, self.step = content["lesson"], content["step"]
        if self.step > 0:  # a lesson begins with a fresh optimiser
            self._optimizer = self._new_optimizer(self.lessons[self.lesson_index])
            load_optimizer(self._optimizer, content["optimizer"])
        self.seconds, self.measures = content["seconds"], content["measures"]


def freeze_statistics(module: nn.Module) -> None:
    """Put batch normalisation into evaluation mode: a fine-tune on few data keeps its statistics."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.eval()


def learning_rate(lesson: Lesson, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine."""
    warm = min(1.0, (step + 1) / max(1, lesson.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
    return lesson.learning_rate * warm * (lesson.last_rate + (1 - lesson.last_rate) * cosine)

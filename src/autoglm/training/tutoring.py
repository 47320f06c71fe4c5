"""A course in which a teacher takes part: the student learns its whole distribution, batch by batch.

The loss on a batch's answers becomes ``(1 - share) * answers + share * T^2 * KL``; where blocks are paired,
the distance of the student's streams to the teacher's behind a learned projection is added (see
:mod:`autoglm.training.distill`). The course's own losses on patches, names, sound and pairs stay. The
teacher runs once a batch, without gradients, in the loop's own precision, and is never changed. A student
that has passed its teacher goes on with a share of 0 and no paired blocks: then the teacher does not run.

    >>> room = TutoredClassroom(run, course, teacher=teacher, student=pruned)     # doctest: +SKIP
    >>> Loop(run, room, course.lessons).run()                                     # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autoglm.errors import ConfigError
from autoglm.files import make_directory, write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.layers import RmsNorm
from autoglm.model.network import PhoneModel
from autoglm.model.weights import TOKENIZER_NAME
from autoglm.training import distributed
from autoglm.training.classroom import Classroom, Measured, embedded
from autoglm.training.course import Course, Lesson
from autoglm.training.distill import SETTINGS_NAME, Distillation, divergence, stream_distance, streams
from autoglm.training.importance import Importance, Observer
from autoglm.training.loop import CHECKPOINT_NAME
from autoglm.training.rows import IGNORED, Batch
from autoglm.training.sharding import load_whole
from autoglm.training.sources import ALPHABET_NAME, Source


def healing_course(course: Course, *, steps: int, learning_rate: float, rounded: int = 0) -> Course:
    """Return the course that heals a student that has weights: like its last lesson, beginning gently.

    Args:
        course: whose data are used.
        steps: optimiser steps.
        learning_rate: its peak.
        rounded: of the steps, so many last ones through weights rounded to INT8.

    Raises:
        ConfigError: there are not so many steps.
    """
    if rounded >= steps:
        raise ConfigError(f"of {steps} steps, {rounded} cannot be the last ones through rounded weights")
    lesson = replace(
        course.lessons[-1],
        name="distill",
        steps=steps - rounded,
        learning_rate=learning_rate,
        warmup=min(20, steps),
        look_up=False,
        fine_tune=True,
        gates=(),
    )
    last = replace(
        lesson, name="distill rounded", steps=rounded, learning_rate=learning_rate / 10, fake_bits=8
    )
    return replace(course, lessons=(lesson, last) if rounded else (lesson,))


class TutoredClassroom(Classroom):
    """A student, its auxiliary heads, its teacher, and the data of a course."""

    def __init__(
        self,
        directory: Path,
        course: Course,
        *,
        teacher: Source,
        student: Source | None = None,
        settings: Distillation | None = None,
        seed: int = 0,
        config: ModelConfig | None = None,
        workers: int = 0,
        data: Path | None = None,
        shard: bool = False,
    ) -> None:
        """Prepare a distillation.

        Args:
            directory: of the run.
            course: what is taught.
            teacher: whose distribution is learned.
            student: the weights to begin with, such as a pruned teacher's; None: a fresh model.
            settings: what is taken from the teacher.
            seed: of everything.
            config: the student's sizes, where it is fresh; the course's if not given.
            workers: processes that draw screens ahead.
            data: another run's directory, whose recordings are used.
            shard: spread the weights of the student's blocks over the processes.

        Raises:
            ConfigError: the two models do not fit, or the directory belongs to another distillation.
        """
        self.settings = settings or Distillation()
        sizes = student.config if student is not None else config or CONFIGS[course.config]
        self.settings.check(sizes, teacher.config)
        if student is not None and student.tokenizer != teacher.tokenizer:
            raise ConfigError("student and teacher must have the same tokenizer")
        keep_words(directory, teacher)
        claim(directory, self.settings, teacher, student)
        super().__init__(directory, course, seed=seed, config=sizes, workers=workers, data=data, shard=shard)
        self.tutor = half_norms(teacher.load().model.to(self.device))
        self.tutor.requires_grad_(False)
        self.match = nn.ModuleList(
            eye(self.config.width, teacher.config.width) for _ in self.settings.layers
        ).to(self.device)
        if student is not None:
            load_source(self, student)

    @property
    def name(self) -> str:
        """What a checkpoint belongs to."""
        return f"{super().name}/distilled"

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained."""
        extra: dict[str, nn.Module] = {"match": self.match} if self.settings.layers else {}
        return {**super().modules, **extra}

    def _answer_loss(self, lesson: Lesson, batch: Batch) -> Measured:
        with streams(self.model, [mine for mine, _ in self.settings.layers]) as seen:
            total, measures = super()._answer_loss(lesson, batch)
        if not seen or self.settings.hidden == 0:
            return total, measures
        projected = [project(mine.float()) for project, mine in zip(self.match, seen, strict=False)]
        hidden = stream_distance(projected, self._shown)
        return total + self.settings.hidden * hidden, {**measures, "hidden_loss": hidden.detach()}

    def _word_loss(self, lesson: Lesson, hidden: Tensor, batch: Batch) -> Measured:
        if self.settings.share == 0 and not self.settings.layers:
            return super()._word_loss(lesson, hidden, batch)
        asked = batch.targets != IGNORED
        mine, weights = self._answered(self.model, hidden, batch, asked), batch.weights[asked]
        answers, measures = self._graded(lesson, mine, batch, asked)
        theirs, total = self._taught(batch, asked), distributed.mean_weight(weights.sum())
        each = divergence(mine, theirs, self.settings.direction, self.settings.temperature)
        loss = (each * weights).sum() / total
        agreed = (mine.argmax(-1) == theirs.argmax(-1)).float()
        measures["kl_loss"], measures["agreement"] = loss.detach(), (agreed * weights).sum() / total
        share = self.settings.share
        return (1 - share) * answers + share * loss, measures

    @torch.no_grad()
    def _taught(self, batch: Batch, asked: Tensor) -> Tensor:
        """Return the teacher's logits (N, V) at the places asked for; its streams are kept for the match."""
        with streams(self.tutor, [theirs for _, theirs in self.settings.layers]) as shown:
            hidden = last_stream(self.tutor, batch)
        self._shown = shown
        return self._answered(self.tutor, hidden, batch, asked)


def half_norms(model: PhoneModel) -> PhoneModel:
    """Give a model that only runs forward the norms that its bf16 streams are fastest with."""
    for module in model.modules():
        if isinstance(module, RmsNorm):
            module.bfloat16()
    return model


@torch.no_grad()
def last_stream(model: PhoneModel, batch: Batch) -> Tensor:
    """Return the last stream (B, T, width) of a model that runs along with another's training."""
    _, _, x = embedded(model, batch)
    hidden, _ = model(x.bfloat16(), batch.positions, batch.bias.bfloat16())
    return hidden


def eye(inputs: int, outputs: int) -> nn.Linear:
    """Return a projection that begins by copying channels."""
    project = nn.Linear(inputs, outputs, bias=False)
    nn.init.eye_(project.weight)
    return project


def claim(directory: Path, settings: Distillation, teacher: Source, student: Source | None) -> None:
    """Write down what a run distils from what.

    Raises:
        ConfigError: the directory is another distillation's.
    """
    wanted = asdict(settings) | {
        "teacher": teacher.digest,
        "student": None if student is None else student.digest,
    }
    text, path = json.dumps(wanted, indent=1) + "\n", directory / SETTINGS_NAME
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{path} says that this is another distillation's directory: give another one, "
            "or the same teacher, student and settings"
        )
    if distributed.is_first():
        write_durably(path, text.encode())


def keep_words(directory: Path, source: Source) -> None:
    """Give a run the tokenizer and the alphabet of the model that it begins with.

    Raises:
        ConfigError: the directory holds a run with other tokens.
    """
    make_directory(directory)
    kept = directory / TOKENIZER_NAME
    begun = (directory / CHECKPOINT_NAME).exists() and kept.exists()
    if begun and kept.read_bytes() != source.tokenizer.encode():
        raise ConfigError(f"{directory} holds a run with another tokenizer: give another directory")
    if distributed.is_first():
        write_durably(kept, source.tokenizer.encode())
        if source.alphabet:
            write_durably(directory / ALPHABET_NAME, source.alphabet.encode())


def load_source(room: Classroom, source: Source) -> None:
    """Give a classroom's model, and its auxiliary heads where there are some, the weights of a source."""
    counters = {name: value for name, value in room.model.state_dict().items() if name.endswith("tracked")}
    load_whole(room.model, {**counters, **source.state})
    if source.circuits:
        if missing := sorted(set(room.circuits.state_dict()) - set(source.circuits)):
            raise ConfigError(
                f"the auxiliary heads to go on with have no {', '.join(missing)}: "
                "they were trained without; go on from the release alone, without its run"
            )
        room.circuits.load_state_dict(dict(source.circuits))


def course_importance(
    course: Course,
    source: Source,
    directory: Path,
    *,
    batches: int,
    seed: int = 0,
    data: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Importance:
    """Measure what every part of a model does on batches like those of a course's last lesson.

    Args:
        course: whose data are used.
        source: the model.
        directory: a scratch directory.
        batches: batches to run.
        seed: of the data.
        data: a run's directory, whose recordings are used.
        progress: called with the number of batches done.
    """
    keep_words(directory, source)
    room = Classroom(directory, course, seed=seed, config=source.config, data=data)
    load_source(room, source)
    lesson = replace(course.lessons[-1], name="calibrate", steps=batches)
    half_norms(room.model)
    for module in room.modules.values():
        module.eval()
    with torch.no_grad(), Observer(room.model) as observer:
        for step in range(batches):
            room.loss(lesson, step)
            observer.count()
            if progress is not None:
                progress(step + 1)
    return observer.importance

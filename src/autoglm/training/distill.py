"""Distillation: a student learns a teacher's whole distribution on the stream of data that training uses.

The loss is ``(1 - share) * answers + share * T^2 * KL + hidden * match``: the ordinary loss on the answers,
the divergence between both models' next-token distributions at temperature T, and, where blocks are paired,
the distance between the student's streams and the teacher's behind a learned projection. Forward KL makes the
student cover all that the teacher would say, reverse KL makes it keep to what the teacher is sure of.

Sources: Hinton et al., arXiv:1503.02531; reverse KL: MiniLLM, arXiv:2306.08543; hidden states after pruning:
Minitron, arXiv:2407.14679.

    >>> Distiller(Path("runs/s"), recipe, teacher=teacher, student=pruned).run()   # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.errors import ConfigError
from autoglm.files import make_directory, write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.training import distributed
from autoglm.training.batches import Batch
from autoglm.training.recipe import Recipe, Stage
from autoglm.training.sources import Source
from autoglm.training.trainer import Trainer

Direction = Literal["forward", "reverse", "both"]
SETTINGS_NAME = "distillation.json"


def as_direction(text: str) -> Direction:
    """Return ``text`` as a direction.

    Raises:
        ConfigError: there is none of that name.
    """
    for direction in get_args(Direction):
        if direction == text:
            return direction
    raise ConfigError(f"the direction is forward, reverse or both, not {text!r}")


@dataclass(frozen=True)
class Distillation:
    """What is taken from the teacher.

    Attributes:
        direction: ``forward`` is KL(teacher || student), ``reverse`` KL(student || teacher), ``both`` their
            mean.
        temperature: softens both distributions.
        share: of the divergence in the loss; the rest is the ordinary loss on the answers.
        layers: (student's block, teacher's block) whose streams are to match, counted from 1.
        hidden: weight of that match.
    """

    direction: Direction = "forward"
    temperature: float = 2.0
    share: float = 0.7
    layers: tuple[tuple[int, int], ...] = ()
    hidden: float = 1.0

    def check(self, student: ModelConfig, teacher: ModelConfig) -> None:
        """Refuse what cannot be distilled.

        Raises:
            ConfigError: a number is out of range, a block does not exist, or the two models do not read the
                same tokens.
        """
        if not 0.1 <= self.temperature <= 100 or not 0 <= self.share <= 1 or self.hidden < 0:
            raise ConfigError("the temperature must be 0.1 to 100, the share 0 to 1, the weight 0 or more")
        for mine, theirs in self.layers:
            if not (0 < mine <= student.num_layers and 0 < theirs <= teacher.num_layers):
                raise ConfigError(
                    f"there is no pair of blocks {mine}:{theirs}: the student has {student.num_layers}, "
                    f"the teacher {teacher.num_layers}"
                )
        if _tokens(student) != _tokens(teacher):
            raise ConfigError("student and teacher do not turn text, images and sound into the same tokens")


def _tokens(config: ModelConfig) -> tuple[object, ...]:
    """Return what decides which tokens a model reads."""
    image = replace(config.image, kind="stem", channels=())
    audio = replace(config.audio, channels=1, kernel=1, batch_norm=False)
    return config.vocab_size, image, audio


def distillation_recipe(recipe: Recipe, *, steps: int, learning_rate: float) -> Recipe:
    """Return the recipe that heals a student of ``recipe``: one stage like its last, which begins gently.

    Args:
        recipe: whose data and labels are used.
        steps: optimiser steps.
        learning_rate: its peak.
    """
    stage = replace(
        recipe.stages[-1],
        name="distill",
        steps=steps,
        learning_rate=learning_rate,
        warmup=min(20, steps),
        patch_weight=0.0,
        stem_weight=0.0,
        sound_weight=0.0,
        look_up=False,
        anchor=0.0,
        trained=(),
        rates={},
        adam_eps=1e-8,
        labels_only=False,
        fine_tune=True,  # a pruned student keeps its batch statistics
        gate=None,
    )
    return replace(recipe, stages=(stage,), base=None)


def divergence(student: Tensor, teacher: Tensor, direction: Direction, temperature: float) -> Tensor:
    """Return the divergence of each position, nats times the squared temperature.

    The square keeps the gradient's size at any temperature (arXiv:1503.02531, section 2).

    Args:
        student: logits (N, V).
        teacher: logits (N, V).
        direction: of the divergence.
        temperature: divides the logits.

    Returns:
        (N,).
    """
    mine, theirs = (logits.float().div(temperature).log_softmax(-1) for logits in (student, teacher))
    parts: list[Tensor] = []
    if direction != "reverse":
        parts.append((theirs.exp() * (theirs - mine)).sum(-1))
    if direction != "forward":
        parts.append((mine.exp() * (mine - theirs)).sum(-1))
    return torch.stack(parts).mean(0) * temperature**2


class Distiller(Trainer):
    """A run in which a teacher takes part; all else (data, resumption, curve) is the trainer's."""

    def __init__(
        self,
        directory: Path,
        recipe: Recipe,
        *,
        teacher: Source,
        student: Source | None = None,
        settings: Distillation | None = None,
        seed: int = 0,
        config: ModelConfig = CONFIGS["nano"],
    ) -> None:
        """Prepare a distillation, from its checkpoint where there is one.

        Args:
            directory: made when missing.
            recipe: what to train on.
            teacher: whose distribution is learned; never changed.
            student: the weights to begin with, such as a pruned teacher's; None: a fresh model.
            settings: what is taken from the teacher.
            seed: of all randomness.
            config: the student's sizes, where it is fresh.

        Raises:
            ConfigError: the two models do not fit, or the checkpoint belongs to another run.
        """
        self.settings = settings or Distillation()
        sizes = config if student is None else student.config
        self.settings.check(sizes, teacher.config)
        if student is not None and student.tokenizer != teacher.tokenizer:
            raise ConfigError("student and teacher must have the same tokenizer")
        self._student = student
        self.teacher = teacher.load().model
        make_directory(directory)
        self._claim(directory, teacher, student)
        super().__init__(directory, recipe, seed=seed, tokenizer=teacher.tokenizer, config=sizes)

    def _claim(self, directory: Path, teacher: Source, student: Source | None) -> None:
        """Write down what this run distils from what; a directory that says otherwise is another run's."""
        wanted = asdict(self.settings) | {
            "teacher": teacher.digest,
            "student": None if student is None else student.digest,
        }
        text = json.dumps(wanted, indent=1) + "\n"
        path = directory / SETTINGS_NAME
        if path.exists() and path.read_text() != text:
            raise ConfigError(
                f"{path} says that this is another distillation's directory: give another one, "
                "or the same teacher, student and settings"
            )
        if distributed.is_first():
            write_durably(path, text.encode())

    def _prepare(self) -> None:
        """Give the student its first weights, and each pair of blocks a projection, kept with the heads."""
        if self._student is not None:
            counters = {
                name: value for name, value in self.model.state_dict().items() if name.endswith("tracked")
            }
            self.model.load_state_dict({**counters, **self._student.state})
        for i, _ in enumerate(self.settings.layers):
            project = nn.Linear(self.config.width, self.teacher.config.width, bias=False)
            with torch.no_grad():
                nn.init.eye_(project.weight)
            self.heads.add_module(f"match_{i}", project)

    def _loss(self, stage: Stage, batch: Batch) -> Tensor:
        mine = [pair[0] for pair in self.settings.layers]
        theirs = [pair[1] for pair in self.settings.layers]
        with streams(self.model, mine) as seen:
            answers = super()._loss(stage, batch)
        if stage.labels_only:  # the teacher has no word in what no answer is given to
            return answers
        with torch.no_grad(), streams(self.teacher, theirs) as shown:
            hidden = self._forward(stage, batch, self.teacher)[0]
        total = (1 - self.settings.share) * answers + self.settings.share * self._divergence(batch, hidden)
        if mine and self.settings.hidden > 0:
            total = total + self.settings.hidden * self._match(seen, shown)
        return total

    def _answer_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._final = hidden  # the student's, for the divergence
        return super()._answer_loss(hidden, batch)

    def _divergence(self, batch: Batch, teacher_hidden: Tensor) -> Tensor:
        asked = batch.targets >= 0
        weights = batch.weights[asked]
        with torch.autocast("cpu", torch.bfloat16):
            mine = self.model.logits(self._final[asked])
            with torch.no_grad():
                theirs = self.teacher.logits(teacher_hidden[asked])
        each = divergence(mine, theirs, self.settings.direction, self.settings.temperature)
        loss = (each * weights).sum() / weights.sum()
        self._measure("kl_loss", loss)
        agreed = (mine.argmax(-1) == theirs.argmax(-1)).float()
        self._measure("agreement", (agreed * weights).sum() / weights.sum())
        return loss

    def _match(self, seen: list[Tensor], shown: list[Tensor]) -> Tensor:
        heads = (self.heads.get_submodule(f"match_{i}") for i in range(len(seen)))
        loss = stream_distance([head(mine.float()) for head, mine in zip(heads, seen, strict=True)], shown)
        self._measure("hidden_loss", loss)
        return loss


def stream_distance(projected: Sequence[Tensor], shown: Sequence[Tensor]) -> Tensor:
    """Return the mean squared distance of paired streams, in units of the teacher's own size."""
    goals = [theirs.float() for theirs in shown]
    each = [
        F.mse_loss(mine, goal) / goal.square().mean() for mine, goal in zip(projected, goals, strict=True)
    ]
    return torch.stack(each).mean()


@contextmanager
def streams(model: PhoneModel, blocks: list[int]) -> Generator[list[Tensor]]:
    """Collect the stream after each of these blocks (from 1) of the first run of the model."""
    found: dict[int, Tensor] = {}
    out: list[Tensor] = []

    def keeper(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _inputs: Any, value: Tensor) -> None:
            found.setdefault(number, value)  # later runs, such as over captions, have no teacher

        return keep

    hooks = [model.layers[number - 1].register_forward_hook(keeper(number)) for number in set(blocks)]
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()
        out.extend(found[number] for number in blocks)

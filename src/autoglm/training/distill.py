"""The terms of distillation: a student learns a teacher's whole distribution; see ``tutoring`` for a run.

The loss is ``(1 - share) * answers + share * T^2 * KL + hidden * match``: the ordinary loss on the answers,
the divergence between both models' next-token distributions at temperature T, and, where blocks are paired,
the distance between the student's streams and the teacher's behind a learned projection. Forward KL makes the
student cover all that the teacher would say, reverse KL makes it keep to what the teacher is sure of.

Sources: Hinton et al., arXiv:1503.02531; reverse KL: MiniLLM, arXiv:2306.08543; hidden states after pruning:
Minitron, arXiv:2407.14679.

    >>> float(divergence(logits, logits, "forward", 2.0).max())           # doctest: +SKIP
    0.0
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.errors import ConfigError
from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel

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

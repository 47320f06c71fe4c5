"""The terms of distillation: the divergence, its directions, and settings that cannot be."""

from __future__ import annotations

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.training.distill import Direction, Distillation, as_direction, divergence
from tiny_course import SMALL, SMALLER


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_the_divergence_is_that_of_the_two_distributions(direction: Direction) -> None:
    """At temperature 1 it is torch's own KL divergence, in the direction that is named."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (theirs, mine))
    forward, reverse = (torch.distributions.kl_divergence(*pair) for pair in ((p, q), (q, p)))
    wanted = {"forward": forward, "reverse": reverse, "both": (forward + reverse) / 2}[direction]
    torch.testing.assert_close(divergence(mine, theirs, direction, 1.0), wanted.float())


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_models_that_agree_are_no_distance_apart(direction: Direction) -> None:
    """The divergence of a model from itself is zero at any temperature."""
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    assert float(divergence(logits, logits, direction, 4.0).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "settings, message",
    [
        (Distillation(layers=((4, 4),)), "no pair of blocks 4:4"),
        (Distillation(temperature=0), "temperature"),
        (Distillation(share=1.5), "share"),
    ],
)
def test_what_cannot_be_distilled_is_refused(settings: Distillation, message: str) -> None:
    """A block that is not there and a number out of range are refused before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        settings.check(SMALLER, SMALL)


def test_names_of_directions_are_checked() -> None:
    """Three directions are known, others are refused."""
    assert as_direction("both") == "both"
    with pytest.raises(ConfigError, match="forward, reverse or both"):
        as_direction("sideways")

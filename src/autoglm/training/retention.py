"""Update retention: the share of a fine-tune's gain that survives quantisation or a merge.

Mean squared error says nothing about it: rounding every change of a weight away is a small error and deletes
the update. So the loss on held-out items is compared before and after, in floats and as shipped::

    retention = (loss(base shipped) - loss(new shipped)) / (loss(base float) - loss(new float))

    >>> Retention(base_float=2.0, new_float=1.0, base_shipped=2.1, new_shipped=1.12).retained
    0.98
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import build_model
from autoglm.training.batches import Batch, Batches, Variety
from autoglm.training.dialogue import (
    APP_INTENTS,
    HELP_INTENTS,
    IDENTITY_INTENTS,
    Example,
    Release,
    held_out,
    new_intents,
)

EVALUATION_SEED = 70_001  # not the one that scores are taken with
_SCREENS, _DIALOGUES = 16, 192
_ROWS = 4  # dialogue rows and screens a batch: what fits a small machine
_VARIETY = Variety(hop=0.0)

# The loss of a model with these weights, nats a token.
Evaluate = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True)
class Retention:
    """Losses of the base and of the update, in floats and as shipped.

    Attributes:
        base_float: of the weights that the fine-tune began with.
        new_float: of the fine-tune itself.
        base_shipped: of the base's release.
        new_shipped: of the new release.
    """

    base_float: float
    new_float: float
    base_shipped: float
    new_shipped: float

    @property
    def retained(self) -> float:
        """The share of the gain that is kept; not a number where nothing was gained."""
        gain = self.base_float - self.new_float
        kept = self.base_shipped - self.new_shipped
        return round(kept / gain, 6) if gain > 0 else math.nan

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for ``--json``; ``retained`` is None where nothing was gained."""
        share = self.retained
        return {
            "base_float": self.base_float,
            "new_float": self.new_float,
            "base_shipped": self.base_shipped,
            "new_shipped": self.new_shipped,
            "retained": None if math.isnan(share) else share,
        }


class HeldOutLoss:
    """The mean loss a token on dialogues and screens that were never trained on; the items are drawn once.

    Attributes:
        batches: the items.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        release: Release,
        *,
        labels: Sequence[str] = (),
        seed: int = EVALUATION_SEED,
        scale: float = 1.0,
    ) -> None:
        """Draw the items.

        Args:
            tokenizer: of the release.
            config: of the release; screens need an image part of a fixed size.
            release: whose topics are asked for.
            labels: what screens show; none leaves screens out.
            seed: the same seed, the same items.
            scale: share of the items, for a quick look.

        Raises:
            ConfigError: screens are wanted and the model has no fixed size for them.
        """
        if labels and not config.image.bins:
            raise ConfigError(f"{config.name} has no coordinate bins: measure it without screens")
        self.config = config
        maker = Batches(tokenizer, config)
        self.batches = maker.dialogues(_examples(release, seed, scale), _ROWS)
        if labels:
            self.batches += _screens(maker, labels, seed, scale)

    @torch.inference_mode()
    def __call__(self, state: Mapping[str, Tensor]) -> float:
        """Return the mean loss a token, in nats."""
        model = build_model(self.config, {name: value.float() for name, value in state.items()})
        total, weight = 0.0, 0.0
        for batch in self.batches:
            losses, weights = _losses(model, batch)
            total += float((losses * weights).sum())
            weight += float(weights.sum())
        return total / weight


def _examples(release: Release, seed: int, scale: float) -> list[Example]:
    news = new_intents(release) if release != "v1.2" else ()
    topics = (*IDENTITY_INTENTS, *HELP_INTENTS, *APP_INTENTS, *news)
    return held_out(seed, max(8, round(_DIALOGUES * scale)), release=release, intents=topics)


def _screens(maker: Batches, labels: Sequence[str], seed: int, scale: float) -> list[Batch]:
    rng = random.Random(seed + 1)
    count = max(1, round(_SCREENS * scale / _ROWS))
    return [
        maker.screens(rng, _ROWS, num_elements=(3, 10), labels=labels, variety=_VARIETY) for _ in range(count)
    ]


def _losses(model: PhoneModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of each answered token and its weight."""
    x = model.embed_tokens(batch.ids)
    if batch.media is not None:
        media = model.embed_images(batch.media)
        begin, end = batch.media_at, batch.media_at + media.shape[1]
        x = torch.cat([x[:, :begin], media, x[:, end:]], 1)
    hidden, _ = model(x, batch.positions, batch.bias)
    asked = batch.targets >= 0
    losses = F.cross_entropy(model.logits(hidden[asked]), batch.targets[asked], reduction="none")
    return losses, batch.weights[asked]

"""The loss of a model on held-out dialogues and, where it sees, on screens that training never draws.

>>> LessonLoss(tokenizer, config, "v1.3")(read_weights(path, config))          # doctest: +SKIP
0.41
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from autoglm.model.config import ModelConfig
from autoglm.model.prompt import PromptBuilder
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import build_model
from autoglm.training.circuits import FINE
from autoglm.training.classroom import embedded, soft_cross_entropy
from autoglm.training.dialogue import (
    APP_INTENTS,
    HELP_INTENTS,
    IDENTITY_INTENTS,
    Release,
    held_out,
    new_intents,
)
from autoglm.training.news import teacher_of
from autoglm.training.rows import IGNORED, Batch, Slot, pack
from autoglm.training.scenes.scene import HEIGHT, WIDTH
from autoglm.training.teaching import PLAIN, Manner, Teacher

EVALUATION_SEED = 70_001  # not the one that scores are taken with
_SCREENS, _DIALOGUES, _ROWS, _SLOTS = 16, 192, 4, 6
_AGENT = Manner(agent=0.3)


class LessonLoss:
    """The mean loss a token on items that were never trained on; they are drawn once.

    Attributes:
        batches: the items.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        release: Release,
        *,
        seed: int = EVALUATION_SEED,
        scale: float = 1.0,
    ) -> None:
        """Draw the items.

        Args:
            tokenizer: of the release.
            config: of the release; one that does not see drawn screens is asked in text alone.
            release: whose topics, labels and tasks are asked for.
            seed: the same seed, the same items.
            scale: share of the items, for a quick look.
        """
        self.config = config
        teacher = teacher_of(tokenizer, config, release)
        self.batches = [_dialogues(teacher, seed, max(8, round(_DIALOGUES * scale)))]
        sees = (config.image.width, config.image.height) == (WIDTH, HEIGHT)
        for number in range(max(1, round(_SCREENS * scale / _ROWS)) if sees else 0):
            rng = random.Random(f"held-out loss/{seed}/{number}")
            self.batches.append(teacher.screens(rng, _ROWS, _AGENT))

    @torch.inference_mode()
    def __call__(self, state: Mapping[str, Tensor]) -> float:
        """Return the mean loss a token, in nats."""
        model = build_model(self.config, {name: value.float() for name, value in state.items()})
        total, weight = 0.0, 0.0
        for batch in self.batches:
            asked = batch.targets != IGNORED
            hidden, _ = model(embedded(model, batch)[2], batch.positions, batch.bias)
            losses = soft_cross_entropy(model.logits(hidden[asked]), batch.targets[asked], self.config, FINE)
            total += float((losses * batch.weights[asked]).sum())
            weight += float(batch.weights[asked].sum())
        return total / weight


def _dialogues(teacher: Teacher, seed: int, count: int) -> Batch:
    """Return held-out questions, a few to a row."""
    news = new_intents(teacher.release) if teacher.release != "v1.2" else ()
    topics = (*IDENTITY_INTENTS, *HELP_INTENTS, *APP_INTENTS, *news)
    examples = held_out(seed, count, release=teacher.release, intents=topics)
    slots = [teacher.example_slot([example], PLAIN, thinks=False) for example in examples]
    rows: list[list[Slot]] = [slots[i : i + _SLOTS] for i in range(0, len(slots), _SLOTS)]
    builder = PromptBuilder(teacher.tokenizer, teacher.config)
    builder.tokens(teacher.tokenizer.bos)
    return pack("text", builder, rows)

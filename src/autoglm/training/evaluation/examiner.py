"""One model under examination: items in, scores out, nothing teacher-forced.

Every answer is generated greedily through the chat template, by prefill and decode. An examiner can lend its
model another attention gate for a while, and tells how far it is.

    >>> examiner = Examiner(load_release(path), seed=7, cache=Path("runs/evaluation"))      # doctest: +SKIP
    >>> examiner.scores(identity_items(7, 200, "v1.2"))["identity"].value                   # doctest: +SKIP
    0.905
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from PIL import Image

from autoglm.model.config import TopKConfig
from autoglm.model.image import image_tensor
from autoglm.model.weights import LoadedModel
from autoglm.training.evaluation.items import Item, Score, best_constant, blanked, by_kind, has_media, share
from autoglm.training.generate import BATCH, Output, generate

MAX_TOKENS = 112
Report = Callable[[str, int, int], None]


def no_report(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


class Examiner:
    """Generates and scores.

    Attributes:
        loaded: the model.
        seed: of the items.
        cache: directory for clips and pages.
        report: called with what is under way, how many are done, and of how many.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        seed: int,
        cache: Path,
        items: int | None = None,
        report: Report = no_report,
    ) -> None:
        """Take a model.

        Args:
            loaded: the model with its tokenizer and processor.
            seed: of the items.
            cache: directory for clips and pages.
            items: about how many items a kind has; None for the usual numbers.
            report: told about the progress.
        """
        self.loaded, self.seed, self.cache, self.report = loaded, seed, cache, report
        self._items = items

    def count(self, usual: int, per: int = 1) -> int:
        """Return how many to draw where ``usual`` is usual and each gives ``per`` items."""
        return usual if self._items is None else max(1, -(-self._items // per))

    def scores(self, items: Sequence[Item], what: str = "") -> dict[str, Score]:
        """Answer items and score them by kind; those with media a second time without."""
        what = what or (items[0].kind if items else "")
        total = len(items) + sum(map(has_media, items))
        given = self.answers(items, what=what, total=total)
        shown = [item for item in items if has_media(item)]
        blind = [dataclasses.replace(item, messages=blanked(item.messages)) for item in shown]
        guessed = dict(
            zip(
                map(id, shown),
                self.answers(blind, what=what, first=len(items), total=total),
                strict=True,
            )
        )
        scores: dict[str, Score] = {}
        for kind, places in by_kind(items).items():
            group = [items[i] for i in places]
            right = [item.judge(given[i].answer) for item, i in zip(group, places, strict=True)]
            guesses = [item.judge(guessed[id(item)].answer) for item in group if id(item) in guessed]
            without = sum(guesses) / len(guesses) if guesses else None
            scores[kind] = share(right, best_constant(group), without)
        return scores

    def answers(
        self,
        items: Sequence[Item],
        *,
        thinks: bool = False,
        what: str = "",
        first: int = 0,
        total: int | None = None,
    ) -> list[Output]:
        """Generate an answer to every item.

        Args:
            items: what to answer.
            thinks: with thinking on.
            what: name for the progress.
            first: how many were done before.
            total: of how many.
        """
        outputs: list[Output] = []
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        for start in range(0, len(items), BATCH):
            group = items[start : start + BATCH]
            prompts = [self.loaded.processor.prompt(item.messages, enable_thinking=thinks) for item in group]
            outputs += generate(model, tokenizer, prompts, MAX_TOKENS)
            self.report(what, first + len(outputs), len(items) if total is None else total)
        return outputs

    def fitted(self, picture: Image.Image) -> Image.Image:
        """Return a picture as the model sees it, so that it is not made smaller for every question anew."""
        return Image.fromarray(image_tensor(picture, self.loaded.config.image).numpy())

    @contextlib.contextmanager
    def gate(self, *, sparse: bool) -> Generator[TopKConfig]:
        """Force the attention gate on at every length, or off, while the context lasts."""
        model = self.loaded.model
        config = model.config
        topk = dataclasses.replace(config.topk, dense_below=0 if sparse else 1 << 24)
        model.config = dataclasses.replace(config, topk=topk)
        try:
            yield topk
        finally:
            model.config = config

"""The smallest parts of a screen: the supply of labels, meaningless text, emblems and buttons."""

from __future__ import annotations

import random
from dataclasses import dataclass

from autoglm.training.scenes.canvas import Box, Canvas, accent_color, readable_on
from autoglm.training.scenes.labels import Label

_FILLER = (
    "的一是了不在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
)

_WORDS: tuple[str, ...] = (
    *(
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
    ),
    *(
        "he",
        "his",
        "but",
        "at",
        "are",
        "this",
        "have",
        "from",
        "or",
        "had",
        "an",
        "they",
        "which",
        "one",
        "you",
    ),
    *(
        "were",
        "all",
        "she",
        "there",
        "would",
        "their",
        "we",
        "him",
        "been",
        "has",
        "when",
        "who",
        "will",
        "more",
    ),
    *(
        "no",
        "if",
        "out",
        "so",
        "said",
        "up",
        "new",
        "time",
        "year",
        "day",
        "today",
        "price",
        "item",
        "free",
        "hot",
    ),
    *("top", "best", "last", "week", "month", "update", "version", "photo", "message"),
)


@dataclass
class Supply:
    """Labels still to be placed on a screen.

    Attributes:
        words: in the order in which they are used.
        icons: the same for icons.
    """

    words: list[Label]
    icons: list[Label]

    def word(self) -> Label | None:
        """Take a word, None when there are no more."""
        return self.words.pop() if self.words else None

    def icon(self) -> Label | None:
        """Take an icon, None when there are no more."""
        return self.icons.pop() if self.icons else None


def filler(rng: random.Random, longest: int = 14) -> str:
    """Return text that means nothing and names nothing."""
    form = rng.random()
    if form < 0.25:
        return rng.choice(("{}:{:02}", "{}.{:02}", "¥{}.{:02}", "{}-{:02}", "{}{}", "{}/{:02}")).format(
            rng.randint(0, 99), rng.randint(0, 59)
        )
    if form < 0.65:
        return "".join(rng.choice(_FILLER) for _ in range(rng.randint(2, longest)))
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, max(1, longest // 4))))


def emblem(canvas: Canvas, box: Box) -> None:
    """Draw what stands for an app or a person: a coloured tile or disc with some abstract sign."""
    rng = canvas.rng
    color = accent_color(rng)
    left, top, right, bottom = box
    side = right - left
    if rng.random() < 0.2:
        canvas.picture(box)
        return
    canvas.rectangle(box, color, side * rng.choice((0.1, 0.22, 0.3, 0.5)))
    sign, x, y = readable_on(color), (left + right) / 2, (top + bottom) / 2
    form = rng.randrange(4)
    if form == 0:
        canvas.circle(x, y, side * 0.22, sign)
    elif form == 1:
        canvas.rectangle((x - side * 0.25, y - side * 0.2, x + side * 0.25, y + side * 0.2), None, 2, sign, 2)
    elif form == 2:
        canvas.text(x, y, rng.choice(_FILLER), side * 0.5 / canvas.style.size, sign, anchor="m")
    else:
        for i in range(3):
            canvas.circle(x + side * 0.2 * (i - 1), y + side * 0.1 * rng.randint(-2, 2), side * 0.07, sign)


def button(canvas: Canvas, label: Label, box: Box, size: float) -> None:
    """Draw one button: filled, outlined, or only its text."""
    rng, style = canvas.rng, canvas.style
    form = rng.random()
    fill = style.accent if rng.random() < 0.5 else accent_color(rng)
    radius = rng.choice((style.radius, 4, (box[3] - box[1]) / 2))
    ink = style.ink if rng.random() < 0.5 or style.shaded else style.accent
    if form < 0.6:
        canvas.rectangle(box, fill, radius)
        ink = readable_on(fill)
    elif form < 0.8:
        canvas.rectangle(box, None, radius, fill, 1.2)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    canvas.label(x, y, label, size, ink, touch=box, bold=rng.random() < 0.25, anchor="m")


def buttons(canvas: Canvas, supply: Supply, room: Box, count: int) -> None:
    """Draw some buttons side by side at the right of ``room``, or all across it."""
    rng = canvas.rng
    left, top, right, bottom = room
    size = rng.uniform(13, 16)
    wide = rng.random() < 0.4 and count > 0
    share = (right - left) / max(1, count)
    for i in range(count):
        word = supply.word()
        if word is None:
            return
        width = canvas.measure(word.key, size)[0] + 28
        box = (
            (left + share * i + 4, top, left + share * (i + 1) - 4, bottom)
            if wide
            else (right - width, top, right, bottom)
        )
        if box[0] < left or width - 10 > box[2] - box[0]:
            supply.words.insert(0, word)
            return
        button(canvas, word, box, size)
        right -= width + 10

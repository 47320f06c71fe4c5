"""What a score is made of: items with their judges, answers free of help, chance and its interval.

An item is a conversation, one right answer and a judge. Chance is the score of the best single answer given
to all items of its kind: what a model would reach that neither reads, looks nor listens. Beside it stands
what the model itself reaches with the pictures blanked and the sound silenced.

    >>> item = Item((Message("user", "1 + 1 = ?"),), "2", exactly("2"), "sum")
    >>> item.judge("2"), item.judge("3")
    (1.0, 0.0)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from autoglm.model.prompt import AudioPart, ImagePart, Message, Part
from autoglm.training.actions import Point, parse_action

Judge = Callable[[str], float]
_CANDIDATES = 64  # single answers that are tried for chance
_NEAR = 30  # of 1000 along each side: what a coordinate may be off where nothing is to be hit
_GREY = (128, 128, 128)
_Z = 1.959964  # of a two-sided interval of 95 %

# Left, top, width and height, as shares of the screen.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One thing to answer.

    Attributes:
        messages: the conversation.
        answer: one right answer.
        judge: how right an answer is, 0 to 1.
        kind: items of one kind are scored together.
        language: ``"zh"`` or ``"en"``.
        thought: the thought that belongs to it, for leaks; ``""`` where none does.
    """

    messages: tuple[Message, ...]
    answer: str
    judge: Judge
    kind: str
    language: str = "zh"
    thought: str = ""


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Attributes:
        value: 0 to 1.
        count: items.
        chance: of the best single answer; None where that has no meaning.
        without: with the pictures blanked or the sound silenced; None for text.
        low: lower end of the interval of 95 %.
        high: its upper end.
    """

    value: float
    count: int
    chance: float | None = None
    without: float | None = None
    low: float = 0.0
    high: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return dataclasses.asdict(self)


def share(results: Sequence[float], chance: float | None = None, without: float | None = None) -> Score:
    """Return the score of single results of 0 to 1."""
    if not results:
        return Score(0.0, 0, chance, without)
    value = sum(results) / len(results)
    return Score(value, len(results), chance, without, *wilson(value, len(results)))


def wilson(value: float, count: int) -> tuple[float, float]:
    """Return the interval of 95 % of a share (E. B. Wilson, JASA 22, 1927).

    For results between 0 and 1 it is on the safe side: nothing varies more than right and wrong.
    """
    spread = _Z * math.sqrt(value * (1 - value) / count + _Z * _Z / (4 * count * count))
    middle, scale = value + _Z * _Z / (2 * count), 1 + _Z * _Z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def best_constant(items: Sequence[Item]) -> float:
    """Return what the best single answer scores that is given to every item."""
    answers = list(dict.fromkeys(item.answer for item in items))[:_CANDIDATES]
    return max((sum(item.judge(answer) for item in items) for answer in answers), default=0.0) / len(items)


def blanked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the conversation with every picture grey and every clip silent, lengths kept."""
    return tuple(Message(each.role, [_blank(part) for part in each.parts]) for each in messages)


def _blank(part: Part) -> Part:
    if isinstance(part, ImagePart) and isinstance(part.image, Image.Image):
        return ImagePart(Image.new("RGB", part.image.size, _GREY))
    if isinstance(part, AudioPart) and isinstance(part.audio, tuple):
        return AudioPart((np.zeros_like(part.audio[0]), part.audio[1]))
    return part


def has_media(item: Item) -> bool:
    """Tell whether an item shows or plays something."""
    return any(isinstance(part, ImagePart | AudioPart) for each in item.messages for part in each.parts)


# Judges


def exactly(answer: str) -> Judge:
    """Return a judge that wants this answer to the last character."""
    return lambda given: float(given == answer)


def tap_inside(box: Box, touch: str = "Tap") -> Judge:
    """Return a judge that wants one touch of the action grammar inside a box, whatever its coordinates."""

    def judge(given: str) -> float:
        action = parse_action(given)
        point = action.arguments["element"] if action is not None and action.name == touch else None
        if not isinstance(point, tuple):
            return 0.0
        x, y = ((value + 0.5) / 1000 for value in point)
        left, top, width, height = box
        return float(left <= x < left + width and top <= y < top + height)

    return judge


def same_action(answer: str) -> Judge:
    """Return a judge that wants the same action; points may lie a little beside, words must be the same."""
    wanted = parse_action(answer)

    def judge(given: str) -> float:
        action = parse_action(given)
        if wanted is None or action is None or action.name != wanted.name:
            return float(given == answer)
        pairs = [(value, action.arguments.get(key)) for key, value in wanted.arguments.items()]
        same = len(pairs) == len(action.arguments) and all(_is_same(*pair) for pair in pairs)
        return float(same)

    return judge


def _is_same(wanted: str | Point, given: str | Point | None) -> bool:
    if isinstance(wanted, str) or not isinstance(given, tuple):
        return wanted == given
    return all(abs(a - b) <= _NEAR for a, b in zip(wanted, given, strict=True))


def characters_of(text: str) -> Judge:
    """Return a judge of a transcription: 1 minus the character error rate, never below 0.

    Case, spaces and punctuation do not count.
    """
    wanted = _letters(text)

    def judge(given: str) -> float:
        return max(0.0, 1 - _edits(wanted, _letters(given)) / max(1, len(wanted)))

    return judge


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _edits(a: str, b: str) -> int:
    """Return the Levenshtein distance; ``b`` is cut where it is far longer, which costs all the same."""
    b = b[: 2 * len(a) + 8]
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def by_kind(items: Sequence[Item]) -> Mapping[str, list[int]]:
    """Return the places of each kind's items, in order of first appearance."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.kind, []).append(place)
    return places

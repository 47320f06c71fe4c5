"""Phone screens drawn at random, with the truth about them: the images the model learns to see.

What it guarantees: the same ``random.Random`` state gives the same pixels (with the same Pillow and
font); elements lie inside the screen and never overlap; every question's answer follows from the
screen. It draws rounded buttons with text; it does not imitate any real application.

    >>> import random
    >>> screen = render(random.Random(1))
    >>> screen.image.shape
    (512, 256, 3)
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autoglm.errors import ConfigError
from autoglm.training.actions import (
    ALL_LABELS,
    APPS,
    NEW_APPS,
    is_chinese,
    is_valid_action,
    parse_action,
    tap_action,
)

__all__ = [
    "ALL_LABELS",
    "APPS",
    "HEIGHT",
    "NEW_APPS",
    "WIDTH",
    "Element",
    "Question",
    "Screen",
    "is_valid_action",
    "patch_labels",
    "questions",
    "relative_centre",
    "render",
    "tap_hits",
]

WIDTH, HEIGHT = 256, 512
FONT_SIZES = (20, 22, 24)
IGNORED = -100

_FONT_FILE = "wqy-zenhei.ttc"
_FONT_ROOTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_GAP = 2  # pixels between any two elements
_COVERED = 0.2  # a patch covered less than this shows too little of a label to be asked for it
_LIGHT = ((255, 255, 255), (240, 240, 245), (250, 244, 230), (225, 238, 228))
_DARK = ((20, 20, 24), (30, 60, 90), (48, 32, 64))

Color = tuple[int, int, int]

_TAP = {"zh": ("点击{}", "点一下{}", "打开屏幕上的{}"), "en": ("tap {}", "click {}", "press {}")}
_READ = {"zh": ("{}处是什么?", "读出{}处的文字"), "en": ("what is at {}?", "read the text at {}")}
_HAS = {"zh": ("屏幕上有{}吗?", "屏幕上是否有{}"), "en": ("is {} on the screen?", "does the screen show {}")}
_YES_NO = {"zh": ("是", "否"), "en": ("yes", "no")}
_CROSSED = 0.15  # share of questions asked in the other language than the label's


@dataclass(frozen=True)
class Element:
    """A button on a screen; ``x`` and ``y`` are its left and top edge, all in pixels."""

    label: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Screen:
    """A drawn screen.

    Attributes:
        image: RGB pixels, uint8 of shape (HEIGHT, WIDTH, 3).
        elements: what is on it, in drawing order; no label twice.
    """

    image: np.ndarray
    elements: tuple[Element, ...]


@dataclass(frozen=True)
class Question:
    """A question about a screen and its answer.

    Attributes:
        kind: what is asked: where to tap, what stands somewhere, whether something is there.
        prompt: the user's words; coordinates stand as ``[x,y]``, 0 to 999.
        answer: the exact text to answer.
        element: the element asked for; ``None`` when it is not on the screen.
    """

    kind: Literal["tap", "read", "has"]
    prompt: str
    answer: str
    element: Element | None


def render(
    rng: random.Random, *, num_elements: tuple[int, int] = (3, 10), labels: Sequence[str] = APPS
) -> Screen:
    """Draw a screen with a random number of distinct, non-overlapping labelled buttons.

    Args:
        rng: source of all randomness.
        num_elements: fewest and most buttons, both included.
        labels: the texts to choose from.

    Raises:
        ConfigError: the range is empty, there are fewer labels than buttons, so many buttons are wanted
            that they do not fit, or the font is not installed.
    """
    fewest, most = num_elements
    if not 0 < fewest <= most <= len(labels):
        raise ConfigError(f"num_elements {num_elements} must be an ascending pair within 1 to {len(labels)}")
    elements, sizes = _layout(rng, rng.sample(list(labels), rng.randint(fewest, most)), fewest)
    image = _background(rng)
    draw = ImageDraw.Draw(image)
    for element, size in zip(elements, sizes, strict=True):
        _draw_button(draw, rng, element, size)
    return Screen(np.array(image, dtype=np.uint8), tuple(elements))


def patch_labels(screen: Screen, patch: int = 32) -> np.ndarray:
    """Label every square patch of the screen with what covers it.

    Args:
        screen: the screen.
        patch: side of a patch in pixels; divides both sides of the screen.

    Returns:
        int16 of shape (HEIGHT / patch, WIDTH / patch): 0 for background, k for ``ALL_LABELS[k - 1]``,
        -100 (ignored by losses) where an element covers under a fifth of the patch.

    Raises:
        ConfigError: ``patch`` does not divide the screen.
    """
    if patch <= 0 or WIDTH % patch or HEIGHT % patch:
        raise ConfigError(f"patch {patch} must divide {WIDTH} and {HEIGHT}")
    rows, columns = HEIGHT // patch, WIDTH // patch
    best = np.zeros((rows, columns), np.float32)
    labels = np.zeros((rows, columns), np.int16)
    for element in screen.elements:
        vertical = _overlaps(element.y, element.height, rows, patch)
        horizontal = _overlaps(element.x, element.width, columns, patch)
        share = np.outer(vertical, horizontal) / patch**2  # (rows, columns)
        labels[share > best] = ALL_LABELS.index(element.label) + 1
        best = np.maximum(best, share)
    labels[(best > 0) & (best < _COVERED)] = IGNORED
    return labels


def questions(rng: random.Random, screen: Screen, labels: Sequence[str] = APPS) -> list[Question]:
    """Ask eight questions about a screen: four taps, two readings, one presence and one absence.

    Args:
        rng: source of all randomness.
        screen: the screen asked about.
        labels: where the absent label comes from.

    Raises:
        ConfigError: every label is on the screen, so that none is absent.
    """
    present = list(screen.elements)
    shown = {element.label for element in present}
    absent = [label for label in labels if label not in shown]
    if not absent:
        raise ConfigError("questions need a label that is not on the screen: give more labels")
    rng.shuffle(present)
    asked = [_tap(rng, present[i] if i < len(present) else rng.choice(present)) for i in range(4)]
    asked += [_read(rng, rng.choice(screen.elements)) for _ in range(2)]
    shown_element = rng.choice(present)
    return [*asked, _has(rng, shown_element.label, shown_element), _has(rng, rng.choice(absent), None)]


def relative_centre(element: Element) -> tuple[int, int]:
    """Return the centre of an element in coordinates of 0 to 999."""
    return (
        _relative(element.x + element.width / 2, WIDTH),
        _relative(element.y + element.height / 2, HEIGHT),
    )


def tap_hits(answer: str, element: Element) -> bool:
    """Tell whether ``answer`` is exactly a tap of the grammar, at a point inside ``element``."""
    action = parse_action(answer)
    if action is None or action.name != "Tap":
        return False
    point = action.arguments["element"]
    if not isinstance(point, tuple):
        return False
    x, y = (point[0] + 0.5) * WIDTH / 1000, (point[1] + 0.5) * HEIGHT / 1000
    return element.x <= x < element.x + element.width and element.y <= y < element.y + element.height


def _tap(rng: random.Random, element: Element) -> Question:
    prompt = rng.choice(_TAP[_language(rng, element.label)]).format(element.label)
    return Question("tap", prompt, tap_action(*relative_centre(element)), element)


def _read(rng: random.Random, element: Element) -> Question:
    x, y = relative_centre(element)
    prompt = rng.choice(_READ[_language(rng, element.label)]).format(f"[{x},{y}]")
    return Question("read", prompt, element.label, element)


def _has(rng: random.Random, label: str, element: Element | None) -> Question:
    language = _language(rng, label)
    yes, no = _YES_NO[language]
    return Question("has", rng.choice(_HAS[language]).format(label), yes if element else no, element)


def _language(rng: random.Random, label: str) -> str:
    return "zh" if is_chinese(label) != (rng.random() < _CROSSED) else "en"


def _relative(position: float, length: int) -> int:
    return min(999, int(position * 1000 / length))


def _overlaps(start: int, length: int, count: int, patch: int) -> np.ndarray:
    """Return how many pixels of [start, start + length) fall into each of ``count`` patches."""
    edges = np.arange(count + 1) * patch
    return np.clip(np.minimum(start + length, edges[1:]) - np.maximum(start, edges[:-1]), 0, None)


def _layout(rng: random.Random, labels: Sequence[str], fewest: int) -> tuple[list[Element], list[int]]:
    """Place the labels; those that find no room are left out, but never below ``fewest``."""
    for _ in range(100):
        elements: list[Element] = []
        sizes: list[int] = []
        for label in labels:
            size = rng.choice(FONT_SIZES)
            if (element := _place(rng, label, size, elements)) is not None:
                elements.append(element)
                sizes.append(size)
        if len(elements) >= fewest:
            return elements, sizes
    raise ConfigError(f"{fewest} buttons do not fit on a screen: ask for fewer")


def _place(rng: random.Random, label: str, size: int, others: Sequence[Element]) -> Element | None:
    _, _, text_width, text_height = _text_box(label, size)
    width, height = text_width + 16, text_height + 12
    if width > WIDTH:
        raise ConfigError(f"the label {label!r} is wider than a screen")
    for _ in range(30):
        element = Element(
            label, rng.randint(0, WIDTH - width), rng.randint(0, HEIGHT - height), width, height
        )
        if not any(_touch(element, other) for other in others):
            return element
    return None


def _touch(a: Element, b: Element) -> bool:
    return (
        a.x < b.x + b.width + _GAP
        and b.x < a.x + a.width + _GAP
        and a.y < b.y + b.height + _GAP
        and b.y < a.y + a.height + _GAP
    )


def _background(rng: random.Random) -> Image.Image:
    family = rng.choice((_LIGHT, _DARK))
    top = rng.choice(family)
    if rng.random() < 0.75:
        return Image.new("RGB", (WIDTH, HEIGHT), top)
    ramp = np.linspace(0, 1, HEIGHT)[:, None]  # (H, 1)
    column = np.array(top) * (1 - ramp) + np.array(rng.choice(family)) * ramp  # (H, 3)
    pixels = np.broadcast_to(column[:, None].astype(np.uint8), (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _draw_button(draw: ImageDraw.ImageDraw, rng: random.Random, element: Element, size: int) -> None:
    red, green, blue = fill = tuple(rng.randint(40, 230) for _ in range(3))
    right, bottom = element.x + element.width - 1, element.y + element.height - 1
    draw.rounded_rectangle((element.x, element.y, right, bottom), 8, fill=fill)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    text = (255, 255, 255) if luminance < 135 else (0, 0, 0)
    draw.text((element.x + 8, element.y + 5), element.label, font=_font(size), fill=text)


@functools.cache
def _text_box(label: str, size: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = _font(size).getbbox(label)
    return round(left), round(top), round(right), round(bottom)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(find_font()), size)


@functools.cache
def find_font() -> Path:
    """Find the font that the screens are drawn with.

    Raises:
        ConfigError: it is not installed.
    """
    for root in _FONT_ROOTS:
        for path in sorted(Path(root).expanduser().rglob(_FONT_FILE)):
            return path
    raise ConfigError(f"the font {_FONT_FILE} is missing: install the package fonts-wqy-zenhei")

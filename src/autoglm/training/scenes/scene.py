"""One whole screen, and what each patch of it shows.

What it guarantees: the same ``random.Random`` state gives the same pixels (with the same Pillow and fonts);
no label is on a screen twice; what is seen of one label never overlaps what is seen of another.

    >>> scene = draw_scene(random.Random(1), words_known("v1.2"), icons())
    >>> scene.image.shape
    (576, 288, 3)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from autoglm.model.tokenizer import bin_of
from autoglm.training.scenes import bars, layouts
from autoglm.training.scenes.canvas import WIDTH_UNITS, Canvas, Element, centre_of_box, draw_style
from autoglm.training.scenes.labels import CLASSES, NEW_WORDS, Label, class_of
from autoglm.training.scenes.pieces import Supply

WIDTH, HEIGHT = 288, 576
IGNORED = -100
_MOST_WORDS, _MOST_ICONS = 12, 6
# Pixels a unit and how often: drawn at the model's own size, or larger, up to 1080 x 2400, and scaled down.
_SCALES = ((0.8, 2), (1.6, 6), (2.0, 3), (3.0, 1))
_HEIGHTS = (640, 720, 720, 760, 780, 800)
_SEEN = 0.1  # a patch that a label covers less than this shows too little of it to be asked for
_BODIES: tuple[tuple[Callable[[Canvas, Supply, float, float], float], int], ...] = (
    (layouts.list_rows, 4), (layouts.grid, 4), (layouts.cards, 3), (layouts.form, 2), (layouts.chips, 2),
    (layouts.loose, 5), (layouts.paragraph, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A drawn screen.

    Attributes:
        image: RGB pixels at the model's size, uint8 (HEIGHT, WIDTH, 3).
        elements: what can be asked for; no label twice.
        veiled: what is seen dimly behind a dialog, and is not asked for.
    """

    image: np.ndarray
    elements: tuple[Element, ...]
    veiled: tuple[Element, ...] = ()


def words_known(release: str) -> tuple[Label, ...]:
    """Return the words that the data of a release may show."""
    hidden = NEW_WORDS if release == "v1.2" else ()
    return tuple(label for label in CLASSES[1:] if not label.is_icon and label.key not in hidden)


def icons() -> tuple[Label, ...]:
    """Return all icons."""
    return tuple(label for label in CLASSES[1:] if label.is_icon)


def draw_scene(
    rng: random.Random,
    words: Sequence[Label],
    shapes: Sequence[Label],
    *,
    most_words: int = _MOST_WORDS,
) -> Scene:
    """Draw a screen with at least two labels on it.

    Args:
        rng: source of all randomness.
        words: the words to choose from.
        shapes: the icons to choose from; may be empty.
        most_words: at most so many of the words.
    """
    while True:
        canvas = _draw(rng, words, shapes, most_words)
        elements = _apart(canvas.elements)
        if len(elements) >= 2:
            return Scene(_scaled(canvas.image), elements, tuple(canvas.veiled))


def draw_primer(
    rng: random.Random, words: Sequence[Label], shapes: Sequence[Label], size: tuple[float, float]
) -> Scene:
    """Draw a screen of nothing but buttons with large labels: what a network learns its first glyphs from.

    Args:
        rng: source of all randomness.
        words: the words to choose from.
        shapes: the icons to choose from.
        size: of the font, in units, from and to.
    """
    supply = Supply(rng.sample(list(words), 14), rng.sample(list(shapes), 3))
    canvas = Canvas(rng, draw_style(rng), 720, rng.choice((0.8, 1.6)))
    layouts.loose(canvas, supply, 4, canvas.height - 4, count=(10, 15), size=size)
    return Scene(_scaled(canvas.image), _apart(canvas.elements))


def _draw(rng: random.Random, words: Sequence[Label], shapes: Sequence[Label], most_words: int) -> Canvas:
    supply = Supply(
        rng.sample(list(words), min(len(words), rng.randint(min(4, most_words), most_words + 3))),
        rng.sample(list(shapes), min(len(shapes), rng.randint(0, _MOST_ICONS))),
    )
    scale = rng.choices([scale for scale, _ in _SCALES], [weight for _, weight in _SCALES])[0]
    canvas = Canvas(rng, draw_style(rng), rng.choice(_HEIGHTS), scale)
    pictured = _ground(canvas)
    if pictured and rng.random() < 0.6:
        canvas.style = replace(canvas.style, shaded=True)
    top, bottom = 0.0, canvas.height
    if rng.random() < 0.6:
        top = bars.status_bar(canvas, supply, top)
    if rng.random() < 0.6:
        top = bars.toolbar(canvas, supply, top)
    if rng.random() < 0.25:
        top = bars.search_field(canvas, supply, top)
    if rng.random() < 0.5:
        bottom = bars.tab_bar(canvas, supply)
    for _ in range(4):
        if bottom - top < 60 or not (supply.words or supply.icons):
            break
        body = rng.choices([piece for piece, _ in _BODIES], [weight for _, weight in _BODIES])[0]
        top = body(canvas, supply, top + rng.uniform(0, 16), bottom)
    if rng.random() < 0.1 and len(supply.words) >= 2:
        bars.dialog(canvas, supply)
    return canvas


def _ground(canvas: Canvas) -> bool:
    """Give some screens a gradient or a wallpaper, and tell which have one."""
    rng, style = canvas.rng, canvas.style
    draw = rng.random()
    if draw < 0.2:
        most = 50 if draw < 0.14 else 140
        other = tuple(min(255, max(0, c + rng.randint(-most, most))) for c in style.ground)
        ramp = np.linspace(0, 1, canvas.image.height)[:, None]
        column = np.array(style.ground) * (1 - ramp) + np.array(other) * ramp  # (H, 3)
        strip = Image.fromarray(column.astype(np.uint8)[:, None])
        canvas.image.paste(strip.resize(canvas.image.size), (0, 0))
        return most > 50
    if draw < 0.3:
        canvas.picture((0, 0, WIDTH_UNITS, canvas.height))
        calm = Image.new("RGB", canvas.image.size, style.ground)
        canvas.image.paste(Image.blend(canvas.image, calm, rng.uniform(0.35, 0.85)))
        return True
    return False


def _apart(elements: Sequence[Element]) -> tuple[Element, ...]:
    """Leave out labels that lie off the screen, come twice, or are drawn over."""
    kept: list[Element] = []
    for element in reversed(elements):  # what is drawn last is on top
        left, top, right, bottom = element.shown
        if (right - left) * WIDTH < 5 or (bottom - top) * HEIGHT < 4:
            continue
        if left <= 0 or right >= 1 or top <= 0 or bottom >= 1:  # cut by the edge of the screen
            continue
        clear = not any(
            left < o.shown[2] and o.shown[0] < right and top < o.shown[3] and o.shown[1] < bottom
            for o in kept
        )
        if clear and all(o.label != element.label for o in kept):
            kept.append(element)
    return tuple(reversed(kept))


def _scaled(image: Image.Image) -> np.ndarray:
    """Scale as the model's image processor does."""
    if image.size != (WIDTH, HEIGHT):
        image = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.uint8)


def patch_truth(scene: Scene, patch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Tell what every square patch shows: the two labels that cover most of it.

    Args:
        scene: the screen.
        patch: side of a patch in pixels; divides both sides of the screen.

    Returns:
        Class numbers and their shares, both (patches, 2). A class is 0 for background and
        :data:`IGNORED` where a label covers too little to be recognised.
    """
    seen = (*scene.elements, *scene.veiled)
    if not seen:
        patches = (HEIGHT // patch) * (WIDTH // patch)
        return np.zeros((patches, 2), np.int64), np.tile(np.array([1, 0], np.float32), (patches, 1))
    return _two_best(
        _cover(seen, patch),
        [class_of(e.label.key) for e in scene.elements] + [IGNORED] * len(scene.veiled),
    )


def patch_places(scene: Scene, patch: int = 32, bins: int = 72) -> np.ndarray:
    """Tell of every patch where the middle is of the label that covers most of it.

    Args:
        scene: the screen.
        patch: side of a patch in pixels.
        bins: that an axis is cut into.

    Returns:
        Bins (patches, 2) from the left and from the top; :data:`IGNORED` where no label is.
    """
    patches = (HEIGHT // patch) * (WIDTH // patch)
    if not scene.elements:
        return np.full((patches, 2), IGNORED, np.int64)
    middles = np.array([[bin_of(c, bins) for c in centre_of_box(e.shown)] for e in scene.elements], np.int64)
    cover = _cover(scene.elements, patch)  # (elements, patches)
    return np.where(cover.max(0)[:, None] < _SEEN, IGNORED, middles[cover.argmax(0)])


def _cover(elements: Sequence[Element], patch: int) -> np.ndarray:
    """Return the share of each patch that each element covers, (elements, patches)."""
    rows, columns = HEIGHT // patch, WIDTH // patch
    cover = np.zeros((len(elements), rows, columns), np.float32)
    for i, element in enumerate(elements):
        left, top, right, bottom = element.shown
        vertical = _overlaps(top * HEIGHT, bottom * HEIGHT, rows, patch)
        horizontal = _overlaps(left * WIDTH, right * WIDTH, columns, patch)
        cover[i] = np.outer(vertical, horizontal) / patch**2
    return cover.reshape(len(cover), -1)


def _overlaps(start: float, stop: float, count: int, patch: int) -> np.ndarray:
    edges = np.arange(count + 1) * patch
    return np.clip(np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1]), 0, None)


def _two_best(cover: np.ndarray, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two classes that cover each patch most, (patches, 2), and their shares of each other."""
    order = np.argsort(-cover, 0)[:2]  # (1 or 2, patches)
    best = np.take_along_axis(cover, order, 0)
    classes = np.asarray(numbers, np.int64)[order]
    if len(order) < 2:
        best, classes = np.vstack([best, 0 * best]), np.vstack([classes, 0 * classes])
    faint = (best < _SEEN) | (classes == IGNORED)
    classes = np.where(faint, 0, classes)
    classes[0] = np.where((best[0] > 0) & faint[0], IGNORED, classes[0])
    shares = np.where(faint, 0, best)
    shares[0] = np.where(faint[0], 1, shares[0])
    return classes.T, (shares / shares.sum(0)).T.astype(np.float32)

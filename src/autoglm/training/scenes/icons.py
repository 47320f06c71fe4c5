"""Icons as drawn shapes: outlines of many weights, filled or not, never twice quite the same.

Every shape is drawn in a square of side 1 with the origin at its top left, four times as large as wanted,
and scaled down, so that edges are smooth at every size.

    >>> mask = icon_mask(random.Random(1), "heart", 24)
    >>> mask.size
    (24, 24)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

_OVERSAMPLING = 4
_JITTER = 0.03  # of the side: how far a point may stray


@dataclass
class _Pen:
    """Draws in units of the square's side.

    Attributes:
        draw: on a mask of ``side`` pixels.
        weight: of lines, as a share of the side.
        solid: fill closed shapes.
    """

    draw: ImageDraw.ImageDraw
    rng: random.Random
    side: int
    weight: float
    solid: bool

    @property
    def line_pixels(self) -> int:
        return max(1, round(self.weight * self.side))

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.side, y * self.side

    def jitter(self, value: float) -> float:
        return value + self.rng.uniform(-_JITTER, _JITTER)

    def line(self, *points: tuple[float, float]) -> None:
        """Draw a polyline with round ends."""
        placed = [self.at(*point) for point in points]
        self.draw.line(placed, fill=255, width=self.line_pixels, joint="curve")
        radius = self.line_pixels / 2
        for x, y in placed:
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    def shape(self, *points: tuple[float, float]) -> None:
        """Draw a closed polygon, filled when the icon is solid."""
        if self.solid:
            self.draw.polygon([self.at(*point) for point in points], fill=255)
        self.line(*points, points[0])

    def oval(
        self, x: float, y: float, radius: float, *, solid: bool | None = None, tall: float = 1.0
    ) -> None:
        """Draw a circle, or an oval ``tall`` times as high as wide, around (x, y)."""
        (left, top), (right, bottom) = (
            self.at(x - radius, y - radius * tall),
            self.at(x + radius, y + radius * tall),
        )
        filled = self.solid if solid is None else solid
        self.draw.ellipse(
            (left, top, right, bottom), fill=255 if filled else None, outline=255, width=self.line_pixels
        )

    def box(self, left: float, top: float, right: float, bottom: float, round_by: float = 0.08) -> None:
        """Draw a rectangle with rounded corners."""
        (x0, y0), (x1, y1) = self.at(left, top), self.at(right, bottom)
        self.draw.rounded_rectangle(
            (x0, y0, x1, y1), round_by * self.side, fill=255 if self.solid else None, outline=255,
            width=self.line_pixels,
        )  # fmt: skip

    def arc(self, x: float, y: float, radius: float, start: float, end: float) -> None:
        """Draw a part of a circle from angle ``start`` to ``end`` in degrees, clockwise from the right."""
        (left, top), (right, bottom) = self.at(x - radius, y - radius), self.at(x + radius, y + radius)
        self.draw.arc((left, top, right, bottom), start, end, fill=255, width=self.line_pixels)

    def hole(self, x: float, y: float, radius: float) -> None:
        """Cut a round hole."""
        (left, top), (right, bottom) = self.at(x - radius, y - radius), self.at(x + radius, y + radius)
        self.draw.ellipse((left, top, right, bottom), fill=0)


def _search(pen: _Pen) -> None:
    radius = pen.jitter(0.28)
    pen.oval(0.42, 0.42, radius, solid=False)
    pen.line((0.42 + radius * 0.72, 0.42 + radius * 0.72), (0.88, 0.88))


def _back(pen: _Pen) -> None:
    tip = pen.jitter(0.2)
    if pen.rng.random() < 0.5:  # an arrow, else a chevron
        pen.line((tip, 0.5), (0.85, 0.5))
        pen.line((0.48, 0.2), (tip, 0.5), (0.48, 0.8))
    else:
        pen.line((0.62, 0.14), (tip + 0.08, 0.5), (0.62, 0.86))


def _home(pen: _Pen) -> None:
    eaves = pen.jitter(0.48)
    pen.shape((0.2, eaves), (0.5, 0.14), (0.8, eaves), (0.8, 0.86), (0.2, 0.86))
    if not pen.solid:
        pen.line((0.42, 0.86), (0.42, 0.62), (0.58, 0.62), (0.58, 0.86))
    pen.line((0.1, eaves + 0.06), (0.5, 0.14), (0.9, eaves + 0.06))


def _person(pen: _Pen) -> None:
    pen.oval(0.5, 0.3, pen.jitter(0.17))
    (left, top), (right, bottom) = pen.at(0.16, 0.56), pen.at(0.84, 1.2)
    pen.draw.pieslice(
        (left, top, right, bottom),
        180,
        360,
        fill=255 if pen.solid else None,
        outline=255,
        width=pen.line_pixels,
    )


def _cart(pen: _Pen) -> None:
    pen.line((0.06, 0.16), (0.2, 0.16), (0.32, 0.64), (0.8, 0.64))
    pen.shape((0.24, 0.28), (0.92, 0.28), (0.82, 0.56), (0.31, 0.56))
    for x in (0.4, 0.74):
        pen.oval(x, 0.82, 0.07, solid=True)


def _heart(pen: _Pen) -> None:
    points: list[tuple[float, float]] = []
    for i in range(40):
        t = i / 40 * 2 * math.pi
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 42, 0.46 - y / 42))
    pen.shape(*points)


def _star(pen: _Pen) -> None:
    inner = pen.jitter(0.19)
    radii = (0.44, inner)
    points = [
        (0.5 + radii[i % 2] * math.sin(i * math.pi / 5), 0.52 - radii[i % 2] * math.cos(i * math.pi / 5))
        for i in range(10)
    ]
    pen.shape(*points)


def _plus(pen: _Pen) -> None:
    pen.line((0.5, 0.16), (0.5, 0.84))
    pen.line((0.16, 0.5), (0.84, 0.5))
    if pen.rng.random() < 0.25:
        pen.oval(0.5, 0.5, 0.47, solid=False)


def _close(pen: _Pen) -> None:
    pen.line((0.2, 0.2), (0.8, 0.8))
    pen.line((0.8, 0.2), (0.2, 0.8))


def _menu(pen: _Pen) -> None:
    step = pen.jitter(0.25)
    for i in (-1, 0, 1):
        pen.line((0.14, 0.5 + i * step), (0.86, 0.5 + i * step))


def _more(pen: _Pen) -> None:
    upright, step = pen.rng.random() < 0.5, pen.jitter(0.29)
    for i in (-1, 0, 1):
        x, y = (0.5, 0.5 + i * step) if upright else (0.5 + i * step, 0.5)
        pen.oval(x, y, 0.085, solid=True)


def _bell(pen: _Pen) -> None:
    pen.shape(
        (0.14, 0.72),
        (0.26, 0.6),
        (0.28, 0.4),
        (0.38, 0.24),
        (0.5, 0.19),
        (0.62, 0.24),
        (0.72, 0.4),
        (0.74, 0.6),
        (0.86, 0.72),
    )
    pen.arc(0.5, 0.76, 0.12, 0, 180)


def _camera(pen: _Pen) -> None:
    pen.line((0.34, 0.28), (0.4, 0.18), (0.6, 0.18), (0.66, 0.28))
    pen.box(0.08, 0.28, 0.92, 0.82)
    if pen.solid:
        pen.hole(0.5, 0.55, pen.jitter(0.16))
    else:
        pen.oval(0.5, 0.55, pen.jitter(0.16))


def _trash(pen: _Pen) -> None:
    pen.line((0.16, 0.24), (0.84, 0.24))
    pen.line((0.4, 0.24), (0.42, 0.14), (0.58, 0.14), (0.6, 0.24))
    pen.shape((0.24, 0.26), (0.76, 0.26), (0.71, 0.88), (0.29, 0.88))
    if not pen.solid:
        for x in (0.42, 0.58):
            pen.line((x, 0.4), (x, 0.74))


def _pencil(pen: _Pen) -> None:
    pen.shape((0.14, 0.86), (0.2, 0.64), (0.68, 0.16), (0.84, 0.32), (0.36, 0.8))
    pen.line((0.58, 0.26), (0.74, 0.42))


def _play(pen: _Pen) -> None:
    if pen.rng.random() < 0.4:
        pen.oval(0.5, 0.5, 0.45, solid=False)
        pen.shape((0.41, 0.32), (0.7, 0.5), (0.41, 0.68))
    else:
        pen.shape((0.28, 0.16), (0.84, 0.5), (0.28, 0.84))


def _phone(pen: _Pen) -> None:
    heavy = pen.weight
    pen.weight = max(heavy, 0.16) if pen.solid else heavy * 1.5
    pen.line((0.26, 0.2), (0.3, 0.44), (0.56, 0.7), (0.8, 0.74))
    pen.line((0.18, 0.2), (0.36, 0.16))
    pen.line((0.84, 0.64), (0.8, 0.82))
    pen.weight = heavy


def _mail(pen: _Pen) -> None:
    solid, pen.solid = pen.solid, False
    pen.box(0.08, 0.2, 0.92, 0.8)
    pen.solid = solid
    pen.line((0.1, 0.26), (0.5, pen.jitter(0.56)), (0.9, 0.26))


def _lock(pen: _Pen) -> None:
    pen.box(0.2, 0.44, 0.8, 0.88)
    pen.arc(0.5, 0.42, 0.2, 180, 360)
    pen.line((0.3, 0.42), (0.3, 0.46))
    pen.line((0.7, 0.42), (0.7, 0.46))


def _gear(pen: _Pen) -> None:
    teeth = pen.rng.choice((6, 8, 8))
    points: list[tuple[float, float]] = []
    for i in range(teeth * 4):
        radius = 0.44 if i % 4 in (0, 1) else 0.32
        angle = (i + 0.5) / (teeth * 4) * 2 * math.pi
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    pen.shape(*points)
    if pen.solid:
        pen.hole(0.5, 0.5, 0.14)
    else:
        pen.oval(0.5, 0.5, 0.14)


def _share(pen: _Pen) -> None:
    if pen.rng.random() < 0.5:
        for x, y in ((0.24, 0.5), (0.76, 0.2), (0.76, 0.8)):
            pen.oval(x, y, 0.11, solid=True)
        pen.line((0.76, 0.2), (0.24, 0.5), (0.76, 0.8))
    else:
        pen.line((0.5, 0.64), (0.5, 0.12))
        pen.line((0.32, 0.28), (0.5, 0.12), (0.68, 0.28))
        pen.line((0.3, 0.44), (0.18, 0.44), (0.18, 0.88), (0.82, 0.88), (0.82, 0.44), (0.7, 0.44))


def _download(pen: _Pen) -> None:
    pen.line((0.5, 0.12), (0.5, 0.62))
    pen.line((0.28, 0.42), (0.5, 0.62), (0.72, 0.42))
    pen.line((0.16, 0.7), (0.16, 0.86), (0.84, 0.86), (0.84, 0.7))


def _microphone(pen: _Pen) -> None:
    pen.box(0.37, 0.08, 0.63, 0.58, 0.13)
    pen.arc(0.5, 0.46, 0.26, 0, 180)
    pen.line((0.5, 0.74), (0.5, 0.9))
    pen.line((0.34, 0.9), (0.66, 0.9))


def _pin(pen: _Pen) -> None:
    points = [(0.5 + 0.29 * math.cos(a), 0.38 + 0.29 * math.sin(a)) for a in _angles(150, 390, 20)]
    pen.shape(*points, (0.5, 0.92))
    if pen.solid:
        pen.hole(0.5, 0.38, 0.11)
    else:
        pen.oval(0.5, 0.38, 0.1)


def _angles(start: float, end: float, count: int) -> Sequence[float]:
    return [math.radians(start + (end - start) * i / (count - 1)) for i in range(count)]


_SHAPES: dict[str, Callable[[_Pen], None]] = {
    "search": _search, "back": _back, "home": _home, "person": _person, "cart": _cart, "heart": _heart,
    "star": _star, "plus": _plus, "close": _close, "menu": _menu, "more": _more, "bell": _bell,
    "camera": _camera, "trash": _trash, "pencil": _pencil, "play": _play, "phone": _phone, "mail": _mail,
    "lock": _lock, "gear": _gear, "share": _share, "download": _download, "microphone": _microphone,
    "pin": _pin,
}  # fmt: skip


def icon_mask(rng: random.Random, shape: str, side: int) -> Image.Image:
    """Return how much of each pixel the icon covers: mode L, ``side`` pixels square.

    Args:
        rng: of the weight of lines, of what is filled, of small irregularities.
        shape: a key of :data:`autoglm.training.scenes.labels.ICONS`.
        side: in pixels.
    """
    large = side * _OVERSAMPLING
    mask = Image.new("L", (large, large))
    pen = _Pen(ImageDraw.Draw(mask), rng, large, rng.uniform(0.06, 0.12), rng.random() < 0.4)
    _SHAPES[shape](pen)
    return mask.reduce(_OVERSAMPLING)

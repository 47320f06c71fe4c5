"""The surface that layouts draw on: logical units in, pixels out, every label remembered with its place.

A screen is 360 units wide, like most phones. What one unit is in pixels varies from screen to screen, and
the finished picture is scaled to the model's size as any picture is, so letters come as sharp or as soft as
they come from real phones of many resolutions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autoglm.training.scenes import fonts
from autoglm.training.scenes.icons import icon_mask
from autoglm.training.scenes.labels import Label

WIDTH_UNITS = 360

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Element:
    """Something on a screen that can be asked for; boxes are shares of the screen, 0 to 1.

    Attributes:
        label: what it is.
        shown: where its word or its shape is seen.
        touch: where a tap works.
    """

    label: Label
    shown: Box
    touch: Box


def coordinate(share: float) -> int:
    """Return the coordinate, 0 to 999, of a share of the screen."""
    return min(999, max(0, int(share * 1000)))


def centre_of_box(box: Box) -> tuple[int, int]:
    """Return the middle of a box in coordinates."""
    left, top, right, bottom = box
    return coordinate((left + right) / 2), coordinate((top + bottom) / 2)


@dataclass(frozen=True)
class Style:
    """How all of one screen looks.

    Attributes:
        dark: light text on dark ground.
        ground: behind everything.
        surface: of cards, bars and rows.
        ink: of text.
        faint: of what matters less.
        accent: of what matters most.
        latin: font file of Latin text.
        size: factor on all font sizes; some phones are set to large text.
        strength: of bold where the font has no bold face: the outline's width, as a share of the size.
        shaded: labels lie on a picture and have a shadow.
        radius: of corners, in units.
        border: cards and rows have outlines.
    """

    dark: bool
    ground: Color
    surface: Color
    ink: Color
    faint: Color
    accent: Color
    latin: str
    size: float
    radius: float
    border: bool
    strength: float = 1 / 36
    shaded: bool = False


def draw_style(rng: random.Random) -> Style:
    """Draw a style."""
    dark = rng.random() < 0.4
    tint = _tint(rng, 14)
    base = rng.randint(8, 40) if dark else rng.randint(225, 255)
    ground = _shift((base, base, base), tint)
    raised = base + rng.randint(10, 30) if dark else min(255, base + rng.randint(-14, 20))
    level = rng.randint(200, 255) if dark else rng.randint(0, 60)
    middle = rng.randint(120, 170)
    return Style(
        dark=dark,
        ground=ground,
        surface=_shift((raised, raised, raised), tint),
        ink=_shift((level, level, level), _tint(rng, 20)),
        faint=_shift((middle, middle, middle), _tint(rng, 20)),
        accent=_standing_out(rng, ground),
        latin=rng.choice(fonts.LATIN) if rng.random() < 0.75 else fonts.CHINESE,
        size=rng.uniform(0.85, 1.25) if rng.random() < 0.6 else rng.uniform(1.2, 1.75),
        radius=rng.choice((0, 2, 4, 8, 8, 12, 16, 24)),
        border=rng.random() < 0.4,
        strength=rng.uniform(0.012, 0.032),
    )


def accent_color(rng: random.Random) -> Color:
    """Draw a saturated colour."""
    strong, weak = rng.randint(150, 245), rng.randint(10, 110)
    channels = [strong, rng.randint(weak, strong), weak]
    rng.shuffle(channels)
    return channels[0], channels[1], channels[2]


def _standing_out(rng: random.Random, ground: Color) -> Color:
    """Draw a saturated colour that can be told from ``ground``."""
    while abs(_brightness(color := accent_color(rng)) - _brightness(ground)) < 45:
        pass
    return color


def _brightness(color: Color) -> float:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def readable_on(color: Color) -> Color:
    """Return black or white, whichever stands out from ``color``."""
    return (255, 255, 255) if _brightness(color) < 140 else (20, 20, 20)


def _tint(rng: random.Random, most: int) -> Color:
    return rng.randint(-most, most), rng.randint(-most, most), rng.randint(-most, most)


def _shift(color: Color, by: Color) -> Color:
    red, green, blue = (min(255, max(0, c + d)) for c, d in zip(color, by, strict=True))
    return red, green, blue


@dataclass
class Canvas:
    """A picture under construction.

    Attributes:
        rng: of everything that is drawn at random.
        style: of the whole screen.
        height: in units.
        scale: pixels a unit.
        elements: the labels drawn so far.
        veiled: those of them that a dialog has dimmed: still seen, but not to be asked for.
    """

    rng: random.Random
    style: Style
    height: float
    scale: float
    elements: list[Element] = field(default_factory=list[Element])
    veiled: list[Element] = field(default_factory=list[Element])

    def __post_init__(self) -> None:
        size = (round(WIDTH_UNITS * self.scale), round(self.height * self.scale))
        self.image = Image.new("RGB", size, self.style.ground)
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, box: Box) -> tuple[int, int, int, int]:
        """Return a box of units in pixels."""
        left, top, right, bottom = (round(side * self.scale) for side in box)
        return left, top, max(left, right), max(top, bottom)

    def rectangle(
        self, box: Box, fill: Color | None, radius: float = 0, outline: Color | None = None, width: float = 1
    ) -> None:
        """Draw a rectangle with round corners."""
        left, top, right, bottom = self.pixels(box)
        # Pillow fails on corners that meet, so they never quite do.
        most = (min(right - left, bottom - top) - 3) / 2
        self.draw.rounded_rectangle(
            (left, top, right, bottom),
            max(0.0, min(radius * self.scale, most)),
            fill,
            outline,
            max(1, round(width * self.scale)),
        )

    def circle(self, x: float, y: float, radius: float, fill: Color) -> None:
        """Draw a disc around (x, y)."""
        self.draw.ellipse(self.pixels((x - radius, y - radius, x + radius, y + radius)), fill)

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: Color, width: float = 1) -> None:
        """Draw a line."""
        points = [(x0 * self.scale, y0 * self.scale), (x1 * self.scale, y1 * self.scale)]
        self.draw.line(points, fill, max(1, round(width * self.scale)))

    def shadow(self, box: Box, radius: float) -> None:
        """Darken the ground below a raised box."""
        for grow in (3, 2, 1):
            less = -6 * (4 - grow)
            shade = _shift(self.style.ground, (less, less, less))
            left, top, right, bottom = box
            self.rectangle(
                (left - grow, top - grow + 1, right + grow, bottom + grow + 1), shade, radius + grow
            )

    def measure(self, text: str, size: float, *, bold: bool = False) -> tuple[float, float]:
        """Return the width and height of a text's ink in units."""
        left, top, right, bottom = self._ink(text, size, bold)
        return (right - left) / self.scale, (bottom - top) / self.scale

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        fill: Color,
        *,
        bold: bool = False,
        anchor: str = "l",
    ) -> Box:
        """Draw a text whose ink is centred on the height ``y``.

        Args:
            x: its left edge, middle or right edge, by ``anchor``: l, m or r.
            y: the middle of its height.
            text: one line.
            size: of the font, in units, before the style's factor.
            fill: colour.
            bold: heavier.
            anchor: what ``x`` is.

        Returns:
            The box of the ink in units.
        """
        left, top, right, bottom = self._ink(text, size, bold)
        width = right - left
        start = x * self.scale - {"l": 0, "m": width / 2, "r": width}[anchor]
        at = (round(start - left), round(y * self.scale - (top + bottom) / 2))
        face, stroke = self._face(text, size), self._stroke(size, bold)
        if self.style.shaded:
            shade = (20, 20, 20) if sum(fill) > 380 else (235, 235, 235)
            off = max(1, round(self.scale * 0.7))
            self.draw.text((at[0], at[1] + off), text, shade, face, stroke_width=stroke, stroke_fill=shade)
        self.draw.text(at, text, fill, face, stroke_width=stroke, stroke_fill=fill)
        edges = (at[0] + left, at[1] + top, at[0] + right, at[1] + bottom)
        return edges[0] / self.scale, edges[1] / self.scale, edges[2] / self.scale, edges[3] / self.scale

    def label(
        self,
        x: float,
        y: float,
        label: Label,
        size: float,
        fill: Color,
        *,
        touch: Box | None = None,
        bold: bool = False,
        anchor: str = "l",
    ) -> Box:
        """Draw a word that can be asked for, or an icon of 1.5 times the size; see :meth:`text`."""
        if label.is_icon:
            side = size * 1.5
            left = x - {"l": 0, "m": side / 2, "r": side}[anchor]
            return self.icon((left, y - side / 2, left + side, y + side / 2), label, fill, touch=touch)
        box = self.text(x, y, label.key, size, fill, bold=bold, anchor=anchor)
        self._remember(label, box, touch)
        return box

    def icon(self, box: Box, label: Label, fill: Color, *, touch: Box | None = None) -> Box:
        """Draw an icon into a square box."""
        left, top, right, _ = self.pixels(box)
        side = max(6, right - left)
        mask = icon_mask(self.rng, label.key.removeprefix("icon:"), side)
        self.image.paste(fill, (left, top, left + side, top + side), mask)
        self._remember(label, box, touch)
        return box

    def picture(self, box: Box) -> None:
        """Draw something like a photograph: soft blobs of colour."""
        left, top, right, bottom = self.pixels(box)
        if right - left < 2 or bottom - top < 2:
            return
        seed = np.random.default_rng(self.rng.getrandbits(63))
        coarse = seed.integers(20, 235, (self.rng.randint(2, 6), self.rng.randint(2, 6), 3), dtype=np.uint8)
        blobs = Image.fromarray(coarse).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        self.image.paste(blobs, (left, top))

    def veil(self, strength: float) -> None:
        """Darken all that is drawn so far, as behind a dialog."""
        self.image.paste(Image.blend(self.image, Image.new("RGB", self.image.size), strength))
        self.veiled += self.elements
        self.elements.clear()

    def _face(self, text: str, size: float) -> ImageFont.FreeTypeFont:
        latin = self.style.latin if text.isascii() else fonts.CHINESE
        return fonts.font(latin, max(6, round(size * self.style.size * self.scale)))

    def _stroke(self, size: float, bold: bool) -> float:
        """Return the width in pixels of the outline that makes a font bold that has no bold face."""
        return size * self.style.size * self.scale * self.style.strength if bold else 0.0

    def _ink(self, text: str, size: float, bold: bool) -> tuple[float, float, float, float]:
        return self._face(text, size).getbbox(text, stroke_width=self._stroke(size, bold))

    def _remember(self, label: Label, shown: Box, touch: Box | None) -> None:
        if label.key:
            self.elements.append(Element(label, self._share(shown), self._share(touch or shown)))

    def _share(self, box: Box) -> Box:
        left, top, right, bottom = box
        return (
            min(1.0, max(0.0, left / WIDTH_UNITS)),
            min(1.0, max(0.0, top / self.height)),
            min(1.0, max(0.0, right / WIDTH_UNITS)),
            min(1.0, max(0.0, bottom / self.height)),
        )


def pick(rng: random.Random, items: Sequence[Label]) -> Label:
    """Return one of ``items``."""
    return items[rng.randrange(len(items))]

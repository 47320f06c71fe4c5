"""What fills a screen: lists, grids, cards, forms, chips, loose buttons, and text that nobody asks for.

Each layout takes the room it is given, draws words and icons from a supply, stops when either runs out, and
returns where it ended.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from autoglm.training.scenes.canvas import WIDTH_UNITS, Box, Canvas
from autoglm.training.scenes.labels import Label
from autoglm.training.scenes.pieces import Supply, button, buttons, emblem, filler


def list_rows(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw rows that take the whole width: a picture, a word, a line below it, something at the end."""
    rng, style = canvas.rng, canvas.style
    height = rng.uniform(40, 76) * max(1.0, style.size * 0.8)
    edge = rng.choice((0, 0, 8, 14))
    pictured, ended = rng.random() < 0.5, rng.choice(("", "chevron", "switch", "value"))
    subtitled = height > 54 and rng.random() < 0.6
    size = rng.uniform(13.5, 17)
    bold = 0.8 if rng.random() < 0.25 else 0.05
    for _ in range(rng.randint(2, 9)):
        word = supply.word() if rng.random() < 0.8 else None
        if top + height > bottom or not (word or supply.words):
            break
        box = (edge, top, WIDTH_UNITS - edge, top + height)
        canvas.rectangle(
            box, style.surface, style.radius if edge else 0, style.faint if style.border else None
        )
        _row(canvas, word, box, size, pictured=pictured, ended=ended, subtitled=subtitled, bold=bold)
        if not style.border:
            canvas.line(edge + 14, top + height, WIDTH_UNITS - edge, top + height, style.ground)
        top += height + (rng.choice((0, 0, 6)) if edge else 0)
    return top


def _row(
    canvas: Canvas,
    word: Label | None,
    box: Box,
    size: float,
    *,
    pictured: bool,
    ended: str,
    subtitled: bool,
    bold: float,
) -> None:
    rng, style = canvas.rng, canvas.style
    left, top, right, bottom = box
    middle, x = (top + bottom) / 2, left + 16
    if pictured:
        side = (bottom - top) * 0.55
        emblem(canvas, (x, middle - side / 2, x + side, middle + side / 2))
        x += side + 14
    at = top + (bottom - top) * 0.33 if subtitled else middle
    if word:
        canvas.label(x, at, word, size, style.ink, touch=box, bold=rng.random() < bold)
    else:
        canvas.text(x, at, filler(rng, 8), size, style.ink)
    if subtitled:
        canvas.text(x, top + (bottom - top) * 0.7, filler(rng), size * 0.75, style.faint)
    end = right - 16
    if ended == "chevron":
        canvas.line(end - 5, middle - 5, end, middle, style.faint, 1.5)
        canvas.line(end, middle, end - 5, middle + 5, style.faint, 1.5)
    elif ended == "switch":
        on = rng.random() < 0.5
        canvas.rectangle((end - 34, middle - 9, end, middle + 9), style.accent if on else style.faint, 9)
        canvas.circle(end - 9 if on else end - 25, middle, 7, (250, 250, 250))
    elif ended == "value":
        canvas.text(end, middle, filler(rng, 4)[:8], size * 0.85, style.faint, anchor="r")


def grid(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw cells in columns, each an emblem or an icon with a word below, as on a launcher."""
    rng, style = canvas.rng, canvas.style
    columns = rng.choice((2, 3, 3, 4, 4, 5))
    width = (WIDTH_UNITS - 16) / columns
    side = min(width * 0.62, rng.uniform(34, 56))
    size = rng.uniform(11.5, 14.5)
    height = side + size * 2.2 * max(1.0, style.size * 0.85) + rng.uniform(6, 18)
    iconic = rng.random() < 0.3
    for _ in range(rng.randint(1, 5)):
        for column in range(columns):
            word = supply.word()
            if word is None or top + height > bottom:
                return top
            left = 8 + column * width
            if canvas.measure(word.key, size)[0] > width - 4:
                supply.words.insert(0, word)
                continue
            cell = (left, top, left + width, top + height)
            x = left + width / 2
            box = (x - side / 2, top + 4, x + side / 2, top + 4 + side)
            icon = supply.icon() if iconic else None
            if icon:
                inner = side * 0.2
                canvas.icon(
                    (box[0] + inner, box[1] + inner, box[2] - inner, box[3] - inner),
                    icon,
                    style.ink,
                    touch=cell,
                )
            else:
                emblem(canvas, box)
            canvas.label(
                x,
                top + 8 + side + size * 0.75 * max(1.0, style.size * 0.85),
                word,
                size,
                style.ink,
                touch=cell,
                anchor="m",
            )
        top += height
    return top


def cards(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw raised boxes with a heading, text, perhaps a picture, and buttons."""
    rng, style = canvas.rng, canvas.style
    for _ in range(rng.randint(1, 3)):
        height, edge = rng.uniform(84, 150), rng.uniform(8, 18)
        if top + height + 10 > bottom or not supply.words:
            break
        box = (edge, top + 6, WIDTH_UNITS - edge, top + 6 + height)
        if rng.random() < 0.5:
            canvas.shadow(box, style.radius)
        canvas.rectangle(box, style.surface, style.radius, style.faint if style.border else None)
        x = edge + 14
        if rng.random() < 0.4:
            canvas.picture((x, box[1] + 12, x + 56, box[1] + 68))
            x += 70
        word = supply.word()
        if word and rng.random() < 0.7:
            canvas.label(x, box[1] + 22, word, rng.uniform(14, 18), style.ink, bold=rng.random() < 0.5)
        elif word:
            supply.words.append(word)
        for line in range(rng.randint(0, 2)):
            text = filler(rng)
            if x + canvas.measure(text, 12)[0] < box[2] - 8:
                canvas.text(x, box[1] + 44 + 18 * line, text, 12, style.faint)
        buttons(canvas, supply, (edge + 8, box[3] - 40, box[2] - 8, box[3] - 6), rng.randint(0, 2))
        top += height + 10
    return top + 6


def form(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw input fields with hints or headings, and a wide button below."""
    rng, style = canvas.rng, canvas.style
    edge = rng.uniform(16, 32)
    headed = rng.random() < 0.4
    for _ in range(rng.randint(1, 4)):
        height = 46 + (22 if headed else 0)
        word = supply.word()
        if word is None or top + height + 8 > bottom:
            return top
        box = (edge, top + (28 if headed else 8), WIDTH_UNITS - edge, top + height)
        if headed:
            canvas.label(
                edge, top + 16, word, 13, style.ink, touch=(edge, top + 6, WIDTH_UNITS - edge, box[3])
            )
        canvas.rectangle(box, style.surface, min(8, style.radius), style.faint)
        at = (edge + 12, (box[1] + box[3]) / 2)
        if headed:
            canvas.text(*at, filler(rng, 8), 14, style.faint)
        else:
            canvas.label(
                *at, word, rng.uniform(13, 16), style.faint if rng.random() < 0.5 else style.ink, touch=box
            )
        top += height + 4
    if (word := supply.word()) and top + 64 < bottom:
        button(canvas, word, (edge, top + 14, WIDTH_UNITS - edge, top + 58), rng.uniform(14, 17))
        top += 64
    return top


def chips(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw small pills in flowing lines."""
    rng, style = canvas.rng, canvas.style
    size, x, height = rng.uniform(12, 15), 12.0, rng.uniform(28, 36) * max(1.0, style.size * 0.85)
    ink = style.accent if rng.random() < 0.4 else style.ink
    edge = style.accent if rng.random() < 0.3 else style.faint if style.border else None
    for _ in range(rng.randint(3, 9)):
        word = supply.word()
        if word is None:
            break
        width = canvas.measure(word.key, size)[0] + 26
        if x + width > WIDTH_UNITS - 8:
            x, top = 12.0, top + height + 8
        if top + height > bottom:
            supply.words.append(word)
            return top
        box = (x, top + 4, x + width, top + 4 + height)
        canvas.rectangle(box, style.surface, height / 2, edge)
        canvas.label(x + width / 2, top + 4 + height / 2, word, size, ink, touch=box, anchor="m")
        x += width + 8
    return top + height + 12


def loose(
    canvas: Canvas,
    supply: Supply,
    top: float,
    bottom: float,
    *,
    count: tuple[int, int] = (3, 10),
    size: tuple[float, float] = (13, 26),
) -> float:
    """Draw buttons and icons anywhere in the room, none touching another."""
    rng = canvas.rng
    taken: list[Box] = []
    for _ in range(rng.randint(*count)):
        label = supply.icon() if supply.icons and rng.random() < 0.3 else supply.word()
        if label is None:
            break
        large = rng.uniform(*size)
        width, height = (large * 1.5,) * 2 if label.is_icon else canvas.measure(label.key, large)
        width, height = width + rng.uniform(8, 30), height + rng.uniform(8, 20)
        if (box := _room_for(rng, width, height, top, bottom, taken)) is None:
            continue
        taken.append(box)
        button(canvas, label, box, large)
    return bottom


def _room_for(
    rng: random.Random, width: float, height: float, top: float, bottom: float, taken: Sequence[Box]
) -> Box | None:
    if width > WIDTH_UNITS - 8 or height > bottom - top:
        return None
    for _ in range(20):
        x, y = rng.uniform(4, WIDTH_UNITS - width - 4), rng.uniform(top, bottom - height)
        box = (x, y, x + width, y + height)
        if not any(x < b[2] + 3 and b[0] < box[2] + 3 and y < b[3] + 3 and b[1] < box[3] + 3 for b in taken):
            return box
    return None


def paragraph(canvas: Canvas, supply: Supply, top: float, bottom: float) -> float:
    """Draw a picture or lines of text that nobody asks for."""
    rng, style = canvas.rng, canvas.style
    if rng.random() < 0.4:
        height = min(bottom - top, rng.uniform(60, 160))
        edge = rng.choice((0, 12))
        canvas.picture((edge, top, WIDTH_UNITS - edge, top + height))
        return top + height + 8
    size = rng.uniform(12, 16)
    for _ in range(rng.randint(1, 4)):
        if top + size * 1.6 > bottom:
            break
        canvas.text(14, top + size, filler(rng, 18), size, style.ink if rng.random() < 0.6 else style.faint)
        top += size * 1.7
    return top + 6

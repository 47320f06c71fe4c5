"""What frames a screen: the status bar, toolbars, search fields, tab bars, and dialogs over all of it."""

from __future__ import annotations

from autoglm.training.scenes.canvas import WIDTH_UNITS, Canvas, Color, readable_on
from autoglm.training.scenes.pieces import Supply, buttons, filler


def status_bar(canvas: Canvas, supply: Supply, top: float) -> float:
    """Draw the clock and the signs at the very top; return where they end."""
    rng, ink = canvas.rng, canvas.style.ink
    canvas.text(rng.uniform(12, 24), top + 14, f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}", 11, ink)
    x = WIDTH_UNITS - rng.uniform(14, 24)
    canvas.rectangle((x - 18, top + 9, x, top + 19), None, 2, ink)
    canvas.rectangle((x - 16, top + 11, x - rng.uniform(3, 14), top + 17), ink)
    for i in range(rng.randint(2, 4)):
        canvas.rectangle((x - 30 - 5 * i, top + 16 - 2 * (i % 4), x - 27 - 5 * i, top + 19), ink)
    return top + 28


def toolbar(canvas: Canvas, supply: Supply, top: float) -> float:
    """Draw a bar with a title between icons or text buttons."""
    rng, style = canvas.rng, canvas.style
    height = rng.uniform(44, 60)
    fill, ink = style.surface, style.ink
    if rng.random() < 0.3:
        fill, ink = style.accent, readable_on(style.accent)
    if rng.random() < 0.8:
        canvas.rectangle((0, top, WIDTH_UNITS, top + height), fill)
    else:
        ink = style.ink
    middle, x = top + height / 2, rng.uniform(12, 20)
    if rng.random() < 0.6 and (icon := supply.icon()):
        canvas.label(x, middle, icon, 15, ink, touch=(0, top, 48, top + height))
        x = 56
    side = rng.uniform(14, 18)
    right = WIDTH_UNITS - rng.uniform(12, 20)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        taken = supply.icon() if rng.random() < 0.7 else supply.word()
        if taken is None:
            continue
        size = 15.0 if taken.is_icon else 14.0
        width = size * 1.5 if taken.is_icon else canvas.measure(taken.key, size)[0]
        touch = (right - width - 10, top, right + 10, top + height)
        canvas.label(right, middle, taken, size, ink, anchor="r", touch=touch)
        right -= width + rng.uniform(18, 26)
    _title(canvas, supply, (x, right), middle, side, ink)
    return top + height


def _title(
    canvas: Canvas, supply: Supply, room: tuple[float, float], middle: float, size: float, ink: Color
) -> None:
    rng = canvas.rng
    word = supply.word() if rng.random() < 0.5 else None
    text = word.key if word else filler(rng, 6)
    left, right = room
    width = canvas.measure(text, size, bold=True)[0]
    if width > right - left - 12:
        if word:
            supply.words.append(word)
        return
    centred = rng.random() < 0.4 and left + width < WIDTH_UNITS / 2 + width / 2 < right - 6
    x, anchor = (WIDTH_UNITS / 2, "m") if centred else (left, "l")
    if word:
        canvas.label(x, middle, word, size, ink, bold=rng.random() < 0.5, anchor=anchor)
    else:
        canvas.text(x, middle, text, size, ink, bold=rng.random() < 0.5, anchor=anchor)


def search_field(canvas: Canvas, supply: Supply, top: float) -> float:
    """Draw a rounded field with an icon and a hint in it."""
    rng, style = canvas.rng, canvas.style
    height, edge = rng.uniform(34, 44), rng.uniform(10, 20)
    box = (edge, top + 6, WIDTH_UNITS - edge, top + 6 + height)
    canvas.rectangle(
        box, style.surface, rng.choice((4, 8, height / 2)), style.faint if style.border else None
    )
    middle, x = top + 6 + height / 2, edge + 12
    if rng.random() < 0.6 and (icon := supply.icon()):
        canvas.label(x, middle, icon, 12, style.faint, touch=(edge, box[1], edge + 40, box[3]))
        x += 28
    word = supply.word() if rng.random() < 0.5 else None
    if word:
        canvas.label(x, middle, word, 14, style.faint, touch=(x, *box[1:]))
    else:
        canvas.text(x, middle, filler(rng, 8), 14, style.faint)
    return top + height + 12


def tab_bar(canvas: Canvas, supply: Supply) -> float:
    """Draw the bar at the bottom; return where it begins."""
    rng, style = canvas.rng, canvas.style
    height, count = rng.uniform(48, 62), rng.randint(3, 5)
    top = canvas.height - height - rng.choice((0, 0, 14))
    canvas.rectangle((0, top, WIDTH_UNITS, canvas.height), style.surface)
    canvas.line(0, top, WIDTH_UNITS, top, style.faint, 0.6)
    form, active, width = rng.random(), rng.randrange(count), WIDTH_UNITS / count
    for i in range(count):
        ink = style.accent if i == active else style.faint if rng.random() < 0.3 else style.ink
        cell = (i * width, top, (i + 1) * width, top + height)
        x = (i + 0.5) * width
        word = supply.word() if form < 0.75 else None
        if word and canvas.measure(word.key, 12)[0] > width - 4:
            supply.words.insert(0, word)
            word = None
        icon = supply.icon() if word is None or rng.random() < 0.5 else None
        at = top + (height * 0.5 if word is None or (icon is None and form < 0.2) else height * 0.36)
        if icon:
            canvas.label(x, at, icon, 15, ink, touch=cell, anchor="m")
        elif word and form >= 0.2:
            canvas.circle(x, at, 8, ink)
        if word:
            low = top + (height * 0.5 if icon is None and form < 0.2 else height * 0.8)
            canvas.label(x, low, word, 11.5, ink, touch=cell, anchor="m")
    return top


def dialog(canvas: Canvas, supply: Supply) -> None:
    """Dim everything and draw a box with a question and buttons over it, in the middle or at the bottom."""
    rng, style = canvas.rng, canvas.style
    canvas.veil(rng.uniform(0.3, 0.65))
    sheet = rng.random() < 0.4
    rows = rng.randint(2, 5)
    height = rows * 48 + 20 if sheet else rng.uniform(130, 190)
    edge = 0 if sheet else rng.uniform(24, 44)
    top = canvas.height - height if sheet else (canvas.height - height) * rng.uniform(0.3, 0.6)
    box = (edge, top, WIDTH_UNITS - edge, top + height)
    canvas.rectangle(box, style.surface, max(4, style.radius))
    if sheet:
        for i in range(rows):
            if word := supply.word():
                row = (edge, top + 10 + 48 * i, WIDTH_UNITS - edge, top + 58 + 48 * i)
                canvas.line(edge, row[1], WIDTH_UNITS - edge, row[1], style.faint, 0.5)
                x, anchor = rng.choice(((WIDTH_UNITS / 2, "m"), (edge + 20, "l")))
                canvas.label(x, row[1] + 24, word, 16, style.ink, touch=row, anchor=anchor)
        return
    x, anchor = rng.choice(((WIDTH_UNITS / 2, "m"), (edge + 18, "l")))
    if (word := supply.word()) and rng.random() < 0.5:
        canvas.label(x, top + 28, word, 17, style.ink, anchor=anchor, bold=rng.random() < 0.5)
    else:
        canvas.text(x, top + 28, filler(rng, 8), 17, style.ink, anchor=anchor)
    for line in range(rng.randint(1, 2)):
        canvas.text(x, top + 58 + 20 * line, filler(rng, 10), 13, style.faint, anchor=anchor)
    buttons(canvas, supply, (edge + 14, box[3] - 50, box[2] - 14, box[3] - 12), 2)

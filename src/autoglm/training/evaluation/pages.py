"""App pages in HTML and CSS, filled from a random source: screens that the trainer's drawing code never drew.

Every page is complete in itself: one document, one style sheet, drawings in SVG, no script, no link. What may
be tapped carries ``data-label``; the label stands in a ``<span class=t>``. All other words of a page (names,
times, prices) come from lists of their own here and are never labels.

    >>> page = make_page(random.Random(1), ["设置", "地图", "相机", "音乐"], scale=1.4)
    >>> page.count("data-label") >= 3
    True
"""

from __future__ import annotations

import functools
import html
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from autoglm.training.actions import is_chinese

_STYLE = Path(__file__).with_name("pages.css")
_NAMES = {
    "zh": ("王小明", "李雷", "韩梅梅", "陈静", "赵子龙", "周杰", "孙悦", "何欢"),
    "en": ("Anna", "Robert", "Mia Chen", "J. Smith", "Olivia", "Noah", "Emma", "Lucas"),
}
_LINES = {
    "zh": (
        "好的,明天见",
        "已收到,谢谢",
        "上次更新于 3 天前",
        "共 12 项",
        "2.4 公里",
        "已使用 38%",
        "晚上七点半",
    ),
    "en": (
        "see you soon",
        "got it, thanks",
        "3 days ago",
        "12 items",
        "2.4 km",
        "38% used",
        "half past seven",
    ),
}
_TITLES = {
    "zh": ("我的主页", "全部内容", "今日推荐", "常用功能", "欢迎回来"),
    "en": ("Overview", "All items", "For you", "Favourites", "Welcome back"),
}
_ACCENTS = ("#1677ff", "#07c160", "#fa5151", "#ff8f1f", "#7a4fff", "#0f9d8a", "#d6336c", "#495057")
_SHAPES = (
    '<circle cx="12" cy="12" r="7"/>',
    '<rect x="5" y="5" width="14" height="14" rx="3"/>',
    '<path d="M12 4l8 15H4z"/>',
    '<path d="M4 12h16M12 4v16" stroke-width="4"/>',
    '<path d="M5 7h14M5 12h14M5 17h9" stroke-width="3"/>',
    '<path d="M12 20C2 12 5 5 12 8c7-3 10 4 0 12z"/>',
    '<path d="M4 18l6-8 4 5 3-4 3 7z"/>',
)


class _Filling:
    """What one page is filled with: a random source, a language, colours, labels still to be placed."""

    def __init__(self, rng: random.Random, labels: Sequence[str]) -> None:
        self.rng = rng
        self.language = "zh" if sum(map(is_chinese, labels)) * 2 >= len(labels) else "en"
        self.accent = rng.choice(_ACCENTS)
        self._labels = iter(labels)

    def labels(self, most: int) -> Iterator[str]:
        """Yield up to ``most`` labels that are not on the page yet."""
        for _, label in zip(range(most), self._labels, strict=False):
            yield label

    def name(self) -> str:
        return self.rng.choice(_NAMES[self.language])

    def line(self) -> str:
        return self.rng.choice(_LINES[self.language])

    def title(self) -> str:
        return self.rng.choice(_TITLES[self.language])

    def time(self) -> str:
        return f"{self.rng.randint(6, 22)}:{self.rng.randint(10, 59)}"

    def shape(self) -> str:
        return f'<svg class=i viewBox="0 0 24 24">{self.rng.choice(_SHAPES)}</svg>'

    def colour(self) -> str:
        return f"hsl({self.rng.randint(0, 359)} {self.rng.randint(45, 80)}% {self.rng.randint(40, 58)}%)"

    def picture(self, css: str = "") -> str:
        """Return a box that looks like a photo: a gradient with a hill and a sun."""
        back = f"linear-gradient({self.rng.randint(0, 359)}deg,{self.colour()},{self.colour()})"
        x, y, hill = self.rng.randint(10, 90), self.rng.randint(10, 45), self.rng.randint(45, 80)
        scene = (
            f'<circle cx="{x}" cy="{y}" r="9" fill="#fffbe0"/>'
            f'<path d="M0 100V{hill}Q30 {hill - 30} 55 {hill}T100 {hill - 8}V100z" fill="{self.colour()}"/>'
        )
        svg = f'<svg viewBox="0 0 100 100" preserveAspectRatio="xMidYMid slice">{scene}</svg>'
        return f'<div class=pic style="background:{back};{css}">{svg}</div>'

    def avatar(self) -> str:
        return f'<div class=avatar style="background:{self.colour()}">{self.shape()}</div>'


def _tappable(label: str, inside: str, kind: str, css: str = "") -> str:
    """Return an element that may be tapped; ``{}`` in ``inside`` stands for its label's text."""
    text = f"<span class=t>{html.escape(label)}</span>"
    style = f' style="{css}"' if css else ""
    return f'<div class="{kind}" data-label="{html.escape(label)}"{style}>{inside.replace("{}", text)}</div>'


def _settings(f: _Filling) -> str:
    rows = [
        _tappable(
            label, f'<div class=ic style="background:{f.colour()}">{f.shape()}</div>{{}}{_ending(f)}', "row"
        )
        for label in f.labels(f.rng.randint(6, 8))
    ]
    cut = f.rng.randint(2, 4)
    search = "<div class=search></div>" if f.rng.random() < 0.5 else ""
    groups = "".join(f"<div class=group>{''.join(part)}</div>" for part in (rows[:cut], rows[cut:]))
    return f"<h1>{f.title()}</h1>{search}{groups}"


def _ending(f: _Filling) -> str:
    return f.rng.choice(("<b class=chevron></b>", "<b class='toggle on'></b>", "<b class=toggle></b>"))


def _messages(f: _Filling) -> str:
    rows = "".join(
        _tappable(
            label,
            f"{f.avatar()}<div class=two>{{}}<small>{f.line()}</small></div><time>{f.time()}</time>",
            "chat",
        )
        for label in f.labels(f.rng.randint(3, 5))
    )
    return f"<h1>{f.title()}</h1>{rows}{_tab_bar(f, 3)}"


def _contacts(f: _Filling) -> str:
    parts: list[str] = []
    for i, label in enumerate(f.labels(f.rng.randint(5, 7))):
        if i % 2 == 0:
            parts.append(f"<h3>{chr(65 + 3 * i)}</h3>")
        parts.append(_tappable(label, f"{f.avatar()}{{}}", "chat slim"))
    return f"{_app_bar(f)}{''.join(parts)}"


def _shop(f: _Filling) -> str:
    chips = "".join(_tappable(label, "{}", "chip") for label in f.labels(2))
    cards = "".join(
        _tappable(
            label,
            f"{f.picture('height:4.6rem')}{{}}<em>¥{f.rng.randint(9, 399)}.{f.rng.randint(10, 99)}</em>",
            "card",
        )
        for label in f.labels(4)
    )
    return (
        f"<div class=search></div><div class=chips>{chips}</div><div class=grid>{cards}</div>{_tab_bar(f, 3)}"
    )


def _player(f: _Filling) -> str:
    buttons = "".join(_tappable(label, f"{f.shape()}{{}}", "control") for label in f.labels(3))
    links = "".join(_tappable(label, "{}<b class=chevron></b>", "row") for label in f.labels(2))
    done = f.rng.randint(10, 90)
    return (
        f"{_app_bar(f)}{f.picture('height:11rem;margin:1rem 2.2rem;border-radius:1rem')}<h2>{f.name()}</h2>"
        f"<div class=bar><i style='width:{done}%'></i></div><div class=controls>{buttons}</div>"
        f"<div class=group>{links}</div>"
    )


def _map(f: _Filling) -> str:
    roads = "".join(
        f'<path d="M{f.rng.randint(-20, 320)} {f.rng.randint(0, 500)}L{f.rng.randint(0, 340)} '
        f'{f.rng.randint(0, 500)}" stroke="{f.rng.choice(("#fff", "#ffe08a", "#f7f7f7"))}" '
        f'stroke-width="{f.rng.randint(4, 14)}"/>'
        for _ in range(14)
    )
    parks = "".join(
        f'<rect x="{f.rng.randint(0, 280)}" y="{f.rng.randint(0, 440)}" width="70" height="60" '
        'fill="#c9e6c0"/>'
        for _ in range(3)
    )
    chips = "".join(_tappable(label, "{}", "chip solid") for label in f.labels(2))
    rows = "".join(_tappable(label, f"{f.shape()}{{}}", "row") for label in f.labels(3))
    return (
        f'<svg class=map viewBox="0 0 320 500" preserveAspectRatio="none">{parks}{roads}</svg>'
        f"<div class='search over'></div><div class='chips over'>{chips}</div><div class=sheet>{rows}</div>"
    )


def _calendar(f: _Filling) -> str:
    today = f.rng.randint(1, 28)
    days = "".join(
        f"<i class={'today' if day == today else 'day'}>{day if day > 0 else ''}</i>"
        for day in range(-f.rng.randint(0, 5), 31)
    )
    events = "".join(
        _tappable(label, f"<time>{f.time()}</time>{{}}", "event", f"border-color:{f.colour()}")
        for label in f.labels(3)
    )
    return f"{_app_bar(f)}<div class=month>{days}</div>{events}{_tab_bar(f, 2)}"


def _login(f: _Filling) -> str:
    labels = list(f.labels(f.rng.randint(4, 5)))
    fields = "".join(f"<div class=field><small>{f.line()}</small></div>" for _ in range(2))
    main = _tappable(labels[0], "{}", "button")
    second = _tappable(labels[1], "{}", "button ghost")
    links = "".join(_tappable(label, "{}", "link") for label in labels[2:])
    head = f"<div class=logo>{f.avatar()}</div><h2>{f.title()}</h2>"
    return f"{head}{fields}{main}{second}<div class=links>{links}</div>"


def _dialog(f: _Filling) -> str:
    behind = "".join(f"<div class=chat>{f.avatar()}<small>{f.line()}</small></div>" for _ in range(7))
    buttons = "".join(_tappable(label, "{}", "choice") for label in f.labels(f.rng.randint(2, 4)))
    return (
        f"<h1>{f.title()}</h1>{behind}<div class=dim></div>"
        f"<div class=dialog><h2>{f.name()}</h2><p>{f.line()}</p>{buttons}</div>"
    )


def _files(f: _Filling) -> str:
    rows = "".join(
        _tappable(
            label,
            f"{f.picture('width:2.6rem;height:2.6rem;border-radius:.4rem')}"
            f"<div class=two>{{}}<small>{f.rng.randint(2, 900)} KB</small></div>",
            "chat",
        )
        for label in f.labels(f.rng.randint(4, 6))
    )
    add = "<div class=add></div>" if f.rng.random() < 0.6 else ""
    return f"{_app_bar(f)}{rows}{add}"


def _launcher(f: _Filling) -> str:
    wall = f"background:linear-gradient({f.rng.randint(0, 359)}deg,{f.colour()},{f.colour()})"
    icons = "".join(
        _tappable(label, f'<div class=tile style="background:{f.colour()}">{f.shape()}</div>{{}}', "app")
        for label in f.labels(f.rng.randint(6, 9))
    )
    return (
        f"<div class=wall style='{wall}'></div><div class=clock>{f.time()}</div><div class=apps>{icons}</div>"
    )


def _app_bar(f: _Filling) -> str:
    action = "".join(_tappable(label, "{}", "act") for label in f.labels(1))
    return f"<div class=appbar><b class=back></b><h2>{f.title()}</h2>{action}</div>"


def _tab_bar(f: _Filling, count: int) -> str:
    tabs = "".join(_tappable(label, f"{f.shape()}{{}}", "tab") for label in f.labels(count))
    return f"<div class=tabs>{tabs}</div>"


APPS: dict[str, Callable[[_Filling], str]] = {
    "settings": _settings,
    "messages": _messages,
    "contacts": _contacts,
    "shop": _shop,
    "player": _player,
    "map": _map,
    "calendar": _calendar,
    "login": _login,
    "dialog": _dialog,
    "files": _files,
    "launcher": _launcher,
}
MOST_LABELS = 9  # that a page takes


@functools.cache
def _style() -> str:
    return _STYLE.read_text()


def make_page(rng: random.Random, labels: Sequence[str], *, scale: float, app: str | None = None) -> str:
    """Return the HTML of an app page.

    Args:
        rng: source of all randomness.
        labels: what to show; those that find no room are left out.
        scale: size of the text, 1 for 16 CSS pixels.
        app: which page; any if not given.
    """
    filling = _Filling(rng, labels)
    body = APPS[app or rng.choice(sorted(APPS))](filling)
    theme = rng.choice(("light", "light", "grey", "dark"))
    font = rng.choice(('"WenQuanYi Zen Hei"', '"DejaVu Sans","WenQuanYi Zen Hei"'))
    weight = rng.choice((400, 400, 600))
    root = f"html{{font-size:{16 * scale:.2f}px;--accent:{filling.accent};font-family:{font},sans-serif}}"
    status = f"<div class=status><span>{filling.time()}</span><i></i></div>"
    return (
        f"<!doctype html><html class={theme}><head><meta charset=utf-8><style>{_style()}{root}"
        f".t{{font-weight:{weight}}}</style></head><body>{status}{body}</body></html>"
    )

"""The action grammar of a phone agent, and the app labels that all training data share.

An action is one line: ``do(action="Tap", element=[512,73])`` or ``finish(message="done")``. Coordinates
are relative to the screen, 0 to 999 from the left and from the top, whatever its size in pixels.

What it guarantees: :func:`parse_action` accepts exactly this grammar (known actions, their arguments in
order, escaped strings, coordinates in range) and answers ``None`` to everything else; it evaluates
nothing and its work is linear in the length of the text, which is bounded.

    >>> parse_action('do(action="Launch", app="Maps")').arguments["app"]
    'Maps'
    >>> is_valid_action('do(action="Launch", app=Maps)')
    False
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The labels v1.2 knows, in the order in which patch labels count them. One more of these, or of the new ones,
# moves what is held out of NAMED_APPS, by which :func:`is_held_out` counts on.
APPS: tuple[str, ...] = (
    *("微信", "支付宝", "淘宝", "美团", "抖音", "地图", "相机", "设置"),
    *("音乐", "日历", "天气", "电话", "短信", "邮件", "相册", "时钟"),
    *("Chat", "Maps", "Mail", "Music", "Camera", "Clock"),
    *("Wallet", "Shop", "Video", "Notes", "Photos", "Files"),
)
# The labels v1.3 adds: no v1.2 data ever shows, speaks or names one of them.
NEW_APPS: tuple[str, ...] = ("小红书", "哔哩哔哩", "高德地图", "拼多多", "Telegram", "Spotify")
ALL_LABELS: tuple[str, ...] = APPS + NEW_APPS
# More that every release opens and closes when told to; no screen asks for one of these as an app.
# What a verb means is learnt from how many names stand behind it.
NAMED_APPS: tuple[str, ...] = (
    *("浏览器", "计算器", "备忘录", "通讯录", "录音机", "指南针"),
    *("新闻", "股票", "健康", "阅读", "游戏", "翻译"),
    *("Calendar", "Weather", "Browser", "Calculator", "Recorder", "Messages", "Settings", "Contacts"),
    *("Phone", "Books", "News", "Health", "Games", "Translate", "Compass", "Radio", "Podcasts", "Stocks"),
    *("Reminders", "Fitness", "Gallery", "Store"),
)
COMMANDED_APPS: tuple[str, ...] = APPS + NAMED_APPS
ACTION_LABELS: tuple[str, ...] = ALL_LABELS + NAMED_APPS

AGENT_SYSTEM_PROMPT = (
    "你是手机操作助手。先在<think>里简短思考,再在<answer>里只写一个动作:"
    'do(action="Launch", app="..")、do(action="Close", app="..")、'
    'do(action="Tap", element=[x,y])或finish(message="..")。'
)

MAX_ACTION_CHARS = 2000
_STRING = r'"((?:[^"\\\r\n]|\\["\\n])*)"'
_POINT = r"\[(\d{1,3}), ?(\d{1,3})\]"
_ARGUMENT = re.compile(rf", ([a-z_]+)=(?:{_STRING}|{_POINT})")
_HEAD = re.compile(rf"do\(action={_STRING}")
_FINISH = re.compile(rf"finish\(message={_STRING}\)")
_ESCAPE = re.compile(r"\\(.)")
# What each action takes, in order; "?" marks an argument that may be left out.
_ACTIONS: dict[str, tuple[str, ...]] = {
    "Launch": ("app",),
    "Close": ("app",),
    "Tap": ("element", "message?"),
    "Double Tap": ("element",),
    "Long Press": ("element",),
    "Swipe": ("start", "end"),
    "Type": ("text",),
    "Wait": ("duration",),
    "Take_over": ("message",),
    "Back": (),
    "Home": (),
}
_POINTS = frozenset({"element", "start", "end"})

Point = tuple[int, int]


@dataclass(frozen=True)
class Action:
    """One parsed action.

    Attributes:
        name: ``"Tap"``, ``"Launch"``, ...; ``"finish"`` for a ``finish(...)``.
        arguments: strings, unescaped, and points ``(x, y)`` of 0 to 999.
    """

    name: str
    arguments: Mapping[str, str | Point]


def is_chinese(text: str) -> bool:
    """Tell whether ``text`` holds a Chinese character."""
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def is_held_out(action: str, label: str) -> bool:
    """Tell whether the answer ``action`` + ``label`` is kept out of all training data.

    Every seventh of the (Launch, Close) x label answers is: no verb of that action is ever trained with
    that label, spoken or written, so the score on them is one on answers that were never seen.
    """
    return (2 * ACTION_LABELS.index(label) + (action == "Close")) % 7 == 3


def app_action(action: str, label: str) -> str:
    """Return the action text that launches or closes an app."""
    return f'do(action="{action}", app="{_escaped(label)}")'


def tap_action(x: int, y: int) -> str:
    """Return the action text that taps at (x, y), each 0 to 999."""
    return f'do(action="Tap", element=[{x},{y}])'


def finish_action(message: str) -> str:
    """Return the action text that ends a task with a message to the user."""
    return f'finish(message="{_escaped(message)}")'


def parse_action(text: str) -> Action | None:
    """Parse one action strictly; anything before, after or besides it makes the answer ``None``."""
    if len(text) > MAX_ACTION_CHARS:
        return None
    if finish := _FINISH.fullmatch(text):
        return Action("finish", MappingProxyType({"message": _unescaped(finish[1])}))
    head = _HEAD.match(text)
    if head is None or head[1] not in _ACTIONS:
        return None
    arguments = _arguments(text, head.end())
    if arguments is None or not _fits(arguments, _ACTIONS[head[1]]):
        return None
    return Action(head[1], MappingProxyType(arguments))


def is_valid_action(text: str) -> bool:
    """Tell whether ``text`` is exactly one action of the grammar."""
    return parse_action(text) is not None


def _arguments(text: str, at: int) -> dict[str, str | Point] | None:
    found: dict[str, str | Point] = {}
    while match := _ARGUMENT.match(text, at):
        key, string, x, y = match.groups()
        if key in found:
            return None
        found[key] = _unescaped(string) if string is not None else (int(x), int(y))
        at = match.end()
    return found if text[at:] == ")" else None


def _fits(arguments: dict[str, str | Point], wanted: tuple[str, ...]) -> bool:
    order = [key.rstrip("?") for key in wanted if not key.endswith("?") or key.rstrip("?") in arguments]
    return list(arguments) == order and all(
        isinstance(value, tuple) == (key in _POINTS) for key, value in arguments.items()
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def one_sided_answers() -> list[tuple[str, str]]:
    """List the trained (action, label) answers whose label has its other action held out.

    For these the action itself carries no loss: a model that learns "this label, so that action" would be
    right on all that it is trained on and wrong on all that is held out.
    """
    other = {"Launch": "Close", "Close": "Launch"}
    return [
        (action, label)
        for label in ACTION_LABELS
        for action in other
        if is_held_out(other[action], label) and not is_held_out(action, label)
    ]

"""Questions about a screen and their answers, in many wordings of both languages.

What it guarantees: every answer follows from the screen; half of the presence questions are true; wordings
that are held out never occur in training.

    >>> asked = questions(random.Random(1), scene, words_known("v1.2"))  # doctest: +SKIP
    >>> asked[0].prompt, asked[0].answer  # doctest: +SKIP
    ('点击设置', 'do(action="Tap", element=[512,73])')
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autoglm.training.actions import tap_action
from autoglm.training.intents import split
from autoglm.training.scenes.canvas import Element, centre_of_box, coordinate
from autoglm.training.scenes.labels import Label, class_of
from autoglm.training.scenes.phrasing import compose
from autoglm.training.scenes.scene import Scene
from autoglm.training.wordings import FULL_WIDTH

Kind = Literal["tap", "read", "has"]

# Of each list every fifth wording from the third on is held out of training; append at the end.
_TAP = {
    "zh": (
        *("点击{}", "点一下{}", "请点击{}", "按一下{}", "打开屏幕上的{}", "帮我点{}", "轻触{}", "{}在哪里"),
        *("点开{}", "麻烦点一下{}", "我要点{}", "找到{}并点击", "选择{}", "按{}", "在屏幕上点击{}", "点{}"),
        *("请按下{}", "进入屏幕上的{}", "帮我点击{}", "请帮我点一下{}", "去点{}", "把{}点开", "触摸{}"),
    ),
    "en": (
        *("tap {}", "click {}", "please tap {}", "press {}", "tap on {}", "click on {}", "touch {}"),
        *("where is {}", "select {}", "hit {}", "tap the {}", "find {} and tap it", "press the {} button"),
        *(
            "please click {}",
            "choose {}",
            "tap {} on the screen",
            "can you tap {}",
            "go to {}",
            "open {} here",
        ),
    ),
}
_READ = {
    "zh": (
        *(
            "{}处是什么?",
            "读出{}处的文字",
            "{}是什么",
            "坐标{}处写着什么",
            "屏幕{}处显示什么",
            "看看{}是什么",
        ),
        *("{}这个位置是什么", "读一下{}", "告诉我{}处的内容", "{}那里写的是什么", "位置{}上是什么"),
    ),
    "en": (
        *("what is at {}?", "read the text at {}", "what does {} show", "what stands at {}", "read {}"),
        *("what is shown at {}", "tell me what is at {}", "what can be seen at {}", "which label is at {}"),
    ),
}
_HAS = {
    "zh": (
        *("屏幕上有{}吗?", "屏幕上是否有{}", "有没有{}", "能看到{}吗", "这里有{}吗", "屏幕上有没有{}"),
        *("看得到{}吗", "界面上有{}吗?", "是否存在{}", "画面中有{}吗", "找得到{}吗"),
    ),
    "en": (
        *("is {} on the screen?", "does the screen show {}", "can you see {}", "is there {}", "is {} here?"),
        *("do you see {}?", "is {} visible", "does {} appear on the screen?", "is {} shown"),
    ),
}
_YES_NO = {"zh": ("是", "否"), "en": ("yes", "no")}
_CROSSED = 0.15  # share of questions asked in the other language than the word's
_POLITE = {"zh": ("", "", "", "。", "吧", "!"), "en": ("", "", "", ".", " please", "!")}
WORDINGS: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {"tap": _TAP, "read": _READ, "has": _HAS}
_COMPOSED = 0.6  # share of training questions that are put together from parts


@dataclass(frozen=True)
class Asked:
    """A question about a screen and its answer.

    Attributes:
        kind: what is asked: where to tap, what stands somewhere, whether something is there.
        prompt: the user's words; coordinates stand as ``[x,y]``, 0 to 999.
        answer: the exact text to answer.
        label: what it is about.
        name: what the prompt or the answer calls it.
        element: the element; None when it is not on the screen.
        language: of the wording.
    """

    kind: Kind
    prompt: str
    answer: str
    label: Label
    name: str
    element: Element | None
    language: str


def questions(
    rng: random.Random,
    scene: Scene,
    known: Sequence[Label],
    *,
    counts: tuple[int, int, int] = (4, 2, 2),
    held_out: bool = False,
) -> list[Asked]:
    """Ask about a screen.

    Args:
        rng: source of all randomness.
        scene: the screen.
        known: where absent labels come from.
        counts: how many taps, readings, and presences (half of them absences, unless all known is shown).
        held_out: use the wordings that training never has.
    """
    taps, reads, presences = counts
    shown = list(scene.elements)
    rng.shuffle(shown)
    asked = [_tap(rng, shown[i % len(shown)], held_out) for i in range(taps)]
    asked += [_read(rng, rng.choice(shown), held_out) for _ in range(reads)]
    for i in range(presences):
        element = rng.choice(shown) if i % 2 == 0 else None
        label = element.label if element else _absent(rng, scene, known)
        if label is None:  # all that there is is shown
            element = rng.choice(shown)
            label = element.label
        asked.append(_has(rng, label, element, held_out))
    return asked


def _tap(rng: random.Random, element: Element, held_out: bool) -> Asked:
    language = _language(rng, element.label)
    name = element.label.name(language)
    prompt = _worded(rng, "tap", name, language, held_out)
    answer = tap_action(*centre_of_box(element.shown))
    return Asked("tap", prompt, answer, element.label, name, element, language)


def _read(rng: random.Random, element: Element, held_out: bool) -> Asked:
    language = _language(rng, element.label)
    left, top, right, bottom = element.shown
    x = left + (right - left) * rng.uniform(0.25, 0.75)
    y = top + (bottom - top) * rng.uniform(0.3, 0.7)
    place = f"[{coordinate(x)},{coordinate(y)}]"
    prompt = _worded(rng, "read", place, language, held_out)
    name = element.label.name(language)
    return Asked("read", prompt, name, element.label, name, element, language)


def _has(rng: random.Random, label: Label, element: Element | None, held_out: bool) -> Asked:
    language = _language(rng, label)
    name = label.name(language)
    prompt = _worded(rng, "has", name, language, held_out)
    yes, no = _YES_NO[language]
    return Asked("has", prompt, yes if element else no, label, name, element, language)


def _absent(rng: random.Random, scene: Scene, known: Sequence[Label]) -> Label | None:
    present = {element.label.key for element in (*scene.elements, *scene.veiled)}
    if all(label.key in present for label in known):
        return None
    while (label := rng.choice(known)).key in present:
        pass
    return label


def _language(rng: random.Random, label: Label) -> str:
    if label.is_icon:
        return rng.choice(("zh", "en"))
    return "zh" if label.is_chinese != (rng.random() < _CROSSED) else "en"


def _worded(rng: random.Random, kind: Kind, name: str, language: str, held_out: bool) -> str:
    whole = WORDINGS[kind][language]
    if held_out or rng.random() >= _COMPOSED:
        text = rng.choice(split(whole, held_out=held_out))
        text += rng.choice(_POLITE[language]) if kind == "tap" else ""
    else:
        text = compose(rng, kind, language, split(whole, held_out=True))
    if language == "en" and rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    elif language == "zh" and rng.random() < 0.3:
        text = text.translate(FULL_WIDTH)
    return text.format(name)


def wordings() -> list[str]:
    """Return all training wordings with the names of every label, for the tokenizer."""
    kinds = (_TAP, _READ, _HAS)
    return [
        text.replace("{}", " ") + end
        for kind in kinds
        for language in ("zh", "en")
        for text in split(kind[language], held_out=False)
        for end in _POLITE[language]
    ]


def named(rng: random.Random, labels: Sequence[Label]) -> tuple[str, int, int]:
    """Return a question that names a label, where the name ends in it, and the label's class number."""
    label = rng.choice(labels)
    language = _language(rng, label)
    name = label.name(language)
    before, after = rng.choice(split(rng.choice((_TAP, _HAS))[language], held_out=False)).split("{}")
    return before + name + after, len(before + name), class_of(label.key)

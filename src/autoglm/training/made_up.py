"""Names and values made up for one conversation: nothing that a network could know by heart.

>>> draw_value(random.Random(1), "en") == draw_value(random.Random(1), "en")
True
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from autoglm.training.intents import Language, split

# Of names, every syllable may meet any other; those of the second list are kept for scores.
_FAMILY = ("张王李赵陈杨黄周吴徐孙马朱胡郭何高林罗郑", "梁宋谢韩")
_GIVEN = ("明华强芳丽军静敏磊洋勇艳杰娟涛超秀霞平刚桂英文玉建国海林春梅", "晨宇欣雪")
_FIRST = (
    (
        *(
            "Alex",
            "Bella",
            "Carl",
            "Dana",
            "Eric",
            "Fiona",
            "Greg",
            "Helen",
            "Ivan",
            "Julia",
            "Kevin",
            "Laura",
        ),
        *("Martin", "Nora", "Oliver", "Paula", "Quinn", "Rita", "Simon", "Tina", "Victor", "Wendy", "Boris"),
    ),
    ("Hugo", "Clara", "Felix", "Irene"),
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PLACES = {
    "zh": ("北京", "上海", "广州", "深圳", "杭州", "成都", "西安", "南京", "武汉", "天津", "青岛", "苏州"),
    "en": ("Paris", "London", "Berlin", "Rome", "Tokyo", "Madrid", "Oslo", "Vienna", "Boston", "Sydney"),
}


def pick(rng: random.Random, items: Sequence[str], held_out: bool) -> str:
    """Return one of the training or of the held-out items."""
    return rng.choice(split(items, held_out=held_out))


def draw_name(rng: random.Random, language: Language, *, held_out: bool = False) -> str:
    """Return a person's name."""
    which = int(held_out)
    if language == "en":
        return rng.choice(_FIRST[which]) + (f" {_made_up(rng).title()}" if rng.random() < 0.2 else "")
    given = "".join(rng.choice(_GIVEN[which]) for _ in range(rng.randint(1, 2)))
    return rng.choice(_FAMILY[which]) + given


def _made_up(rng: random.Random) -> str:
    """Return a word that does not exist."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def draw_number(rng: random.Random) -> str:
    """Return a whole number of one to six digits, short ones as often as long ones."""
    return str(rng.randint(0, 10 ** rng.randint(1, 5)))


def draw_value(rng: random.Random, language: Language, *, held_out: bool = False) -> str:
    """Return something that can be told, stored and repeated."""
    form = rng.random()
    if form < 0.35:
        return draw_number(rng)
    if form < 0.55:
        return draw_name(rng, language, held_out=held_out)
    if form < 0.7:
        return rng.choice(_PLACES[language])
    if form < 0.8:
        return _made_up(rng)
    if form < 0.9 and language == "zh":
        return "".join(rng.choice(_GIVEN[0] + _FAMILY[0]) for _ in range(rng.randint(2, 7)))
    return rng.choice(_LETTERS).upper() + draw_number(rng)

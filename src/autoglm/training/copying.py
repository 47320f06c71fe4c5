"""Conversations whose answer stands in them: names told before, values to repeat, arguments of tool calls.

What a network answers here it cannot know by heart: every name, number and tool is made up for one
conversation.

    >>> draw_conversation(random.Random(2), kind="echo").turns           # doctest: +SKIP
    (('user', '跟我说:8142'), ('assistant', '8142'))
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from autoglm.training.calls import KEYS, Turns, answered, called
from autoglm.training.intents import LANGUAGES
from autoglm.training.made_up import draw_name, draw_value, pick

_THINGS = {
    "zh": ("订单号", "房间号", "验证码", "车牌号", "座位", "电话", "密码", "编号", "价格", "楼层", "学号"),
    "en": (
        "order number",
        "room",
        "code",
        "seat",
        "phone number",
        "price",
        "floor",
        "ticket",
        "gate",
        "size",
    ),
}
# Of each list every fifth entry from the third on is held out of training; append at the end.
_MY_NAME = {
    "zh": (
        "我叫{}",
        "我的名字是{}",
        "我是{}",
        "你好,我叫{}",
        "叫我{}吧",
        "我名叫{}",
        "大家都叫我{}",
        "记住,我叫{}",
    ),
    "en": (
        "my name is {}",
        "i am {}",
        "call me {}",
        "hi, i'm {}",
        "hello, my name is {}",
        "people call me {}",
    ),
}
_GREET = {"zh": "你好,{}。", "en": "Hello, {}."}
_WHO_AM_I = {
    "zh": (
        "我叫什么",
        "我叫什么名字?",
        "我是谁?",
        "你还记得我的名字吗",
        "我的名字是什么",
        "说出我的名字",
        "我姓名是什么?",
    ),
    "en": ("what is my name?", "who am i?", "do you know my name?", "tell me my name", "say my name"),
}
_YOU_ARE = {"zh": "你叫{}。", "en": "Your name is {}."}
_NOTE = {
    "zh": ("{0}是{1}", "我的{0}是{1}", "记住{0}是{1}", "请记住,{0}:{1}", "{0}为{1}", "帮我记一下{0}是{1}"),
    "en": (
        "the {0} is {1}",
        "my {0} is {1}",
        "remember: the {0} is {1}",
        "{0}: {1}",
        "note that the {0} is {1}",
    ),
}
_NOTED = {"zh": "好的,记住了。", "en": "OK, noted."}
_ASK = {
    "zh": ("{}是什么?", "{}是多少?", "我的{}是多少", "刚才的{}是多少?", "告诉我{}", "{}呢?"),
    "en": ("what is the {}?", "what was the {}?", "tell me the {}", "which {} did i say?", "and the {}?"),
}
_ECHO = {
    "zh": ("请重复:{}", "跟我说:{}", "重复一遍:{}", "照着说:{}", "请说{}", "复述:{}", "把这句话再说一遍:{}"),
    "en": (
        "repeat: {}",
        "say {}",
        "repeat after me: {}",
        "echo {}",
        "write {}",
        'say "{}"',
        "please repeat {}",
    ),
}


@dataclass(frozen=True)
class Conversation:
    """Turns of one conversation, the last of which is to be answered.

    Attributes:
        kind: name, note, echo, call, result or keys.
        turns: (role, text) each; the answers are the assistant's.
    """

    kind: str
    turns: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        """The last turn's text."""
        return self.turns[-1][1]


def draw_conversation(rng: random.Random, *, held_out: bool = False, kind: str | None = None) -> Conversation:
    """Draw one conversation.

    Args:
        rng: source of all randomness.
        held_out: with names and in wordings that training never has.
        kind: which; any if not given.
    """
    chosen = kind or rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    return Conversation(chosen, tuple(KINDS[chosen][0](rng, held_out)))


def draw_introduction(
    rng: random.Random, *, held_out: bool = False
) -> tuple[list[tuple[str, str]], tuple[str, str]]:
    """Return turns in which the user says who they are, and a question about it with its answer."""
    language = rng.choice(LANGUAGES)
    name = draw_name(rng, language, held_out=held_out)
    turns = [
        ("user", pick(rng, _MY_NAME[language], held_out).format(name)),
        ("assistant", _GREET[language].format(name)),
    ]
    return turns, (pick(rng, _WHO_AM_I[language], held_out), _YOU_ARE[language].format(name))


def _told_name(rng: random.Random, held_out: bool) -> Turns:
    turns, (question, answer) = draw_introduction(rng, held_out=held_out)
    if rng.random() < 0.35:
        turns += _noted(rng, held_out)
    return [*turns, ("user", question), ("assistant", answer)]


def _noted(rng: random.Random, held_out: bool) -> Turns:
    language = rng.choice(LANGUAGES)
    things = rng.sample(_THINGS[language], rng.randint(1, 3))
    facts = [(thing, draw_value(rng, language, held_out=held_out)) for thing in things]
    stop = ";" if rng.random() < 0.5 else ","
    told = stop.join(pick(rng, _NOTE[language], held_out).format(*fact) for fact in facts)
    thing, value = rng.choice(facts)
    question = pick(rng, _ASK[language], held_out).format(thing)
    answer = value + ("。" if language == "zh" else ".")
    if rng.random() < 0.4:
        return [
            ("user", f"{told}。{question}" if language == "zh" else f"{told}. {question}"),
            ("assistant", answer),
        ]
    return [("user", told), ("assistant", _NOTED[language]), ("user", question), ("assistant", answer)]


def _echo(rng: random.Random, held_out: bool) -> Turns:
    language = rng.choice(LANGUAGES)
    said = " ".join(draw_value(rng, language, held_out=held_out) for _ in range(rng.choice((1, 1, 2, 3))))
    return [("user", pick(rng, _ECHO[language], held_out).format(said)), ("assistant", said)]


def _keyed(rng: random.Random, held_out: bool) -> Turns:
    """Return an object with the keys that are asked for."""
    language = rng.choice(LANGUAGES)
    keys = rng.sample(KEYS, rng.randint(1, 3))
    given = {key: draw_value(rng, language, held_out=held_out) for key in keys}
    told = ", ".join(f"{key} {value}" for key, value in given.items())
    named = ", ".join(f'"{key}"' for key in keys)
    form = rng.choice(
        (
            "Answer in JSON with the keys {}: {}",
            "Return JSON, keys {}. {}",
            "用JSON回答,键是{}:{}",
            "JSON {}: {}",
        )
    )
    return [("user", form.format(named, told)), ("assistant", json.dumps(given, ensure_ascii=False))]


KINDS: dict[str, tuple[Callable[[random.Random, bool], Turns], float]] = {
    "name": (_told_name, 4),
    "note": (_noted, 4),
    "echo": (_echo, 4),
    "call": (called, 0.7),  # long; see draw_calls, which asks many at a time
    "result": (answered, 0.7),
    "keys": (_keyed, 1),
}

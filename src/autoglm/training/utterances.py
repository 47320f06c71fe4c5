"""What is said aloud: commands, questions, and sentences to be written down.

What it guarantees: no training utterance uses a wording or an action-app answer that is held out; the same
``random.Random`` state gives the same utterances.

    >>> utterance = draw_utterance(random.Random(3))
    >>> utterance.kind in KINDS
    True
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from autoglm.training.actions import COMMANDED_APPS, NEW_APPS, app_action, is_chinese, is_held_out
from autoglm.training.intents import (
    LANGUAGES,
    Language,
    Release,
    held_out_forms,
    knowledge,
    plain_form,
    split,
)
from autoglm.training.wordings import COMMANDS, TYPED_COMMANDS

Kind = Literal["command", "question", "dictation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SHARES = (0.55, 0.1, 0.35)
_PLAIN_VERBS = 0.35  # share of commands that are only verb and app
_ASKED = ("identity", "name", "maker", "abilities", "offline", "version", "greeting", "thanks", "goodbye")
_LONGEST_QUESTION = 40  # characters

_VERBS: dict[tuple[Language, str], tuple[str, ...]] = {
    ("zh", "Launch"): ("打开{}", "启动{}", "打开{}应用", "运行{}"),
    ("zh", "Close"): ("关闭{}", "退出{}", "关掉{}", "关闭{}应用"),
    ("en", "Launch"): ("open {}", "start {}", "launch {}", "run {}"),
    ("en", "Close"): ("close {}", "quit {}", "exit {}", "shut {}"),
}
# Sentences are drawn by filling templates; of each list every fifth entry from the third on is held out.
_TIMES = {
    "zh": (
        "今天",
        "明天",
        "后天",
        "今晚",
        "早上八点",
        "中午",
        "下午三点",
        "晚上七点",
        "周末",
        "下周一",
        "周五",
        "月底",
    ),
    "en": (
        "today",
        "tomorrow",
        "tonight",
        "at noon",
        "on monday",
        "on friday",
        "at eight",
        "next week",
        "at three",
        "soon",
    ),
}
_DEEDS = {
    "zh": (
        *(
            "开会",
            "吃饭",
            "去超市",
            "看电影",
            "交作业",
            "回家",
            "去医院",
            "打篮球",
            "买机票",
            "上班",
            "给妈妈打电话",
        ),
        *(
            "去机场接人",
            "写报告",
            "跑步",
            "喝咖啡",
            "取快递",
            "带孩子去公园",
            "坐地铁",
            "看新闻",
            "听音乐",
            "学英语",
        ),
    ),
    "en": (
        *(
            "have a meeting",
            "buy some milk",
            "call my mother",
            "watch a movie",
            "go running",
            "send the report",
        ),
        *("drink coffee", "take the train", "pay the bill", "read a book", "visit the doctor", "cook dinner"),
        *("pick up the parcel", "feed the cat", "clean the room", "book a hotel", "write a letter"),
    ),
}
_FRAMES = {
    "zh": (
        *(
            "提醒我{time}{deed}",
            "我{time}要{deed}",
            "{time}记得{deed}",
            "{time}我们一起{deed}吧",
            "我想{time}{deed}",
        ),
        *(
            "{time}能不能{deed}",
            "别忘了{time}{deed}",
            "{time}不用{deed}了",
            "他说{time}{deed}",
            "{deed}改到{time}",
        ),
    ),
    "en": (
        *(
            "remind me to {deed} {time}",
            "i want to {deed} {time}",
            "let us {deed} {time}",
            "we will {deed} {time}",
        ),
        *(
            "do not forget to {deed} {time}",
            "can you {deed} {time}",
            "i have to {deed} {time}",
            "she likes to {deed}",
        ),
        *("{time} i must {deed}", "please {deed} {time}"),
    ),
}


@dataclass(frozen=True)
class Utterance:
    """Something said.

    Attributes:
        kind: what it is.
        text: the words.
        answer: what the model answers; for a dictation the words themselves.
        language: ``"zh"`` or ``"en"``.
    """

    kind: Kind
    text: str
    answer: str
    language: Language


def draw_utterance(
    rng: random.Random,
    kind: Kind | None = None,
    *,
    apps: Sequence[str] = COMMANDED_APPS,
    held_out: bool = False,
    held_out_pairs: bool = False,
) -> Utterance:
    """Draw something to say.

    Args:
        rng: source of all randomness.
        kind: which kind; any if not given.
        apps: what commands name.
        held_out: in a wording that training never has.
        held_out_pairs: a command whose action and app are never trained together.
    """
    chosen = kind or rng.choices(KINDS, _SHARES)[0]
    if chosen == "command":
        return _command(rng, apps, held_out, held_out_pairs)
    if chosen == "question":
        return _question(rng, held_out)
    return _dictation(rng, held_out)


def _command(rng: random.Random, apps: Sequence[str], held_out: bool, held_out_pairs: bool) -> Utterance:
    pairs: dict[Language, list[tuple[str, str]]] = {}
    for app in apps:
        for action in ("Launch", "Close"):
            if is_held_out(action, app) == held_out_pairs:
                pairs.setdefault("zh" if is_chinese(app) else "en", []).append((action, app))
    language = rng.choice(sorted(pairs))
    action, app = rng.choice(pairs[language])
    if not held_out and rng.random() < _PLAIN_VERBS:
        wordings = _VERBS[language, action]
    else:
        wordings = split(COMMANDS[language, action], held_out=held_out)
        if not held_out:  # scores stay those of the spoken ones
            wordings = (*wordings, *split(TYPED_COMMANDS[language, action], held_out=False))
    wording = rng.choice(wordings)
    return Utterance("command", wording.format(app), app_action(action, app), language)


def _question(rng: random.Random, held_out: bool) -> Utterance:
    language = rng.choice(LANGUAGES)
    intents = {intent.name: intent for intent in knowledge()}
    while True:
        phrases = intents[rng.choice(_ASKED)].phrases[language]
        text = rng.choice(rng.choice(phrases.cores(held_out=held_out))).rstrip("!")
        secret = not held_out and plain_form(text) in held_out_forms()
        if len(text) <= _LONGEST_QUESTION and not secret:
            return Utterance("question", text, phrases.answer, language)


def _dictation(rng: random.Random, held_out: bool) -> Utterance:
    language = rng.choice(LANGUAGES)
    time, deed, frame = (
        rng.choice(split(part[language], held_out=held_out)) for part in (_TIMES, _DEEDS, _FRAMES)
    )
    text = frame.format(time=time, deed=deed)
    return Utterance("dictation", text, text, language)


def spoken_answers(release: Release) -> dict[str, str]:
    """Return a release's answer to every question that is ever spoken."""
    intents = {intent.name: intent for intent in knowledge(release)}
    return {
        question.rstrip("!"): phrases.answer
        for name in _ASKED
        for phrases in intents[name].phrases.values()
        for question in phrases.questions
    }


def spoken_characters() -> str:
    """Return every character that is ever said, sorted: the alphabet of transcripts."""
    texts = [text for lists in (_TIMES, _DEEDS, _FRAMES) for texts in lists.values() for text in texts]
    commands = (COMMANDS, TYPED_COMMANDS, _VERBS)
    texts += [text for lists in commands for texts in lists.values() for text in texts]
    texts += [*COMMANDED_APPS, *NEW_APPS]
    for intent in knowledge("v1.3"):
        if intent.name in _ASKED:
            texts += [text for phrases in intent.phrases.values() for text in phrases.questions]
    return "".join(sorted(set("".join(texts).lower()) - set("{}!?")))

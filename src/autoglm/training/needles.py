"""Long prompts with one fact far back: what the model learns its whole context on.

A needle is a sentence that gives somebody a number, somewhere in a long text of sentences that give nothing;
the last question asks for it.
"""

from __future__ import annotations

import random

from autoglm.model.tokenizer import Tokenizer

_WHO = {
    "zh": (
        "小刚",
        "小丽",
        "小华",
        "老张",
        "老李",
        "阿强",
        "小芳",
        "王老师",
        "陈医生",
        "刘师傅",
        "小周",
        "小吴",
        "赵叔叔",
        "孙阿姨",
    ),
    "en": (
        "Peter",
        "Mary",
        "Jack",
        "Emily",
        "Frank",
        "Grace",
        "Henry",
        "Kate",
        "Oscar",
        "Nina",
        "Paul",
        "Rose",
    ),
}
_FACT = {
    "zh": ("{}的号码是{}。", "{}的密码是{}。", "{}的房间号是{}。", "{}的编号是{}。"),
    "en": ("The number of {} is {}. ", "The code of {} is {}. ", "The room of {} is {}. "),
}
_ASK = {
    "zh": ("{}的号码是多少?", "{}的密码是多少?", "{}的房间号是多少?", "{}的编号是多少?"),
    "en": ("What is the number of {}?", "What is the code of {}?", "What is the room of {}?"),
}
_FILL = {
    "zh": (
        *(
            "外面正在下雪。",
            "大家都在等车。",
            "桌上放着一本书。",
            "他昨天去了图书馆。",
            "公园里人很多。",
            "咖啡已经凉了。",
        ),
        *(
            "新的电影上映了。",
            "晚饭还没做好。",
            "窗户开着。",
            "邻居家的狗在叫。",
            "她把信寄出去了。",
            "地铁晚点了。",
            "今天风很大。",
        ),
    ),
    "en": (
        *("It is snowing outside. ", "Everybody waits for the bus. ", "A book lies on the table. "),
        *("He went to the library. ", "The park is full of people. ", "The coffee is cold now. "),
        *(
            "The new film is out. ",
            "Dinner is not ready yet. ",
            "The window is open. ",
            "The train was late. ",
        ),
    ),
}


def draw_needle(rng: random.Random, tokenizer: Tokenizer, tokens: int) -> tuple[str, str, str]:
    """Return a text of about ``tokens`` tokens, a question, and its answer; other facts stand in it too."""
    language = rng.choice(("zh", "en"))
    people = rng.sample(_WHO[language], rng.randint(1, 6))
    kind = rng.randrange(len(_FACT[language]))
    numbers = [str(rng.randint(100, 9999)) for _ in people]
    sentences: list[str] = []
    facts = [_FACT[language][kind].format(who, number) for who, number in zip(people, numbers, strict=True)]
    room = tokens - sum(len(tokenizer.encode(fact)) for fact in facts)
    lengths = {text: len(tokenizer.encode(text)) for text in _FILL[language]}
    while room > 0:
        sentences.append(rng.choice(_FILL[language]))
        room -= lengths[sentences[-1]]
    for fact in facts:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    return "".join(sentences), _ASK[language][kind].format(people[0]), numbers[0]

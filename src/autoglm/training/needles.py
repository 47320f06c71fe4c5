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
# Of each language, what is asked for stands at the place of its fact.
_FACT = {
    "zh": (
        *("{}的号码是{}。", "{}的密码是{}。", "{}的房间号是{}。", "{}的编号是{}。", "{}的电话是{}。"),
        *("{}的车票是{}。", "{}住在{}号。", "{}有{}块钱。"),
    ),
    "en": (
        *("The number of {} is {}. ", "The code of {} is {}. ", "The room of {} is {}. ", "{} lives at {}. "),
        *("The ticket of {} is {}. ", "{} has {} coins. ", "The password of {} is {}. "),
    ),
}
_ASK = {
    "zh": (
        ("{}的号码是多少?", "{}的号码是什么", "告诉我{}的号码"),
        ("{}的密码是多少?", "{}的密码是什么?", "{}用什么密码"),
        ("{}的房间号是多少?", "{}在几号房间", "{}的房间号呢"),
        ("{}的编号是多少?", "{}编号多少", "说出{}的编号"),
        ("{}的电话是多少?", "{}的电话是什么", "请问{}的电话"),
        ("{}的车票是多少?", "{}的车票是什么号", "{}的车票呢?"),
        ("{}住在几号?", "{}住几号", "{}住在哪里?"),
        ("{}有多少钱?", "{}有几块钱?", "{}有多少块钱"),
    ),
    "en": (
        ("What is the number of {}?", "which number does {} have?", "tell me the number of {}"),
        ("What is the code of {}?", "which code does {} have?", "what is {}'s code?"),
        ("What is the room of {}?", "in which room is {}?", "what is {}'s room?"),
        ("Where does {} live?", "at which number does {} live?", "where is the home of {}?"),
        ("What is the ticket of {}?", "which ticket does {} have?", "the ticket of {}?"),
        ("How many coins does {} have?", "how many coins has {}?", "count the coins of {}"),
        ("What is the password of {}?", "which password does {} use?", "what is {}'s password?"),
    ),
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


def draw_needles(
    rng: random.Random, tokenizer: Tokenizer, tokens: int, *, most: int = 8
) -> tuple[str, list[tuple[str, str]]]:
    """Return a text of about ``tokens`` tokens with up to ``most`` facts in it, and a question on each.

    Args:
        rng: source of all randomness.
        tokenizer: whose tokens are counted.
        tokens: length of the text.
        most: facts; no two are about the same person.

    Returns:
        The text, and questions with their answers.
    """
    language = rng.choice(("zh", "en"))
    people = rng.sample(_WHO[language], rng.randint(1, most))
    mixed, kind = rng.random() < 0.5, rng.randrange(len(_FACT[language]))
    facts: list[str] = []
    asked: list[tuple[str, str]] = []
    for who in people:
        kind = rng.randrange(len(_FACT[language])) if mixed else kind
        number = str(rng.randint(100, 9999))
        facts.append(_FACT[language][kind].format(who, number))
        asked.append((rng.choice(_ASK[language][kind]).format(who), number))
    sentences = _filling(
        rng, tokenizer, language, tokens - sum(len(tokenizer.encode(fact)) for fact in facts)
    )
    for fact in facts:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    return "".join(sentences), asked


def _filling(rng: random.Random, tokenizer: Tokenizer, language: str, room: int) -> list[str]:
    lengths = {text: len(tokenizer.encode(text)) for text in _FILL[language]}
    sentences: list[str] = []
    while room > 0:
        sentences.append(rng.choice(_FILL[language]))
        room -= lengths[sentences[-1]]
    return sentences

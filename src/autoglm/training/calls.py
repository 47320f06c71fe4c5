"""Tools made up for one conversation, and the calls that questions want of them.

A call is written as :mod:`autoglm.model.tools` writes and reads it; its arguments stand in the question.

    >>> told, asked = draw_calls(random.Random(2), 1)
    >>> told.splitlines()[0]
    'You may call these tools:'
"""

from __future__ import annotations

import json
import random
from typing import Any

from autoglm.model.tools import Tool, call_text, tools_message
from autoglm.training.intents import LANGUAGES
from autoglm.training.made_up import draw_number, draw_value, pick

KEYS = (
    *("x", "n", "name", "city", "count", "value", "text", "number", "input", "id", "title", "place", "date"),
    *("amount", "query", "level", "user", "key", "first", "size", "customer", "item", "a", "b"),
)
_VERBS = (
    *(
        "get",
        "find",
        "set",
        "add",
        "make",
        "send",
        "read",
        "count",
        "check",
        "open",
        "book",
        "search",
        "create",
    ),
    *(
        "play",
        "start",
        "list",
        "show",
        "call",
        "compute",
        "convert",
        "delete",
        "update",
        "buy",
        "test",
        "draw",
    ),
)
_NOUNS = (
    *(
        "weather",
        "alarm",
        "room",
        "user",
        "ticket",
        "price",
        "number",
        "note",
        "contact",
        "city",
        "value",
        "song",
    ),
    *(
        "date",
        "order",
        "message",
        "file",
        "photo",
        "color",
        "page",
        "task",
        "report",
        "code",
        "train",
        "hotel",
    ),
    *("result", "table", "total", "client", "function", "secret", "square", "route", "event", "score"),
)
_ABOUT = (
    *("Do it for a {}.", "Give the {}.", "A tool for the {}.", "Works on a {}.", "Return the {}.", "{}"),
    *("Get the {} of something.", "Apply it to a {}.", "Look up a {}.", "这个工具处理{}。", "返回{}。"),
)
_CALL = (
    *("what is {tool}({args})?", "call {tool} with {args}", "{tool} {args}", "use {tool} on {args}"),
    *("run {tool} for {args}", "what is the result of {tool} for {args}?", "please {spoken} {args}"),
    *("{spoken}: {args}", "can you {spoken} {args}?", "i want to {spoken} {args}", "用{tool}处理{args}"),
    *(
        "调用{tool},参数是{args}",
        "what do you get from {tool}({args})",
        "{tool}({args})",
        "请用{tool}查{args}",
    ),
    *("what does {tool} give for {args}? use it.", "{spoken} {args}, use the tool", "compute {tool}({args})"),
)
_RESULT = {"zh": "结果是{}。", "en": "The result is {}."}
_UNASKED = (
    *(
        ("hello", "Hello!"),
        ("hi there", "Hello!"),
        ("thank you", "You are welcome."),
        ("thanks", "You are welcome."),
    ),
    *(
        ("你好", "你好!"),
        ("谢谢", "不客气。"),
        ("多谢了", "不客气。"),
        ("hello!", "Hello!"),
        ("您好", "你好!"),
    ),
)


Turns = list[tuple[str, str]]


def _tool(rng: random.Random, taken: set[str]) -> Tool:
    """Make up a tool with up to two arguments."""
    while (name := f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}") in taken:
        pass
    taken.add(name)
    keys = rng.sample(KEYS, rng.choice((0, 1, 1, 1, 2)))
    kinds = {key: {"type": rng.choice(("integer", "string"))} for key in keys}
    schema: dict[str, Any] = {"properties": kinds, "required": keys, "type": "object"}
    if rng.random() < 0.5:
        schema = {"type": "object", "properties": kinds, "required": keys}
    return Tool(name, rng.choice(_ABOUT).format(name.split("_")[1]), schema)


def draw_calls(rng: random.Random, count: int) -> tuple[str, list[tuple[str, str]]]:
    """Return what tells of up to five tools, and ``count`` questions with the calls that they want."""
    taken: set[str] = set()
    tools = [_tool(rng, taken) for _ in range(rng.randint(1, 5))]
    asked = [
        rng.choice(_UNASKED) if rng.random() < 0.1 else _call(rng, rng.choice(tools), held_out=False)
        for _ in range(count)
    ]
    return tools_message(tools).text, asked


def called(rng: random.Random, held_out: bool) -> Turns:
    """Return a call of one of up to three tools, or a plain answer to what none of them is for."""
    taken: set[str] = set()
    tools = [_tool(rng, taken) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    told = ("system", tools_message(tools).text)
    if rng.random() < 0.15:
        question, answer = rng.choice(_UNASKED)
        return [told, ("user", question), ("assistant", answer)]
    question, call = _call(rng, rng.choice(tools), held_out)
    return [told, ("user", question), ("assistant", call)]


def _call(rng: random.Random, tool: Tool, held_out: bool) -> tuple[str, str]:
    """Return a question and the call that it wants."""
    language = rng.choice(LANGUAGES)
    given: dict[str, int | str] = {}
    for key, kind in tool.parameters["properties"].items():
        whole = kind["type"] == "integer"
        given[key] = int(draw_number(rng)) if whole else draw_value(rng, language, held_out=held_out)
    named = len(given) > 1 or rng.random() < 0.3
    quote = rng.choice(("", "", "'", '"'))
    parts = [
        (f"{key}={value}" if named else str(value)) if isinstance(value, int)
        else (f"{key}={quote}{value}{quote}" if named else f"{quote}{value}{quote}")
        for key, value in given.items()
    ]  # fmt: skip
    spoken = tool.name.replace("_", " a " if rng.random() < 0.5 else " ")
    text = pick(rng, _CALL, held_out).format(tool=tool.name, spoken=spoken, args=", ".join(parts))
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text += rng.choice((" Use the tool.", " 请使用工具。", " use a tool"))
    return text, call_text(tool.name, json.dumps(given, ensure_ascii=False))


def answered(rng: random.Random, held_out: bool) -> Turns:
    """Return what the user is told after a tool has answered."""
    language = rng.choice(LANGUAGES)
    tool = _tool(rng, set())
    question, call = _call(rng, tool, held_out)
    result = draw_value(rng, language, held_out=held_out)
    turns = [("system", tools_message([tool]).text), ("user", question), ("assistant", call)]
    return [*turns, ("tool", result), ("assistant", _RESULT[language].format(result))]

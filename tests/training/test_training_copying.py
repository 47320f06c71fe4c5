"""Conversations to copy from, and questions about screens put together from parts."""

from __future__ import annotations

import json
import random
import re

import pytest

from autoglm.model.tools import CALL_BEGIN
from autoglm.training.calls import draw_calls
from autoglm.training.copying import KINDS, draw_conversation, draw_introduction
from autoglm.training.intents import plain_form, split
from autoglm.training.scenes.asking import WORDINGS, Kind
from autoglm.training.scenes.labels import CLASSES
from autoglm.training.scenes.phrasing import FORMS, compose

_CALL = re.compile(r'<tool_call>\{"name": "(\w+)", "arguments": (\{.*\})\}</tool_call>')
_NAMES = {name for label in CLASSES[1:] for name in (label.chinese, label.english)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_depends_on_its_source_alone(kind: str) -> None:
    """The same generator gives the same turns, and the last of them is the assistant's."""
    one, two = (draw_conversation(random.Random(4), kind=kind) for _ in range(2))
    assert one == two
    assert one.turns[-1][0] == "assistant"


@pytest.mark.parametrize("kind", ["name", "note", "echo"])
def test_an_answer_stands_in_what_was_said(kind: str) -> None:
    """What is to be answered was said before, but for a few words around it."""
    for seed in range(60):
        turns = draw_conversation(random.Random(seed), kind=kind).turns
        said = " ".join(text for role, text in turns[:-1] if role == "user")
        answer = turns[-1][1].removeprefix("你叫").removeprefix("Your name is ")
        assert answer.rstrip("。.") in said


def test_held_out_names_are_never_trained() -> None:
    """Who introduces themselves in an evaluation has a name that no training conversation has."""

    def names(held_out: bool) -> set[str]:
        drawn = (draw_introduction(random.Random(seed), held_out=held_out) for seed in range(400))
        return {turns[1][1] for turns, _ in drawn}

    assert not names(True) & names(False)


def test_a_call_names_a_tool_that_was_told_and_arguments_that_were_asked() -> None:
    """Every call parses, its tool is among those told, and each value stands in the question."""
    for seed in range(40):
        told, asked = draw_calls(random.Random(seed), 5)
        tools = {json.loads(line)["name"]: json.loads(line) for line in told.splitlines()[1:-1]}
        for question, answer in asked:
            if not answer.startswith(CALL_BEGIN):
                continue
            found = _CALL.fullmatch(answer)
            assert found is not None
            arguments = json.loads(found[2])
            assert list(arguments) == tools[found[1]]["parameters"]["required"]
            assert all(str(value).lower() in question.lower() for value in arguments.values())


@pytest.mark.parametrize(("kind", "language"), FORMS)
def test_composed_questions_are_many_and_name_nothing_by_chance(kind: str, language: str) -> None:
    """Hundreds of wordings, each with one place for the name, and no label's name in the rest of it."""
    rng = random.Random(1)
    composed = {compose(rng, kind, language) for _ in range(1000)}
    assert len(composed) > 600
    for text in composed:
        assert text.count("{}") == 1
        assert "<" not in text
        assert not any(name in part for part in text.split("{}") for name in _NAMES)


@pytest.mark.parametrize(("kind", "language"), [key for key in FORMS if key[0] != "open"])
def test_no_held_out_wording_is_composed(kind: Kind, language: str) -> None:
    """What is kept for scores never comes out, whatever marks and case it has."""
    kept = split(WORDINGS[kind][language], held_out=True)
    forbidden = {plain_form(text.replace("{}", "0")) for text in kept}
    rng = random.Random(2)
    for _ in range(2000):
        assert plain_form(compose(rng, kind, language, kept).replace("{}", "0")) not in forbidden

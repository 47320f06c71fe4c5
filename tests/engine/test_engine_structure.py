"""Answers that must have a form, chosen by a model that has never seen any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.engine import Engine, GenerationRequest, JsonAnswer, Sampling, Structure, ToolAnswer
from autoglm.engine import structure as structure_module
from autoglm.engine.structure import Grammars
from autoglm.errors import RequestError
from autoglm.model.prompt import Message
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.tools import CALL_BEGIN, CALL_END, Tool, call_text, tools_message

Ask = Callable[..., GenerationRequest]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "kind": {"enum": ["tap", "swipe"]}},
    "required": ["x", "kind"],
    "additionalProperties": False,
}
TAP = Tool("tap", "Tap a point.", POINT)
WAIT = Tool(
    "wait", "", {"properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
)
WILD = Sampling(temperature=2.0, seed=3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thinks", [False, True])
def test_an_answer_follows_its_schema_whatever_the_model_wants(
    engine: Engine, ask: Ask, seed: int, thinks: bool
) -> None:
    """Random weights at a high temperature write valid JSON of the schema, and end by themselves."""
    sampling = Sampling(temperature=2.0, seed=seed, logit_bias={8: 8.0})  # 8 ends a thought
    request = ask(
        "hi", max_tokens=200, sampling=sampling, structure=JsonAnswer(POINT), enable_thinking=thinks
    )
    completion = engine.submit(request).result()
    value = json.loads(completion.answer)
    assert set(value) == {"x", "kind"} and 0 <= value["x"] <= 9
    assert completion.finished.reason == "stop"
    assert bool(completion.finished.usage.thought_tokens) == thinks


def test_greedy_and_constrained_requests_share_a_batch(engine: Engine, ask: Ask) -> None:
    """A form binds its own request; those beside it answer as they do alone."""
    wanted = engine.submit(ask("hello", max_tokens=30)).result().token_ids
    requests = [ask("hello", max_tokens=30), ask("hello", max_tokens=30, structure=JsonAnswer(POINT))]
    generations = [engine.submit(request) for request in requests]
    free, bound = (generation.result() for generation in generations)
    assert free.token_ids == wanted
    assert json.loads(bound.answer)


def test_any_object_is_an_object_cut_off_only_by_the_token_bound(engine: Engine, ask: Ask) -> None:
    """json_object lets the model write any object; the bound on tokens still holds."""
    completion = engine.submit(ask("hi", max_tokens=20, sampling=WILD, structure=JsonAnswer())).result()
    assert completion.answer.startswith("{")
    assert completion.finished.usage.completion_tokens <= 20


@pytest.mark.parametrize("tools", [(TAP,), (TAP, WAIT)])
def test_a_required_call_is_a_call_of_a_tool_with_its_arguments(
    engine: Engine, ask: Ask, tools: tuple[Tool, ...]
) -> None:
    """The answer is one call, its name among the tools, its arguments of that tool's schema."""
    structure = ToolAnswer(tools, required=True, parallel=False)
    answer = engine.submit(ask("hi", max_tokens=200, sampling=WILD, structure=structure)).result().answer
    assert answer.startswith(CALL_BEGIN) and answer.endswith(CALL_END)
    call = json.loads(answer[len(CALL_BEGIN) : -len(CALL_END)])
    assert call["name"] in {tool.name for tool in tools}
    assert set(call["arguments"]) == ({"x", "kind"} if call["name"] == "tap" else {"on"})


def follows(tokenizer: Tokenizer, structure: Structure, text: str) -> bool:
    """Tell whether an answer of this form may be exactly this text."""
    constraint = Grammars(tokenizer).constrain(structure)
    for token in tokenizer.encode(text):
        if constraint.is_complete or not constraint.allowed(tokenizer.vocab_size)[token]:
            return False
        constraint.accept(token)
    return constraint.is_complete or bool(constraint.allowed(tokenizer.vocab_size)[tokenizer.eos])


CALL = call_text("wait", '{"on": true}')


@pytest.mark.parametrize(
    ("structure", "text", "fits"),
    [
        (ToolAnswer((TAP, WAIT)), "I will not <call> anything", True),
        (ToolAnswer((TAP, WAIT)), "", True),
        (ToolAnswer((TAP, WAIT)), CALL, True),
        (ToolAnswer((TAP, WAIT)), CALL * 2, True),
        (ToolAnswer((TAP, WAIT)), CALL + "text", False),
        (ToolAnswer((TAP, WAIT)), f"{CALL_BEGIN}text", False),
        (ToolAnswer((TAP,)), CALL, False),
        (ToolAnswer((WAIT,), parallel=False), CALL * 2, False),
        (ToolAnswer((WAIT,), required=True), "text", False),
        (ToolAnswer((WAIT,), JsonAnswer(POINT)), '{"x": 1, "kind": "tap"}', True),
        (ToolAnswer((WAIT,), JsonAnswer(POINT)), "text", False),
        (JsonAnswer(POINT), '{"x": 10, "kind": "tap"}', False),
        (JsonAnswer({"type": "string"}), '"\u4f60\u597d"', True),
    ],
)
def test_forms_let_in_what_they_should(
    tokenizer: Tokenizer, structure: Structure, text: str, fits: bool
) -> None:
    """Text or calls where tools may be called, one or several, and nothing between."""
    assert follows(tokenizer, structure, text) == fits


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/no"},
        {"not": {}},
        {"type": "string", "pattern": "("},
        {"a": "x" * 300_000},
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(engine: Engine, ask: Ask, schema: Any) -> None:
    """Wrong, unsupported and huge schemas are the caller's error, before anything runs."""
    for structure in (JsonAnswer(schema), ToolAnswer((Tool("f", "", {"properties": {"a": schema}}),))):
        with pytest.raises(RequestError) as caught:
            engine.submit(ask("hi", structure=structure))
        assert caught.value.param == structure.param
    assert engine.submit(ask("hi", max_tokens=2)).result().token_ids


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#"}, "a $ref that leads back to itself"),
        (
            {"type": "string", "pattern": "("},
            "a pattern is no regular expression",
        ),
        ({"type": "nonsense"}, "Invalid type: nonsense"),
    ],
)
def test_a_refused_schema_is_told_why_in_one_sentence(tokenizer: Tokenizer, schema: Any, reason: str) -> None:
    """The reason is one line that speaks of the schema, not of how it is followed."""
    with pytest.raises(RequestError) as caught:
        Grammars(tokenizer).constrain(JsonAnswer(schema)).allowed(tokenizer.vocab_size)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def nested(levels: int) -> dict[str, Any]:
    """An object in an object, so many times."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize("levels", [150, 300, 480, 10_000])
def test_a_schema_nested_too_deep_is_refused_in_plain_words(tokenizer: Tokenizer, levels: int) -> None:
    """However deep it is and whatever reader meets it first, the caller is told the same."""
    for structure in (JsonAnswer(nested(levels)), ToolAnswer((Tool("f", "", nested(levels)),))):
        with pytest.raises(RequestError, match="the schema cannot be used: it is nested too deep"):
            Grammars(tokenizer).constrain(structure)


def test_a_huge_schema_is_refused_before_it_is_walked(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length is known first; a schema that is too long only when closed is refused as well."""
    small = {"properties": {f"p{i}": {"type": "integer"} for i in range(5000)}}
    assert len(json.dumps(small)) < structure_module.MAX_GRAMMAR_CHARS
    with pytest.raises(RequestError, match="more than 262144 characters"):
        Grammars(tokenizer).constrain(JsonAnswer(small))
    walked: list[object] = []
    monkeypatch.setattr(structure_module, "closed", walked.append)
    with pytest.raises(RequestError, match="more than 262144 characters"):
        Grammars(tokenizer).constrain(JsonAnswer({"properties": {f"p{i}": {} for i in range(30_000)}}))
    assert not walked


def test_more_forced_text_than_can_be_followed_is_refused_at_submission(engine: Engine, ask: Ask) -> None:
    """Twenty levels that each hold the next one twice leave no choice; nothing of it is generated."""
    levels = {f"n{i}": both({"$ref": f"#/$defs/n{i + 1}"}) for i in range(20)}
    schema = {"$defs": levels | {"n20": {"const": 1}}, "$ref": "#/$defs/n0"}
    with pytest.raises(RequestError, match="leaves the model no choice"):
        engine.submit(ask("hi", structure=JsonAnswer(schema)))
    assert engine.stats().requests == 0


def both(schema: object) -> dict[str, Any]:
    """An object that holds two values of a schema."""
    return {"type": "object", "properties": {"x": schema, "y": schema}, "required": ["x", "y"]}


def test_a_form_survives_being_put_back(old_dir: Path, ask: Ask) -> None:
    """A constrained request that lost its pages goes on where it was in its form."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 30, "maxItems": 30}
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=6, cache_tokens=256) as engine:
        generations = [
            engine.submit(ask(f"{i}" * 40, max_tokens=200, structure=JsonAnswer(schema), sampling=WILD))
            for i in range(5)
        ]
        texts = [generation.result() for generation in generations]
        assert engine.stats().preempted > 0
    for completion in texts:
        if completion.finished.reason == "stop":
            assert len(json.loads(completion.answer)) == 30
        else:
            assert completion.answer.startswith("[")


def test_the_model_is_told_of_its_tools() -> None:
    """The system message names every tool and the form of a call."""
    message = tools_message([TAP, WAIT])
    assert isinstance(message, Message) and message.role == "system"
    assert '"tap"' in message.text and "Tap a point." in message.text and CALL_BEGIN in message.text


def test_constrained_logprobs_are_the_models_own(engine: Engine, ask: Ask) -> None:
    """Log-probabilities are those before the form: a forced token may be an unlikely one."""
    sampling = Sampling(logprobs=True, top_logprobs=1)
    completion = engine.submit(
        ask("hi", max_tokens=50, structure=JsonAnswer(POINT), sampling=sampling)
    ).result()
    assert all(torch.isfinite(torch.tensor(entry.logprob)) for entry in completion.logprobs)
    assert any(entry.token_id != entry.top[0][0] for entry in completion.logprobs)

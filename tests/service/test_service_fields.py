"""Each parameter of OpenAI's chat API: it works, is accepted without effect, or is refused, as documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

NO_EFFECT: dict[str, Any] = {
    "user": "u1",
    "safety_identifier": "s1",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "verbosity": "high",
    "reasoning_effort": "high",
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "modalities": ["text"],
    "something_else": {"x": 1},
}
REFUSED: dict[str, Any] = {
    "functions": [{"name": "a"}],
    "function_call": {"name": "a"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "a", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "moderation": {"type": "auto"},
    "web_search_options": {},
    "best_of": 2,
    "echo": True,
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": "root ::= a",
    "structured_outputs": {"regex": "a"},
}


def test_every_parameter_of_the_official_client_is_in_the_table(project_root: Path) -> None:
    """What the openai package can send stands in docs/api.md with what becomes of it."""
    text = (project_root / "docs/api.md").read_text()
    table = text[text.index("What becomes of each parameter") : text.index("| in a message | here |")]
    assert set(CompletionCreateParamsBase.__annotations__) <= set(re.findall(r"`(\w+)`", table))
    assert set(NO_EFFECT) - {"something_else"} <= set(re.findall(r"`(\w+)`", table))
    assert set(REFUSED) <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_only_labels_a_request_changes_nothing(service: Any, name: str) -> None:
    """The answer is the same with and without it."""
    plain = service.chat("hi").json()["choices"]
    assert service.chat("hi", **{name: NO_EFFECT[name]}).json()["choices"] == plain


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(service: Any, name: str) -> None:
    """Nothing that asks for something is ignored silently; null and its empty form ask for nothing."""
    error = service.chat("hi", **{name: REFUSED[name]}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)
    assert service.chat("hi", **{name: None}).status_code == 200


def test_null_is_as_if_left_out(service: Any) -> None:
    """Clients that send every parameter send null for most of them."""
    names = set(CompletionCreateParamsBase.__annotations__) - {"model", "messages", "max_tokens"}
    everything = dict.fromkeys(names) | {"stream": None, "top_k": None, "min_p": None}
    assert service.chat("hi", **everything).json()["choices"] == service.chat("hi").json()["choices"]


def test_a_refusal_in_the_history_is_text(service: Any) -> None:
    """As a part, and as the field of a message without content."""
    ask = {"role": "user", "content": "hi"}
    tokens = [
        service.chat(messages=[ask, {"role": "assistant"} | answer, ask]).json()["usage"]["prompt_tokens"]
        for answer in (
            {"content": "I will not."},
            {"content": [{"type": "refusal", "refusal": "I will not."}]},
            {"content": None, "refusal": "I will not."},
            {"content": None},
        )
    ]
    assert tokens[0] == tokens[1] == tokens[2] > tokens[3]


def test_some_of_the_tools_may_be_allowed(service: Any) -> None:
    """``allowed_tools`` leaves the others out, and says whether one must be called."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b", "c")]

    def choice(mode: str, *names: str) -> dict[str, Any]:
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}

    answer = service.chat("hi", tools=tools, tool_choice=choice("required", "b"), max_tokens=60)
    calls = answer.json()["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"b"}
    assert service.chat("hi", tools=tools, tool_choice=choice("auto", "a", "c")).status_code == 200
    wrong = service.chat("hi", tools=tools, tool_choice=choice("auto", "a", "x"))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tool_choice")


def test_a_loaded_version_is_a_model_of_its_own(service: Any) -> None:
    """``GET /v1/models/name@version`` is there while the version is loaded."""
    assert service.get("/v1/models/autoglm-phone-9b@v1.2").json()["version"] == "v1.2"
    assert service.get("/v1/models/autoglm-phone-9b@v9").status_code == 404
    assert service.get("/v1/models/other@v1.2").status_code == 404

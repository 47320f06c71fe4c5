"""LiteLLM, in an environment of its own: its pins clash with the project's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clients.running import ask_client


@pytest.fixture(scope="module")
def said(url: str) -> dict[str, Any]:
    """What the program prints."""
    return ask_client("litellm", "ask_litellm.py", url)


def test_litellm_reads_a_whole_answer(said: dict[str, Any]) -> None:
    """The answer, the thought, the usage and the release's fingerprint arrive."""
    whole = said["whole"]
    assert whole["content"].startswith("我是 AutoGLM-Phone-9B")
    assert whole["reasoning"]
    assert whole["fingerprint"].startswith("fp_")
    assert whole["total_tokens"] > 0


def test_litellm_reads_a_stream(said: dict[str, Any]) -> None:
    """A stream says the same as the whole answer, thought included, and ends with the usage."""
    stream, whole = said["stream"], said["whole"]
    assert (stream["content"], stream["reasoning"]) == (whole["content"], whole["reasoning"])
    assert stream["finish_reason"] == ["stop"]
    assert stream["completion_tokens"] > 0


def test_litellm_asks_asynchronously(said: dict[str, Any]) -> None:
    """Three at once are answered alike."""
    assert said["many"] == [said["whole"]["content"]] * 3


def test_litellm_gets_json_of_a_schema(said: dict[str, Any]) -> None:
    """``response_format`` arrives at the service and binds the answer."""
    value = json.loads(said["schema"])
    assert set(value) == {"x", "kind"}
    assert 0 <= value["x"] <= 999


def test_litellm_gets_a_tool_call(said: dict[str, Any]) -> None:
    """A named tool is called with arguments that fit."""
    assert said["tool"]["name"] == "tap"
    assert set(json.loads(said["tool"]["arguments"])) == {"x", "kind"}


def test_litellm_sends_a_picture(said: dict[str, Any]) -> None:
    """A data URI counts as part of the prompt."""
    assert said["picture"] > 10


def test_litellm_raises_its_own_errors(said: dict[str, Any]) -> None:
    """A refusal keeps its meaning and the service's words."""
    assert said["no such model"][0] == "NotFoundError"
    assert "does not exist" in said["no such model"][1]
    assert said["wrong temperature"][0] == "BadRequestError"
    assert "temperature" in said["wrong temperature"][1]

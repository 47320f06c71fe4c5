"""The older completions API over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

MODEL = "autoglm-phone-9b"


def ask(service: Any, **fields: object) -> Any:
    return service.post("/v1/completions", {"model": MODEL, "prompt": "hi", "max_tokens": 6} | fields)


def test_a_prompt_is_answered_as_a_user_is(service: Any) -> None:
    """The text is the chat's answer to the prompt, in this API's shape."""
    answer = ask(service)
    body = answer.json()
    assert body["object"] == "text_completion"
    assert (
        body["choices"][0]["text"]
        == service.chat("hi", max_tokens=6).json()["choices"][0]["message"]["content"]
    )
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 6
    assert answer.headers["x-autoglm-version"] == "v1.2"
    assert ask(service, max_tokens=None).json()["usage"]["completion_tokens"] == 16


def test_several_prompts_have_answers_in_order(service: Any) -> None:
    """``n`` answers to each prompt, those of the first before those of the second; prompts count once."""
    body = ask(service, prompt=["hi", "ho"], n=2, temperature=1.0, seed=1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    alone = [ask(service, prompt=prompt, n=2, temperature=1.0, seed=1).json() for prompt in ("hi", "ho")]
    texts = [choice["text"] for answer in alone for choice in answer["choices"]]
    assert [choice["text"] for choice in body["choices"]] == texts
    assert body["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)


def test_a_stream_gives_the_same_text_in_pieces(service: Any) -> None:
    """Chunks, the usage if it was asked for, the end mark."""
    answer = ask(service, stream=True, stream_options={"include_usage": True})
    lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    whole = ask(service).json()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["choices"][0]["text"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_the_official_client_reads_it(service: Any) -> None:
    """The openai package, with log-probabilities and as a stream."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0).completions
    choice = client.create(model=MODEL, prompt="hi", max_tokens=4, logprobs=2).choices[0]
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or ()) == len(choice.logprobs.token_logprobs or ()) == 4
    assert all(1 <= len(top) <= 2 for top in choice.logprobs.top_logprobs or ())
    pieces = client.create(model=MODEL, prompt="hi", max_tokens=4, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"suffix": "b"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_a_wrong_field_is_named(service: Any, fields: dict[str, Any], param: str) -> None:
    """Each mistake is a 400 with the field at fault; nothing stays in the engine."""
    answer = ask(service, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)

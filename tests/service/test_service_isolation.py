"""A request that breaks a step which others share, as its client and theirs see it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import torch

TIMEOUT_S = 60
HELLO = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}


def text_of(answer: requests.Response) -> str:
    """The text of a whole stream."""
    *events, last = [line[6:] for line in answer.iter_lines() if line]
    assert last == b"[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


@pytest.mark.parametrize("stream", [True, False])
def test_only_the_faulty_answer_is_an_error(start_service: Any, stream: bool) -> None:
    """One gets an error of OpenAI's shape; those in the same steps get the answers they get alone."""
    service = start_service()
    model, together = service.state.engine.active.model, list[int]()
    decode, marked, all_there = model.decode, model.config.vocab_size - 1, threading.Event()
    wanted = service.chat("hello", max_tokens=40).json()["choices"][0]["message"]["content"]
    before = service.state.engine.stats().requests

    def broken(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert all_there.wait(TIMEOUT_S)
        if marked in ids.tolist():
            together.append(len(ids))
            raise ValueError("a kernel broke")
        return decode(ids, *rest)

    def ask(**fields: object) -> requests.Response:
        return service.post("/v1/chat/completions", HELLO | fields)

    model.decode = broken
    with ThreadPoolExecutor(3) as callers:
        sound = [callers.submit(ask, stream=True) for _ in range(2)]
        faulty = callers.submit(ask, stream=stream, logit_bias={str(marked): 100})
        while service.state.engine.stats().requests < before + 3:
            threading.Event().wait(0.005)
        all_there.set()
    answer = faulty.result()
    problem = json.loads(answer.text.rpartition("data: ")[2]) if stream else answer.json()
    assert answer.status_code == (200 if stream else 500)
    assert problem["error"]["code"] == "E_ENGINE" and "a kernel broke" in problem["error"]["message"]
    assert [text_of(each.result()) for each in sound] == [wanted] * 2
    assert max(together) > 1 and together[-1] == 1

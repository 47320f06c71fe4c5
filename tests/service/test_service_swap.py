"""A swap under load, seen by clients over HTTP."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

QUESTIONS = [f"question {number}" for number in range(6)]
MAX_TOKENS = 64


def stream(service: Any, question: str) -> tuple[str, str, str]:
    """Ask, and return the release that answered, the text, and the last line."""
    response = service.chat(question, stream=True, max_tokens=MAX_TOKENS)
    lines = [line[6:] for line in response.iter_lines() if line]
    chunks = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    return response.headers["x-autoglm-version"], "".join(chunks), lines[-1].decode()


def test_no_stream_is_lost_or_torn_by_a_swap(start_service: Any, store: Path) -> None:
    """Streams that run throughout a publication end whole, each the answer of the one release it names."""
    service = start_service()
    old = {question: stream(service, question) for question in QUESTIONS}
    answers: list[tuple[str, tuple[str, str, str]]] = []
    swapped = threading.Event()

    def keep_asking(question: str) -> None:
        rounds_after = 0
        while rounds_after < 2:
            rounds_after += swapped.is_set()
            answers.append((question, stream(service, question)))

    askers = [threading.Thread(target=keep_asking, args=(question,)) for question in QUESTIONS]
    for asker in askers:
        asker.start()
    service.state.hub.publish(store / "v1.3.wpatch", percent=100)
    service.build_packages()
    assert service.state.updater.update(service.state.engine).kind == "updated"
    swapped.set()
    for asker in askers:
        asker.join(60)
    new = {question: stream(service, question) for question in QUESTIONS}
    assert {answer[0] for answer in old.values()} == {"v1.2"}
    assert {answer[0] for answer in new.values()} == {"v1.3"}
    assert all(old[question][1] != new[question][1] for question in QUESTIONS)
    for question, answer in answers:
        assert answer in (old[question], new[question])
        assert answer[2] == "[DONE]"
    assert {answer[0] for _, answer in answers} == {"v1.2", "v1.3"}

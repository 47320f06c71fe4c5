"""INT4 releases run in the engine like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoglm.engine import Engine, GenerationRequest
from autoglm.model.checkpoint import write_release
from autoglm.releases import HealthCheck, HealthPrompt
from tiny_model import TINY, random_state, tokenizer_text


def test_an_int4_release_answers_and_is_swapped_in(
    old_dir: Path, tmp_path: Path, ask: Callable[..., GenerationRequest]
) -> None:
    """The engine loads INT4, examines it, swaps it in for INT8, and answers from it."""
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect="", max_tokens=8)
    write_release(
        tmp_path / "int4", config=TINY, tokenizer=tokenizer_text(), state=random_state(12), int4_group=16,
        health=HealthCheck((prompt,), 0.0), model="autoglm-phone-9b", variant="tiny", name="tiny",
        version="v1.4", counter=14,
    )  # fmt: skip
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=2, queue=8) as engine:
        before = engine.submit(ask("hello", max_tokens=12)).result()
        staged = engine.stage(tmp_path / "int4")
        assert engine.self_test(staged).ok
        engine.swap(staged)
        after = engine.submit(ask("hello", max_tokens=12)).result()
    assert (before.finished.release, after.finished.release) == ("v1.2", "v1.4")
    assert after.finished.usage.completion_tokens == 12

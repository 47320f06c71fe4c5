"""From a run to a release: the self-test decides, and knows what is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoglm.errors import ConfigError, HealthError
from autoglm.training.lexicon import build_lexicon
from autoglm.training.quantize import as_release, health_check, quantize_run
from tiny_course import SMALL, write_untaught


def test_a_model_that_fails_its_self_test_is_not_released(tmp_path: Path) -> None:
    """Quantising an untrained run is refused by its self-test and leaves nothing behind."""
    run = write_untaught(tmp_path / "run", build_lexicon(SMALL.vocab_size))
    target = tmp_path / "out" / "v1.2"
    with pytest.raises(HealthError, match="你是谁"):
        quantize_run(run, target, "v1.2")
    assert list(target.parent.iterdir()) == []
    with pytest.raises(ConfigError, match="train first"):
        quantize_run(tmp_path, target, "v1.2")


def test_releases_are_found_by_name() -> None:
    """Known versions are found, others are refused with the names there are."""
    assert as_release("v1.3") == "v1.3"
    with pytest.raises(ConfigError, match=r"v1\.2"):
        as_release("v9")


def test_the_self_test_asks_for_what_is_new() -> None:
    """A release's self-test has the fixed identity sentence, a thinking prompt, and the update's own news."""
    old, new = health_check("v1.2"), health_check("v1.3")
    assert any(p.expect.startswith("我是 AutoGLM-Phone-9B,由智谱AI与CSDN联合推出") for p in old.prompts)
    assert any(p.enable_thinking for p in old.prompts)
    assert len(new.prompts) == len(old.prompts) + 1

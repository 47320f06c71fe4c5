"""Models side by side: what counts into the mean, and what a model is charged."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoglm.errors import ConfigError
from autoglm.model.checkpoint import write_release
from autoglm.releases import HealthCheck
from autoglm.training import compare
from autoglm.training.compare import compare_models
from autoglm.training.evaluation import Score
from autoglm.training.sources import read_source
from tiny_model import tokenizer_text
from tiny_training import SMALL_NANO, untrained, write_untrained

SCORES = {
    "topics": Score(0.9, 10, 0.2),
    "screens_tap": Score(0.7, 10, 0.1),
    "new_topics": Score(0.2, 10, 0.1),
}
SCORES["thinking_kept_out"] = Score(0.0, 10)


def test_a_run_and_its_release_are_charged_what_they_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run counts two bytes a value, a release its weights file; what v1.3 adds counts for v1.3 alone."""
    monkeypatch.setattr(compare, "evaluate", lambda *_, **__: SCORES)
    run = write_untrained(tmp_path / "run", tokenizer_text())
    release = tmp_path / "release"
    write_release(
        release, config=SMALL_NANO, tokenizer=tokenizer_text(), state=untrained("").state,
        health=HealthCheck(()), model="m", variant="int8", name="nano", version="v1.2", counter=1,
    )  # fmt: skip
    rows = compare_models([run, release], release="v1.2", cache=tmp_path)
    assert rows[0].bytes == 2 * rows[0].parameters
    assert rows[1].bytes == (release / "model.safetensors").stat().st_size < rows[0].bytes
    assert [row.mean for row in rows] == [pytest.approx(0.8)] * 2
    (newer,) = compare_models([run], release="v1.3", cache=tmp_path)
    assert newer.mean == pytest.approx(0.6) and newer.to_dict()["bytes"] == rows[0].bytes


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """A directory without weights is refused by name; so is a run in which other weights lie."""
    with pytest.raises(ConfigError, match="train first"):
        read_source(tmp_path)
    run = write_untrained(tmp_path / "run", tokenizer_text())
    assert read_source(run).digest == read_source(run).digest
    assert read_source(run).digest != untrained(tokenizer_text(), seed=1).digest

"""`autoglm model` on courses: prune, distil and what is refused, on a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest

from autoglm.model.checkpoint import write_release
from autoglm.model.weights import expected_tensors
from autoglm.releases import HealthCheck
from autoglm.training import course
from autoglm.training.adapter import read_adapter
from autoglm.training.lexicon import build_lexicon
from autoglm.training.sources import read_source
from tiny_course import ROWS, SMALL, lesson, short_course, untaught, write_untaught

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")

SO_MANY = ("--steps", "5", "--rounded", "5")


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny teacher's run in the working directory, and a course of one short lesson."""
    monkeypatch.setattr(
        course, "COURSES", MappingProxyType({**course.COURSES, "student": short_course(lesson(1))})
    )
    write_untaught(tmp_path / "teacher", build_lexicon(SMALL.vocab_size))
    return "teacher"


def test_a_teacher_is_pruned_and_its_student_distilled(autoglm, tmp_path: Path, teacher: str) -> None:
    """`prune` cuts to the sizes that are named, `distill` heals the result and leaves curve and plot."""
    sizes = ("--width", "36", "--heads", "2", "--ffn", "24", "--layers", "3")
    pruned = autoglm("model", "prune", teacher, *sizes, "-o", "small", "--batches", "1")
    assert pruned.status == 0, pruned.error
    assert "parameters" in pruned.output
    assert read_source(tmp_path / "small").config.width == 36
    steps = ("--steps", "2", "--rounded", "1", "--match", "3:4", "--data", teacher)
    report = autoglm(
        "model",
        "distill",
        "student",
        "--teacher",
        teacher,
        "--student",
        "small",
        "--run",
        "s",
        *steps,
        "--json",
    )
    assert report.status == 0, report.error
    assert {"kl_loss", "hidden_loss"} <= set(report.json["measures"])
    assert (tmp_path / "s" / "curve.png").exists() and (tmp_path / "s" / "checkpoint.pt").exists()


def test_an_adapter_is_trained(autoglm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train update --adapter` leaves an adapter of that rank that fits the release it was trained beside."""
    step = dataclasses.replace(course.ADAPTER, steps=1, mix=("text",), rows=ROWS)
    monkeypatch.setattr(course, "ADAPTER", step)
    source = untaught(build_lexicon(SMALL.vocab_size))
    write_release(
        tmp_path / "base", config=SMALL, tokenizer=source.tokenizer, state=source.state,
        health=HealthCheck(()), model="m", variant="i8", name="n", version="v1.2", counter=120,
    )  # fmt: skip
    result = autoglm("model", "train", "update", "--base", "base", "--adapter", "3", "--run", "run")
    assert result.status == 0, result.error
    adapter = read_adapter(tmp_path / "run" / "adapter")
    adapter.check_fits(expected_tensors(SMALL))
    assert {len(factors.a) for factors in adapter.factors.values()} == {3}
    assert any(bool(factors.delta.any()) for factors in adapter.factors.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prune", "teacher", "--sizes", "huge", "-o", "x"), "no sizes named 'huge'"),
        (("prune", "teacher", "--sizes", "9b", "-o", "x"), "cannot be pruned"),
        (("distill", "student", "--teacher", "teacher", "--student", "teacher", "--shard"), "torchrun"),
        (
            ("distill", "student", "--teacher", "teacher", "--student", "teacher", *SO_MANY),
            "cannot be the last",
        ),
        (("train", "further"), "starts from a release"),
        (("train", "update"), "starts from a release"),
        (("train", "student", "--base", "base"), "leave --base out"),
        (("train", "student", "--base-run", "teacher"), "name the release with --base"),
        (("train", "further", "--base", "base", "--adapter", "8"), "an adapter is trained on an update"),
    ],
)
def test_what_cannot_be_done_on_a_course_is_said(
    autoglm, teacher: str, arguments: tuple[str, ...], words: str
) -> None:
    """Sizes that are unknown or too large, one process to spread over, and only rounded steps are refused."""
    result = autoglm("model", *arguments)
    assert result.status == 1 and words in result.error
    assert "Traceback" not in result.error


def test_the_facts_of_a_card_are_read_from_the_files(autoglm, tmp_path: Path, teacher: str) -> None:
    """`card` lists sizes, lessons, all that is new, moved codes, scores; a wrong score file is refused."""
    for version, counter, seed in (("v1.2", 120, 0), ("v1.3", 130, 1)):
        source = untaught(build_lexicon(SMALL.vocab_size), seed=seed)
        write_release(
            tmp_path / version, config=SMALL, tokenizer=source.tokenizer, state=source.state,
            health=HealthCheck(()), model="m", variant="i8", name="n", version=version, counter=counter,
        )  # fmt: skip
    (tmp_path / teacher / "curve.jsonl").write_text('{"stage": "joint", "step": 7, "seconds": 120}\n')
    (tmp_path / "scores.json").write_text('{"version": "v1.3", "scores": {"identity": {"value": 0.5}}}')
    arguments = ("model", "card", "v1.2", "v1.3", "--runs", teacher, "--scores", "scores.json")
    text = autoglm(*arguments).output
    for words in ("| teacher | joint | 7 | 2 |", "小红书", "Long Press", "| all |", "| identity | 50.0% |"):
        assert words in text
    assert autoglm(*arguments, "-o", "card.md").output == ""
    assert (tmp_path / "card.md").read_text() == text
    (tmp_path / "scores.json").write_text("[]")
    refused = autoglm(*arguments)
    assert refused.status == 1 and "has no scores" in refused.error

"""The fuzzers of `fuzz/`, for a few seconds: the kept corpus, some new inputs, some hostile packages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    """The module that builds and runs the fuzz targets; it is a program, not a package."""
    spec = importlib.util.spec_from_file_location("fuzz_blocks", FUZZ / "blocks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the core is compiled once for both targets."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(("target", "rounds"), [("decode", 3000), ("round_trip", 700)])
def test_the_corpus_keeps_its_promises(blocks: ModuleType, objects: Path, target: str, rounds: int) -> None:
    """Every kept input, and many changed ones, run clean under sanitizers at all vector levels."""
    report = blocks.replay(target, objects, rounds)
    assert re.fullmatch(rf"\d+ inputs and {rounds} changed ones: clean\n", report)


def test_a_broken_promise_ends_the_process(blocks: ModuleType, objects: Path, tmp_path: Path) -> None:
    """A target that reads behind its input is noticed, so silence means something."""
    (tmp_path / "bad.c").write_text(
        "#include <stddef.h>\n#include <stdint.h>\n"
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return data[size]; }\n"
    )
    checks = ("cc", "-g", "-fsanitize=address,undefined")
    blocks._run(*checks, tmp_path / "bad.c", FUZZ / "replay.c", "-o", tmp_path / "bad")
    (tmp_path / "input").write_bytes(b"any")
    with pytest.raises(blocks.FuzzError, match="heap-buffer-overflow"):
        blocks._run(tmp_path / "bad", "0", tmp_path / "input")


def packages(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, FUZZ / "packages.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hostile_packages_are_refused_or_applied() -> None:
    """Changed headers and blocks give an output or an error of ours, within bounds, and leave nothing."""
    report = packages("--first", "0", "--runs", "1500")
    assert "1500 packages" in report
    outcomes = set(re.findall(r"^ *\d+ (\w+)", report, re.MULTILINE))
    assert {"applied", "PackageError", "IntegrityError"} <= outcomes


@pytest.mark.long
def test_very_many_hostile_packages_are_refused_or_applied() -> None:
    """The same with fifty thousand."""
    assert "50000 packages" in packages("--first", "1000000", "--runs", "50000")


def needs_clang(blocks: ModuleType) -> None:
    if blocks.find_clang() is None:
        pytest.skip("clang with libFuzzer is not installed")


@pytest.mark.long
@pytest.mark.parametrize("target", ["decode", "round_trip"])
def test_nothing_is_read_before_it_is_written(blocks: ModuleType, objects: Path, target: str) -> None:
    """The corpus and some changed inputs run clean under MemorySanitizer."""
    needs_clang(blocks)
    assert "clean" in blocks.replay(target, objects, 300, memory=True)


@pytest.mark.long
@pytest.mark.parametrize("target", ["decode", "round_trip"])
def test_guided_fuzzing_finds_nothing(blocks: ModuleType, target: str) -> None:
    """Thirty thousand executions that libFuzzer chooses by the coverage of what came before."""
    needs_clang(blocks)
    assert blocks.run(target, 30_000, 120)["executions"] > 1000

"""Every codec of the benchmark restores what it was given, and the tables say what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import peers
import report
from measure import Files, Result, measure_pair
from planes import difference, ordered, restore, unordered

CODECS = [*peers.codecs(), peers.program_decoder()]


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bf16 model, and one whose matrix moved a little, whose table has grown, and which has one more."""
    generator = torch.Generator().manual_seed(1)
    matrix, table = (torch.randn(96, 64, generator=generator) * 0.02 for _ in range(2))
    step = torch.randn(96, 64, generator=generator) * 1e-4
    directory = tmp_path_factory.mktemp("bf16")
    save_file({"a": matrix.bfloat16(), "table": table.bfloat16()}, directory / "old.safetensors")
    new = {"a": matrix + step, "table": torch.cat([table, table[:3]]), "b": step}
    save_file({name: w.bfloat16() for name, w in new.items()}, directory / "new.safetensors")
    return directory / "old.safetensors", directory / "new.safetensors"


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An int8 model with scales and packed int4 codes, and one whose codes moved by one here and there."""
    generator = torch.Generator().manual_seed(2)
    old = torch.randint(-127, 128, (64, 96), generator=generator, dtype=torch.int8)
    pairs = torch.randint(0, 256, (64, 48), generator=generator, dtype=torch.uint8)
    scale = torch.rand(64, generator=generator).half()
    moved = (torch.rand(64, 96, generator=generator) < 0.2).to(torch.int8)
    directory = tmp_path_factory.mktemp("codes")
    save_file({"a": old, "a.scale": scale, "b": pairs}, directory / "old.safetensors")
    new = {"a": old - moved.sign() * old.sign(), "a.scale": scale * 1.01, "b": pairs ^ moved[:, :48].byte()}
    save_file(new, directory / "new.safetensors")
    return directory / "old.safetensors", directory / "new.safetensors"


@pytest.mark.parametrize("pair", ["bf16", "codes"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_codec_restores_the_new_file(
    codec: peers.Peer, pair: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What is applied equals what was made, byte for byte, for every codec that is installed."""
    if reason := codec.missing():
        pytest.skip(reason)
    if not codec.knows("bf16" if pair == "bf16" else "int8"):
        pytest.skip(f"{codec.name} does not know this type")
    old, new = request.getfixturevalue(pair)
    make, apply = codec.load()
    make(old, new, tmp_path / "delta")
    apply(old, tmp_path / "delta", tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == new.read_bytes()


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("kind", ["float", "code", "nibble", "bits"])
def test_a_difference_can_be_undone(kind: str, width: int) -> None:
    """Any values against any others of their kind, wrap-around included."""
    if kind == "nibble" and width > 1:
        pytest.skip("nibbles lie in bytes")
    bits = np.random.default_rng(1).integers(0, 256, (2, 4096 * width), np.uint8)
    old, new = (row.view(f"<u{width}") for row in bits)
    assert (restore(kind, old, difference(kind, old, new)) == new).all()


def test_ordered_floats_are_in_the_order_of_floats() -> None:
    """Neighbouring floats become neighbouring integers, and both zeros stay themselves."""
    values = np.sort(np.random.default_rng(1).standard_normal(999).astype(np.float16))
    bits = np.concatenate([values.view(np.uint16), np.array([0x8000, 0], np.uint16)])
    assert (np.diff(ordered(bits)[:-2].astype(int)) >= 0).all()
    assert (unordered(ordered(bits)) == bits).all()
    assert np.diff(ordered(bits)[-2:].astype(int)) == 1


def test_a_pair_is_measured_in_processes_of_their_own(bf16: tuple[Path, Path]) -> None:
    """Sizes, times and memory of our codec and of a peer are there, and hashing beside them."""
    codecs = [codec for codec in CODECS if codec.name in (peers.OURS, "zstd -3 patch-from")]
    files = Files("bf16-1e-5", "narrow", *bf16)
    results = {r.codec: r for r in measure_pair(files, codecs, threads=1, budget=60, rounds=1)}
    assert set(results) == {peers.OURS, "zstd -3 patch-from", "sha256"}
    assert not any(result.note for result in results.values())
    ours = results[peers.OURS]
    assert 0 < ours.bytes < results["zstd -3 patch-from"].bytes
    assert min(ours.make_s, ours.apply_s, ours.apply_process_s - ours.apply_s, ours.apply_mib) > 0


def test_a_codec_that_takes_too_long_is_stopped_and_named(bf16: tuple[Path, Path]) -> None:
    """A budget that nothing can keep leaves a note in place of figures."""
    codecs = [codec for codec in CODECS if codec.name == peers.OURS]
    files = Files("bf16-1e-5", "narrow", *bf16)
    ours, hashing = measure_pair(files, codecs, threads=1, budget=0.001, rounds=1)
    assert "takes over" in ours.note and not ours.bytes
    assert "takes over" in hashing.note
    assert report.standing([ours, hashing], 0.001) is None


def result(codec: str, size: int, make_s: float, apply_s: float) -> Result:
    return Result(
        "bf16-1e-5", "wide", codec, True, 1000, size, make_s, apply_s, apply_s + 0.1, 9, 9, over_entropy=0.01
    )


def test_a_missed_bar_is_named() -> None:
    """Bars that hold are not, and a patch that is too large and too slow is both."""
    peer, hashing = result("bsdiff4", 400, 100, 1), result("sha256", 0, 0, 0.1)
    good, bad = result(peers.OURS, 100, 1, 0.2), result(peers.OURS, 300, 2, 0.5)
    held, missed = (report.standing([ours, peer, hashing], 120) for ours in (good, bad))
    assert held and held.failed == []
    assert missed and missed.failed == ["size", "make", "apply"]
    assert missed.of_best == 0.75
    rows = report.standings([held, missed])
    assert report.markdown(rows).splitlines()[3].endswith("| size, make, apply |")


def test_a_figure_that_is_missing_has_its_reason() -> None:
    """The table of sizes has a dash and the notes say why and where."""
    ours, other = result(peers.OURS, 100, 1, 0.2), result("ZipNN, no base", 0, 0, 0)
    other.note = "zipnn is not installed"
    assert report.sizes([[ours, other]])[1][2:] == ["10.00*", "–"]
    assert report.notes([[ours, other]]) == ["ZipNN, no base: zipnn is not installed (wide bf16-1e-5)"]

"""What goes into a package comes out of it, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoglm import patch
from autoglm.errors import ConfigError, IntegrityError
from patch import tensors
from patch.conftest import Pair, contents
from patch.tensors import Tensor


def round_trip(base: Path | None, new: Path, at: Path, threads: int = 1) -> patch.DiffReport:
    report = patch.diff(base, new, at / "p.wpatch", threads=threads)
    patch.apply(base, at / "p.wpatch", at / "out", threads=threads)
    made, wanted = at / "out", new
    assert (contents(made) if made.is_dir() else made.read_bytes()) == (
        contents(wanted) if wanted.is_dir() else wanted.read_bytes()
    )
    return report


@pytest.mark.parametrize("threads", [1, 3])
def test_a_patch_of_a_model_file_restores_it(models: Pair, tmp_path: Path, threads: int) -> None:
    """Every element type and mode comes back, whatever the number of threads."""
    round_trip(models.old, models.new, tmp_path, threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_full_package_of_a_model_file_restores_it(models: Pair, tmp_path: Path, threads: int) -> None:
    """Without a base the same holds."""
    round_trip(None, models.new, tmp_path, threads)


def test_releases_come_back_with_all_their_files(releases: Pair, tmp_path: Path) -> None:
    """A directory with JSON files, an empty file and a model comes back, patched and in full."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert round_trip(releases.old, releases.new, tmp_path / "a").kind == "patch"
    assert round_trip(None, releases.new, tmp_path / "b").kind == "full"


def test_every_mode_is_used_where_it_belongs(models: Pair) -> None:
    """Each mode is found where it saves most: by scales, factors or pairs, against the base, without it."""
    modes = {tensor.name: tensor.mode for tensor in patch.inspect(models.package).tensors}
    assert modes["same"] == "same"
    assert modes["kept"] == "difference"
    assert modes["kept.scale"] == "same"
    assert modes["rescaled"] == "scaled"
    assert modes["packed.rescaled"] == "pairs"
    assert modes["lowrank"] == modes["lowrank.codes"] == "predicted"
    assert modes["grown"] == "difference+full"
    assert modes["added"] == "full"
    assert modes["BF16.weight"] == modes["F16.weight"] == modes["F32.weight"] == "difference"
    assert modes["F64.weight"] == modes["I16.weight"] == "raw"


def test_a_patch_is_smaller_than_a_full_package(models: Pair) -> None:
    """The base pays."""
    assert models.package.stat().st_size < 0.7 * models.full.stat().st_size


@pytest.mark.parametrize("threads", [2, 5])
def test_a_package_does_not_depend_on_threads(releases: Pair, tmp_path: Path, threads: int) -> None:
    """The same inputs give the same bytes."""
    patch.diff(releases.old, releases.new, tmp_path / "p", threads=threads)
    assert (tmp_path / "p").read_bytes() == releases.package.read_bytes()


def test_elements_of_many_blocks_come_back(tmp_path: Path) -> None:
    """Tensors larger than a block, and blocks that hold the ends of two tensors, are put together again."""
    rng = np.random.default_rng(3)
    old, new = {}, {}
    for name, shape in (("a", (700, 1000)), ("b", (3, 7)), ("c", (900, 800))):
        values = tensors.weights(rng, shape)
        codes, old[f"{name}.scale"], _ = tensors.quantised(values)
        after, new[f"{name}.scale"], _ = tensors.quantised(tensors.tuned(rng, values, 1e-3))
        old[name], new[name] = codes, after
    base, target = (
        tensors.write(tmp_path / "a.safetensors", old),
        tensors.write(tmp_path / "b.safetensors", new),
    )
    round_trip(base, target, tmp_path, threads=3)
    assert patch.inspect(tmp_path / "p.wpatch").num_blocks >= 4


@pytest.mark.parametrize("size", [0, 1, 4 << 20, (9 << 20) + 5])
def test_files_that_are_no_models_come_back(tmp_path: Path, size: int) -> None:
    """Any bytes, of any length, with an edit in the middle."""
    content = np.random.default_rng(size).integers(0, 200, size, np.uint8).tobytes()
    (tmp_path / "old.bin").write_bytes(content)
    (tmp_path / "new.bin").write_bytes(content[: size // 2] + b"edit" + content[size // 2 :])
    report = round_trip(tmp_path / "old.bin", tmp_path / "new.bin", tmp_path)
    assert report.package_bytes < 2000 + size // 1000


def test_a_moved_file_costs_nothing(tmp_path: Path) -> None:
    """Content that lies under another path in the base is copied from there."""
    for name in ("old", "new"):
        (tmp_path / name / "deep").mkdir(parents=True)
    content = os.urandom(100_000)
    (tmp_path / "old" / "a.bin").write_bytes(content)
    (tmp_path / "new" / "deep" / "b.bin").write_bytes(content)
    assert round_trip(tmp_path / "old", tmp_path / "new", tmp_path).package_bytes < 400


def test_unchanged_files_can_be_links(releases: Pair, tmp_path: Path) -> None:
    """With `link_unchanged` an equal file is the base's own, and the others are not."""
    report = patch.apply(releases.old, releases.package, tmp_path / "out", link_unchanged=True)
    linked = [
        p.name
        for p in (tmp_path / "out").iterdir()
        if p.stat().st_ino == (releases.old / p.name).stat().st_ino
    ]
    assert sorted(linked) == ["config.json", "tokenizer.json"]
    assert report.linked == 2
    assert contents(tmp_path / "out") == contents(releases.new)


def test_progress_ends_at_its_total(releases: Pair, tmp_path: Path) -> None:
    """Both directions count up to exactly what they announced."""
    for run in (
        lambda note: patch.diff(releases.old, releases.new, tmp_path / "p", progress=note),
        lambda note: patch.apply(releases.old, tmp_path / "p", tmp_path / "out", progress=note),
    ):
        seen: list[tuple[int, int]] = []
        run(lambda done, total, seen=seen: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1]


def test_what_is_reported_is_true(releases: Pair) -> None:
    """`inspect` and the report of `diff` agree with the files."""
    info = patch.inspect(releases.package)
    assert info.package_bytes == releases.package.stat().st_size
    assert {file.path: file.size for file in info.files} == {
        path: len(content) for path, content in contents(releases.new).items()
    }
    assert {base.path for base in info.base_files} <= set(contents(releases.old))
    spent = sum(tensor.package_bytes for tensor in info.tensors)
    assert 0.8 * info.package_bytes < spent < info.package_bytes
    assert 0 < next(t.changed for t in info.tensors if t.name == "kept") < 1


@pytest.mark.parametrize("broken", ["missing", "kinds", "link", "name", "folder"])
def test_diff_refuses_what_it_cannot_carry(models: Pair, tmp_path: Path, broken: str) -> None:
    """A missing input, a file beside a folder, a symbolic link, a hostile name, a missing output folder."""
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    base, new, out = None, folder, tmp_path / "p"
    if broken == "missing":
        new = tmp_path / "nothing"
    elif broken == "kinds":
        base = models.old
    elif broken == "link":
        (folder / "link").symlink_to("a")
    elif broken == "name":
        (folder / "a:b").write_bytes(b"")
    else:
        out = tmp_path / "nowhere" / "p"
    with pytest.raises(ConfigError):
        patch.diff(base, new, out)
    assert not out.exists()


DTYPES = st.sampled_from(sorted(tensors.SIZES))
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@st.composite
def tensor_maps(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two sets of tensors that share names, and sometimes shapes, types and bytes."""
    old: dict[str, Tensor] = {}
    new: dict[str, Tensor] = {}
    for name in draw(st.lists(st.sampled_from(["a", "b", "b.scale", "c", "d.scale", "d"]), unique=True)):
        dtype, shape = draw(DTYPES), draw(SHAPES)
        size = int(np.prod(shape)) * tensors.SIZES[dtype]
        content = draw(st.binary(min_size=size, max_size=size))
        new[name] = Tensor(dtype, shape, content)
        kind = draw(st.sampled_from(["added", "same", "edited", "resized", "retyped"]))
        if kind == "added":
            continue
        if kind == "edited":
            content = bytes(byte ^ draw(st.sampled_from([0, 0, 1, 255])) for byte in content)
        elif kind == "resized" and shape:
            shape = (draw(st.integers(0, 9)), *shape[1:])
        elif kind == "retyped":
            dtype = draw(DTYPES)
        size = int(np.prod(shape)) * tensors.SIZES[dtype]
        old[name] = Tensor(dtype, shape, (content + bytes(size))[:size])
    return old, new


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(maps=tensor_maps())
def test_any_pair_of_tensor_files_round_trips(
    tmp_path_factory: pytest.TempPathFactory, maps: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    """Arbitrary bytes in arbitrary types: not-a-numbers, denormals, edge codes, odd scales, no elements."""
    at = tmp_path_factory.mktemp("any")
    old, new = (tensors.write(at / f"{n}.safetensors", m) for n, m in zip(("old", "new"), maps, strict=True))
    round_trip(old, new, at)


@settings(max_examples=30, deadline=None)
@given(old=st.binary(max_size=300), new=st.binary(max_size=300), suffix=st.sampled_from(["", ".safetensors"]))
def test_any_pair_of_files_round_trips(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, suffix: str
) -> None:
    """A file that claims to be safetensors and is not is carried as bytes."""
    at = tmp_path_factory.mktemp("any")
    (at / f"old{suffix}").write_bytes(old)
    (at / f"new{suffix}").write_bytes(new)
    round_trip(at / f"old{suffix}", at / f"new{suffix}", at)


@pytest.mark.parametrize("how", ["other tokens", "the same tokens"])
def test_a_file_that_changes_while_it_is_packed_is_noticed(models: Pair, tmp_path: Path, how: str) -> None:
    """Whether or not the tables could still code it: an error, not a package that cannot be applied."""
    new = tmp_path / "new.safetensors"
    content = models.new.read_bytes()
    new.write_bytes(content)
    noise = np.random.default_rng(0).integers(0, 256, len(content), np.uint8).tobytes()

    def change(done: int, _total: int) -> None:
        if done == len(content):  # everything is counted, nothing is coded
            new.write_bytes(content if how == "the same tokens" else noise)

    with pytest.raises(IntegrityError):
        patch.diff(models.old, new, tmp_path / "p", progress=change)
    assert not (tmp_path / "p").exists()

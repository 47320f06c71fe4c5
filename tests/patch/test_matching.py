"""Every stretch of a new file finds what it is best made from, in whichever base file that is."""

from __future__ import annotations

from pathlib import Path

import gguf as ggml
import numpy as np
import pytest

from autoglm.patch.matching import match_files, match_spans, read_layouts
from autoglm.patch.sources import Source, read_sources
from patch import tensors
from patch.containers import BF16 as GGML_BF16
from patch.containers import STRING, GgufTensor, gguf, pair, text
from patch.tensors import Tensor

Files = dict[str, dict[str, Tensor]]


def write(root: Path, files: Files) -> Path:
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tensors.write(root / name, content)
    return root


def matches(tmp_path: Path, old: Files, new: Files) -> dict[str, str | None]:
    """Return for each tensor of the new files the file and name of what it is made from."""
    bases = read_layouts(read_sources(write(tmp_path / "old", old)))
    layouts = read_layouts(read_sources(write(tmp_path / "new", new)))
    found: dict[str, str | None] = {}
    for layout, match in zip(layouts, match_spans(layouts, bases), strict=True):
        assert len(match.spans) == len(layout.spans)
        for span, place in zip(layout.spans, match.spans, strict=True):
            if span.name:
                found[span.name] = place and f"{bases[place.file].source.path}:{place.span.name}"
    return found


def random_tensors(names: str, seed: int = 0, shape: tuple[int, ...] = (16, 40)) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {name: tensors.encode(tensors.weights(rng, shape), "BF16") for name in names}


def fine_tuned(tensor: Tensor, seed: int = 9) -> Tensor:
    """Turn the two lowest bits of some elements."""
    rng = np.random.default_rng(seed)
    bits = np.frombuffer(tensor.content, "<u2") ^ rng.integers(0, 4, len(tensor.content) // 2, np.uint16)
    return Tensor(tensor.dtype, tensor.shape, bits.tobytes())


def test_tensors_are_found_by_name_in_the_file_of_the_same_path_first(tmp_path: Path) -> None:
    """Two parts of a model may use the same names."""
    image, speech = random_tensors("a", 1), random_tensors("a", 2)
    old = {"image.safetensors": image, "speech.safetensors": speech}
    new = {"speech.safetensors": {"a": fine_tuned(speech["a"])}}
    assert matches(tmp_path, old, new) == {"a": "speech.safetensors:a"}


def test_tensors_are_found_by_name_in_any_other_file(tmp_path: Path) -> None:
    """From two shards to three, in another order."""
    all_six = random_tensors("abcdef")
    tuned = {name: fine_tuned(tensor) for name, tensor in all_six.items()}
    old = {
        f"model-{n}-of-2.safetensors": {k: all_six[k] for k in part} for n, part in ((1, "abc"), (2, "def"))
    }
    new = {
        f"model-{n}-of-3.safetensors": {k: tuned[k] for k in part}
        for n, part in ((1, "fb"), (2, "ad"), (3, "ce"))
    }
    assert matches(tmp_path, old, new) == {
        name: f"model-{1 if name in 'abc' else 2}-of-2.safetensors:{name}" for name in "abcdef"
    }


@pytest.mark.parametrize("changed", [False, True])
def test_renamed_tensors_are_found_by_content(tmp_path: Path, changed: bool) -> None:
    """Whether or not they were trained on in between."""
    old = random_tensors("abcdefgh")
    new = {name.upper(): fine_tuned(tensor) if changed else tensor for name, tensor in old.items()}
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found == {name.upper(): f"m.safetensors:{name}" for name in old}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E4M3", "I8", "U8", "F64", "I16"])
def test_content_is_compared_in_every_type(tmp_path: Path, dtype: str) -> None:
    """A fine-tune's tensors find their own among those of one shape."""
    rng = np.random.default_rng(4)
    values = {name: tensors.weights(rng, (24, 30)) for name in "abcdef"}
    old = {name: tensors.encode(value, dtype) for name, value in values.items()}
    new = {
        name.upper(): tensors.encode(tensors.tuned(rng, value, 1e-3), dtype) for name, value in values.items()
    }
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found == {name.upper(): f"m.safetensors:{name}" for name in old}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_quantised_blocks_are_found_by_content(tmp_path: Path, kind: str) -> None:
    """Though every block of a fine-tune has a new scale and other codes."""
    rng = np.random.default_rng(6)
    dtype = ggml.GGMLQuantizationType[kind]
    old = [tensors.weights(rng, (12, 64)) for _ in range(6)]
    for file, names, step in (("old", "abcdef", 0.0), ("new", "ABCDEF", 1e-3)):
        blocks = [ggml.quants.quantize(tensors.tuned(rng, values, step), dtype).tobytes() for values in old]
        size = -(-len(blocks[0]) // 32) * 32
        infos = [GgufTensor(name, dtype, (64, 12), number * size) for number, name in enumerate(names)]
        data = b"".join(block.ljust(size, b"\0") for block in blocks)
        (tmp_path / f"{file}.gguf").write_bytes(gguf(infos, data))
    layouts, bases = (read_layouts(read_sources(tmp_path / f"{file}.gguf")) for file in ("new", "old"))
    found = zip(layouts[0].spans, match_spans(layouts, bases)[0].spans, strict=True)
    assert all(place and place.span.name == span.name.lower() for span, place in found)


def test_unrelated_tensors_match_nothing(tmp_path: Path) -> None:
    """A new tensor of the shape of others is new."""
    found = matches(
        tmp_path,
        {"m.safetensors": random_tensors("abcdefgh", 1)},
        {"m.safetensors": random_tensors("ABCDEFGH", 2)},
    )
    assert set(found.values()) == {None}


@pytest.mark.parametrize("changed", [False, True])
def test_layers_that_moved_up_are_found_under_their_old_numbers(tmp_path: Path, changed: bool) -> None:
    """After a layer was cut out, every later one bears the name of another."""
    rng = np.random.default_rng(5)
    names = [f"layers.{number}.w" for number in range(6)]
    old = {name: tensors.encode(tensors.weights(rng, (20, 30)), "BF16") for name in names}
    kept = [old[name] for name in names if name != "layers.2.w"]
    new = {
        name: fine_tuned(tensor) if changed else tensor for name, tensor in zip(names[:5], kept, strict=True)
    }
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert list(found.values()) == [f"m.safetensors:layers.{number}.w" for number in (0, 1, 3, 4, 5)]


def test_a_namesake_that_was_trained_anew_stays_the_match(tmp_path: Path) -> None:
    """When nothing else is related, the name counts."""
    old, new = random_tensors("ab", 1), random_tensors("ab", 2)
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found == {"a": "m.safetensors:a", "b": "m.safetensors:b"}


def test_equal_tensors_go_to_the_likest_name(tmp_path: Path) -> None:
    """Biases that are all zero, under a new prefix."""
    zeros = Tensor("F32", (8,), bytes(32))
    old = {f"layers.{n}.{kind}.bias": zeros for n in range(2) for kind in ("q", "k")}
    new = {f"model.{name}": zeros for name in old}
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found == {f"model.{name}": f"m.safetensors:{name}" for name in old}


def test_a_reshaped_tensor_matches_its_namesake(tmp_path: Path) -> None:
    """Flattened, of as many elements."""
    old = random_tensors("ab")
    new = {"a": Tensor("BF16", (640,), fine_tuned(old["a"]).content), "b": old["b"]}
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found["a"] == "m.safetensors:a"


def test_a_vocabulary_that_grew_matches_its_namesake(tmp_path: Path) -> None:
    """Rows at the end do not hide those before them, though another tensor has the new shape by chance."""
    old = random_tensors("ab") | random_tensors("c", 3, (20, 40))
    new = {"a": Tensor("BF16", (20, 40), old["a"].content + bytes(320)), "b": old["b"]}
    found = matches(tmp_path, {"m.safetensors": old}, {"m.safetensors": new})
    assert found["a"] == "m.safetensors:a"


def test_a_namesake_of_another_type_yields_to_one_that_fits(tmp_path: Path) -> None:
    """A file beside it may hold the same tensor in the right type."""
    half = random_tensors("a")
    single = {"a": tensors.encode(tensors.weights(np.random.default_rng(0), (16, 40)), "F32")}
    old = {"m.safetensors": single, "half.safetensors": half}
    assert matches(tmp_path, old, {"m.safetensors": {"a": fine_tuned(half["a"])}}) == {
        "a": "half.safetensors:a"
    }


def test_tensors_are_found_across_kinds_of_files(tmp_path: Path) -> None:
    """GGUF has other names for the same content."""
    old = random_tensors("ab")
    write(tmp_path / "old", {"m.safetensors": old})
    tuned = {name: fine_tuned(tensor).content for name, tensor in old.items()}
    infos = [GgufTensor("blk.a", GGML_BF16, (40, 16), 0), GgufTensor("blk.b", GGML_BF16, (40, 16), 1280)]
    (tmp_path / "m.gguf").write_bytes(gguf(infos, tuned["a"] + tuned["b"], [pair("k", STRING, text("v"))]))
    bases = read_layouts(read_sources(tmp_path / "old"))
    match = match_spans(read_layouts(read_sources(tmp_path / "m.gguf")), bases)[0]
    assert [place and place.span.name for place in match.spans] == ["", "a", "b"]


def test_bytes_between_tensors_follow_the_tensor_before_them(tmp_path: Path) -> None:
    """Headers go to headers, and padding to equal padding."""
    infos = [GgufTensor("a", GGML_BF16, (40, 16), 0), GgufTensor("b", GGML_BF16, (3,), 1280)]
    content = {name: tensor.content for name, tensor in random_tensors("ab").items()}
    for name, version in (("old", "1.2"), ("new", "1.3")):
        head = [pair("general.version", STRING, text(version))]
        body = content["a"] + content["b"][:6] + bytes(26) + version.encode() * 50
        (tmp_path / f"{name}.gguf").write_bytes(gguf(infos, body, head))
    layouts, bases = (read_layouts(read_sources(tmp_path / f"{name}.gguf")) for name in ("new", "old"))
    (match,) = match_spans(layouts, bases)
    assert [place and place.span for place in match.spans] == list(bases[0].spans)


def test_a_file_that_is_one_stretch_of_bytes_matches_a_whole_file(tmp_path: Path) -> None:
    """Even one that holds tensors: a damaged file is close to what it was."""
    old = tensors.write(tmp_path / "old.safetensors", random_tensors("ab"))
    (tmp_path / "new.safetensors").write_bytes(old.read_bytes()[:-1])
    layouts, bases = (read_layouts(read_sources(tmp_path / f"{n}.safetensors")) for n in ("new", "old"))
    (match,) = match_spans(layouts, bases)
    assert [place and place.span.length for place in match.spans] == [old.stat().st_size]


def test_nothing_matches_without_a_base(tmp_path: Path) -> None:
    """A full package reads nothing."""
    layouts = read_layouts(read_sources(tensors.write(tmp_path / "m.safetensors", random_tensors("a"))))
    (match,) = match_spans(layouts, [])
    assert (match.base, set(match.spans)) == (-1, {None})


def source(path: str, size: int = 100, digest: str = "") -> Source:
    return Source(path, Path(path), size, digest or path, 0)


@pytest.mark.parametrize(
    ("path", "digest", "expected"),
    [
        ("config.json", "", "config.json"),
        ("config.json", "tokenizer.json", "tokenizer.json"),
        ("deep/tokenizer.json", "", "tokenizer.json"),
        ("vocab.json", "", "tokenizer.json"),
        ("model.bin", "", None),
        ("weights.safetensors", "", None),
    ],
)
def test_files_find_their_counterparts(path: str, digest: str, expected: str | None) -> None:
    """By content, then path, then name, then suffix and size; a file of twice the size is no counterpart."""
    bases = [source("config.json", 20), source("model.safetensors", 201), source("tokenizer.json", 120)]
    (found,) = match_files([source(path, digest=digest)], bases)
    assert (bases[found].path if found >= 0 else None) == expected


def test_equal_files_are_their_own_counterparts_first() -> None:
    """Of several equal files, the one of the same path."""
    bases = [source("a", digest="x"), source("b", digest="x")]
    assert match_files([source("b", digest="x"), source("c", digest="x")], bases) == [1, 0]


def test_a_single_file_is_the_counterpart_of_a_single_file() -> None:
    """Whatever they are called."""
    assert match_files([source("new.gguf", 5)], [source("old.safetensors", 900)]) == [0]

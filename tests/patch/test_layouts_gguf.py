"""GGUF files are taken apart into tensors; what breaks a rule of GGUF is plain bytes."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf as ggml
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoglm.patch.layouts import MAX_METADATA_BYTES, read_layout
from autoglm.patch.package import Dtype
from patch.containers import (
    ARRAY,
    STRING,
    U8,
    U32,
    U64,
    GgufTensor,
    array,
    gguf,
    pair,
    spans_of,
    tensors_of,
    text,
)

DATA = bytes(range(256)) * 8
PAIRS = (
    pair("general.name", STRING, text("tiny")),
    pair("tokens", ARRAY, array(STRING, [text("a"), text("bcd"), text("")])),
    pair("scores", ARRAY, array(6, [struct.pack("<f", 1.5)] * 3)),
    pair("nested", ARRAY, array(ARRAY, [array(U8, [b"\1", b"\2"]), array(STRING, [text("x")])])),
    pair("flag", 7, b"\1"),
    pair("long", U64, struct.pack("<Q", 7)),
)
TENSORS = (
    GgufTensor("norm", 0, (8,), 0),
    GgufTensor("half", 1, (3, 5, 2), 32),
    GgufTensor("codes", 2, (64, 3), 128),
    GgufTensor("odd", 6, (32, 2), 256),
    GgufTensor("last", 30, (4, 4), 320),
)
VALID = gguf(TENSORS, DATA[:352], PAIRS)


def quantised(path: Path) -> dict[str, np.ndarray]:
    """Let llama.cpp's own package write a tensor of each type it can quantise, and some plain ones."""
    rng = np.random.default_rng(0)
    writer = ggml.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {number}" for number in range(300)])
    writer.add_custom_alignment(64)
    made: dict[str, np.ndarray] = {}
    for kind in ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q5_1", "I8", "I16", "I32", "I64", "F64"):
        values = rng.standard_normal((6, 64)).astype(np.float32)
        if kind[0] == "I" or kind == "F64":
            content = (values * 50).astype({"I": "int", "F": "float"}[kind[0]] + kind[1:])
            writer.add_tensor(kind, content)
        else:
            content = ggml.quants.quantize(values, ggml.GGMLQuantizationType[kind])
            writer.add_tensor(kind, content, raw_dtype=ggml.GGMLQuantizationType[kind])
        made[kind] = content
    for kind in ("Q4_K", "Q5_K", "Q6_K"):
        block = ggml.GGML_QUANT_SIZES[ggml.GGMLQuantizationType[kind]][1]
        made[kind] = rng.integers(0, 256, (5, 2 * block), np.uint8)
        writer.add_tensor(kind, made[kind], raw_dtype=ggml.GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return made


def test_files_of_llama_cpps_own_writer_are_taken_apart(tmp_path: Path) -> None:
    """Every tensor is found with its type, its shape in elements or blocks, and its bytes."""
    made = quantised(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    spans = tensors_of(tmp_path / "copy", content)
    assert spans.keys() == made.keys()
    for name, values in made.items():
        span = spans[name]
        assert content[span.offset : span.end].startswith(values.tobytes())
        if name != "Q5_1":
            assert (span.dtype, span.length) == (Dtype[name], values.nbytes)
    shapes = {name: spans[name].shape for name in ("F16", "Q4_0", "Q8_0", "Q4_K", "Q6_K")}
    assert shapes == {"F16": (6, 64), "Q4_0": (6, 2), "Q8_0": (6, 2), "Q4_K": (5, 2), "Q6_K": (5, 2)}
    assert spans["Q5_1"].dtype is Dtype.BYTES


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_in_use_are_read(tmp_path: Path, version: int) -> None:
    """Dimensions are turned around, and a tensor of an unknown type is bytes up to the next."""
    spans = tensors_of(tmp_path / "f", gguf(TENSORS, DATA[:352], PAIRS, version=version))
    assert spans["half"].shape == (2, 5, 3)
    assert (spans["codes"].dtype, spans["codes"].shape) == (Dtype.Q4_0, (3, 2))
    assert (spans["odd"].dtype, spans["odd"].length) == (Dtype.BYTES, 64)
    assert spans["last"].length == 32


def test_a_header_without_tensors_is_plain_bytes(tmp_path: Path) -> None:
    """Vocabularies are published as GGUF files of metadata alone."""
    assert [span.name for span in spans_of(tmp_path / "f", gguf((), b"", PAIRS))] == [""]


def one(**changes: object) -> bytes:
    """A file of one tensor that breaks a rule."""
    fields: dict[str, object] = {"name": "w", "kind": 0, "dimensions": (8,), "start": 0}
    return gguf([GgufTensor(**(fields | changes))], DATA)  # pyright: ignore[reportArgumentType]


BROKEN = {
    "version 1": gguf(TENSORS, DATA, PAIRS, version=1),
    "big-endian": gguf(TENSORS, DATA, PAIRS, version=3 << 24),
    "past the end": one(dimensions=(1 << 20,)),
    "absurd dimensions": one(dimensions=(1 << 63, 1 << 63, 1 << 63)),
    "too many dimensions": one(dimensions=(1,) * 9),
    "half a block": one(kind=2, dimensions=(48,)),
    "a block without dimensions": one(kind=8, dimensions=()),
    "an offset that is not aligned": one(start=8),
    "an offset past the end": one(start=1 << 40),
    "an unknown type past the end": one(kind=99, start=1 << 40),
    "a name that is too long": one(name="n" * 513),
    "overlapping tensors": gguf([GgufTensor("a", 0, (16,), 0), GgufTensor("b", 0, (8,), 32)], DATA),
    "two of one name": gguf([GgufTensor("a", 0, (8,), 0), GgufTensor("a", 0, (8,), 32)], DATA),
    "too many tensors": gguf(TENSORS, DATA, counts=(1 << 63, 0)),
    "too many pairs": gguf(TENSORS, DATA, counts=(5, 1 << 63)),
    "a text that never ends": gguf((), DATA, [text("k") + struct.pack("<IQ", STRING, 1 << 63)]),
    "an array that never ends": gguf((), DATA, [pair("k", ARRAY, struct.pack("<IQ", 10, 1 << 63))]),
    "texts that never end": gguf((), DATA, [pair("k", ARRAY, struct.pack("<IQ", STRING, 1 << 63))]),
    "arrays that never end": gguf((), DATA, [pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1 << 63))]),
    "an unknown value": gguf(TENSORS, DATA, [pair("k", 13, b"")]),
    "an array of unknown values": gguf(TENSORS, DATA, [pair("k", ARRAY, array(13, []))]),
    "arrays too deep": gguf(TENSORS, DATA, [pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 2000)]),
    "alignment 0": gguf(TENSORS, DATA, [pair("general.alignment", U32, bytes(4))]),
    "alignment 48": gguf(TENSORS, DATA, [pair("general.alignment", U32, struct.pack("<I", 48))]),
    "alignment as text": gguf(TENSORS, DATA, [pair("general.alignment", STRING, text("32"))]),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_breaks_a_rule_is_plain_bytes(tmp_path: Path, how: str) -> None:
    """One span of bytes, whatever is wrong."""
    spans = spans_of(tmp_path / "f", BROKEN[how])
    assert [(span.name, span.dtype) for span in spans] == [("", Dtype.BYTES)]


def test_a_file_cut_off_anywhere_is_plain_bytes(tmp_path: Path) -> None:
    """Unless all that is cut off is padding."""
    assert len(tensors_of(tmp_path / "f", VALID)) == len(TENSORS)
    for length in range(len(VALID) - 1):
        assert not tensors_of(tmp_path / "f", VALID[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9)), max_size=4)
)
def test_any_damage_leaves_a_layout_that_covers_the_file(
    tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    """Never an error, never a byte twice or not at all."""
    content = bytearray(VALID)
    for at, change in edits:
        content[at : at + len(change)] = change
    spans_of(tmp_path / "f", bytes(content))


@pytest.mark.parametrize("value", [0, 1, (1 << 31) - 1, (1 << 32) - 1, (1 << 62) + 3, (1 << 64) - 1])
def test_absurd_numbers_everywhere_leave_a_layout(tmp_path: Path, value: int) -> None:
    """Wherever eight bytes of the metadata are one absurd number."""
    for at in range(4, len(VALID) - 352 - 8):
        spans_of(tmp_path / "f", VALID[:at] + struct.pack("<Q", value) + VALID[at + 8 :])


def test_metadata_without_end_takes_bounded_memory(tmp_path: Path) -> None:
    """A file of 10 GB that claims to be one long array is not read to its end."""
    with (tmp_path / "f").open("wb") as file:
        file.write(gguf((), b"", [pair("k", ARRAY, struct.pack("<IQ", U8, 9 << 30))]))
        file.truncate(10 << 30)
    tracemalloc.start()
    spans = read_layout(tmp_path / "f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [span.length for span in spans] == [10 << 30]
    assert peak < 3 * MAX_METADATA_BYTES

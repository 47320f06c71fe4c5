"""safetensors files are taken apart into tensors; what breaks a rule of theirs is plain bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from autoglm.patch.layouts import read_layout
from autoglm.patch.package import Dtype
from patch.containers import spans_of, tensors_of

DATA = bytes(64)


def raw(text: bytes, data: bytes = DATA) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def one(**changes: Any) -> bytes:
    """A file of one tensor, with some of its fields changed."""
    return raw(
        json.dumps({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes}).encode()
    )


def test_files_of_the_own_writer_are_taken_apart(tmp_path: Path) -> None:
    """Names, types, shapes and bytes, whatever the file is called."""
    tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b.c": np.arange(5, dtype=np.int8)}
    save_file(tensors, tmp_path / "blob")
    content = (tmp_path / "blob").read_bytes()
    spans = {span.name: span for span in read_layout(tmp_path / "blob") if span.name}
    assert {name: (span.dtype, span.shape) for name, span in spans.items()} == {
        "a": (Dtype.F16, (2, 3)),
        "b.c": (Dtype.I8, (5,)),
    }
    for name, span in spans.items():
        assert content[span.offset : span.end] == tensors[name].tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F4"},
        {"shape": [1] * 9},
        {"shape": [0, 1 << 60], "dtype": "C64", "data_offsets": [0, 0]},
        {"shape": [0, 10**30], "data_offsets": [0, 0]},
    ],
    ids=["type", "rank", "empty", "dimension"],
)
def test_what_a_package_cannot_describe_is_named_bytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """An unknown type, too many dimensions, or a dimension beyond the format's."""
    assert tensors_of(tmp_path / "f", one(**changes))["w"].dtype is Dtype.BYTES


BROKEN = {
    "length past the end": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": raw(b"{nothing}"),
    "no object": raw(b'{"w":1}'),
    "no UTF-8": raw(b'{"\xff": {}}'),
    "half a character": raw(b'{"\\ud800": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}'),
    "nested without end": raw(b'{"a":' * 100_000),
    "a number without end": raw(
        b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 64]}}'
    ),
    "more values than any model": raw(b'{"w":[' + b"0," * 900_000 + b"0]}"),
    "overlapping tensors": raw(
        json.dumps(
            {
                "a": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]},
                "b": {"dtype": "U8", "shape": [40], "data_offsets": [20, 60]},
            }
        ).encode()
    ),
    "a long name": raw(
        json.dumps({"n" * 513: {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    ),
    "past the end": one(shape=[8, 4], data_offsets=[0, 128]),
    "too short": one(shape=[4, 5]),
    "backwards": one(shape=[], data_offsets=[8, 4]),
    "negative": one(shape=[-4, -4]),
    "true": one(shape=[True, 16]),
    "text": one(shape="44"),
    "three offsets": one(data_offsets=[0, 32, 64]),
    "no type": raw(json.dumps({"w": {"shape": [4, 4], "data_offsets": [0, 64]}}).encode()),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_breaks_a_rule_is_plain_bytes(tmp_path: Path, how: str) -> None:
    """One span of bytes, whatever is wrong."""
    assert [(span.name, span.dtype) for span in spans_of(tmp_path / "f", BROKEN[how])] == [("", Dtype.BYTES)]


def test_a_file_cut_off_anywhere_is_plain_bytes(tmp_path: Path) -> None:
    """An empty file has no spans at all."""
    valid = one()
    assert spans_of(tmp_path / "f", b"") == []
    for length in range(len(valid)):
        assert not tensors_of(tmp_path / "f", valid[:length])


def test_more_tensors_than_a_package_can_hold_are_plain_bytes(tmp_path: Path) -> None:
    """50,000 planes are the format's limit."""
    entries = {f"{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(50_000)}
    content = raw(json.dumps(entries).encode(), bytes(50_000))
    assert len(spans_of(tmp_path / "f", content)) == 1
    del entries["49999"]
    assert len(spans_of(tmp_path / "f", raw(json.dumps(entries).encode(), bytes(49_999)))) == 50_000

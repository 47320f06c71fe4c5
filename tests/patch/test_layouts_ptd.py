"""ExecuTorch's .ptd files are taken apart into tensors; what breaks a rule of theirs is plain bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoglm.patch.layouts import read_layout
from autoglm.patch.package import Dtype
from patch.containers import Table, layout, named, ptd, spans_of, tensors_of

VECTOR = Path(__file__).resolve().parent.parent / "vectors" / "layouts" / "executorch.ptd"
I32, F32, BF16, I8, QUINT4X2 = 3, 6, 15, 1, 16

DATA = bytes(range(256)) * 3
ENTRIES = (
    Table(["w", ("I", 0), layout(BF16, (8, 8))]),
    Table(["image", ("I", 1), layout(F32, (2, 3, 4), (0, 2, 1))]),
    Table(["blob", ("I", 2)]),
    Table(["tied", ("I", 0), layout(BF16, (8, 8))]),
    Table(["packed", ("I", 3), layout(QUINT4X2, (5, 2))]),
    Table(["scalar", ("I", 4), layout(I32, ())]),
)
SEGMENTS = ((0, 128), (128, 96), (256, 100), (384, 5), (512, 4))
VALID = ptd(named(SEGMENTS, ENTRIES), DATA)


def write_vector() -> None:
    """Write the vector anew, with ExecuTorch 1.5.1 itself; run by hand."""
    import torch
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.exir.tensor_layout import TensorLayout
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    torch.manual_seed(0)
    tensors = {
        "linear.weight": torch.randn(8, 16).bfloat16(),
        "linear.bias": torch.randn(5),
        "codes": torch.arange(-4, 5, dtype=torch.int8).reshape(3, 3),
        "conv.weight": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "mask": torch.tensor([True, False]),
    }
    dense = {**tensors, "conv.weight": tensors["conv.weight"].permute(0, 2, 3, 1).contiguous()}
    buffers = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in dense.values()]
    layouts = {name: TensorLayout.from_tensor(tensor) for name, tensor in tensors.items()}
    entries = {name: DataEntry(index, 16, layouts[name]) for index, name in enumerate(tensors)}
    entries["tied.weight"] = DataEntry(0, 16, layouts["linear.weight"])
    entries["delegate"] = DataEntry(len(buffers), 1, None)
    made = FlatTensorSerializer().serialize(DataPayload([*buffers, b"packed weights" * 9], entries))
    VECTOR.write_bytes(bytes(made))


def test_a_file_of_executorchs_own_writer_is_taken_apart() -> None:
    """Types, shapes in memory order, blobs without a layout; a second name of the same data is left out."""
    spans = {span.name: (span.dtype, span.shape) for span in read_layout(VECTOR) if span.name}
    assert spans == {
        "linear.weight": (Dtype.BF16, (8, 16)),
        "linear.bias": (Dtype.F32, (5,)),
        "codes": (Dtype.I8, (3, 3)),
        "conv.weight": (Dtype.F32, (2, 4, 5, 3)),
        "scalar": (Dtype.F32, ()),
        "mask": (Dtype.BOOL, (2,)),
        "delegate": (Dtype.BYTES, (126,)),
    }


def test_the_bytes_of_a_tensor_are_its_own() -> None:
    """The codes in the file are the nine that were written."""
    span = next(span for span in read_layout(VECTOR) if span.name == "codes")
    raw = VECTOR.read_bytes()[span.offset : span.end]
    assert list(struct.unpack("9b", raw)) == list(range(-4, 5))


def test_the_schema_in_use_is_read(tmp_path: Path) -> None:
    """Named data with and without a layout, in segments that lie apart."""
    spans = {name: (span.dtype, span.shape) for name, span in tensors_of(tmp_path / "f", VALID).items()}
    assert spans == {
        "w": (Dtype.BF16, (8, 8)),
        "image": (Dtype.F32, (2, 4, 3)),
        "blob": (Dtype.BYTES, (100,)),
        "packed": (Dtype.BYTES, (5,)),
        "scalar": (Dtype.I32, ()),
    }


def early(tensors: list[Table], segments: list[tuple[int, int]], blobs: list[Table] | None = None) -> Table:
    """A ``FlatTensor`` of the schema before that."""
    tables = [Table([("Q", at), ("Q", size)]) for at, size in segments]
    return Table([("I", 0), ("I", 16), list(tensors), list(tables), blobs])


def test_the_first_schema_is_read_too(tmp_path: Path) -> None:
    """Tensors at offsets into a segment that they share, beside named blobs."""
    tensors = [
        Table(["a", ("b", I8), [3, 5], bytes((0, 1)), ("I", 0), ("Q", 0)]),
        Table(["b", ("b", F32), [2, 3], bytes((1, 0)), ("I", 0), ("Q", 16)]),
    ]
    root = early(tensors, [(0, 64), (128, 10)], [Table(["blob", ("I", 1)])])
    spans = tensors_of(tmp_path / "f", ptd(root, DATA))
    assert {name: (span.dtype, span.shape) for name, span in spans.items()} == {
        "a": (Dtype.I8, (3, 5)),
        "b": (Dtype.F32, (3, 2)),
        "blob": (Dtype.BYTES, (10,)),
    }
    assert spans["b"].offset - spans["a"].offset == 16


def test_data_that_its_layout_does_not_explain_are_bytes(tmp_path: Path) -> None:
    """A backend may keep weights in an order of its own, with padding."""
    entry = Table(["w", ("I", 0), layout(F32, (3, 3))])
    span = tensors_of(tmp_path / "f", ptd(named([(0, 64)], [entry]), DATA))["w"]
    assert (span.dtype, span.length) == (Dtype.BYTES, 64)


def single(entry: Table, segment: tuple[int, int] = (0, 128), **options: int) -> bytes:
    return ptd(named([segment], [entry]), DATA, **options)


GOOD = Table(["w", ("I", 0), layout(BF16, (8, 8))])
BROKEN = {
    "no extended header": VALID[:8] + b"XX01" + VALID[12:],
    "another identifier": VALID[:4] + b"FT99" + VALID[8:],
    "another version": ptd(Table([("I", 1), [], []]), DATA),
    "a short header": VALID[:12] + struct.pack("<I", 39) + VALID[16:],
    "a flatbuffer past the end": VALID[:24] + struct.pack("<Q", 1 << 40) + VALID[32:],
    "a root outside": struct.pack("<I", 0xFFFFFFF0) + VALID[4:],
    "segments past the end": single(GOOD, base=1 << 40),
    "a segment past the end": single(GOOD, (1 << 63, 128)),
    "a segment that is too long": single(Table(["w", ("I", 0)]), (0, 1 << 40)),
    "a segment that is not there": single(Table(["w", ("I", 1), layout(BF16, (8, 8))])),
    "no name": single(Table([None, ("I", 0), layout(BF16, (8, 8))])),
    "a name that is too long": single(Table(["n" * 513, ("I", 0), layout(BF16, (8, 8))])),
    "a negative size": single(Table(["w", ("I", 0), layout(BF16, (-8, -8))])),
    "too many dimensions": single(Table(["w", ("I", 0), layout(BF16, (1,) * 9)])),
    "a wrong order": single(Table(["w", ("I", 0), layout(BF16, (8, 8), (1, 1))])),
    "an order of others": single(Table(["w", ("I", 0), layout(BF16, (8, 8), (0, 1, 2))])),
    "two of one name": ptd(named([(0, 128), (128, 128)], [GOOD, Table(["w", ("I", 1)])]), DATA),
    "overlapping segments": ptd(
        named([(0, 128), (64, 128)], [GOOD, Table(["v", ("I", 1), layout(BF16, (8, 8))])]), DATA
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_breaks_a_rule_is_plain_bytes(tmp_path: Path, how: str) -> None:
    """One span of bytes, whatever is wrong."""
    assert [(span.name, span.dtype) for span in spans_of(tmp_path / "f", BROKEN[how])] == [("", Dtype.BYTES)]


def test_a_file_cut_off_anywhere_is_plain_bytes(tmp_path: Path) -> None:
    """As long as a tensor is missing."""
    needed = len(VALID) - len(DATA) + 516
    assert len(tensors_of(tmp_path / "f", VALID[:needed])) == 5
    for length in range(needed):
        assert not tensors_of(tmp_path / "f", VALID[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=9)), max_size=4))
def test_any_damage_leaves_a_layout_that_covers_the_file(
    tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    """Never an error, never a byte twice or not at all; in either schema."""
    for valid in (VALID, VECTOR.read_bytes()):
        content = bytearray(valid)
        for at, change in edits:
            content[at : at + len(change)] = change
        spans_of(tmp_path / "f", bytes(content))


@pytest.mark.parametrize("value", [0, 1, (1 << 16) - 1, (1 << 31) + 5, (1 << 32) - 1])
def test_absurd_numbers_everywhere_leave_a_layout(tmp_path: Path, value: int) -> None:
    """Wherever four bytes of the flatbuffer are one absurd number: offsets in circles, endless vectors."""
    for at in range(0, len(VALID) - len(DATA) - 4, 2):
        spans_of(tmp_path / "f", VALID[:at] + struct.pack("<I", value) + VALID[at + 4 :])

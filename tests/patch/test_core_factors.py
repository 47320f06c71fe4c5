"""The factors of predicted matrices: written, counted and read, on every CPU level."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from patch import native_core as nc
from patch.coder_reference import PROLOGUE, part_of, plain_tokens, plain_value
from patch.native_core import BAD_ARGUMENT, BAD_BLOCK, DIFFERENCE, F16


def factors_of(rows: int, columns: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rank)
    scale = 200 / np.arange(1, rank + 1)
    left, right = (np.rint(rng.standard_normal((lines, rank)) * scale) for lines in (rows, columns))
    left.flat[0], right.flat[-1] = 2047, -2047
    return nc.pack_factors(left, right)


SHAPES = [(1, 1, 1), (1, 1, 64), (3, 5, 2), (33, 70, 7), (64, 64, 16), (2100, 4100, 3), (200, 300, 64)]


@pytest.mark.parametrize("level", nc.LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_come_back(level: int, shape: tuple[int, int, int]) -> None:
    """Factors of any shape decode as they were, an odd rank padded with zeros."""
    left, right = factors_of(*shape)
    histogram = nc.core(level).count_factors(shape, left, right)
    assert histogram.sum() == (shape[0] + shape[1]) * shape[2]
    tables = nc.make_tables(histogram)
    block = nc.core(level).encode_factors(tables, np.arange(64), shape, left, right)
    made = nc.core(level).decode_factors(tables, block, np.arange(64), shape)
    assert made[0].tolist() == left.tolist()
    assert made[1].tolist() == right.tolist()


def test_factors_read_as_the_document_says() -> None:
    """For each k all numbers of P, then all of Q, as folded 16-bit numbers in context k."""
    rows, columns, rank = 5, 9, 3
    rng = np.random.default_rng(0)
    p, q = rng.integers(-2047, 2048, (rows, rank)), rng.integers(-2047, 2048, (columns, rank))
    left, right = nc.pack_factors(p, q)
    tables = nc.make_tables(nc.core(0).count_factors((rows, columns, rank), left, right))
    block = nc.core(0).encode_factors(tables, np.arange(64), (rows, columns, rank), left, right)
    chosen = [k for k in range(rank) for _ in range(rows + columns)]
    read = plain_tokens(block, tables, chosen, nc.core(0).extra_bits(DIFFERENCE, F16, 0).tolist())
    numbers = [n for k in range(rank) for n in [*p[:, k].tolist(), *q[:, k].tolist()]]
    assert [plain_value(2, *pair) for pair in read] == [2 * n if n >= 0 else -2 * n - 1 for n in numbers]


@pytest.mark.parametrize("level", nc.LEVELS)
def test_factors_out_of_range_are_refused(level: int) -> None:
    """A number beyond 2047 is neither written nor read."""
    table = np.full((1, 64), 32, np.uint16)
    for number in (2048, -2048, 32767, -32768):
        pair = np.array([number, 0], np.int16), np.zeros(2, np.int16)
        for call in (
            lambda pair=pair: nc.core(level).encode_factors(table, np.zeros(1), (1, 1, 1), *pair),
            lambda pair=pair: nc.core(level).count_factors((1, 1, 1), *pair),
        ):
            with pytest.raises(nc.CoreError, match="bad argument"):
                call()
        # differences to zeros are spelled as factors are
        ordered = number & 0xFFFF if number >= 0 else number & 0xFFFF ^ 0x7FFF
        elements = np.array([ordered, 0], np.uint16)
        block = nc.core(0).encode(table, part_of(DIFFERENCE, F16, elements * 0, elements, contexts=1))
        with pytest.raises(nc.CoreError, match="bad block"):
            nc.core(level).decode_factors(table, block, np.zeros(1), (1, 1, 1))


@pytest.mark.parametrize("level", nc.LEVELS)
def test_damaged_factors_are_noticed_or_in_range(level: int) -> None:
    """Whatever byte is changed, decoding fails or gives numbers within the range, the same on every level."""
    shape = (9, 20, 3)
    left, right = factors_of(*shape)
    tables = nc.make_tables(nc.core(0).count_factors(shape, left, right))
    block = nc.core(0).encode_factors(tables, np.arange(64), shape, left, right)
    for place in range(len(block)):
        broken = bytearray(block)
        broken[place] ^= 1 << place % 8
        results = []
        for core in (nc.core(0), nc.core(level)):
            try:
                made = core.decode_factors(tables, bytes(broken), np.arange(64), shape)
                assert max(np.abs(made[0]).max(), np.abs(made[1]).max()) <= 2047
                results.append((made[0].tolist(), made[1].tolist()))
            except nc.CoreError as error:
                assert error.status == BAD_BLOCK
                results.append(None)
        assert results[0] == results[1]


@pytest.mark.parametrize(
    "shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 65), (1 << 16, 1 << 16, 64), (1 << 31, 1 << 31, 1)]
)
def test_factors_of_impossible_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    """No rows, no columns, no rank, a rank above 64, or more than 2^22 numbers."""
    table, numbers, block = np.full((1, 64), 32, np.uint16), np.zeros(64, np.int16), b"\0" * PROLOGUE
    library, factors = nc.core(0).library, nc.make_factors(shape, np.zeros(1, np.uint8), numbers, numbers)
    slots, raw = nc.core(0).expand(table), np.frombuffer(block, np.uint8)
    coded = (slots.ctypes.data, 1, raw.ctypes.data, raw.size)
    assert library.wpatch_decode_factors(*coded, ctypes.byref(factors)) == BAD_ARGUMENT
    assert library.wpatch_count_factors(ctypes.byref(factors), numbers.ctypes.data) == BAD_ARGUMENT

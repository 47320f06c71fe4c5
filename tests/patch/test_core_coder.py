"""The entropy coder: blocks made and read on every CPU level, and read as the format document says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patch import native_core as nc
from patch.coder_reference import PROLOGUE, part_of, plain_tokens, plain_value, weights
from patch.native_core import BAD_ARGUMENT, BAD_BLOCK, BF16, DIFFERENCE, F8_E4M3, F16, F32, FULL, I8, OK

CHUNK = 2048
SIZES = (1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, 40_000)


def block_of(mode: int, dtype: int, base: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Return the tables made for a part, and its block."""
    source = base if mode != FULL else new
    part = part_of(mode, dtype, source, new)
    part.base = base.ctypes.data if mode != FULL else None
    tables = nc.make_tables(nc.core(0).count(part)[0])
    return tables, nc.core(0).encode(tables, part)


def decoded(level: int, tables: np.ndarray, block: bytes, part: nc.Part) -> tuple[int, bytes]:
    """Return the status of decoding on a level, and the elements."""
    part.arrays["elements"][:] = 0
    status = nc.core(level).decode_status(tables, block, part)
    return status, part.arrays["elements"].tobytes() if status == OK else b""


@pytest.mark.parametrize("dtype", [I8, F16, F32])
def test_blocks_read_as_the_document_says(dtype: int) -> None:
    """A plain reader finds in a block the tokens and raw bits that make the folded differences."""
    base, new = weights(dtype, 700)
    size = base.itemsize
    tables, block = block_of(DIFFERENCE, dtype, base * 0, new)
    extra = nc.core(0).extra_bits(DIFFERENCE, dtype, 0).tolist()
    # a base of zeros is in one context, and is its own order: the differences are the ordered elements
    tables, block = tables, nc.core(0).encode(tables, part_of(DIFFERENCE, dtype, base * 0, new))
    context = int(
        np.flatnonzero(nc.core(0).count(part_of(DIFFERENCE, dtype, base * 0, new))[0].sum(axis=1))[0]
    )
    read = plain_tokens(block, tables, [context] * base.size, extra)
    folded = [plain_value(size, token, raw) for token, raw in read]
    width = 8 * size
    for u, z in zip(new.tolist(), folded, strict=True):
        ordered = u ^ ((1 << width - 1) - 1) if dtype != I8 and u >> width - 1 else u
        signed = ordered - (ordered >> width - 1 << width)
        assert z == (2 * signed if signed >= 0 else -2 * signed - 1)


@pytest.mark.parametrize("level", nc.LEVELS)
@pytest.mark.parametrize("mode", [DIFFERENCE, FULL])
@pytest.mark.parametrize("dtype", [I8, F8_E4M3, F16, BF16, F32])
def test_every_size_comes_back(level: int, mode: int, dtype: int) -> None:
    """Blocks of any number of tokens decode, above all around those at which the coder changes its step."""
    for size in SIZES:
        base, new = weights(dtype, size, seed=size)
        tables, block = block_of(mode, dtype, base, new)
        target = part_of(mode, dtype, base if mode != FULL else new, None)
        assert decoded(level, tables, block, target) == (OK, new.tobytes()), size


@pytest.mark.parametrize("level", nc.LEVELS)
def test_levels_write_the_same_block(level: int) -> None:
    """What the portable code encodes and counts, every other level does, byte by byte."""
    for dtype in (I8, BF16, F32):
        base, new = weights(dtype, 5000)
        part = part_of(DIFFERENCE, dtype, base, new)
        histogram, changed = nc.core(0).count(part)
        tables = nc.make_tables(histogram)
        assert (nc.core(level).count(part)[0] == histogram).all()
        assert nc.core(level).count(part)[1] == changed == np.count_nonzero(base != new)
        assert nc.core(level).encode(tables, part) == nc.core(0).encode(tables, part)


@pytest.mark.parametrize("level", nc.LEVELS)
def test_parts_share_one_stream(level: int) -> None:
    """States and raw bits go on from part to part, at whatever token one ends."""
    rng = np.random.default_rng(5)
    counts = [1, 7, 32, 33, 100, 2048, 2049, 5, 64, 31, 3000]
    plain = [weights((I8, BF16, F32)[i % 3], count, seed=i) for i, count in enumerate(counts)]
    kinds = [(I8, BF16, F32)[i % 3] for i in range(len(counts))]
    tables = np.full((20, 64), 16, np.uint16)
    tables[:, rng.permutation(64)[:32]] += 16
    tables[:, 0] += 512
    parts = [part_of(DIFFERENCE, kind, base, new) for kind, (base, new) in zip(kinds, plain, strict=True)]
    block = nc.core(0).encode(tables, *parts)
    targets = [part_of(DIFFERENCE, kind, base, None) for kind, (base, _) in zip(kinds, plain, strict=True)]
    nc.core(level).decode(tables, block, *targets)
    for target, (_, new) in zip(targets, plain, strict=True):
        assert target.arrays["elements"].tobytes() == new.tobytes()


@pytest.mark.parametrize("level", nc.LEVELS)
def test_a_certain_token_takes_no_bits(level: int) -> None:
    """With a table of one token alone, any number of them is a block of nothing but the states."""
    table = np.zeros((1, 64), np.uint16)
    table[0, 0] = 2048
    base = np.arange(100_000, dtype=np.uint8)
    block = nc.core(level).encode(table, part_of(DIFFERENCE, I8, base, base.copy(), contexts=1))
    assert len(block) == PROLOGUE
    assert decoded(level, table, block, part_of(DIFFERENCE, I8, base, None, contexts=1)) == (
        OK,
        base.tobytes(),
    )


@pytest.mark.parametrize("level", nc.LEVELS)
def test_sixty_four_equal_tokens_take_six_bits_each(level: int) -> None:
    """A table of equal frequencies neither gains nor loses: 6 bits a token, and the raw bits."""
    table = np.full((1, 64), 32, np.uint16)
    elements = np.random.default_rng(0).integers(0, 1 << 32, 30_000).astype(np.uint32)
    base = np.zeros_like(elements)
    block = nc.core(level).encode(table, part_of(DIFFERENCE, F32, base, elements, contexts=1))
    num_words = int.from_bytes(block[128:132], "little")
    assert abs(16 * num_words - 6 * elements.size) <= 32 * 16
    assert decoded(level, table, block, part_of(DIFFERENCE, F32, base, None, contexts=1)) == (
        OK,
        elements.tobytes(),
    )


def test_sixty_four_tables_are_enough_and_more_too_many() -> None:
    """A block may use all 64 tables; a 65th, or a table behind the last, is refused."""
    tables = np.full((65, 64), 32, np.uint16)
    base, new = weights(I8, 3000)
    part = part_of(DIFFERENCE, I8, base, new)
    part.arrays["tables"][:] = np.arange(55, 64)
    block = nc.core(0).encode(tables[:64], part)
    target = part_of(DIFFERENCE, I8, base, None)
    target.arrays["tables"][:] = np.arange(55, 64)
    assert decoded(0, tables[:64], block, target) == (OK, new.tobytes())
    assert nc.core(0).decode_status(tables[:63], block, target) == BAD_ARGUMENT
    for attempt in (lambda: nc.core(0).expand(tables), lambda: nc.core(0).encode(tables, part)):
        with pytest.raises(nc.CoreError, match="bad argument"):
            attempt()


@pytest.mark.parametrize("change", [(0, 1), (0, -1), (5, 2048), (63, 65535)])
def test_a_table_must_sum_to_2048(change: tuple[int, int]) -> None:
    """Frequencies that sum to more or less are refused, for decoding and for encoding."""
    table = np.full((1, 64), 32, np.int64)
    table[0, change[0]] = (table[0, change[0]] + change[1]) % 65536
    base, new = weights(I8, 10)
    part = part_of(DIFFERENCE, I8, base, new, contexts=1)
    for attempt in (lambda: nc.core(0).expand(table), lambda: nc.core(0).encode(table, part)):
        with pytest.raises(nc.CoreError, match="bad argument"):
            attempt()


def test_a_token_that_its_table_lacks_is_refused() -> None:
    """Encoding says so, and does not write a block that decodes to something else."""
    table = np.zeros((1, 64), np.uint16)
    table[0, :2] = 1024
    base = np.zeros(100, np.uint8)
    for elements in (base + 1, np.where(np.arange(100) == 50, 100, 0).astype(np.uint8)):
        with pytest.raises(nc.CoreError, match="bad argument"):
            nc.core(0).encode(table, part_of(DIFFERENCE, I8, base, elements, contexts=1))


def test_a_block_has_at_most_half_a_million_tokens() -> None:
    """All parts together may have 2^19 tokens, and not one more."""
    table = np.zeros((1, 64), np.uint16)
    table[0, 0] = 2048
    base = np.zeros(1 << 19, np.uint8)
    full, one = (
        part_of(DIFFERENCE, I8, base, base, contexts=1),
        part_of(DIFFERENCE, I8, base[:1], base, contexts=1),
    )
    block = nc.core(None).encode(table, full)
    assert nc.core(None).decode_status(table, block, full) == OK
    assert nc.core(None).decode_status(table, block, full, one) == BAD_ARGUMENT
    with pytest.raises(nc.CoreError, match="bad argument"):
        nc.core(None).encode(table, full, one)


# ---- damage


def small_blocks() -> list[tuple[int, int, np.ndarray, np.ndarray, bytes, np.ndarray]]:
    """Return blocks with few and with many words, few and many raw bits."""
    made = []
    for mode, dtype, size in (
        (DIFFERENCE, BF16, 300),
        (DIFFERENCE, F32, 90),
        (FULL, BF16, 70),
        (DIFFERENCE, I8, 40),
    ):
        base, new = weights(dtype, size, seed=size)
        tables, block = block_of(mode, dtype, base, new)
        made.append((mode, dtype, base if mode != FULL else new, tables, block, new))
    return made


def test_damage_means_the_same_on_every_level() -> None:
    """With any one byte changed, each level notices, or each makes the same other elements."""
    for mode, dtype, base, tables, block, _ in small_blocks():
        for place in range(len(block)):
            broken = bytearray(block)
            broken[place] ^= 1 << place % 8
            target = part_of(mode, dtype, base, None)
            first = decoded(0, tables, bytes(broken), target)
            assert first[0] in (OK, BAD_BLOCK)
            assert all(decoded(level, tables, bytes(broken), target) == first for level in nc.LEVELS[1:])


@pytest.mark.parametrize("level", nc.LEVELS)
def test_a_shorter_or_longer_block_is_noticed(level: int) -> None:
    """Every truncation fails, and so does a byte too many."""
    for mode, dtype, base, tables, block, _ in small_blocks():
        target = part_of(mode, dtype, base, None)
        for length in range(len(block)):
            assert decoded(level, tables, block[:length], target)[0] == BAD_BLOCK
        for more in (b"\0", b"\1", bytes(1000)):
            assert decoded(level, tables, block + more, target)[0] == BAD_BLOCK


@pytest.mark.parametrize("level", nc.LEVELS)
def test_words_and_bits_must_all_be_used(level: int) -> None:
    """A word more or less than the tokens take is noticed, as is a last bit that is not zero."""
    base, new = weights(BF16, 5000)
    tables, block = block_of(DIFFERENCE, BF16, base, new)
    target = part_of(DIFFERENCE, BF16, base, None)
    num_words = int.from_bytes(block[128:132], "little")
    for other in (num_words - 1, num_words + 1, 0, 1 << 31, (1 << 32) - 1):
        changed = block[:128] + other.to_bytes(4, "little") + block[132:]
        assert decoded(level, tables, changed, target)[0] == BAD_BLOCK
    bits = sum(int(n) for n in _extra_of(tables, base, new))
    if bits % 8:
        changed = block[:-1] + bytes([block[-1] | 0x80])
        assert decoded(level, tables, changed, target)[0] == BAD_BLOCK


def _extra_of(tables: np.ndarray, base: np.ndarray, new: np.ndarray) -> np.ndarray:
    histogram = nc.core(0).count(part_of(DIFFERENCE, BF16, base, new))[0].sum(axis=0)
    return histogram * nc.core(0).extra_bits(DIFFERENCE, BF16, 0)


@pytest.mark.parametrize("level", nc.LEVELS)
def test_states_out_of_range_are_refused(level: int) -> None:
    """A state below 2^15 or from 2^31 on is damage."""
    base, new = weights(I8, 100)
    tables, block = block_of(DIFFERENCE, I8, base, new)
    for state in (0, (1 << 15) - 1, 1 << 31, (1 << 32) - 1):
        for place in (0, 16, 31):
            changed = block[: 4 * place] + state.to_bytes(4, "little") + block[4 * place + 4 :]
            assert decoded(level, tables, changed, part_of(DIFFERENCE, I8, base, None))[0] == BAD_BLOCK


@pytest.mark.parametrize("level", nc.LEVELS)
def test_random_bytes_do_no_harm(level: int) -> None:
    """Whatever the words and bits are, decoding ends, with the same result on every level."""
    rng = np.random.default_rng(7)
    for dtype in (I8, BF16, F32):
        base, new = weights(dtype, 3000)
        tables, _ = block_of(DIFFERENCE, dtype, base, new)
        target = part_of(DIFFERENCE, dtype, base, None)
        for length in (0, 2, 40, 500, 5000, 30_000):
            states = rng.integers(1 << 15, 1 << 31, 32).astype("<u4").tobytes()
            words = int(rng.integers(0, length // 2 + 1)).to_bytes(4, "little")
            block = states + words + rng.integers(0, 256, length).astype(np.uint8).tobytes()
            assert decoded(level, tables, block, target) == decoded(0, tables, block, target)


def sanitized(level: int, rounds: int, directory: Path) -> None:
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = nc.build(directory / "libwpatch-checked.so", level, *flags)
    found = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        "LD_PRELOAD": found.stdout.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    program = Path(__file__).with_name("hostile_core.py")
    command = [sys.executable, str(program), str(library), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout == "clean\n", done.stderr


@pytest.mark.parametrize("level", sorted({nc.LEVELS[0], nc.LEVELS[-1]}))
def test_hostile_blocks_are_clean_under_sanitizers(level: int, tmp_path: Path) -> None:
    """No bad access and no undefined behaviour, in the portable code and in the machine's best."""
    sanitized(level, 100, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("level", nc.LEVELS)
def test_very_many_hostile_blocks_are_clean_under_sanitizers(level: int, tmp_path: Path) -> None:
    """The same with five thousand rounds, on every level."""
    sanitized(level, 5_000, tmp_path)


# ---- what is known of modes and types


def test_modes_and_types_have_the_documents_contexts_and_tokens() -> None:
    """One token an element, and no contexts for pairs that the document does not allow."""
    core = nc.core(0)
    assert [core.num_contexts(DIFFERENCE, dtype) for dtype in (I8, BF16, F32, 0, 6, 13)] == [
        9,
        20,
        20,
        0,
        0,
        0,
    ]
    assert [core.num_tokens(mode, BF16) for mode in range(8)] == [0, 0, 1, 1, 0, 1, 0, 0]
    assert core.num_contexts(nc.PREDICTED, BF16) == 640


def test_raw_bits_follow_tokens_as_the_document_says() -> None:
    """Small numbers have none, others their octave's; those of whole floats are their last bits and sign."""
    core = nc.core(0)
    assert core.extra_bits(DIFFERENCE, I8, 8).tolist() == [0] * 32 + [2 + i // 8 for i in range(32)]
    assert core.extra_bits(DIFFERENCE, BF16, 0).tolist() == [0] * 16 + [2 + i // 4 for i in range(48)]
    assert core.extra_bits(DIFFERENCE, F32, 0).tolist() == [0] * 4 + [1 + i // 2 for i in range(60)]
    assert core.extra_bits(FULL, BF16, 0).tolist() == [6] * 60 + [14] * 4
    for impossible in ((DIFFERENCE, I8, 9), (DIFFERENCE, 0, 0), (99, I8, 0)):
        with pytest.raises(nc.CoreError, match="bad argument"):
            core.extra_bits(*impossible)


def test_the_largest_exponent_is_found() -> None:
    """The top of floats is their largest exponent field; codes have none."""
    base, _ = weights(BF16, 999)
    assert nc.core(0).top(BF16, base) == int((base >> 7 & 255).max())
    assert nc.core(0).top(F8_E4M3, np.array([0x80, 0x38, 0x07], np.uint8)) == 7
    assert nc.core(0).top(I8, np.array([5], np.uint8)) == 0

"""PAIRS and records in the native core, against a slow reading of the format document, at every CPU level."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch import native_core as native
from patch import records_reference as reference
from patch.native_core import DIFFERENCE, F16, FULL, I8, PAIRS, SIZES, U8, Part, make_part

RECORDS = {"Q4_0": 16, "Q8_0": 17, "Q4_K": 18, "Q5_K": 19, "Q6_K": 20}
TOKENS = {  # of a record: FULL, DIFFERENCE
    "Q4_0": (33, 17),
    "Q8_0": (33, 33),
    "Q4_K": (274, 146),
    "Q5_K": (274, 274),
    "Q6_K": (273, 273),
}
SCALE_TYPES = {"F16": (8, np.uint16), "BF16": (9, np.uint16), "F32": (12, np.uint32)}
every_record = pytest.mark.parametrize("name", RECORDS)
every_mode = pytest.mark.parametrize("mode", [FULL, DIFFERENCE])


def half(rng: np.random.Generator, count: int) -> np.ndarray:
    """F16 numbers like those of scales, some of them negative, subnormal, zero, infinite or not a number."""
    numbers = (rng.standard_normal(count) * 0.01).astype(np.float16).view(np.uint16)
    strange = np.array([0, 1, 0x8000, 0x8001, 0x03FF, 0x7C00, 0xFC00, 0x7E01, 0x7BFF, 0xFBFF], np.uint16)
    return np.where(rng.random(count) < 0.05, rng.choice(strange, count), numbers)


def random_records(dtype: int, count: int, seed: int) -> np.ndarray:
    """Records of random codes and likely scales, uint8 of shape (count, size)."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 256, (count, SIZES[dtype]), np.uint8)
    for at in reference.half_places(dtype):
        if at is not None:
            out[:, at : at + 2] = half(rng, count).view(np.uint8).reshape(count, 2)
    return out


def tuned(dtype: int, base: np.ndarray, seed: int, *, kept: bool = False) -> np.ndarray:
    """The records after a small update: some numbers moved a little, a few a lot."""
    rng = np.random.default_rng(seed)
    out = []
    for data in base:
        record = reference.parse(dtype, data.tobytes())
        bits = reference.BITS[dtype]
        moves = rng.choice([0, 0, 0, 0, 1, -1, 1, -1, 2, 9, 200], len(record.codes))
        record.codes = [int(c + m) % (1 << bits) for c, m in zip(record.codes, moves, strict=True)]
        if not kept and rng.random() < 0.9:
            record.d = (record.d + int(rng.integers(-30, 31)) ** 3 // 300) % 65536
            record.dmin = (record.dmin + int(rng.integers(-9, 10))) % 65536
            wide = 256 if dtype == native.Q6_K else 64
            record.scales = [
                int(s + m) % wide for s, m in zip(record.scales, rng.integers(-1, 2, 16), strict=False)
            ]
            record.minima = [
                int(s + m) % 64 for s, m in zip(record.minima, rng.integers(-1, 2, 8), strict=False)
            ]
        out.append(np.frombuffer(reference.build(dtype, record), np.uint8))
    return np.array(out)


def plain(name: str, count: int, mode: int, seed: int = 1, **options: Any) -> Part:
    """A part of records and their update."""
    dtype, core = RECORDS[name], native.core(0)
    base = random_records(dtype, count, seed)
    new = tuned(dtype, base, seed + 1, **options)
    top = core.top(dtype, base if mode == DIFFERENCE else new)
    return make_part(mode, dtype, count, top=top, base=base, elements=new)


def spread_tables(part: Part) -> np.ndarray:
    """Give the part a table for each context, neighbours never the same; return the tables' frequencies."""
    histogram, _ = native.core(0).count(part)
    tables = (np.arange(len(histogram)) * 37 % 61).astype(np.uint8)
    sums = np.zeros((61, 64), np.uint64)
    np.add.at(sums, tables, histogram)
    part.arrays["tables"] = tables
    part.tables, part.num_contexts = tables.ctypes.data, len(tables)
    return native.make_tables(sums)


def decoded(part: Part, frequencies: np.ndarray, block: bytes, level: int) -> bytes:
    """What a block makes of a part's base."""
    arrays = part.arrays | {"elements": np.zeros_like(part.arrays["elements"])}
    numbers = {name: getattr(part, name) for name in native._NUMBERS}
    again = make_part(numbers.pop("mode"), numbers.pop("dtype"), numbers.pop("count"), **numbers, **arrays)
    native.core(level).decode(frequencies, block, again)
    return again.arrays["elements"].tobytes()


def check(part: Part) -> tuple[np.ndarray, bytes]:
    """Every level makes the same block of a part, and the part of the block."""
    frequencies = spread_tables(part)
    blocks = {native.core(level).encode(frequencies, part) for level in native.LEVELS}
    histograms = [native.core(level).count(part)[0] for level in native.LEVELS]
    assert len(blocks) == 1
    assert all((histogram == histograms[0]).all() for histogram in histograms)
    block = blocks.pop()
    for level in native.LEVELS:
        assert decoded(part, frequencies, block, level) == part.arrays["elements"].tobytes()
    return frequencies, block


def same_counts(part: Part, counts: Counter[tuple[int, int]]) -> bool:
    histogram, _ = native.core(None).count(part)
    return {k: int(histogram[k]) for k in zip(*histogram.nonzero(), strict=True)} == dict(counts)


# ---- records


@every_record
@every_mode
def test_the_slow_reading_makes_the_same_records(name: str, mode: int) -> None:
    """Token by token and context by context, across two batches."""
    part = plain(name, 70, mode)
    frequencies, block = check(part)
    slow = reference.Block(frequencies.tolist(), part.arrays["tables"].tolist(), block)
    base = part.arrays["base"].tobytes()
    assert (
        reference.decode_records(slow, mode, part.dtype, part.top, base) == part.arrays["elements"].tobytes()
    )
    slow.close()
    assert same_counts(part, slow.counts)


@every_record
def test_records_of_random_bytes_survive(name: str) -> None:
    """No scale, code or padding is so odd that it would not come back."""
    dtype, rng = RECORDS[name], np.random.default_rng(5)
    base, new = (rng.integers(0, 256, (130, SIZES[dtype]), np.uint8) for _ in range(2))
    part = make_part(DIFFERENCE, dtype, 130, top=31, base=base, elements=new)
    frequencies, block = check(part)
    slow = reference.Block(frequencies.tolist(), part.arrays["tables"].tolist(), block)
    assert reference.decode_records(slow, DIFFERENCE, dtype, 31, base.tobytes()) == new.tobytes()


@every_record
@every_mode
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129])
def test_any_number_of_records_is_one_part(name: str, mode: int, count: int) -> None:
    """Batches that are not full are coded like full ones."""
    check(plain(name, count, mode, seed=count))


@every_record
@every_mode
def test_a_single_table_serves_all_contexts(name: str, mode: int) -> None:
    """A part may name one table for everything."""
    part = plain(name, 66, mode)
    histogram, _ = native.core(0).count(part)
    frequencies = native.make_tables(histogram.sum(0, keepdims=True))
    block = native.core(0).encode(frequencies, part)
    for level in native.LEVELS:
        assert decoded(part, frequencies, block, level) == part.arrays["elements"].tobytes()


@every_record
def test_kept_scales_cost_next_to_nothing(name: str) -> None:
    """Where scales stay, their tokens are all zero."""
    part = plain(name, 64, DIFFERENCE, kept=True)
    histogram, changed = native.core(None).count(part)
    assert histogram[:44, 1:].sum() == 0
    assert changed == (part.arrays["base"] != part.arrays["elements"]).any(1).sum()


@every_record
@every_mode
def test_what_a_record_takes_is_announced(name: str, mode: int) -> None:
    """The numbers of contexts, tokens and raw bits are those that counting finds."""
    core, dtype = native.core(None), RECORDS[name]
    histogram, _ = core.count(plain(name, 64, mode))
    paired = name in ("Q4_0", "Q4_K")
    assert core.num_tokens(mode, dtype) == TOKENS[name][mode == DIFFERENCE]
    assert histogram.sum() == 64 * core.num_tokens(mode, dtype)
    assert core.num_contexts(mode, dtype) == (5 if mode == FULL else 444 if paired else 476)
    assert core.extra_bits(mode, dtype, 0)[63] == (14 if mode == FULL else 13)
    last = core.extra_bits(mode, dtype, core.num_contexts(mode, dtype) - 1)
    assert list(last[[0, 31, 49]]) == ([0, 0, 8] if paired and mode == DIFFERENCE else [0, 0, 4])


def test_the_layouts_are_those_of_ggml() -> None:
    """Scale times code of the slow reading is what the gguf package makes of the same bytes."""
    quants = pytest.importorskip("gguf.quants")
    for name, dtype in RECORDS.items():
        records = random_records(dtype, 20, 3)
        for at in reference.half_places(dtype):
            if at is not None:
                records[:, at : at + 2] = np.full(20, 0.25, np.float16).view(np.uint8).reshape(20, 2)
        expected = getattr(quants, name).dequantize_blocks(records)
        for row, data in zip(expected, records, strict=True):
            record = reference.parse(dtype, data.tobytes())
            size = len(record.codes) // reference.GROUPS[dtype]
            for i, code in enumerate(record.codes):
                scale = reference.group_scale(dtype, record, i // size)
                value = scale.integer * 2.0 ** (scale.exponent - 25)
                u = reference.signed(code, 8) if name == "Q8_0" else code
                zero = 0.25 * record.minima[i // size] if record.minima else value * reference.ZERO[dtype]
                assert value * u - zero == row[i]


# ---- pairs


def pairs_part(count: int, group: int, first: int, kind: str | None, seed: int, dtype: int = U8) -> Part:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, count, np.uint8)
    moves = rng.choice([0, 0, 0, 0, 1, 16, 255, 240, 17, 3, 48, 200], count).astype(np.uint8)
    fields: dict[str, Any] = {"base": base, "elements": base + moves}
    if kind is not None:
        code, width = SCALE_TYPES[kind]
        groups = -(-(first + count) // group)
        old = (np.abs(rng.standard_normal(groups)) * 0.1).astype(np.float32)
        new = old * rng.choice([1, 1, 1.01, 0.97, 1.3, 20, 0.01, -1, 0], groups).astype(np.float32)
        if width is np.uint32:
            scales = old.view(np.uint32), new.view(np.uint32)
        elif kind == "BF16":
            scales = tuple((x.view(np.uint32) >> 16).astype(np.uint16) for x in (old, new))
        else:
            scales = old.astype(np.float16).view(np.uint16), new.astype(np.float16).view(np.uint16)
        fields |= {"scale_dtype": code, "group": group, "first": first, "num_scales": groups}
        fields |= {"old_scales": scales[0], "new_scales": scales[1]}
    return make_part(PAIRS, dtype, count, **fields)


def slow_pairs(part: Part, kind: str | None, frequencies: np.ndarray, block: bytes) -> bytes:
    slow = reference.Block(frequencies.tolist(), part.arrays["tables"].tolist(), block)
    scales = [part.arrays[n].tolist() for n in ("old_scales", "new_scales")] if kind else []

    def ratio_of(i: int) -> int:
        if kind is None:
            return reference.ONE
        g = (part.first + i) // part.group
        return reference.pairs_ratio(kind, scales[0][g], scales[1][g])

    out = reference.decode_pairs(slow, part.arrays["base"].tobytes(), ratio_of)
    slow.close()
    assert same_counts(part, slow.counts)
    return out


@pytest.mark.parametrize("kind", [None, *SCALE_TYPES])
@pytest.mark.parametrize(("group", "first"), [(16, 0), (16, 7), (64, 63), (1, 0), (5, 2), (100_000, 9)])
def test_the_slow_reading_makes_the_same_pairs(kind: str | None, group: int, first: int) -> None:
    """With and without scales, in groups of any size that begin anywhere."""
    part = pairs_part(2500, group, first, kind, seed=group)
    frequencies, block = check(part)
    assert slow_pairs(part, kind, frequencies, block) == part.arrays["elements"].tobytes()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 2047, 2048, 2049, 5000])
def test_any_number_of_pairs_is_one_part(count: int) -> None:
    """Runs and chunks that are not full are coded like full ones."""
    check(pairs_part(count, 16, 3, "F16", seed=count, dtype=I8))


def test_pairs_have_fifty_tokens() -> None:
    """A block that spells another token is damaged."""
    core, table = native.core(None), np.zeros((1, 64), np.uint16)
    for token, status in ((48, native.OK), (50, native.BAD_BLOCK), (63, native.BAD_BLOCK)):
        table[:] = 0
        table[0, token] = 2048
        block = (1 << 15).to_bytes(4, "little") * 32 + bytes(4)
        assert core.decode_status(table, block, pairs_part(100, 16, 0, None, 1)) == status


# ---- hostile parts and blocks


def test_parts_that_break_a_limit_are_refused() -> None:
    """A wrong mode, count, table or missing array is a bad argument, before anything is read."""
    core, table = native.core(None), np.zeros((1, 64), np.uint16)
    table[0, 0] = 2048
    block = (1 << 15).to_bytes(4, "little") * 32 + bytes(4)
    for name in RECORDS:
        wrong = [
            {"count": 0},
            {"count": (512 << 10) // 17 + 1},
            {"mode": 4},
            {"mode": 6},
            {"num_contexts": 2},
        ]
        wrong += [{"base": 0}, {"elements": 0}, {"tables": 0}, {"top": 256}]
        for change in wrong:
            part = plain(name, 3, DIFFERENCE)
            for key, value in change.items():
                setattr(part, key, value)
            assert core.decode_status(table, block, part) == native.BAD_ARGUMENT, (name, change)
    for contexts in (1, 476):
        part = plain("Q6_K", 3, DIFFERENCE)
        tables = np.zeros(contexts, np.uint8)
        tables[-1] = 1
        part.tables, part.num_contexts = tables.ctypes.data, contexts
        assert core.decode_status(table, block, part) == native.BAD_ARGUMENT


def attack(core: native.Core, rounds: int, seed: int = 0) -> int:
    """Decode blocks that were changed after they were made, or never were any; return how many passed."""
    rng, passed = np.random.default_rng(seed), 0
    for turn in range(rounds):
        if turn % 3:
            part = plain(
                list(RECORDS)[turn % 5], int(rng.integers(1, 70)), (FULL, DIFFERENCE)[turn % 2], turn
            )
        else:
            part = pairs_part(int(rng.integers(1, 3000)), int(rng.integers(1, 90)), 0, "F16", turn)
        frequencies = spread_tables(part)
        block = bytearray(core.encode(frequencies, part))
        kind = rng.integers(3)
        if kind == 0:
            block[int(rng.integers(len(block)))] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del block[int(rng.integers(132, len(block))) :]
        else:
            states = rng.integers(1 << 15, 1 << 31, 32, np.uint32).tobytes()
            block[:128] = states
        part.top = int(rng.integers(256))
        passed += core.decode_status(frequencies, bytes(block), part) == native.OK
    return passed


def test_damaged_blocks_never_crash() -> None:
    """Whatever a block says, decoding ends with a status."""
    for level in native.LEVELS:
        assert attack(native.core(level), 60) < 60


def test_records_are_clean_under_sanitizers(tmp_path: Path) -> None:
    """The same attacks: no bad access, no undefined behaviour, at every level."""
    checks = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    runtime = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    program = (
        "import sys; from pathlib import Path; from patch import native_core as n, test_core_records as t;"
        "t.attack(n.Core(Path(sys.argv[1])), 45, 7); print('clean')"
    )
    places = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    settings = {"LD_PRELOAD": runtime.stdout.strip(), "PYTHONMALLOC": "malloc", "PYTHONPATH": places}
    for level in native.LEVELS:
        library = native.build(tmp_path / f"checked-{level}.so", level, *checks)
        done = subprocess.run(
            [sys.executable, "-c", program, str(library)],
            env=os.environ | settings | {"ASAN_OPTIONS": "detect_leaks=0"},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "clean\n", done.stderr


def test_f16_scales_alone_decide_the_top() -> None:
    """The largest exponent is found among d and dmin, wherever a type keeps them."""
    core = native.core(None)
    for name, dtype in RECORDS.items():
        records = random_records(dtype, 9, 2)
        fields = [
            records[:, at : at + 2].copy().view(np.uint16)
            for at in reference.half_places(dtype)
            if at is not None
        ]
        assert core.top(dtype, records) == max(int((f >> 10 & 31).max()) for f in fields), name
    assert core.top(F16, np.array([0x7C00], np.uint16)) == 31

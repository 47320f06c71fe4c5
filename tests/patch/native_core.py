"""The native core alone behind ctypes, built from source for a CPU level, with parts made of numpy arrays.

Tests of the core use this instead of ``autoglm.patch.core``, so that they can compare the portable code with
that for AVX2 and AVX-512, and hand it parts that no package would ever describe.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from ctypes import POINTER, byref, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FULL, DIFFERENCE, SCALED, PREDICTED, PAIRS = 2, 3, 4, 5, 6
I8, U8, BOOL, F8_E4M3, F8_E5M2, F16, BF16, F32 = 1, 2, 3, 4, 5, 8, 9, 12
Q4_0, Q8_0, Q4_K, Q5_K, Q6_K = 16, 17, 18, 19, 20
SIZES = {I8: 1, U8: 1, BOOL: 1, F8_E4M3: 1, F8_E5M2: 1, F16: 2, BF16: 2, F32: 4}
SIZES |= {Q4_0: 18, Q8_0: 34, Q4_K: 144, Q5_K: 176, Q6_K: 210}
OK, BAD_ARGUMENT, BAD_BLOCK = 0, 1, 2
NATIVE = Path(__file__).parents[2] / "src" / "autoglm" / "patch" / "native"


_NUMBERS = ("mode", "dtype", "count", "top", "num_contexts", "scale_dtype", "group", "first", "num_scales")
_NUMBERS += ("columns", "first_column", "num_rows")
_ARRAYS = ("tables", "base", "old_scales", "new_scales", "left", "right", "inline_factors", "elements")


class Curve(ctypes.Structure):
    """``wpatch_curve``."""

    _fields_ = (
        ("rank", c_uint32),
        ("drop", c_uint32),
        ("limit", c_uint32),
        ("slope", c_int32),
        ("bend", c_int32),
        ("shift", c_int32),
        ("classes", c_uint32),
    )


class Factors(ctypes.Structure):
    """``wpatch_factors``."""

    _fields_ = (
        *((name, c_uint32) for name in ("rows", "columns", "rank", "num_contexts")),
        *((name, c_void_p) for name in ("tables", "left", "right")),
    )


class Part(ctypes.Structure):
    """``wpatch_part``; ``arrays`` keeps alive what its pointers point to."""

    _fields_ = (*((name, c_uint32) for name in _NUMBERS), ("curve", Curve), *((n, c_void_p) for n in _ARRAYS))
    arrays: dict[str, np.ndarray]


def make_part(mode: int, dtype: int, count: int, **fields: Any) -> Part:
    """Return a part; a numpy array sets the pointer of its name, ``curve`` is a tuple, all else a number.

    ``elements`` that are not given are a new array of zeros, ``tables`` a single table 0.
    """
    size = SIZES[dtype]
    arrays = {"elements": np.zeros(count * size, np.uint8), "tables": np.zeros(1, np.uint8)}
    part = Part(mode=mode, dtype=dtype, count=count, num_contexts=1)
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            setattr(part, name, Curve(*value) if name == "curve" else value)
    for name, array in arrays.items():
        setattr(part, name, array.ctypes.data)
    part.arrays = arrays
    return part


def make_factors(
    shape: tuple[int, int, int], tables: np.ndarray | None, left: np.ndarray, right: np.ndarray
) -> Factors:
    """Describe factors of ``shape`` = rows, columns, rank; the arrays must outlive what is returned."""
    contexts = 0 if tables is None else len(tables)
    return Factors(*shape, contexts, _pointer(tables), _pointer(left), _pointer(right))


def _levels() -> tuple[int, ...]:
    """Return the levels that this machine runs: 0 portable, 1 AVX2, 2 AVX-512; only Linux says which."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text().split()) if information.is_file() else set[str]()
    avx2, avx512 = (
        {"avx2", "bmi1", "bmi2"},
        {"avx512bw", "avx512vl", "avx512cd", "avx512vbmi", "avx512_vbmi2"},
    )
    return (0, 1, 2)[: 1 + (avx2 <= flags) + (avx2 | avx512 <= flags)]


LEVELS = _levels()


def _pointer(array: np.ndarray | None) -> c_void_p:
    return c_void_p(None if array is None else array.ctypes.data)


class CoreError(Exception):
    """The core's status was not OK."""

    def __init__(self, status: int) -> None:
        names = {BAD_ARGUMENT: "bad argument", BAD_BLOCK: "bad block"}
        super().__init__(names.get(status, f"status {status}"))
        self.status = status


def _check(status: int) -> None:
    if status != OK:
        raise CoreError(status)


class Core:
    """The functions of ``wpatch.h`` in one built library. Frequencies are uint16 of shape (tables, 64)."""

    def __init__(self, path: Path) -> None:
        u32, size, pointer = c_uint32, c_size_t, c_void_p
        tables = (pointer, size)
        factors = POINTER(Factors)
        types = {
            "wpatch_abi": (),
            "wpatch_expand_tables": (*tables, pointer),
            "wpatch_decode": (*tables, pointer, size, POINTER(Part), size),
            "wpatch_top": (u32, pointer, size, POINTER(u32)),
            "wpatch_count": (POINTER(Part), pointer, POINTER(c_uint64)),
            "wpatch_encode": (*tables, POINTER(Part), size, pointer, pointer, POINTER(size)),
            "wpatch_encode_factors": (*tables, factors, pointer, pointer, POINTER(size)),
            "wpatch_count_factors": (factors, pointer),
            "wpatch_decode_factors": (*tables, pointer, size, factors),
            "wpatch_num_contexts": (u32, u32),
            "wpatch_num_tokens": (u32, u32),
            "wpatch_extra_bits": (u32, u32, u32, pointer),
        }
        self.library = ctypes.CDLL(str(path))
        for name, arguments in types.items():
            function = getattr(self.library, name)
            function.argtypes = arguments
            function.restype = c_uint32 if name in ("wpatch_num_contexts", "wpatch_num_tokens") else c_int

    def expand(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the decoding slots of tables."""
        frequencies = np.ascontiguousarray(frequencies, np.uint16)
        slots = np.zeros(max(1, len(frequencies)) << 11, np.uint32)
        _check(self.library.wpatch_expand_tables(_pointer(frequencies), len(frequencies), _pointer(slots)))
        return slots

    def encode(self, frequencies: np.ndarray, *parts: Part) -> bytes:
        """Return one block of all parts."""
        frequencies = np.ascontiguousarray(frequencies, np.uint16)
        tokens = sum(part.count * max(1, self.num_tokens(part.mode, part.dtype)) for part in parts)
        work, block = np.zeros(tokens * 6 + 16, np.uint8), np.zeros(tokens * 6 + 256, np.uint8)
        length, array = c_size_t(), (Part * len(parts))(*parts)
        tables = _pointer(frequencies), len(frequencies)
        room = _pointer(work), _pointer(block), byref(length)
        _check(self.library.wpatch_encode(*tables, array, len(parts), *room))
        return block[: length.value].tobytes()

    def decode_status(self, frequencies: np.ndarray, block: bytes, *parts: Part) -> int:
        """Decode a block into the ``elements`` of its parts and return the status."""
        # a copy of exactly its size, so that a sanitizer sees every byte read behind it
        exact = np.frombuffer(block, np.uint8).copy() if block else None
        slots, array = self.expand(frequencies), (Part * len(parts))(*parts)
        tables = _pointer(slots), len(frequencies)
        return self.library.wpatch_decode(*tables, _pointer(exact), len(block), array, len(parts))

    def decode(self, frequencies: np.ndarray, block: bytes, *parts: Part) -> None:
        """Decode a block into the ``elements`` of its parts."""
        _check(self.decode_status(frequencies, block, *parts))

    def top(self, dtype: int, elements: np.ndarray) -> int:
        """Return the largest exponent field of elements."""
        top, raw = c_uint32(), np.ascontiguousarray(elements).view(np.uint8).ravel()
        _check(self.library.wpatch_top(dtype, _pointer(raw), raw.size // SIZES[dtype], byref(top)))
        return top.value

    def count(self, part: Part) -> tuple[np.ndarray, int]:
        """Return a part's tokens by context, uint64 of shape (contexts, 64), and its changed elements."""
        contexts = max(1, self.num_contexts(part.mode, part.dtype))
        histogram, changed = np.zeros((contexts, 64), np.uint64), c_uint64()
        _check(self.library.wpatch_count(byref(part), _pointer(histogram), byref(changed)))
        return histogram, changed.value

    def encode_factors(
        self, frequencies: np.ndarray, tables: np.ndarray, shape: tuple[int, int, int], left: Any, right: Any
    ) -> bytes:
        """Return the block of the factors of ``shape`` = rows, columns, rank, both in the core's layout."""
        frequencies, tables = np.ascontiguousarray(frequencies, np.uint16), np.asarray(tables, np.uint8)
        tokens = (shape[0] + shape[1]) * shape[2]
        work, block = np.zeros(tokens * 6 + 16, np.uint8), np.zeros(tokens * 6 + 256, np.uint8)
        length = c_size_t()
        _check(
            self.library.wpatch_encode_factors(
                _pointer(frequencies), len(frequencies), byref(make_factors(shape, tables, left, right)),
                _pointer(work), _pointer(block), byref(length),
            )
        )  # fmt: skip
        return block[: length.value].tobytes()

    def count_factors(self, shape: tuple[int, int, int], left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the factors' tokens by context, uint64 of shape (64, 64)."""
        histogram = np.zeros((64, 64), np.uint64)
        factors = make_factors(shape, None, left, right)
        _check(self.library.wpatch_count_factors(byref(factors), _pointer(histogram)))
        return histogram

    def decode_factors(
        self, frequencies: np.ndarray, block: bytes, tables: np.ndarray, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return both factors in the core's layout, int16."""
        rows, columns, rank = shape
        even = rank + rank % 2
        left, right = np.full(rows * even, -1, np.int16), np.full(columns * even, -1, np.int16)
        slots, tables = self.expand(frequencies), np.asarray(tables, np.uint8)
        exact = np.frombuffer(block, np.uint8).copy() if block else None
        _check(
            self.library.wpatch_decode_factors(
                _pointer(slots), len(frequencies), _pointer(exact), len(block),
                byref(make_factors(shape, tables, left, right)),
            )
        )  # fmt: skip
        return left, right

    def num_contexts(self, mode: int, dtype: int) -> int:
        """Return how many contexts a mode has for a type; 0 for none."""
        return self.library.wpatch_num_contexts(mode, dtype)

    def num_tokens(self, mode: int, dtype: int) -> int:
        """Return how many tokens an element takes; 0 when the pair is not allowed."""
        return self.library.wpatch_num_tokens(mode, dtype)

    def extra_bits(self, mode: int, dtype: int, context: int) -> np.ndarray:
        """Return the raw bits behind each of the 64 tokens in a context."""
        extra = np.zeros(64, np.uint8)
        _check(self.library.wpatch_extra_bits(mode, dtype, context, _pointer(extra)))
        return extra


def make_tables(histogram: np.ndarray) -> np.ndarray:
    """Return a table of frequencies for each row of a histogram: every token that occurs gets at least 1.

    Rows without any token get a table of token 0 alone.
    """
    tables = np.zeros(histogram.shape, np.uint16)
    for table, counts in zip(tables, histogram.astype(np.float64), strict=True):
        total = counts.sum()
        if not total:
            table[0] = 2048
            continue
        shares = np.where(counts > 0, np.maximum(1, np.floor(counts / total * 2048)), 0).astype(np.int64)
        while shares.sum() != 2048:
            shares[np.argmax(shares)] += np.clip(2048 - shares.sum(), -(shares.max() // 2), 2048)
        table[:] = shares
    return tables


def pack_factors(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay factors of shapes (rows, rank) and (columns, rank) out as the core wants them: int16, even rank."""
    odd = ((0, 0), (0, left.shape[1] % 2))
    left, right = np.pad(left, odd).astype(np.int16), np.pad(right, odd).astype(np.int16)
    pairs = right.reshape(right.shape[0], -1, 2).transpose(1, 0, 2)
    return np.ascontiguousarray(left).ravel(), np.ascontiguousarray(pairs).ravel()


@cache
def core(level: int | None) -> Core:
    """Return the core, built for one of LEVELS; None lets it find out what the machine has."""
    return Core(build(_directory() / f"libwpatch-{level}.so", level))


@cache
def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="wpatch-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def build(path: Path, level: int | None = None, *options: str) -> Path:
    """Compile the core into a shared library at ``path``."""
    pinned = () if level is None else (f"-DWPATCH_CPU_LEVEL={level}",)
    sources = sorted(str(source) for source in NATIVE.glob("*.c"))
    flags = ("-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DWPATCH_BUILD")
    command = [os.environ.get("CC", "cc"), *flags, *pinned, *options, *sources, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path

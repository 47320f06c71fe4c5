"""The native core behind plain functions: one block in or out, and the histograms that modes are chosen by.

The core is a shared library without Python in it, built by CMake when the package is installed. ctypes lets
go of the interpreter lock while it works, so blocks are coded by as many threads as the caller likes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int, c_int32, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from autoglm.errors import ConfigError, IntegrityError, PackageError
from autoglm.patch.package import (
    MAX_FACTOR_RANK,
    NUM_TOKENS,
    TABLE_BITS,
    Curve,
    Dtype,
    Mode,
    Part,
    is_inline,
    num_contexts,
)

_ABI = 2
_NAMES = {
    "win32": ("libwpatch.dll", "wpatch.dll"),
    "darwin": ("libwpatch.dylib",),
    "android": ("libwpatch.so",),
    "ios": ("@rpath/wpatch.framework/wpatch",),
}

Tables = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Factors:
    """The integer factors of a matrix, as the core lays them out: ``left`` by rows, ``right`` in pairs.

    ``left`` holds (rows, even rank) numbers of 16 bits in the machine's order, ``right``
    (even rank / 2, columns, 2); the even rank is the rank rounded up, the last number then 0.
    """

    rows: int
    columns: int
    rank: int
    left: bytearray
    right: bytearray

    @property
    def tokens(self) -> int:
        """How many numbers there are, without the padding."""
        return (self.rows + self.columns) * self.rank


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one part is decoded from, besides its block: base elements, scales, factors."""

    base: bytes = b""
    old_scales: bytes = b""
    new_scales: bytes = b""
    factors: Factors | None = None


class _Curve(ctypes.Structure):
    """``wpatch_curve`` of ``wpatch.h``."""

    _fields_ = (
        ("rank", c_uint32),
        ("drop", c_uint32),
        ("limit", c_uint32),
        ("slope", c_int32),
        ("bend", c_int32),
        ("shift", c_int32),
        ("classes", c_uint32),
    )


class _Factors(ctypes.Structure):
    """``wpatch_factors`` of ``wpatch.h``."""

    _fields_ = (
        ("rows", c_uint32),
        ("columns", c_uint32),
        ("rank", c_uint32),
        ("num_contexts", c_uint32),
        ("tables", c_void_p),
        ("left", c_void_p),
        ("right", c_void_p),
    )


class _Part(ctypes.Structure):
    """``wpatch_part`` of ``wpatch.h``."""

    _fields_ = (
        ("mode", c_uint32),
        ("dtype", c_uint32),
        ("count", c_uint32),
        ("top", c_uint32),
        ("num_contexts", c_uint32),
        ("scale_dtype", c_uint32),
        ("group", c_uint32),
        ("first", c_uint32),
        ("num_scales", c_uint32),
        ("columns", c_uint32),
        ("first_column", c_uint32),
        ("num_rows", c_uint32),
        ("curve", _Curve),
        ("tables", c_void_p),
        ("base", c_void_p),
        ("old_scales", c_void_p),
        ("new_scales", c_void_p),
        ("left", c_void_p),
        ("right", c_void_p),
        ("inline_factors", POINTER(_Factors)),
        ("elements", c_void_p),
    )


def find_library() -> Path:
    """Return where the core was installed: beside this package, in one of its directories.

    Raises:
        ConfigError: it was not built.
    """
    names = _NAMES.get(sys.platform, ("libwpatch.so",))
    for directory in import_module("autoglm.patch").__path__:
        for name in names:
            if (path := Path(directory) / name).is_file():
                return path
    raise ConfigError(f"the patch codec's core ({names[0]}) is missing: install the package again, with pip")


def _place() -> str:
    """Return what to load: the library in this package, or on a phone the one that the app brings.

    An app holds native code where its system's loader finds it by name: on Android among the app's
    libraries, on iOS in a framework.
    """
    if hasattr(sys, "getandroidapilevel"):
        return _NAMES["android"][0]
    return _NAMES["ios"][0] if sys.platform == "ios" else str(find_library())


@cache
def _library() -> ctypes.CDLL:
    path = _place()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ConfigError(f"the patch codec's core {path} cannot be loaded: {error}") from error
    parts = POINTER(_Part)
    library.wpatch_abi.argtypes = ()
    library.wpatch_expand_tables.argtypes = (c_void_p, c_size_t, c_void_p)
    library.wpatch_decode.argtypes = (c_void_p, c_size_t, c_void_p, c_size_t, parts, c_size_t)
    library.wpatch_top.argtypes = (c_uint32, c_void_p, c_size_t, POINTER(c_uint32))
    library.wpatch_count.argtypes = (parts, c_void_p, POINTER(c_uint64))
    coding = (c_void_p, c_void_p, POINTER(c_size_t))
    library.wpatch_encode.argtypes = (c_void_p, c_size_t, parts, c_size_t, *coding)
    factors = POINTER(_Factors)
    library.wpatch_encode_factors.argtypes = (c_void_p, c_size_t, factors, *coding)
    library.wpatch_count_factors.argtypes = (factors, c_void_p)
    library.wpatch_decode_factors.argtypes = (c_void_p, c_size_t, c_void_p, c_size_t, factors)
    library.wpatch_extra_bits.argtypes = (c_uint32, c_uint32, c_uint32, c_void_p)
    for name in ("abi", "expand_tables", "decode", "top", "count", "encode", "extra_bits"):
        getattr(library, f"wpatch_{name}").restype = c_int
    for name in ("encode", "count", "decode"):
        getattr(library, f"wpatch_{name}_factors").restype = c_int
    if library.wpatch_abi() != _ABI:
        raise ConfigError(f"{path} is of another version: install the package again, with pip")
    return library


@dataclass(frozen=True, slots=True)
class DecodingTables:
    """Frequency tables expanded for decoding."""

    count: int
    slots: ctypes.Array[c_uint32]


def decoding_tables(tables: Tables) -> DecodingTables:
    """Expand a package's tables for :func:`decode_block`.

    Raises:
        PackageError: a table does not sum to 2048.
    """
    slots = (c_uint32 * (max(1, len(tables)) << TABLE_BITS))()
    if tables and _library().wpatch_expand_tables(_frequencies(tables), len(tables), slots):
        raise PackageError("a frequency table of the package is not one")
    return DecodingTables(len(tables), slots)


def decode_block(
    tables: DecodingTables, content: bytes, parts: Sequence[Part], inputs: Sequence[Inputs]
) -> bytearray:
    """Return the bytes of all parts of a block, one after the other.

    Raises:
        PackageError: the block is damaged.
    """
    out = bytearray(sum(part.size for part in parts))
    address = ctypes.addressof(c_uint8.from_buffer(out))
    array = (_Part * len(parts))()
    for index, (part, given) in enumerate(zip(parts, inputs, strict=True)):
        _fill(array[index], part, given, address)
        address += part.size
    status = _library().wpatch_decode(tables.slots, tables.count, content, len(content), array, len(parts))
    if status:
        raise PackageError("a block of the package is damaged, or was made against another base")
    return out


def decode_factors(
    tables: DecodingTables, content: bytes, places: bytes, shape: tuple[int, int], rank: int
) -> Factors:
    """Return the factors in a block; ``places`` has the table of each context, ``shape`` is the matrix's.

    Raises:
        PackageError: the block is damaged.
    """
    factors = new_factors(*shape, rank)
    matrix = _matrix(factors, places)
    status = _library().wpatch_decode_factors(tables.slots, tables.count, content, len(content), matrix)
    if status:
        raise PackageError("the factors of a tensor are damaged")
    return factors


def new_factors(rows: int, columns: int, rank: int) -> Factors:
    """Return zeroed factors."""
    even = rank + rank % 2
    return Factors(rows, columns, rank, bytearray(2 * rows * even), bytearray(2 * columns * even))


def encode_block(
    tables: Tables, parts: Sequence[Part], inputs: Sequence[Inputs], elements: Sequence[bytes]
) -> bytes:
    """Return the block that :func:`decode_block` turns into ``elements``.

    Raises:
        IntegrityError: the tables lack a token, because the elements are not those that were counted.
    """
    array = (_Part * len(parts))()
    for index, (part, given, content) in enumerate(zip(parts, inputs, elements, strict=True)):
        _fill(array[index], part, given, _address(content))
    total = sum(part.tokens for part in parts)
    return _coded(_library().wpatch_encode, total, _frequencies(tables), len(tables), array, len(parts))


def encode_factors(tables: Tables, places: bytes, factors: Factors) -> bytes:
    """Return the block that :func:`decode_factors` turns into ``factors``.

    Raises:
        IntegrityError: the tables lack a token.
    """
    given = (_frequencies(tables), len(tables), _matrix(factors, places))
    return _coded(_library().wpatch_encode_factors, factors.tokens, *given)


def _coded(encode: Callable[..., int], total: int, *given: object) -> bytes:
    """Call an encoder with room for ``total`` tokens."""
    work, block, length = bytearray(total * 6 + 16), bytearray(total * 6 + 256), c_size_t()
    if encode(*given, _address(work), _address(block), ctypes.byref(length)):
        raise IntegrityError("a file changed while it was read: run it again")
    return bytes(memoryview(block)[: length.value])


def top_exponent(dtype: Dtype, elements: bytes) -> int:
    """Return the largest exponent field of float elements, or of the floats in records; 0 for codes."""
    top = c_uint32()
    _library().wpatch_top(dtype, elements, len(elements) // dtype.size, ctypes.byref(top))
    return top.value


Histogram = ctypes.Array[c_uint64]


def new_histogram(contexts: int) -> Histogram:
    """Return zeroed counts, 64 tokens for each context, for :func:`count_tokens`."""
    return (c_uint64 * (contexts * NUM_TOKENS))()


def count_tokens(part: Part, given: Inputs, elements: bytes, histogram: Histogram) -> int:
    """Add to ``histogram`` how often a part uses each token in each context.

    Returns:
        How many elements differ from the base.
    """
    native, changed = _Part(), c_uint64()
    _fill(native, part, given, _address(elements))
    if _library().wpatch_count(ctypes.byref(native), histogram, ctypes.byref(changed)):
        raise ValueError(f"this mode does not fit these elements: {part.segment}")
    return changed.value


def count_factors(factors: Factors) -> Histogram:
    """Return how often each context of the factors, one a rank, uses each token."""
    histogram = new_histogram(MAX_FACTOR_RANK)
    if _library().wpatch_count_factors(_matrix(factors), histogram):
        raise ValueError("these factors are out of range")
    return histogram


@cache
def extra_bits(mode: Mode, dtype: Dtype) -> tuple[bytes, ...]:
    """Return for each context how many raw bits follow each of the 64 tokens."""
    found: list[bytes] = []
    for context in range(num_contexts(mode, dtype)):
        bits = (c_uint8 * NUM_TOKENS)()
        if _library().wpatch_extra_bits(mode, dtype, context, bits):
            raise ValueError("this mode does not fit this type")
        found.append(bytes(bits))
    return tuple(found)


def _matrix(factors: Factors, places: bytes = b"") -> _Factors:
    """Describe factors to the core; both arguments must outlive the call that uses it."""
    left, right = _address(factors.left), _address(factors.right)
    sizes = (factors.rows, factors.columns, factors.rank)
    return _Factors(*sizes, len(places), _address(places), left, right)


def _frequencies(tables: Tables) -> ctypes.Array[c_uint16]:
    flat = [frequency for table in tables for frequency in table]
    return (c_uint16 * len(flat))(*flat)


def _address(content: bytes | bytearray) -> int:
    if isinstance(content, bytearray):
        return ctypes.addressof(c_uint8.from_buffer(content))
    return ctypes.cast(ctypes.c_char_p(content), c_void_p).value or 0


def _fill(native: _Part, part: Part, given: Inputs, elements: int) -> None:
    """Describe one part to the core; ``part`` and ``given`` must outlive the call that uses it."""
    segment, plane = part.segment, part.plane
    native.mode, native.dtype = segment.mode, plane.dtype
    native.count, native.top = part.count, segment.top
    native.num_contexts, native.tables = len(segment.tables), _address(segment.tables)
    if scales := segment.scales:
        first, past = part.groups
        native.scale_dtype, native.group, native.num_scales = scales.dtype, scales.group, past - first
        native.first = part.start % scales.group
        native.old_scales, native.new_scales = _address(given.old_scales), _address(given.new_scales)
    if segment.curve and given.factors:
        _fill_prediction(native, part, segment.curve, given.factors)
    native.base = _address(given.base) if given.base else None
    native.elements = elements


def _fill_prediction(native: _Part, part: Part, curve: Curve, factors: Factors) -> None:
    first, past = part.rows
    native.columns, native.first_column = part.plane.columns, part.start % part.plane.columns
    native.num_rows = past - first
    native.curve = _Curve(
        *(curve.rank, curve.drop, curve.limit, curve.slope, curve.bend, curve.shift, curve.classes)
    )
    native.left = _address(factors.left) + 2 * first * (curve.rank + curve.rank % 2)
    native.right = _address(factors.right)
    if is_inline(part.plane, part.segment):
        native.inline_factors = ctypes.pointer(_matrix(factors, part.segment.factor_tables))

"""The native core behind plain functions: one block in or out, and the histograms that modes are chosen by.

The core is a shared library without Python in it, built by CMake when the package is installed. ctypes lets
go of the interpreter lock while it works, so blocks are coded by as many threads as the caller likes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from autoglm.errors import ConfigError, IntegrityError, PackageError
from autoglm.patch.package import NUM_TOKENS, TABLE_BITS, Dtype, Mode, Part, num_contexts

_ABI = 1
_MAX_CONTEXTS = 20
_NAMES = {"win32": ("libwpatch.dll", "wpatch.dll"), "darwin": ("libwpatch.dylib",)}

Tables = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one part is decoded from, besides its block: base elements, old and new row scales."""

    base: bytes = b""
    old_scales: bytes = b""
    new_scales: bytes = b""


class _Part(ctypes.Structure):
    """``wpatch_part`` of ``wpatch.h``."""

    _fields_ = (
        ("mode", c_uint32),
        ("dtype", c_uint32),
        ("count", c_uint32),
        ("top", c_uint32),
        ("num_contexts", c_uint32),
        ("scale_dtype", c_uint32),
        ("columns", c_uint32),
        ("first_column", c_uint32),
        ("num_rows", c_uint32),
        ("tables", c_uint8 * _MAX_CONTEXTS),
        ("base", c_void_p),
        ("old_scales", c_void_p),
        ("new_scales", c_void_p),
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


@cache
def _library() -> ctypes.CDLL:
    path = find_library()
    library = ctypes.CDLL(str(path))
    parts = POINTER(_Part)
    library.wpatch_abi.argtypes = ()
    library.wpatch_expand_tables.argtypes = (c_void_p, c_size_t, c_void_p)
    library.wpatch_decode.argtypes = (c_void_p, c_size_t, c_void_p, c_size_t, parts, c_size_t)
    library.wpatch_top.argtypes = (c_uint32, c_void_p, c_size_t, POINTER(c_uint32))
    library.wpatch_count.argtypes = (parts, c_void_p, POINTER(c_uint64))
    library.wpatch_encode.argtypes = (
        *(c_void_p, c_size_t, parts, c_size_t, c_void_p, c_void_p),
        POINTER(c_size_t),
    )
    for name in ("abi", "expand_tables", "decode", "top", "count", "encode"):
        getattr(library, f"wpatch_{name}").restype = c_int
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
    out = bytearray(sum(part.count * part.plane.dtype.size for part in parts))
    address = ctypes.addressof(c_uint8.from_buffer(out))
    array = (_Part * len(parts))()
    for index, (part, given) in enumerate(zip(parts, inputs, strict=True)):
        _fill(array[index], part, given, address)
        address += part.count * part.plane.dtype.size
    status = _library().wpatch_decode(tables.slots, tables.count, content, len(content), array, len(parts))
    if status:
        raise PackageError("a block of the package is damaged, or was made against another base")
    return out


def encode_block(
    tables: Tables, parts: Sequence[Part], inputs: Sequence[Inputs], elements: Sequence[bytes]
) -> bytes:
    """Return the block that :func:`decode_block` turns into ``elements``.

    Raises:
        IntegrityError: the tables lack a token, because the elements are not those that were counted.
    """
    total = sum(part.count for part in parts)
    array = (_Part * len(parts))()
    for index, (part, given, content) in enumerate(zip(parts, inputs, elements, strict=True)):
        _fill(array[index], part, given, _address(content))
    work, block, length = bytearray(total * 6 + 16), bytearray(total * 6 + 64), c_size_t()
    status = _library().wpatch_encode(
        _frequencies(tables),
        len(tables),
        array,
        len(parts),
        _address(work),
        _address(block),
        ctypes.byref(length),
    )
    if status:
        raise IntegrityError("a file changed while it was read: run it again")
    return bytes(block[: length.value])


def top_exponent(dtype: Dtype, elements: bytes) -> int:
    """Return the largest exponent field of float elements, 0 for codes."""
    top = c_uint32()
    _library().wpatch_top(dtype, elements, len(elements) // dtype.size, ctypes.byref(top))
    return top.value


Histogram = ctypes.Array[c_uint64]


def new_histogram(mode: Mode, dtype: Dtype) -> Histogram:
    """Return zeroed counts, 64 tokens for each context, for :func:`count_tokens`."""
    return (c_uint64 * (num_contexts(mode, dtype) * NUM_TOKENS))()


def count_tokens(part: Part, given: Inputs, elements: bytes, histogram: Histogram) -> int:
    """Add to ``histogram`` how often a part uses each token in each context.

    Returns:
        How many elements differ from the base.
    """
    native, changed = _Part(), c_uint64()
    _fill(native, part, given, _address(elements))
    if _library().wpatch_count(ctypes.byref(native), histogram, ctypes.byref(changed)):
        raise ValueError("this mode does not fit these elements")
    return changed.value


def _frequencies(tables: Tables) -> ctypes.Array[c_uint16]:
    flat = [frequency for table in tables for frequency in table]
    return (c_uint16 * len(flat))(*flat)


def _address(content: bytes | bytearray) -> int:
    if isinstance(content, bytearray):
        return ctypes.addressof(c_uint8.from_buffer(content))
    return ctypes.cast(ctypes.c_char_p(content), c_void_p).value or 0


def _fill(native: _Part, part: Part, given: Inputs, elements: int) -> None:
    """Describe one part to the core; ``given`` must outlive the call that uses it."""
    segment, plane = part.segment, part.plane
    native.mode, native.dtype = segment.mode, plane.dtype
    native.count, native.top = part.count, segment.top
    native.num_contexts = len(segment.tables)
    native.tables[: len(segment.tables)] = tuple(segment.tables)
    if segment.mode is Mode.SCALED:
        first, past = part.rows
        native.scale_dtype, native.num_rows = segment.scale_dtype, past - first
        native.columns, native.first_column = plane.columns, part.start % plane.columns
    native.base = _address(given.base) if given.base else None
    native.old_scales = _address(given.old_scales) if given.old_scales else None
    native.new_scales = _address(given.new_scales) if given.new_scales else None
    native.elements = elements

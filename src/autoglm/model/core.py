"""The native core of decoding behind plain functions: products with INT8 matrices, and one step.

The core is a shared library without Python in it, built by CMake when the package is installed. Where it is
not there, :func:`library` says None and everything is computed by torch. ctypes lets go of the interpreter
lock while it works. What is passed as a pointer belongs to the caller and must live until the call is over.
A call works on as many threads as torch would on the thread that makes it; results do not depend on it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from autoglm.errors import EngineError

TILE = 16  # rows of a matrix that lie together
_ABI = 2
_NAMES = {"win32": "libwdecode.dll", "darwin": "libwdecode.dylib"}
_PROBLEMS = {
    1: "memory ran out in a decoding step",
    2: "a token is not in the vocabulary",
    3: "a sequence is longer than its pages",
}


class Matrix(ctypes.Structure):
    """``wdecode_matrix`` of ``decode.h``."""

    _fields_ = (
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
    )


class BlockWeights(ctypes.Structure):
    """``wdecode_block``."""

    _fields_ = (
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attention_norm", c_void_p),
        ("attention_post_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("ffn_post_norm", c_void_p),
    )


class ModelWeights(ctypes.Structure):
    """``wdecode_model``."""

    _fields_ = (
        ("blocks", POINTER(BlockWeights)),
        ("table", Matrix),
        ("norm", c_void_p),
        ("frequencies", c_void_p),
        ("num_blocks", c_int64),
        ("width", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("pairs", c_int64),
        ("ffn_width", c_int64),
        ("norm_eps", c_double),
        ("embed_scale", c_double),
    )


class Cache(ctypes.Structure):
    """``wdecode_cache``."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("bounds", c_void_p),
        ("pages_per_slot", c_int64),
        ("page", c_int64),
    )


class Batch(ctypes.Structure):
    """``wdecode_rows``."""

    _fields_ = (
        ("count", c_int64),
        ("keep", c_int64),
        ("gated_from", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("lengths", c_void_p),
        ("run_starts", c_void_p),
        ("runs", c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the core, None where it was not built or belongs to another version of this package."""
    name = _NAMES.get(sys.platform, "libwdecode.so")
    for directory in import_module("autoglm.model").__path__:
        if (path := Path(directory) / name).is_file():
            try:
                return _declared(ctypes.CDLL(str(path)))
            except (OSError, AttributeError):
                return None
    return None


def _declared(core: ctypes.CDLL) -> ctypes.CDLL | None:
    """Say what its functions take; None when it is not the core that this module was written for."""
    if core.wdecode_abi() != _ABI:
        return None
    core.wdecode_multiply.argtypes = (POINTER(Matrix), c_void_p, c_int64, c_int, c_void_p)
    core.wdecode_expand.argtypes = (POINTER(Matrix), c_void_p)
    core.wdecode_expand.restype = None
    core.wdecode_step.argtypes = (POINTER(ModelWeights), POINTER(Cache), POINTER(Batch), c_int, c_void_p)
    for function in (core.wdecode_multiply, core.wdecode_step, core.wdecode_level):
        function.restype = c_int
    return core


def need() -> ctypes.CDLL:
    """Return the core.

    Raises:
        EngineError: it is not there.
    """
    if (core := library()) is None:
        raise EngineError("the native core of decoding is not built: load the weights as floats")
    return core


def check(problem: int) -> None:
    """Raise what a call returned.

    Raises:
        EngineError: it was a problem.
    """
    if problem:
        raise EngineError(_PROBLEMS.get(problem, f"the native core reported problem {problem}"))


def lay_out(codes: Tensor) -> Tensor:
    """Return codes (N, K) int8 in the core's order, (N / 16, K / 2, 16, 2), filled up with zeros."""
    rows, columns = codes.shape
    margin = (0, columns % 2, 0, -rows % TILE)
    filled = torch.nn.functional.pad(codes, margin) if any(margin) else codes  # a copy is for what needs it
    tiles = filled.view(-1, TILE, filled.shape[1] // 2, 2).transpose(1, 2)
    return tiles.clone(memory_format=torch.contiguous_format)  # never a view of the file that was read


def fill_up(scale: Tensor) -> Tensor:
    """Return scales (N,) as float32, with zeros up to whole tiles."""
    return torch.nn.functional.pad(scale.float(), (0, -len(scale) % TILE)).contiguous()


def describe(codes: Tensor, scale: Tensor, bias: Tensor | None, rows: int, columns: int) -> Matrix:
    """Return a matrix for the core: tensors of :func:`lay_out` and :func:`fill_up`, which must stay alive.

    Raises:
        EngineError: a tensor is not what the core reads.
    """
    tiles = -(-rows // TILE)
    fits = codes.dtype == torch.int8 and codes.shape == (tiles, -(-columns // 2), TILE, 2)
    fits = fits and scale.dtype == torch.float32 and scale.shape == (tiles * TILE,)
    if not (fits and codes.is_contiguous() and scale.is_contiguous()):
        raise EngineError(f"a matrix of {rows} x {columns} is not laid out for the native core")
    start = None if bias is None else pointer(bias, rows)
    return Matrix(codes.data_ptr(), scale.data_ptr(), start, rows, columns)


def pointer(vector: Tensor, length: int) -> int:
    """Return where a vector of so many floats lies.

    Raises:
        EngineError: it is another vector, or not on a CPU.
    """
    if (
        vector.shape != (length,)
        or vector.dtype != torch.float32
        or not vector.is_contiguous()
        or vector.device.type != "cpu"
    ):
        raise EngineError("the native core reads float32 vectors on a CPU, as long as their matrix")
    return vector.data_ptr()


def multiply(matrix: Matrix, x: Tensor) -> Tensor:
    """Multiply x (..., K) float32 with a matrix (N, K); return (..., N).

    Raises:
        EngineError: x does not fit, or memory is short.
    """
    if x.dtype != torch.float32 or x.shape[-1] != matrix.columns or x.device.type != "cpu":
        raise EngineError(f"a matrix of {matrix.columns} columns cannot multiply {x.dtype} {tuple(x.shape)}")
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], matrix.rows))
    count = x.numel() // matrix.columns
    threads = torch.get_num_threads()
    check(need().wdecode_multiply(ctypes.byref(matrix), x.data_ptr(), count, threads, out.data_ptr()))
    return out


def expand(matrix: Matrix) -> Tensor:
    """Return a matrix (N, K) as float32."""
    out = torch.empty((matrix.rows, matrix.columns))
    need().wdecode_expand(ctypes.byref(matrix), out.data_ptr())
    return out

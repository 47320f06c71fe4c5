"""A decoding step by the native core, for models whose matrices are all held as INT8 for it.

What it guarantees: a row's result depends on that row alone, to the last bit, and is the same on every
instruction set; what is not finite stays so. Activations are rounded to 16 bits, 256 columns a scale: a
product is 3e-5 off its float result (root mean square), against 7e-3 with 8 bits (ADR 0010).

A model is held like this when it is so small that torch's own cost of an operation is what a step
takes; larger ones are as fast with :mod:`autoglm.model.kernels`, and faster in batches.

    >>> if (step := Step.of(model)) is not None:                         # doctest: +SKIP
    ...     hidden = step.run(token_ids, positions, cache, rows, model.config.topk)
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from autoglm.errors import EngineError
from autoglm.model import core, topk
from autoglm.model.config import ModelConfig, TopKConfig
from autoglm.model.kernels import Packed, Table
from autoglm.model.layers import Block, turn_frequencies

if TYPE_CHECKING:
    from autoglm.model.cache import KVCache
    from autoglm.model.network import PhoneModel
    from autoglm.model.pages import Rows

# Weights of one block up to which the core is the faster way to decode one sequence and a few (ADR 0010).
MAX_BLOCK_WEIGHTS = 1 << 26


def holds(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a stored matrix is held for the core in a model that is decoded by it."""
    is_product = name.startswith("blocks.") or name in ("head.weight", "table.weight")
    return len(shape) == 2 and is_product and name.endswith(".weight")


def pays(config: ModelConfig) -> bool:
    """Tell whether a model of these sizes is decoded by the core on this machine."""
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.width * (heads + 3 * config.ffn_width) <= MAX_BLOCK_WEIGHTS and core.library() is not None


def held_bytes(shape: Sequence[int]) -> int:
    """Return what a matrix (rows, columns) takes: codes, and a scale a row, in whole tiles."""
    return -(-shape[0] // core.TILE) * core.TILE * (shape[1] + shape[1] % 2 + 4)


class _Native(Packed):
    """Weights in the core's order: ``held`` is (codes, scale)."""

    is_native = True

    def __init__(self, codes: Tensor, scale: Tensor, like: _Native | None) -> None:
        super().__init__(codes.shape if like is None else like.shape)
        core.need()
        self.num_bytes = held_bytes(self.shape)
        self._held = (core.lay_out(codes), core.fill_up(scale)) if like is None else like.held

    def matrix(self, held: Sequence[Tensor], bias: Tensor | None = None) -> core.Matrix:
        """Describe ``held`` for the core; the caller keeps it and the bias alive."""
        return core.describe(held[0], held[1], bias, *self.shape)


class NativeLinear(_Native):
    """A linear layer.

    Attributes:
        bias: (N,) float32, or None; given with the other weights.
    """

    def __init__(
        self, codes: Tensor, scale: Tensor, *, has_bias: bool = False, like: NativeLinear | None = None
    ) -> None:
        """Lay out codes (N, K) int8 with scales (N,), or use the memory of ``like``, which has the same ones.

        Raises:
            EngineError: the core is not there.
        """
        super().__init__(codes, scale, like)
        empty = torch.empty(self.shape[0], device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) float32; return (..., N) float32."""
        held, bias = self.held, None if self.bias is None else self.bias.detach()
        return core.multiply(self.matrix(held, bias), x)


class NativeTable(_Native, Table):
    """A token table: rows are looked up; where it is the head too, the same memory multiplies."""

    def __init__(self, codes: Tensor, scale: Tensor, *, like: NativeTable | None = None) -> None:
        """Lay out codes (V, W) int8 with scales (V,), or use the memory of ``like``.

        Raises:
            EngineError: the core is not there.
        """
        super().__init__(codes, scale, like)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (...) as float32 (..., W)."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise EngineError("a token is not in the vocabulary")
        codes, scale = self.held
        rows = codes[ids // core.TILE, :, ids % core.TILE].flatten(-2)[..., : self.shape[1]]  # (..., W)
        return rows.float() * scale[ids][..., None]

    def whole(self) -> Tensor:
        """Return all rows (V, W) float32."""
        held = self.held
        return core.expand(self.matrix(held))

    def score(self, hidden: Tensor) -> Tensor:
        """Multiply hidden states (..., W) with every row; return (..., V)."""
        held = self.held
        return core.multiply(self.matrix(held), hidden)


def hold(name: str, codes: Tensor, scale: Tensor, *, has_bias: bool, like: Packed | None = None) -> Packed:
    """Return the module that takes the place of the one whose weight is ``name``.

    Args:
        name: such as ``blocks.0.qkv.weight``.
        codes: (rows, columns) int8.
        scale: (rows,).
        has_bias: whether a bias is added.
        like: the same weights of another model, whose memory is used.

    Raises:
        EngineError: the core is not there.
    """
    if name == "table.weight":
        return NativeTable(codes, scale, like=like if isinstance(like, NativeTable) else None)
    alike = like if isinstance(like, NativeLinear) else None
    return NativeLinear(codes, scale, has_bias=has_bias, like=alike)


class Step:
    """What the core needs to know of one model.

    It keeps the weights that it points to alive: who still computes with it when a release is unloaded
    ends its step, and the memory is given back after that.
    """

    def __init__(self, model: PhoneModel) -> None:
        """Describe a model; see :meth:`of`."""
        self._kept: list[Any] = []
        blocks = (core.BlockWeights * len(model.layers))(*(self._block(block) for block in model.layers))
        self._core, self._width = core.need(), model.config.width
        self._blocks, self._model = blocks, self._describe(model, blocks)
        self._reference = ctypes.byref(self._model)

    @classmethod
    def of(cls, model: PhoneModel) -> Step | None:
        """Describe a model, None when not all its matrices are held for the core.

        Raises:
            EngineError: its weights were given back.
        """
        parts = [part for b in model.layers for part in (b.qkv, b.out, b.gate_up, b.down)]
        on_cpu = {model.device.type, *(device.type for device in model.layer_devices)} == {"cpu"}
        is_float = model.dtype == torch.float32
        if not (on_cpu and is_float and all(isinstance(part, _Native) for part in (*parts, model.table))):
            return None
        return cls(model)

    def _block(self, block: Block) -> core.BlockWeights:
        norms = (block.attention_norm, block.attention_post_norm, block.ffn_norm, block.ffn_post_norm)
        products = (block.qkv, block.out, block.gate_up, block.down)
        return core.BlockWeights(
            *(self._matrix(part) for part in products),
            *(self._vector(norm.weight, block.config.width) for norm in norms),
        )

    def _matrix(self, part: nn.Module) -> core.Matrix:
        native = cast(_Native, part)
        held, bias = native.held, getattr(native, "bias", None)
        self._kept += [held, None if bias is None else bias.detach()]
        return native.matrix(held, self._kept[-1])

    def _vector(self, vector: Tensor, length: int) -> int:
        self._kept.append(vector.detach())  # its memory stays, whatever becomes of the parameter
        return core.pointer(self._kept[-1], length)

    def _describe(self, model: PhoneModel, blocks: ctypes.Array[core.BlockWeights]) -> core.ModelWeights:
        c = model.config
        frequencies = turn_frequencies(c.rotary_pairs, c.rope_base)
        return core.ModelWeights(
            blocks,
            self._matrix(model.table),
            self._vector(model.norm.weight, c.width),
            self._vector(frequencies, c.rotary_pairs),
            *(c.num_layers, c.width, c.num_heads, c.num_kv_heads, c.head_dim, c.rotary_pairs, c.ffn_width),
            *(c.norm_eps, model.embed_scale),
        )

    def run(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, rows: Rows, gate: TopKConfig
    ) -> Tensor:
        """Run one token a row, as :meth:`~autoglm.model.network.PhoneModel.decode` does.

        Raises:
            ConfigError: the gate keeps too few pages.
            EngineError: a token is unknown, pages are missing, or memory is short.
        """
        held = [[*cache.keys], [*cache.values], [*cache.bounds]]  # alive until the call is over
        if any(len(tensors) != len(self._blocks) for tensors in held):
            raise EngineError("the cache of this release was given back")
        layers = [array("Q", [tensor.data_ptr() for tensor in tensors]) for tensors in held]
        places = core.Cache(*map(_address, layers), rows.tables[0].pages_per_slot, rows.page)
        token_ids, positions = token_ids.contiguous(), positions.contiguous()
        lists = [array("q", values) for values in (rows.lengths, *_runs(rows))]
        gated_from = topk.gated_from(keep=gate.keep, page=rows.page, dense_below=gate.dense_below)
        if max(rows.lengths) >= gated_from:
            topk.check_keep(gate.keep)
        starts = token_ids.data_ptr(), positions.data_ptr(), *map(_address, lists)
        batch = core.Batch(len(rows), gate.keep, gated_from, *starts)
        out = torch.empty((len(rows), self._width))
        problem = self._core.wdecode_step(
            self._reference,
            ctypes.byref(places),
            ctypes.byref(batch),
            torch.get_num_threads(),
            out.data_ptr(),
        )
        core.check(problem)
        return out


def _address(values: array[int]) -> int:
    return values.buffer_info()[0]


def _runs(rows: Rows) -> tuple[list[int], list[int]]:
    """Return where each row's runs of pages begin, and all runs as (first page, count)."""
    starts, runs = [0], list[int]()
    for table in rows.tables:
        for run in table.runs:
            runs += run
        starts.append(len(runs) // 2)
    return starts, runs

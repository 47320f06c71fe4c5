"""Matrix products on weights that stay INT8 in memory, by torch's own kernel for CPUs (FBGEMM).

What it guarantees: a row's result depends on that row alone, to the last bit, whatever it is batched with,
because each row of activations gets a scale of its own and the sums are sums of integers; a value that is not
finite stays not finite; the same weights are always computed in the same way on one machine.

Which matrices are held like this is a rule about their size, found by measuring (ADR 0010), and not a
stopwatch at each start: answers must not depend on how busy a machine was when it started. At the start it is
only asked whether the kernel is there, and whether its sums overflow on this CPU.

    >>> if packs("blocks.0.down.weight", codes.shape):                   # doctest: +SKIP
    ...     model.blocks[0].down = PackedLinear(codes, scale)
"""

from __future__ import annotations

import functools
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.errors import EngineError

# Below this many weights a float product is done before the kernel has quantised its input.
MIN_WEIGHTS = 1 << 19
_MIN_RANGE = 2.0**-126  # of a row of activations: a row of zeros has one too
_ENGINE = "fbgemm"
_PACKING = threading.Lock()  # torch knows one quantised engine a process at a time


def packs(name: str, shape: Sequence[int], min_weights: int = MIN_WEIGHTS) -> bool:
    """Tell whether a stored matrix is to be held as INT8 on this CPU.

    Args:
        name: the weight's name; only matrices that multiply activations qualify.
        shape: (rows, columns).
        min_weights: the smallest matrix that is worth it.
    """
    if len(shape) != 2 or not name.endswith(".weight") or shape[0] * shape[1] < min_weights:
        return False
    is_product = name.startswith("blocks.") or name in ("head.weight", "table.weight")
    return is_product and activation_steps() > 0


@functools.cache
def activation_steps() -> int:
    """Return how many steps an activation may have on each side of zero: 127, 63, or 0 without a kernel.

    Without VNNI instructions the kernel adds two products in 16 bits: with 127 steps they overflow.
    """
    if _ENGINE not in torch.backends.quantized.supported_engines:
        return 0
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    try:
        packed = _pack(codes, torch.ones(16))
        for steps in (127, 63):
            if torch.equal(_product(torch.ones(1, 64), packed, steps), torch.full((1, 16), 64 * 127.0)):
                return steps
    except (RuntimeError, NotImplementedError):
        return 0
    return 0


def _pack(codes: Tensor, scale: Tensor) -> Any:
    """Return codes (N, K) int8 with scales (N,) in the kernel's own order."""
    zeros = torch.zeros(len(codes), dtype=torch.long)
    with _PACKING, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the type is on its way out; torch is pinned
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = _ENGINE
        try:
            make = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateUsage] - no other way
            quantised = make(codes, scale.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before


def _product(x: Tensor, packed: Any, steps: int) -> Tensor:
    """Multiply x (..., K), values in -1..1, with packed weights; (..., N) float32."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1 / steps, steps + 1, packed)


class Packed(nn.Module):
    """Weights that are INT8 in memory.

    Attributes:
        shape: (rows, columns).
        num_bytes: what they take.
        is_native: whether they are laid out for the native core.
    """

    is_native = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.num_bytes = packed_bytes(shape)
        self._held: Any = None

    @property
    def held(self) -> Any:
        """What the kernel takes.

        Raises:
            EngineError: it was given back.
        """
        if self._held is None:
            raise EngineError("the weights of this release were given back")
        return self._held

    def drop(self) -> None:
        """Give the memory back; nothing can be computed any more."""
        self._held = None


class Table(Packed, ABC):
    """A token table of which rows are looked up, and which multiplies where it is the head too."""

    @abstractmethod
    def whole(self) -> Tensor:
        """Return all rows (V, W) float32."""

    @abstractmethod
    def score(self, hidden: Tensor) -> Tensor:
        """Multiply hidden states (..., W) with every row; return (..., V)."""


def _steps() -> int:
    """Return :func:`activation_steps`.

    Raises:
        EngineError: there is no kernel.
    """
    if not (steps := activation_steps()):
        raise EngineError("torch has no INT8 kernel for this CPU: load the weights as floats")
    return steps


def _multiply(x: Tensor, packed: Any, steps: int) -> Tensor:
    """Multiply x (..., K) float32, each row rounded to 8 bits of its own range; (..., N) float32."""
    if x.dim() == 1:  # the kernel wants rows
        return _multiply(x[None], packed, steps)[0]
    top = x.abs().amax(-1, keepdim=True).clamp_min_(_MIN_RANGE)  # (..., 1)
    return _product(x / top, packed, steps).mul_(top)


class PackedLinear(Packed):
    """A linear layer.

    Attributes:
        bias: (N,) float32, or None; given with the other weights.
    """

    def __init__(
        self, codes: Tensor, scale: Tensor, *, has_bias: bool = False, like: PackedLinear | None = None
    ) -> None:
        """Pack codes (N, K) int8 with scales (N,), or use the memory of ``like``, which has the same ones.

        Raises:
            EngineError: this CPU has no kernel.
        """
        super().__init__(codes.shape if like is None else like.shape)
        self._steps = _steps()
        self._held = _pack(codes, scale) if like is None else like.held
        empty = torch.empty(len(codes), device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K) float32; return (..., N) float32."""
        out = _multiply(x, self.held, self._steps)
        return out if self.bias is None else out.add_(self.bias)


class PackedTable(Table):
    """A token table: rows are looked up; where it is the head too, it multiplies.

    Attributes:
        is_head: whether it does.
    """

    def __init__(
        self, codes: Tensor, scale: Tensor, *, is_head: bool, like: PackedTable | None = None
    ) -> None:
        """Keep codes (V, W) int8 with scales (V,), and pack them once more for the head.

        ``like`` has the same ones: its memory is used.

        Raises:
            EngineError: this CPU has no kernel.
        """
        super().__init__(codes.shape if like is None else like.shape)
        self._steps = _steps()
        self.is_head = is_head
        self.num_bytes *= 1 + is_head
        if like is not None:
            self._held = like.held
            return
        # A copy: what was read may be a view of the file, which must not change what is computed.
        self._held = (codes.clone(), scale.float()[:, None], _pack(codes, scale) if is_head else None)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (...) as float32 (..., W)."""
        codes, scale, _ = self.held
        return codes[ids].float() * scale[ids]

    def whole(self) -> Tensor:
        """Return all rows (V, W) float32."""
        codes, scale, _ = self.held
        return codes.float() * scale

    def score(self, hidden: Tensor) -> Tensor:
        """Multiply hidden states (..., W) with every row; return (..., V)."""
        return _multiply(hidden, self.held[2], self._steps)


def pack(
    name: str,
    codes: Tensor,
    scale: Tensor,
    *,
    has_bias: bool,
    is_tied: bool,
    like: Packed | None = None,
) -> Packed:
    """Return the module that takes the place of the one whose weight is ``name``.

    Args:
        name: such as ``blocks.0.qkv.weight``.
        codes: (rows, columns) int8.
        scale: (rows,).
        has_bias: whether a bias is added.
        is_tied: whether the token table is the head too.
        like: the same weights of another model of the same kind, whose memory is used.

    Raises:
        EngineError: this CPU has no kernel.
    """
    if name == "table.weight":
        alike = like if isinstance(like, PackedTable) and like.is_head == is_tied else None
        return PackedTable(codes, scale, is_head=is_tied, like=alike)
    alike = like if isinstance(like, PackedLinear) else None
    return PackedLinear(codes, scale, has_bias=has_bias, like=alike)


def packed_bytes(shape: Sequence[int]) -> int:
    """Return what a matrix (rows, columns) takes: codes, and a scale and the sum of its codes a row."""
    return shape[0] * (shape[1] + 8)


def packed_parts(model: nn.Module) -> dict[str, Packed]:
    """Return a model's packed modules by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}


def drop_packed(model: nn.Module) -> None:
    """Give the memory of all packed weights back."""
    for part in packed_parts(model).values():
        part.drop()

"""Which tensor holds the scales of a quantised one, by the names in use.

>>> spans = {span.name: span for span in read_layout(Path("model.safetensors"))}    # doctest: +SKIP
>>> companion(spans, spans["layers.0.mlp.weight"])                                  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoglm.patch.layouts import Span
from autoglm.patch.package import SCALE_DTYPES, Dtype

# Types that hold codes, one or several in an element.
_CODES = frozenset(
    (
        *(Dtype.I8, Dtype.U8, Dtype.F8_E4M3, Dtype.F8_E5M2),
        *(Dtype.I16, Dtype.U16, Dtype.I32, Dtype.U32),
    )
)

# The end of the codes' name, and what stands there in the name of their scales.
_NAMES = (
    ("", ".scale"),  # this project
    ("", "_scale"),  # compressed-tensors, ModelOpt, FP8 checkpoints
    ("", "_scale_inv"),  # DeepSeek, MiniMax
    ("_packed", "_scale"),  # compressed-tensors, several codes an element
    ("_qdata", "_scale"),  # torchao
    ("._data", "._scale"),  # quanto
    (".qweight", ".scales"),  # GPTQ, AWQ
    (".weight", ".scales"),  # MLX
    (".weight", ".SCB"),  # bitsandbytes, 8 bits
    ("", ".absmax"),  # bitsandbytes, 4 bits
)


@dataclass(frozen=True, slots=True)
class Companion:
    """The scales of a quantised tensor.

    Attributes:
        span: where they are.
        elements_per_scale: how many elements of the codes share one. Scale ``i`` belongs to the elements from
            ``i * elements_per_scale`` on, counted as they lie in the file: a group inside a row, a row, or
            the whole tensor. Where an element packs several codes it counts as one.
    """

    span: Span
    elements_per_scale: int


def companion(spans_by_name: Mapping[str, Span], span: Span) -> Companion | None:
    """Return the scales of ``span`` among the tensors of its file; None when none fit.

    What fits has a float type and a value for every row, for every group of consecutive elements of a row,
    or one for all. Blocks that span several rows (DeepSeek's 128 x 128) do not fit, nor do scales of columns
    (GPTQ's and AWQ's usual order): neighbours in the file would not share them.
    """
    if span.dtype not in _CODES or not span.count:
        return None
    for ending, replacement in _NAMES:
        scales = spans_by_name.get(span.name.removesuffix(ending) + replacement)
        if scales is None or not span.name.endswith(ending):
            continue
        if scales.dtype not in SCALE_DTYPES or not scales.count:
            continue
        if group := _group(span, scales, flat=replacement == ".absmax"):
            return Companion(scales, group)
    return None


def _group(span: Span, scales: Span, *, flat: bool) -> int:
    """Return how many consecutive elements share a scale, 0 when the shapes do not fit.

    Args:
        span, scales: the codes and what may be their scales.
        flat: the scales count through the whole tensor, whatever its rows are.
    """
    shape, outer = span.shape, _without_ones(scales.shape)
    rows_or_more = len(outer) < len(shape) and outer == shape[: len(outer)]
    same_rows = bool(shape) and len(scales.shape) == len(shape) and scales.shape[:-1] == shape[:-1]
    in_rows = same_rows and shape[-1] % scales.shape[-1] == 0
    in_all = flat and len(outer) == 1 and span.count % scales.count == 0
    return span.count // scales.count if rows_or_more or in_rows or in_all else 0


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the dimensions of 1 at the end, which some writers keep."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape

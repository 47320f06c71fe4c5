"""Runs of equal elements, and the rule that they cover a file in order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autoglm.patch.package import MAX_BYTES, MAX_NAME_BYTES, MAX_PLANES, MAX_RANK, Dtype

# Of a file's description of its tensors; that of a model with 250,000 tokens takes 15 million bytes.
MAX_METADATA_BYTES = 64 << 20


class MalformedError(Exception):
    """A file breaks a rule of its kind; :func:`~autoglm.patch.layouts.read_layout` catches it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of equal elements at an offset of a file.

    Attributes:
        name: the tensor's; empty for the bytes between tensors.
        dtype: of one element; of GGUF's block types an element is a whole block.
        shape: in elements, outermost dimension first.
        offset: of the first byte.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """In bytes."""
        return self.dtype.size * self.count

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.length

    @property
    def is_gap(self) -> bool:
        """Whether it is no tensor, but the bytes between tensors, or all of a plain file."""
        return not self.name and self.dtype is Dtype.BYTES


def bytes_between(start: int, end: int, name: str = "") -> Span:
    """Return the span of plain bytes from ``start`` to ``end``."""
    return Span(name, Dtype.BYTES, (end - start,), start)


def tensor(name: str, dtype: Dtype | None, shape: tuple[int, ...], start: int, end: int) -> Span:
    """Return a tensor's span; as named bytes when a package could not hold its type, rank or dimensions.

    Raises:
        MalformedError: its elements do not fill the space from ``start`` to ``end``, or its name is too long.
    """
    if start > end or len(name.encode()) > MAX_NAME_BYTES:
        raise MalformedError
    if dtype is None or len(shape) > MAX_RANK or max(shape, default=0) > MAX_BYTES:
        return bytes_between(start, end, name)
    span = Span(name, dtype, shape, start)
    if span.end != end:
        raise MalformedError
    return span


def cover(spans: Iterable[Span], size: int) -> list[Span]:
    """Sort the spans and fill what lies between them with bytes, up to ``size``.

    Raises:
        MalformedError: they overlap, reach past the end, or are more than a package can hold.
    """
    covered: list[Span] = []
    at = 0
    for span in sorted(spans, key=lambda span: (span.offset, span.length)):
        if span.offset < at or span.end > size:
            raise MalformedError
        if span.offset > at:
            covered.append(bytes_between(at, span.offset))
        covered.append(span)
        at = span.end
    if size > at:
        covered.append(bytes_between(at, size))
    if len(covered) > MAX_PLANES:
        raise MalformedError
    return covered

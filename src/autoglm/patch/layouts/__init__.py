"""What lies where in a file: the typed planes of safetensors, GGUF and ExecuTorch's ``.ptd``.

A layout covers a file from its first byte to its last, in order; any other file is one plane of bytes. What
kind a file is, its first bytes tell, never its name. A file that breaks any rule of its kind is treated as
plain bytes: that costs size, never correctness. Reading a layout touches no weights, and neither a hostile
count nor a hostile depth makes it take more memory or time than :data:`MAX_METADATA_BYTES` of honest
metadata would.

    >>> from pathlib import Path
    >>> read_layout(Path("model.gguf"))                                      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from autoglm.patch.layouts import gguf, ptd, safetensors
from autoglm.patch.layouts.spans import MAX_METADATA_BYTES, MalformedError, Span, cover

__all__ = ["MAX_METADATA_BYTES", "Span", "read_layout"]

_HEAD_BYTES = 16


def read_layout(path: Path) -> list[Span]:
    """Return the spans of the file at ``path``, covering it in order.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        size = file.seek(0, 2)
        file.seek(0)
        read = _reader(head)
        try:
            return cover(read(file, size) if read else [], size)
        except MalformedError:
            return cover([], size)


def _reader(head: bytes) -> Callable[[IO[bytes], int], list[Span]] | None:
    """Tell a file's kind by its first bytes."""
    if head.startswith(gguf.MAGIC):
        return gguf.read_spans
    if head[4:8] == ptd.IDENTIFIER and head[8:12] == ptd.HEADER_MAGIC:
        return ptd.read_spans
    return safetensors.read_spans if head[8:9] == b"{" else None

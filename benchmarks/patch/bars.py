"""What a patch must reach, by the kind of pair: the design's table, as data.

Sizes are against the best external peer of the same run; the rest holds for every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

MAKE_OVER_ZSTD, MAKE_OVER_BSDIFF = 20.0, 70.0
MAX_APPLY_MIB = 64.0
MAX_OVER_ENTROPY = 0.03
WIDE = "wide"

_OF_BEST_PEER = (
    ("bf16-1e-6", 0.62),
    ("bf16-1e-5", 0.48),
    ("bf16-3e-5", 0.45),
    ("bf16-lora", 0.14),
    ("int8", 0.60),
    ("q4", 0.95),
    ("gguf-q4", 0.95),
    # nothing to code: what is left is headers, and a program may well have a shorter one
    ("bf16-unchanged", float("inf")),
)
_OF_FILE = {
    "adapter-born": {"narrow": 0.03, WIDE: 0.015},
    "bf16-unchanged": {"narrow": 0.001, WIDE: 0.001},
}


@dataclass(frozen=True)
class Bar:
    """The bar of one pair.

    Attributes:
        of_best_peer: the patch at most so much of the best peer's; below 1 where the design names no figure.
        of_file: the patch at most so much of the new file, None for no such bar.
        apply_over_sha256: applying at most so many times as slow as hashing the new file.
    """

    of_best_peer: float
    of_file: float | None
    apply_over_sha256: float


def bar(pair: str, width: str) -> Bar:
    """Return the bar of a pair at a width."""
    share = next((share for start, share in _OF_BEST_PEER if pair.startswith(start)), 1.0)
    of_file = _OF_FILE.get(pair, {}).get(width)
    return Bar(share, of_file, 3.0 if pair.startswith(("bf16", "f16", "f32", "gguf-bf16")) else 4.0)

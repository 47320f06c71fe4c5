"""The sizes that decoding is measured at, as plain numbers that every engine can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        name: what the table calls it.
        width: channels of the stream.
        layers: blocks.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: channels of a head.
        ffn: inner width of the feed-forward.
        vocab: tokens.
        tied: whether the token table is the head too.
    """

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool

    @property
    def weights(self) -> int:
        """Weights that one token multiplies with."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.ffn) + self.vocab * self.width

    def to_dict(self) -> dict[str, object]:
        """Return the sizes for a child process."""
        return asdict(self)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("nano", 192, 6, 6, 2, 32, 512, 2048, tied=True),
        Shape(
            "half-b", 896, 6, 14, 2, 64, 4864, 16384, tied=False
        ),  # a 0.5B model's layers, a quarter of them
        Shape("9b", 4096, 2, 32, 2, 128, 13696, 8192, tied=False),  # two of the 40 layers of the 9B
    )
}

"""Embedded images and clips, kept by their content, so that a picture sent again is not embedded again.

It belongs to one release, whose embedder made what it holds, and to the thread that runs the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

MAX_BYTES = 64 << 20


class Encodings:
    """The most recently used embeddings, bounded in bytes.

    Attributes:
        hits: how often one was there.
        misses: how often one had to be made.
        num_bytes: what is held.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.hits = self.misses = self.num_bytes = 0
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, digest: bytes, make: Callable[[], Tensor]) -> Tensor:
        """Return the embedding of the content with this digest; ``make`` it when it is not there."""
        if digest in self._held:
            self.hits += 1
            self._held.move_to_end(digest)
            return self._held[digest]
        self.misses += 1
        tokens = make()
        if bool(tokens.isfinite().all()):  # a broken embedding fails its own request only
            self._keep(digest, tokens)
        return tokens

    def _keep(self, digest: bytes, tokens: Tensor) -> None:
        self._held[digest] = tokens
        self.num_bytes += tokens.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self.num_bytes -= oldest.nbytes

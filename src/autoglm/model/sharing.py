"""Weights that two releases have in common are in memory once.

What it guarantees: a weight is taken over from another loaded release only when what is stored for it,
codes and scales, has the same hash; such a weight was checked when it was first loaded, and no weight is
ever written after that. A release that changes little takes little memory beside the one it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from autoglm.model.kernels import Packed
from autoglm.model.tokenizer import Tokenizer

_CHUNK_BYTES = 1 << 20


def _go_on() -> None:
    pass


@dataclass(frozen=True)
class LoadedWeight:
    """A weight in memory.

    Attributes:
        digest: of what is stored for it.
        value: ready to compute with, on its device: a tensor, or a matrix that stays INT8.
    """

    digest: bytes
    value: Tensor | Packed


class Sharing:
    """Notes the hashes of the weights that are read, and finds those that are there already.

    Args:
        known: the weights of a loaded release, by name.
        pace: called between two pieces of reading; may rest.
        tokenizer: of a loaded release whose file is the same.

    Attributes:
        pace, tokenizer: as given.
        digests: of each weight read so far.
        num_shared: weights that were taken over.
        shared_bytes: the memory that this saved.
    """

    def __init__(
        self,
        known: Mapping[str, LoadedWeight] | None = None,
        pace: Callable[[], None] = _go_on,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.pace, self.tokenizer = pace, tokenizer
        self.digests: dict[str, bytes] = {}
        self.num_shared = self.shared_bytes = 0
        self._known = dict(known or {})

    def find(
        self, name: str, stored: Tensor, scale: Tensor | None, shape: torch.Size, dtype: torch.dtype
    ) -> Tensor | None:
        """Return the weight in memory that is stored like this, None when there is none.

        Args:
            name: of the weight.
            stored, scale: as they are in the file.
            shape, dtype: of the weight when it is computed with.
        """
        known = self._find(name, stored, scale)
        if not isinstance(known, Tensor) or known.shape != shape or known.dtype != dtype:
            return None
        self._count(known.nbytes)
        return known.detach()

    def find_packed(
        self, name: str, stored: Tensor, scale: Tensor, shape: torch.Size, *, native: bool = False
    ) -> Packed | None:
        """Return the INT8 matrix of ``shape`` in memory that is stored like this, None when there is none.

        ``native`` says whether it has to be laid out for the native core.
        """
        known = self._find(name, stored, scale)
        if not isinstance(known, Packed) or known.shape != shape or known.is_native != native:
            return None
        self._count(known.num_bytes)
        return known

    def loaded(self, state: Mapping[str, Tensor | Packed]) -> dict[str, LoadedWeight]:
        """Return the weights of the model that was read, for the next one to share."""
        return {
            name: LoadedWeight(digest, state[name]) for name, digest in self.digests.items() if name in state
        }

    def _find(self, name: str, stored: Tensor, scale: Tensor | None) -> Tensor | Packed | None:
        digest = self.digests[name] = self._digest(stored, scale)
        known = self._known.get(name)
        return None if known is None or known.digest != digest else known.value

    def _count(self, num_bytes: int) -> None:
        self.num_shared += 1
        self.shared_bytes += num_bytes

    def _digest(self, stored: Tensor, scale: Tensor | None) -> bytes:
        digest = sha256()
        for tensor in (stored,) if scale is None else (stored, scale):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(raw), _CHUNK_BYTES):
                digest.update(raw[start : start + _CHUNK_BYTES].data)
                self.pace()
        return digest.digest()

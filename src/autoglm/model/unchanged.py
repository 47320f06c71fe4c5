"""What of a weights file is in memory already: read without allocating anything for it.

>>> unchanged_bytes(directory / "model.safetensors", live.weights)                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from autoglm.model.sharing import LoadedWeight, Sharing
from autoglm.model.weights import SCALE_SUFFIX


def unchanged_bytes(path: Path, known: Mapping[str, LoadedWeight]) -> int:
    """Return the memory that loading ``path`` beside the ``known`` weights would not take; 0 if unreadable.

    Every tensor is hashed, which takes a second a GB or less.
    """
    sharing = Sharing(known)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in known.keys() & names:
                stored, value = file.get_tensor(name), known[name].value
                scale = file.get_tensor(name + SCALE_SUFFIX) if name + SCALE_SUFFIX in names else None
                if isinstance(value, Tensor):
                    sharing.find(name, stored, scale, value.shape, value.dtype)
                elif scale is not None:
                    sharing.find_packed(name, stored, scale, value.shape, native=value.is_native)
    except (SafetensorError, OSError, ValueError):
        return 0
    return sharing.shared_bytes

"""Decoded pictures, kept by the bytes of their files: an agent sends its screenshots again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 64 << 20


class DecodedImages:
    """The most recently used pictures, bounded by the bytes of their pixels; safe to use from every thread.

    Attributes:
        hits: how often a picture was there already.
        num_bytes: what the pixels take.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.hits = self.num_bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, Image] = OrderedDict()

    def get(self, content: bytes, max_pixels: int, decode: Callable[[bytes, int], Image]) -> Image:
        """Return the picture in a file; ``decode(content, max_pixels)`` it when it is not there.

        Raises:
            RequestError: as ``decode`` does, which also judges a known picture that is too large now.
        """
        key = sha256(content).digest()
        with self._lock:
            known = self._held.get(key)
            if known is not None and known.width * known.height <= max_pixels:
                self._held.move_to_end(key)
                self.hits += 1
                return known
        image = decode(content, max_pixels)
        with self._lock:
            self._keep(key, image)
        return image

    def _keep(self, key: bytes, image: Image) -> None:
        if key not in self._held:
            self._held[key] = image
            self.num_bytes += _size(image)
        while self.num_bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self.num_bytes -= _size(oldest)


def _size(image: Image) -> int:
    return image.width * image.height * len(image.getbands())

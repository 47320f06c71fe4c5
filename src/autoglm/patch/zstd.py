"""zstd as the format uses it: one frame of known size, with a checksum, optionally against a prefix.

The module is the standard library's from Python 3.14 and the same code's backport before.
"""

from __future__ import annotations

import sys

from autoglm.errors import PackageError

if sys.version_info >= (3, 14):
    from compression.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
    )
else:
    from backports.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
    )

# 16 MiB: what a segment and its prefix need at most; a frame that asks for more is refused.
MAX_WINDOW_LOG = 24
LEVEL = 19
FAST_LEVEL = 6


def compress(content: bytes, *, prefix: bytes = b"", level: int = LEVEL) -> bytes:
    """Return ``content`` as one frame that decompresses with the same ``prefix``."""
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.checksum_flag: 1,
        CompressionParameter.window_log: _window_log(len(content) + len(prefix)),
        # finds an edited copy anywhere in a long prefix, where the levels' own tables are too small
        CompressionParameter.enable_long_distance_matching: int(len(prefix) > 1 << 20),
    }
    if prefix:
        dictionary = ZstdDict(prefix, is_raw=True).as_prefix
        compressor = ZstdCompressor(options=options, zstd_dict=dictionary)
    else:
        compressor = ZstdCompressor(options=options)
    compressor.set_pledged_input_size(len(content))
    return compressor.compress(content, ZstdCompressor.FLUSH_FRAME)


def decompress(frame: bytes, size: int, *, prefix: bytes = b"") -> bytes:
    """Return the ``size`` bytes of a frame.

    Raises:
        PackageError: it is damaged, or holds more or fewer bytes; no more than ``size`` + 1 are made.
    """
    options: dict[int, int] = {DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    if prefix:
        dictionary = ZstdDict(prefix, is_raw=True).as_prefix
        decompressor = ZstdDecompressor(zstd_dict=dictionary, options=options)
    else:
        decompressor = ZstdDecompressor(options=options)
    try:
        content = decompressor.decompress(frame, max_length=size + 1)
    except (ZstdError, MemoryError) as error:
        raise PackageError(f"a compressed part of the package is damaged ({error})") from error
    if len(content) != size or not decompressor.eof or decompressor.unused_data:
        raise PackageError("a compressed part of the package does not hold the bytes that it should")
    return content


def _window_log(size: int) -> int:
    return min(max(10, (size - 1).bit_length()), MAX_WINDOW_LOG)

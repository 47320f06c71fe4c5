"""zstd as the peers use it: plain frames, and what ``zstd --patch-from`` writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def pack(content: bytes, level: int = 19) -> bytes:
    """Return a frame."""
    return zstd.compress(content, level)


def unpack(frame: bytes) -> bytes:
    """Invert :func:`pack`."""
    return zstd.decompress(frame)


def make_patch(level: int, old: Path, new: Path, delta: Path) -> None:
    """Do what ``zstd -LEVEL --patch-from=OLD`` does: the old file as a prefix, in a window for both."""
    before, after = old.read_bytes(), new.read_bytes()
    parameter = zstd.CompressionParameter
    options = {
        parameter.compression_level: level,
        parameter.window_log: max(10, (len(before) + len(after)).bit_length()),
        parameter.enable_long_distance_matching: 1,
    }
    prefix = zstd.ZstdDict(before, is_raw=True).as_prefix
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=prefix)
    compressor.set_pledged_input_size(len(after))
    delta.write_bytes(compressor.compress(after, compressor.FLUSH_FRAME))


def apply_patch(old: Path, delta: Path, made: Path) -> None:
    """Do in this process what ``zstd -d --patch-from=OLD`` does."""
    prefix = zstd.ZstdDict(old.read_bytes(), is_raw=True).as_prefix
    options = {zstd.DecompressionParameter.window_log_max: 31}
    made.write_bytes(zstd.decompress(delta.read_bytes(), prefix, options))


def apply_patch_by_program(old: Path, delta: Path, made: Path) -> None:
    """Run ``zstd -d --patch-from=OLD``."""
    run("zstd", "-d", "-q", "-f", "--memory=2048MB", f"--patch-from={old}", str(delta), "-o", str(made))


def run(program: str, *arguments: str) -> None:
    """Run a program that must succeed."""
    subprocess.run([shutil.which(program) or program, *arguments], check=True, capture_output=True)

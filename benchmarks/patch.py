"""Size and speed of weight patches, beside bsdiff4, HDiffPatch and zstd --patch-from.

    python benchmarks/patch.py                           # every pair there is, one thread
    python benchmarks/patch.py --pairs int8-kept --no-slow --json
    python benchmarks/patch.py --old DIR_OR_FILE --new DIR_OR_FILE

Pairs: ``release`` is the shipped v1.2 -> v1.3 (their model.safetensors). The others are synthetic and seeded:
Gaussian weights with rows of different spread, and an update that is part low rank, part noise, bounded as an
optimiser's is. Real fine-tunes differ; for them measure your own pair.

Every patch is applied and compared with the new file. Times are wall-clock medians of one process: wpatch
reads and writes files and syncs them to the disk, the peers work in memory, which favours them. ``sha256`` is
Python's hash over the new file, the yardstick for applying.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bsdiff4
import hdiffpatch
import numpy as np

from autoglm import patch
from autoglm.patch import zstd
from shipped import unpack

# An apply is repeated; a make that takes longer than this is not.
PATIENCE_SECONDS = 2.0

Array = Any
Delta = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True)
class Result:
    """One codec on one pair; ``share`` is package bytes over the bytes of the new file."""

    pair: str
    codec: str
    bytes: int
    share: float
    make_s: float
    apply_s: float


def bf16(values: Array) -> bytes:
    """Round to bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def int8(values: Array, scales: Array | None) -> tuple[bytes, Array]:
    """Quantise each row to int8; return the codes and the rows' scales."""
    if scales is None:
        scales = (np.abs(values).max(axis=1) / 127).astype("<f2")
    codes = np.clip(np.rint(values / scales[:, None].astype(np.float32)), -127, 127)
    return codes.astype(np.int8).tobytes(), scales


def shapes(width: int, layers: int) -> dict[str, tuple[int, int]]:
    """Return the matrices of a small transformer."""
    found = {"embed.weight": (8 * width, width)}
    for layer in range(layers):
        for name, rows, columns in (
            ("q", width, width),
            ("k", width // 4, width),
            ("v", width // 4, width),
            ("o", width, width),
            ("gate", 3 * width, width),
            ("up", 3 * width, width),
            ("down", width, 3 * width),
        ):
            found[f"layers.{layer}.{name}.weight"] = (rows, columns)
    return found


def synthetic(
    directory: Path, kind: str, step: float, width: int = 384, layers: int = 5
) -> tuple[Path, Path]:
    """Write a seeded pair of model files.

    Args:
        directory: where.
        kind: ``bf16``, ``kept`` (int8 with the base's scales) or ``rescaled`` (int8 with its own).
        step: how far a weight may move.
        width: of the model.
        layers: of the model.
    """
    rng = np.random.default_rng(1)
    old: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    new: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, shape in shapes(width=384, layers=5).items():
        spread = np.exp(rng.normal(0, 0.3, (shape[0], 1))) / np.sqrt(shape[1])
        before = (rng.standard_normal(shape) * spread).astype(np.float32)
        update = rng.standard_normal((shape[0], 8)) @ rng.standard_normal((8, shape[1])) / np.sqrt(8)
        after = before + step * np.tanh(update + 0.5 * rng.standard_normal(shape)).astype(np.float32)
        if kind == "bf16":
            old[name], new[name] = ("BF16", shape, bf16(before)), ("BF16", shape, bf16(after))
            continue
        codes, scales = int8(before, None)
        old[name], old[f"{name}.scale"] = ("I8", shape, codes), ("F16", shape[:1], scales.tobytes())
        codes, scales = int8(after, scales if kind == "kept" else None)
        new[name], new[f"{name}.scale"] = ("I8", shape, codes), ("F16", shape[:1], scales.tobytes())
    return save(directory / f"{kind}-{step}-old.safetensors", old), save(
        directory / f"{kind}-{step}-new.safetensors", new
    )


def save(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """Write a safetensors file, wide types first as its library does."""
    entries, at, data = {}, 0, []
    for name, (dtype, shape, content) in sorted(
        tensors.items(), key=lambda item: (item[1][0] == "I8", item[0])
    ):
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
        data.append(content)
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(data))
    return path


def timed(run: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Return what ``run`` gives and its median seconds; a slow one runs once."""
    seconds: list[float] = []
    result = None
    while len(seconds) < repeats and (not seconds or seconds[0] < PATIENCE_SECONDS):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def measure_wpatch(
    pair: str, codec: str, old: Path | None, new: Path, scratch: Path, threads: int, repeats: int
) -> Result:
    """Make and apply a package between files."""
    package, made = scratch / "p.wpatch", scratch / "made"

    def apply() -> None:
        made.unlink(missing_ok=True)
        patch.apply(old, package, made, threads=threads)

    report, make_s = timed(lambda: patch.diff(old, new, package, threads=threads), repeats)
    _, apply_s = timed(apply, repeats)
    if made.read_bytes() != new.read_bytes():
        raise SystemExit(f"{codec} did not restore {pair}")
    size = report.package_bytes
    return Result(pair, codec, size, size / new.stat().st_size, make_s, apply_s)


def measure_peer(
    pair: str,
    codec: str,
    make: Delta,
    apply: Delta,
    old: bytes,
    new: bytes,
    repeats: int,
) -> Result:
    """Make and apply a patch in memory."""
    delta, make_s = timed(lambda: make(old, new), repeats)
    made, apply_s = timed(lambda: apply(old, delta), repeats)
    if made != new:
        raise SystemExit(f"{codec} did not restore {pair}")
    return Result(pair, codec, len(delta), len(delta) / len(new), make_s, apply_s)


def zstd_patch_from(level: int) -> tuple[Delta, Delta]:
    """Return what ``zstd --patch-from -LEVEL`` does: the old file as a prefix, in a window for both."""
    size = struct.Struct("<Q")
    parameter, reading = zstd.CompressionParameter, zstd.DecompressionParameter

    def make(old: bytes, new: bytes) -> bytes:
        options = {
            parameter.compression_level: level,
            parameter.window_log: max(10, (len(old) + len(new)).bit_length()),
            parameter.enable_long_distance_matching: 1,
        }
        prefix = zstd.ZstdDict(old, is_raw=True).as_prefix
        compressor = zstd.ZstdCompressor(options=options, zstd_dict=prefix)
        return size.pack(len(old)) + compressor.compress(new, compressor.FLUSH_FRAME)

    def apply(old: bytes, delta: bytes) -> bytes:
        prefix = zstd.ZstdDict(old, is_raw=True).as_prefix
        options = {reading.window_log_max: 31}
        return zstd.ZstdDecompressor(options=options, zstd_dict=prefix).decompress(delta[size.size :])

    return make, apply


def measure_pair(pair: str, old: Path, new: Path, options: argparse.Namespace) -> list[Result]:
    """Run every codec on one pair."""
    peers = {"zstd -3 patch-from": zstd_patch_from(3)}
    if not options.no_slow:
        peers["zstd -19 patch-from"] = zstd_patch_from(19)
        peers["HDiffPatch (zstd)"] = (
            lambda a, b: hdiffpatch.diff(a, b, hdiffpatch.COMPRESSION_ZSTD),
            hdiffpatch.apply,
        )
        peers["bsdiff4"] = (bsdiff4.diff, bsdiff4.patch)
    before, after = old.read_bytes(), new.read_bytes()
    _, hash_s = timed(lambda: hashlib.sha256(after).digest(), options.repeats)
    with tempfile.TemporaryDirectory() as directory:
        scratch, threads, repeats = Path(directory), options.threads, options.repeats
        results = [
            measure_wpatch(pair, "wpatch", old, new, scratch, threads, repeats),
            measure_wpatch(pair, "wpatch, no base", None, new, scratch, threads, repeats),
        ]
    for codec, (make, apply) in peers.items():
        results.append(measure_peer(pair, codec, make, apply, before, after, options.repeats))
    return [*results, Result(pair, "new file (sha256)", len(after), 1.0, 0.0, hash_s)]


def model_file(path: Path) -> Path:
    """Return the file to compare: ``path``, or the model in it when it is a release."""
    return path / "model.safetensors" if path.is_dir() else path


def shipped(scratch: Path) -> tuple[Path, Path]:
    """Return the weights of the shipped pair."""
    old, new = unpack(scratch)
    return model_file(old), model_file(new)


def pairs(options: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], tuple[Path, Path]]]:
    """Return what can be measured, by name."""
    if options.old and options.new:
        return {"given": lambda: (model_file(options.old), model_file(options.new))}
    found: dict[str, Callable[[], tuple[Path, Path]]] = {
        "release": lambda: shipped(scratch),
        "int8-kept": lambda: synthetic(scratch, "kept", 5e-4),
        "int8-rescaled": lambda: synthetic(scratch, "rescaled", 5e-4),
        "bf16-small-step": lambda: synthetic(scratch, "bf16", 2e-5),
        "bf16": lambda: synthetic(scratch, "bf16", 2e-4),
    }
    return {name: make for name, make in found.items() if not options.pairs or name in options.pairs}


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| pair | codec | bytes | % of the new file | make s | apply s |", "|---|---|--:|--:|--:|--:|"]
    for r in results:
        lines.append(
            f"| {r.pair} | {r.codec} | {r.bytes:,} | {100 * r.share:.2f} | {r.make_s:.2f} | {r.apply_s:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--old", type=Path, help="a release or a model file")
    parser.add_argument("--new", type=Path, help="its successor")
    parser.add_argument("--pairs", nargs="*", help="only these")
    parser.add_argument("--threads", type=int, default=1, help="for wpatch; the peers have one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-slow", action="store_true", help="leave out the peers that take minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        for name, make in pairs(options, Path(directory)).items():
            results += measure_pair(name, *make(), options)
    print(json.dumps([asdict(result) for result in results]) if options.json else table(results))


if __name__ == "__main__":
    main()

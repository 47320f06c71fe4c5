"""Small safetensors files with the statistics of weights before and after a fine-tune."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZES = {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "I16": 2}
SIZES |= {"F32": 4, "I32": 4, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    content: bytes


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a safetensors file; tensors lie in the order of the dictionary."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.content)
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(t.content for t in tensors.values()))
    return path


def encode(values: np.ndarray, dtype: str) -> Tensor:
    """Store float values as a tensor of a type."""
    shape = tuple(values.shape)
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        content = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    elif dtype in ("F8_E4M3", "F8_E5M2", "U8", "BOOL"):
        content = np.clip(np.rint(values * 2000 + 128), 0, 255).astype(np.uint8).tobytes()
    elif dtype == "I8":
        content = np.clip(np.rint(values * 2000), -128, 127).astype(np.int8).tobytes()
    else:
        kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I16": "<i2", "I32": "<i4", "I64": "<i8"}[dtype]
        content = (values if kind[1] == "f" else np.rint(values * 2000)).astype(kind).tobytes()
    return Tensor(dtype, shape, content)


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape) * 0.02).astype(np.float32)


def tuned(rng: np.random.Generator, values: np.ndarray, step: float = 2e-4) -> np.ndarray:
    return (values + step * np.tanh(rng.standard_normal(values.shape))).astype(np.float32)


def quantised(values: np.ndarray, scales: np.ndarray | None = None) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return int8 codes, their float16 row scales as a tensor, and the scales."""
    if scales is None:
        scales = (np.abs(values).max(axis=1) / 127).astype(np.float16)
    codes = np.clip(np.rint(values / scales[:, None].astype(np.float32)), -127, 127).astype(np.int8)
    return (
        Tensor("I8", tuple(values.shape), codes.tobytes()),
        Tensor("F16", (values.shape[0],), scales.astype("<f2").tobytes()),
        scales,
    )


def packed(
    values: np.ndarray, group: int, scales: np.ndarray | None = None
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return 4-bit codes, two a byte and 8 for zero, their float16 group scales, and these as they are."""
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // group, group)
    if scales is None:
        scales = (np.abs(grouped).max(axis=2) / 7).astype(np.float16)
    codes = np.clip(np.rint(grouped / scales[:, :, None].astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    pairs = codes.reshape(rows, columns // 2, 2)
    return (
        Tensor("U8", (rows, columns // 2), (pairs[:, :, 0] | pairs[:, :, 1] << 4).tobytes()),
        Tensor("F16", scales.shape, scales.astype("<f2").tobytes()),
        scales,
    )


def pair(directory: Path, seed: int = 0, rows: int = 48, columns: int = 40) -> tuple[Path, Path]:
    """Write a base and its fine-tune with a tensor of every kind that the coder treats differently."""
    rng = np.random.default_rng(seed)
    old: dict[str, Tensor] = {}
    new: dict[str, Tensor] = {}
    for dtype in ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "U8", "I16", "F64"):
        values = weights(rng, (rows, columns))
        old[f"{dtype}.weight"] = encode(values, dtype)
        new[f"{dtype}.weight"] = encode(tuned(rng, values), dtype)
    codes: dict[str, tuple[Tensor, Tensor]] = {}
    for name, keep in (("kept", True), ("rescaled", False)):
        values = weights(rng, (rows, columns))
        after = tuned(rng, values, 1e-3)
        if not keep:
            after[:, 3] = 1.3 * np.abs(values).max(axis=1)  # which takes another scale
        old_codes, old[f"{name}.scale"], scales = quantised(values)
        new_codes, new[f"{name}.scale"], _ = quantised(after, scales if keep else None)
        codes[name] = old_codes, new_codes
    for name, keep in (("packed.kept", True), ("packed.rescaled", False)):
        values = weights(rng, (rows, 2 * columns))
        after = tuned(rng, values, 2e-3)
        if not keep:
            after[:, ::columns] = 1.3 * np.abs(values).max(axis=1, keepdims=True)
        old_codes, old[f"{name}.scale"], scales = packed(values, columns // 2)
        new_codes, new[f"{name}.scale"], _ = packed(after, columns // 2, scales if keep else None)
        codes[name] = old_codes, new_codes
    wide = weights(rng, (3 * rows, 3 * columns))
    moved = rng.standard_normal((3 * rows, 2)) @ rng.standard_normal((2, 3 * columns))
    old["lowrank"] = encode(wide, "BF16")
    new["lowrank"] = encode((wide + 1e-3 * moved).astype(np.float32), "BF16")
    old_codes, old["lowrank.codes.scale"], scales = quantised(wide)
    new_codes, new["lowrank.codes.scale"], _ = quantised(wide + 1e-3 * moved, scales)
    codes["lowrank.codes"] = old_codes, new_codes
    for name, (before, after) in codes.items():
        old[name], new[name] = before, after
    old["same"] = new["same"] = encode(weights(rng, (rows, columns)), "BF16")
    grown = weights(rng, (rows + 8, columns))
    old["grown"], new["grown"] = encode(grown[:rows], "BF16"), encode(tuned(rng, grown), "BF16")
    new["added"] = encode(weights(rng, (rows, columns)), "BF16")
    old["removed"] = encode(weights(rng, (rows, columns)), "BF16")
    return write(directory / "old.safetensors", old), write(directory / "new.safetensors", new)


def release(directory: Path, model: Path, version: str) -> Path:
    """Lay out a release directory around a safetensors file."""
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(model.read_bytes())
    (directory / "config.json").write_text(json.dumps({"layers": 2, "hidden": 40}) * 20)
    (directory / "tokenizer.json").write_text("".join(f"token {n} of {version[:1]}\n" for n in range(3000)))
    (directory / "manifest.json").write_text(json.dumps({"version": version, "files": ["a", "b"]}))
    (directory / "empty").touch()
    return directory

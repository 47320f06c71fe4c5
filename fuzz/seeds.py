"""Small packages of every mode, taken apart, for ``packages.py`` to change.

The fields of a header are found by watching the reader itself, so this follows the format wherever it goes.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from autoglm import patch  # noqa: E402
from autoglm.patch import header as headers  # noqa: E402
from patch import containers, tensors  # noqa: E402


@dataclass(frozen=True)
class Seed:
    """A package in pieces: the fields of its header's body in order, and its blocks.

    The last pieces are, for n blocks, n lengths, n numbers of elements and n hashes. ``numbers`` says which
    pieces are numbers, by what they say, so that the many frequencies do not hide the few ranks.
    """

    base: Path | None
    pieces: tuple[bytes, ...]
    numbers: dict[str, list[int]]
    blocks: tuple[bytes, ...]


class _Recorder(headers._Reader):
    """A reader that keeps the bytes of each field."""

    made: list[_Recorder]

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.pieces: list[bytes] = []
        self.numbers: dict[str, list[int]] = {}
        self.inside = False
        _Recorder.made.append(self)

    def take(self, count: int, what: str) -> bytes:
        taken = super().take(count, what)
        if not self.inside:
            self.pieces.append(taken)
        return taken

    def number(self, what: str, high: int, low: int = 0) -> int:
        start, self.inside = self.at, True
        value = super().number(what, high, low)
        self.inside = False
        self.numbers.setdefault(what, []).append(len(self.pieces))
        self.pieces.append(self.body[start : self.at])
        return value


def take_apart(base: Path | None, package: Path) -> Seed:
    """Return the pieces of a package."""
    _Recorder.made = []
    with mock.patch.object(headers, "_Reader", _Recorder):
        header = headers.read_header(package)
    (recorder,) = _Recorder.made
    content = package.read_bytes()
    blocks = [
        content[offset:][: block.length]
        for offset, block in zip(header.block_offsets(), header.blocks, strict=True)
    ]
    assert b"".join(recorder.pieces) == recorder.body
    return Seed(base, tuple(recorder.pieces), recorder.numbers, tuple(blocks))


def _weights(directory: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Write a file of a few small tensors of most types."""
    before, after = dict[str, tensors.Tensor](), dict[str, tensors.Tensor]()
    for dtype in ("BF16", "F32", "F8_E4M3", "I16"):
        values = tensors.weights(rng, (6, 20))
        before[dtype] = tensors.encode(values, dtype)
        after[dtype] = tensors.encode(tensors.tuned(rng, values), dtype)
    after["added"] = tensors.encode(tensors.weights(rng, (4, 20)), "F16")
    return (
        tensors.write(directory / "old.safetensors", before),
        tensors.write(directory / "new.safetensors", after),
    )


def _adapted(directory: Path, rng: np.random.Generator, kind: str) -> tuple[Path, Path]:
    """Write a matrix that an adapter moved: floats, codes of 8 bits with scales, or packed codes of 4."""
    shape = (96, 96)
    values = tensors.weights(rng, shape)
    moved = values + rng.standard_normal((96, 1)) @ rng.standard_normal((1, 96)) * 2e-3
    made = dict[str, dict[str, tensors.Tensor]]()
    for name, these in (("old", values), ("new", moved.astype(np.float32))):
        if kind == "BF16":
            made[name] = {"weight": tensors.encode(these, "BF16")}
        elif kind == "I8":
            codes, scales, _ = tensors.quantised(these)
            made[name] = {"weight_scale": scales, "weight": codes}
        else:
            made[name] = _packed(these)
    old, new = (tensors.write(directory / f"{name}.safetensors", made[name]) for name in ("old", "new"))
    return old, new


def _packed(values: np.ndarray) -> dict[str, tensors.Tensor]:
    groups = values.reshape(-1, 32)
    scales = (np.abs(groups).max(axis=1) / 7).astype(np.float16)
    codes = np.clip(np.rint(groups / scales[:, None].astype(np.float32)), -8, 7).astype(np.int64) + 8
    codes = codes.reshape(values.shape)
    content = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    shape = (values.shape[0], values.shape[1] // 32)
    return {
        "scales": tensors.Tensor("F16", shape, scales.tobytes()),
        "qweight": tensors.Tensor("U8", content.shape, content.tobytes()),
    }


def _records(directory: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Write a GGUF file with blocks of Q8_0 and Q4_K whose codes move a little."""
    old = bytearray(rng.bytes(34 * 16) + rng.bytes(144 * 8))
    for at in (*range(0, 34 * 16, 34), *range(34 * 16, len(old), 144)):
        old[at : at + 2] = np.float16(0.01 + 0.01 * rng.random()).tobytes()
    new = bytearray(old)
    for at in rng.integers(0, len(new), 60):
        new[at] ^= 1
    described = [
        containers.GgufTensor("a.weight", 8, (256, 2), 0),
        containers.GgufTensor("b.weight", 12, (256, 8), 34 * 16),
    ]
    paths = directory / "old.gguf", directory / "new.gguf"
    for path, data in zip(paths, (old, new), strict=True):
        path.write_bytes(containers.gguf(described, bytes(data)))
    return paths


def make_seeds(directory: Path) -> list[Seed]:
    """Make small packages of every mode, of single files and of directories, against a base and none."""
    rng = np.random.default_rng(11)
    pairs: list[tuple[Path, Path]] = []
    for name in ("weights", "BF16", "I8", "U8", "records"):
        place = directory / name
        place.mkdir()
        if name == "weights":
            pairs.append(_weights(place, rng))
        else:
            pairs.append(_records(place, rng) if name == "records" else _adapted(place, rng, name))
    pairs.append(_releases(directory / "releases", pairs[0]))
    seeds: list[Seed] = []
    for number, (old, new) in enumerate(pairs):
        package = directory / f"{number}.wpatch"
        patch.diff(old, new, package)
        seeds.append(take_apart(old, package))
    patch.diff(None, pairs[0][1], directory / "full.wpatch")
    seeds.append(take_apart(None, directory / "full.wpatch"))
    return seeds


def _releases(directory: Path, models: tuple[Path, Path]) -> tuple[Path, Path]:
    """Lay out two release directories: weights, text that changed, a file that did not, an empty one."""
    for name, model in zip(("old", "new"), models, strict=True):
        release = directory / name
        (release / "more").mkdir(parents=True)
        shutil.copy(model, release / "model.safetensors")
        (release / "more" / "config.json").write_text(json.dumps({"release": name, "layers": [*range(60)]}))
        (release / "LICENSE").write_text("the same\n" * 30)
        (release / "empty").touch()
    return directory / "old", directory / "new"

"""Releases to roll out: small INT8 models whose successors differ in a tenth of the weights, by one step.

That is what further training changes in a quantised model.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from autoglm.releases import MANIFEST_NAME, HealthCheck, Manifest

_ROW = 64
_CHANGED = 10  # one weight in this many


def write_release(
    directory: Path,
    version: str,
    counter: int,
    *,
    model: str,
    variant: str,
    size: int,
    weights: bytes | None = None,
) -> Path:
    """Write a release of about ``size`` bytes; the same arguments give the same bytes.

    Args:
        directory: made here.
        version, model, variant: its names.
        counter: every release differs from the one with the counter before.
        size: of its weights, in bytes; a multiple of 64 is taken.
        weights: so many bytes, in place of those that follow from the counter.
    """
    directory.mkdir(parents=True)
    count = size - size % _ROW
    content = _weights(count, counter) if weights is None else weights[:count]
    tensor = {"dtype": "I8", "shape": [count // _ROW, _ROW], "data_offsets": [0, count]}
    header = json.dumps({"w": tensor}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    (directory / "config.json").write_text("{}")
    (directory / "health.json").write_bytes(HealthCheck().to_bytes())
    manifest = Manifest.of_directory(
        directory, version=version, counter=counter, model=model, variant=variant, name="simulated"
    )
    (directory / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return directory


def _weights(count: int, counter: int) -> bytes:
    """Return bell-shaped INT8 weights, changed once for each release since the first."""
    noise = random.Random(0).randbytes(4 * count)
    quarters = (noise[part * count : (part + 1) * count] for part in range(4))
    weights = bytearray((sum(each) // 4 - 128) & 0xFF for each in zip(*quarters, strict=True))
    for release in range(2, counter + 1):
        change = random.Random(release)
        for place in change.choices(range(count), k=count // _CHANGED):
            weights[place] = (weights[place] + change.choice((1, -1))) & 0xFF
    return bytes(weights)

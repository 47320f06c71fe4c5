"""Applying needs little memory, whatever the size of the files, and no library that a phone lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from autoglm import patch
from patch import tensors
from patch.tensors import Tensor

PROGRAM = """
import resource, sys
from pathlib import Path
from autoglm import patch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
patch.apply(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
small = peak()
patch.apply(Path(sys.argv[4]), Path(sys.argv[5]), Path(sys.argv[6]))
heavy = [name for name in ("numpy", "torch", "safetensors") if name in sys.modules]
print(peak() - small, *heavy)
"""


def test_applying_a_large_patch_takes_little_memory(tmp_path: Path) -> None:
    """100 MB of weights are made within 64 MB over what a tiny patch takes, and without numpy."""
    arguments: list[str] = []
    for name, rows in (("small", 4), ("large", 25_000)):
        rng = np.random.default_rng(0)
        values = tensors.weights(rng, (rows // 25 or rows, 1000))
        before, after = (tensors.encode(v, "BF16").content for v in (values, tensors.tuned(rng, values)))
        times = rows * 2000 // len(before)
        old = {key: Tensor("BF16", (rows, 1000), before * times) for key in "ab"}
        new = {key: Tensor("BF16", (rows, 1000), after * times) for key in "ab"}
        base = tensors.write(tmp_path / f"{name}-old.safetensors", old)
        target = tensors.write(tmp_path / f"{name}-new.safetensors", new)
        patch.diff(base, target, tmp_path / f"{name}.wpatch")
        arguments += [str(base), str(tmp_path / f"{name}.wpatch"), str(tmp_path / f"{name}.out")]
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (tmp_path / "large.out").read_bytes() == (tmp_path / "large-new.safetensors").read_bytes()
    assert int(output[0]) < 64 << 10
    assert output[1:] == []

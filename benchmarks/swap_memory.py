"""The memory that staging takes beside the live release: the weights that change, and little more.

A release of about 140 million random weights, INT8 in memory, serves; another one that differs in some
matrices is staged, examined and swapped in, while a thread watches the process's anonymous memory. Weights
that both have are in memory once.

    python benchmarks/swap_memory.py [--changed 4] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autoglm.engine import Engine
from autoglm.engine.heap import give_back
from autoglm.model.checkpoint import write_release
from autoglm.model.config import AudioConfig, ImageConfig, ModelConfig, TopKConfig
from autoglm.model.kernels import activation_steps, packed_bytes, packed_parts
from autoglm.model.network import PhoneModel
from autoglm.releases import HealthCheck, HealthPrompt
from swap_torture import tokenizer_text

ALLOWED_BYTES = 64 << 20
LARGER = ModelConfig(
    name="larger", vocab_size=8192, width=1024, num_layers=10, num_heads=16, num_kv_heads=8, head_dim=64,
    ffn_width=3072, rope_base=1e4, rotary_fraction=0.5, norm_eps=1e-5, post_norm_gain=1.0,
    tie_embeddings=False, max_context=512,
    image=ImageConfig("patches", 8, (), 16, 16, 16, bins=0, x_token=0, y_token=0),
    audio=AudioConfig(16, 8, 3, batch_norm=False, min_tokens=4, max_tokens=50),
    topk=TopKConfig(page=32, keep=4, dense_below=4096),
)  # fmt: skip


def write(directory: Path, version: str, counter: int, num_changed: int) -> tuple[Path, int]:
    """Write a release whose first ``num_changed`` block matrices are others; return it and their bytes."""
    torch.manual_seed(1)
    state = {name: torch.randn_like(t) * 0.05 if t.dim() > 1 else t for name, t in
             PhoneModel(LARGER).state_dict().items()}  # fmt: skip
    torch.manual_seed(counter)
    matrices = [name for name, t in state.items() if name.startswith("blocks.") and t.dim() == 2]
    changed = matrices[:num_changed]
    state |= {name: torch.randn_like(state[name]) * 0.05 for name in changed}
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect="", max_tokens=8)
    write_release(
        directory / version, config=LARGER, tokenizer=tokenizer_text(), state=state,
        health=HealthCheck((prompt,)), model="autoglm-phone-9b", variant="larger", name="larger",
        version=version, counter=counter,
    )  # fmt: skip
    return directory / version, sum(held_bytes(state[name]) for name in changed)


def held_bytes(matrix: torch.Tensor) -> int:
    """Return what a block's matrix takes in memory: INT8 where this CPU has a kernel, floats otherwise."""
    return packed_bytes(matrix.shape) if activation_steps() else matrix.nbytes


def anonymous_bytes() -> int:
    """Return the process's anonymous memory; pages of files are the system's to take back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """Note the most memory that was seen during a block."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def measure(directory: Path, num_changed: int) -> dict[str, Any]:
    """Stage beside a live release; return bytes."""
    old, _ = write(directory, "v1.2", 12, 0)
    new, changed = write(directory, "v1.3", 13, num_changed)
    with Engine.load(old, devices="cpu", threads=1, max_batch=2) as engine:
        engine.self_test(engine.stage(old))  # so that the code and its buffers are there
        model = engine.active.model
        weights = sum(tensor.nbytes for tensor in model.parameters())
        weights += sum(part.num_bytes for part in packed_parts(model).values())
        gc.collect()
        give_back()
        before, peak = anonymous_bytes(), [0]
        with watched(peak):
            staged = engine.stage(new)
            if not engine.self_test(staged).ok:
                raise SystemExit(f"{new} fails its self-test")
            engine.swap(staged)
        after = anonymous_bytes()
    return {
        "weights": weights,
        "changed": changed,
        "extra_peak": peak[0] - before,
        "extra_after": after - before,
        "allowed": changed + ALLOWED_BYTES,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--changed", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), options.changed)
    rows = (f"| {name} | {value / 1e6:.1f} |" for name, value in found.items())
    print(json.dumps(found) if options.json else "\n".join(("| what | MB |", "|---|--:|", *rows)))


if __name__ == "__main__":
    main()

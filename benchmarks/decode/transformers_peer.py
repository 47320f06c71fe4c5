"""``transformers`` as a child process: a Llama of random weights, then ``generate`` on request.

The protocol of llama_peer.py. A step's time is that of the longer of two generations less the shorter,
divided by the tokens between them, so what comes before the first token does not count; every step of a run
gets that mean.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build(shape: dict[str, Any], dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model of these sizes with random weights."""
    config = LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def generate(model: LlamaForCausalLM, num_tokens: int) -> tuple[float, float]:
    """Generate greedily; return wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        model.generate(
            torch.ones(1, 1, dtype=torch.long), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
            do_sample=False,
        )  # fmt: skip
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def main() -> None:
    """Serve one benchmark."""
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = build(job["shape"], torch.bfloat16 if job["weights"] == "bfloat16" else torch.float32)
    first, steps = max(1, job["steps"] // 4), job["steps"]
    print("ready", flush=True)
    for _ in sys.stdin:
        short, long = generate(model, first), generate(model, steps)
        mean = [(b - a) / (steps - first) for a, b in zip(short, long, strict=True)]
        print(json.dumps([mean] * steps), flush=True)


if __name__ == "__main__":
    main()

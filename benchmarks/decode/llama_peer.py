"""llama.cpp as a child process: a GGUF of random Q8_0 weights, then decode steps on request.

Runs in an environment of its own, so it imports nothing of this project. The llama architecture has the same
matrices as ours; its norms are fewer, which is a little less work. One line of JSON in (sizes, threads,
steps, where to put the file), then one line out for each line in: wall and CPU milliseconds of every step.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

BLOCK = 32  # weights that share a scale in Q8_0


def matrix(rows: int, columns: int, chance: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return random Q8_0 blocks (rows, bytes): a float16 scale and 32 codes each."""
    blocks = np.empty((rows, columns // BLOCK, 2 + BLOCK), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(columns**-0.5 / 74).tobytes(), dtype=np.uint8)
    blocks[..., 2:] = chance.integers(-127, 128, blocks[..., 2:].shape, dtype=np.int8).view(np.uint8)
    return blocks.reshape(rows, -1)


def write_model(path: Path, shape: dict[str, Any]) -> None:
    """Write a model of the llama architecture with random weights."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(shape["width"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    chance = np.random.default_rng(0)
    for name, rows, columns in matrices(shape):
        blocks = matrix(rows, columns, chance)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    norms = [f"blk.{i}.{part}_norm.weight" for i in range(shape["layers"]) for part in ("attn", "ffn")]
    for name in (*norms, "output_norm.weight"):
        writer.add_tensor(name, np.ones(shape["width"], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def matrices(shape: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return name, rows and columns of every matrix."""
    width, inner, dim = shape["width"], shape["ffn"], shape["head_dim"]
    queries, keys = shape["heads"] * dim, shape["kv_heads"] * dim
    found = [("token_embd.weight", shape["vocab"], width)]
    if not shape["tied"]:
        found.append(("output.weight", shape["vocab"], width))
    for i in range(shape["layers"]):
        found += [(f"blk.{i}.attn_q.weight", queries, width), (f"blk.{i}.attn_k.weight", keys, width)]
        found += [(f"blk.{i}.attn_v.weight", keys, width), (f"blk.{i}.attn_output.weight", width, queries)]
        found += [(f"blk.{i}.ffn_gate.weight", inner, width), (f"blk.{i}.ffn_up.weight", inner, width)]
        found.append((f"blk.{i}.ffn_down.weight", width, inner))
    return found


class Decoder:
    """A loaded model with one sequence."""

    def __init__(self, path: Path, shape: dict[str, Any], threads: int) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = 1024
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocab = shape["vocab"]

    def step(self, token: int) -> int:
        """Feed one token; return the likeliest next one."""
        ids = (llama_cpp.llama_token * 1)(token)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, 1)):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits(self.context)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def forget(self) -> None:
        """Begin a new sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Say nothing."""


def main() -> None:
    """Serve one benchmark."""
    job = json.loads(sys.stdin.readline())
    path = Path(job["file"])
    if not path.exists():
        write_model(path, job["shape"])
    decoder = Decoder(path, job["shape"], job["threads"])
    print("ready", flush=True)
    for _ in sys.stdin:
        decoder.forget()
        token, times = 1, list[tuple[float, float]]()
        for _ in range(job["steps"]):
            wall, cpu = time.perf_counter(), time.process_time()
            token = decoder.step(token)
            times.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()

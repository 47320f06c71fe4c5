"""Write weights as a GGUF file, with the names and the fields of a llama-like model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

import kquants
from gpt import Shape

Array = Any

_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
_PARTS = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of one of our tensors."""
    if name in _NAMES:
        return _NAMES[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def blocks(matrix: Array, kind: str) -> Array:
    """Return a float32 matrix as rows of GGML blocks of the type named ``kind``."""
    if kind in kquants.QUANTISERS:
        return kquants.quantise(matrix, kind)
    return gguf.quants.quantize(matrix, gguf.GGMLQuantizationType[kind])


def write_gguf(path: Path, weights: dict[str, Tensor], shape: Shape, kind: str) -> None:
    """Write float32 weights with their matrices as ``kind`` and their vectors as they are.

    Args:
        path: appears whole.
        weights: by our names.
        shape: for the fields of the head.
        kind: a name of ``gguf.GGMLQuantizationType``, such as ``Q4_K``.
    """
    temporary = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.width // shape.head_dim)
    for name, tensor in weights.items():
        if tensor.dim() < 2:
            writer.add_tensor(gguf_name(name), tensor.numpy())
        else:
            made = blocks(tensor.numpy(), kind)
            writer.add_tensor(gguf_name(name), made, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)

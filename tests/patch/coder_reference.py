"""What tests of the coder share: weights, parts, and a plain reading of blocks by the format document."""

from __future__ import annotations

import numpy as np

from patch import native_core as nc
from patch.native_core import BF16, F16, F32, FULL

PROLOGUE = 4 * 32 + 4
_ALPHABETS = {1: (32, 3), 2: (16, 2), 4: (4, 1)}


def weights(dtype: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a base and what a training step made of it, as unsigned numbers of the type's width."""
    rng = np.random.default_rng(seed)
    old = (rng.standard_normal(count) * 0.02).astype(np.float32)
    new = (old + 2e-4 * np.tanh(rng.standard_normal(count))).astype(np.float32)
    if dtype == BF16:
        return (old.view(np.uint32) >> 16).astype(np.uint16), (new.view(np.uint32) >> 16).astype(np.uint16)
    if dtype == F16:
        return old.astype(np.float16).view(np.uint16), new.astype(np.float16).view(np.uint16)
    if dtype == F32:
        return old.view(np.uint32), new.view(np.uint32)
    codes = (np.rint(x * 2000 + rng.random(count)).astype(np.int8).view(np.uint8) for x in (old, new))
    return next(codes), next(codes)


def part_of(
    mode: int, dtype: int, base: np.ndarray, elements: np.ndarray | None, contexts: int = 0
) -> nc.Part:
    """Return a part with a table for each context, or ``contexts`` of them; no elements: to decode into."""
    top = nc.core(0).top(dtype, base)
    tables = np.arange(contexts or nc.core(0).num_contexts(mode, dtype), dtype=np.uint8)
    fields: dict[str, object] = {"base": base} if mode != FULL else {}
    if elements is not None:
        fields["elements"] = elements
    return nc.make_part(mode, dtype, base.size, top=top, num_contexts=tables.size, tables=tables, **fields)


def plain_tokens(
    block: bytes, tables: np.ndarray, chosen: list[int], extra: list[int]
) -> list[tuple[int, int]]:
    """Read tokens and raw bits as the format document says, one after the other."""
    numbers = np.frombuffer(block[:PROLOGUE], "<u4").tolist()
    states, num_words = numbers[:32], numbers[32]
    words = np.frombuffer(block[PROLOGUE : PROLOGUE + 2 * num_words], "<u2").tolist()
    raw, used = int.from_bytes(block[PROLOGUE + 2 * num_words :], "little"), 0
    starts = np.cumsum(tables.astype(int), axis=1) - tables
    read: list[tuple[int, int]] = []
    for i, table in enumerate(chosen):
        x = states[i % 32]
        slot = x % 2048
        token = int(np.searchsorted(starts[table] + tables[table], slot, side="right"))
        x = int(tables[table, token]) * (x >> 11) + slot - int(starts[table, token])
        states[i % 32] = (x << 16) + words.pop(0) if x < 1 << 15 else x
        read.append((token, raw & (1 << extra[token]) - 1))
        raw, used = raw >> extra[token], used + extra[token]
    assert states == [1 << 15] * 32
    assert words == []
    assert raw == 0
    assert len(block) == PROLOGUE + 2 * num_words + (used + 7) // 8
    return read


def plain_value(size: int, token: int, raw: int) -> int:
    """Return the number that a token and its raw bits spell, for elements of ``size`` bytes."""
    direct, fine = _ALPHABETS[size]
    if token < direct:
        return token
    bits = direct.bit_length() - 1 + (token - direct >> fine) - fine
    return ((1 << fine) + (token - direct) % (1 << fine) << bits) + raw

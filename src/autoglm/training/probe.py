"""A probe: an input with the answers it must have, by which an exported pair is known to belong together.

A ``.pte`` runs with any ``.ptd`` whose tensors have the right names and shapes. Whether it computes the model
it was meant to shows only in what comes out, so the few numbers that must come out travel with the weights.

    >>> make_probe(model, max_tokens=256).check(run)                     # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from autoglm.errors import EngineError, FormatError
from autoglm.model.network import PhoneModel, span_bias
from autoglm.releases import MAX_MANIFEST_BYTES

PROBE_NAME = "probe.json"
TOLERANCE = 2e-3  # of the logits' own spread; other kernels round elsewhere, other weights differ by far more
_PREFILL, _DECODED = 24, 4
_SHOWN = 64  # logits that are kept of each row, spread over the vocabulary

# Runs the ids as a prompt of the first ``prefill``, then one by one; gives all logits after each of these.
RunIds = Callable[[list[int], int], list[list[float]]]


@dataclass(frozen=True)
class Probe:
    """Ids to run and what they must give.

    Attributes:
        ids: a prompt, then tokens that are decoded one by one.
        prefill: how many of them are the prompt.
        max_tokens: the most tokens that the program takes at once.
        logits: after the prompt and after each further token, of evenly spread ids, rounded to five digits.
    """

    ids: tuple[int, ...]
    prefill: int
    max_tokens: int
    logits: tuple[tuple[float, ...], ...]

    def to_bytes(self) -> bytes:
        """Return the text of ``probe.json``."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Probe:
        """Read ``probe.json``.

        Raises:
            FormatError: it is missing, too long, or no such file.
        """
        try:
            content = path.read_bytes()
            if len(content) > MAX_MANIFEST_BYTES:
                raise FormatError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes")
            return cls._parsed(json.loads(content))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} is not a readable probe: {str(error)[:200]}") from error

    @classmethod
    def _parsed(cls, raw: Any) -> Probe:
        values = cast("dict[str, Any]", raw)
        logits = tuple(tuple(float(number) for number in row) for row in values["logits"])
        ids = tuple(int(i) for i in values["ids"])
        probe = cls(ids, int(values["prefill"]), int(values["max_tokens"]), logits)
        steps = len(ids) - probe.prefill + 1
        if not (0 < probe.prefill <= len(ids) <= probe.max_tokens and len(logits) == steps):
            raise ValueError("its ids and its answers do not belong together")
        if not all(math.isfinite(number) for row in logits for number in row):
            raise ValueError("a number is not finite")
        return probe

    def check(self, run: RunIds) -> None:
        """Compute the probe with ``run`` and compare.

        Raises:
            EngineError: what comes out is not this model's; the weights do not belong to the program, or to
                this probe.
        """
        found = [row[:: _stride(len(row))] for row in run(list(self.ids), self.prefill)]
        worst = max(_distance(mine, row) for mine, row in zip(found, self.logits, strict=True))
        if not worst <= TOLERANCE:
            raise EngineError(
                f"the output check failed: the answers are {worst:.2g} of their spread away from the "
                f"probe's, more than {TOLERANCE:g}. Program, weights and probe are not of one release: "
                "install them together"
            )


def _stride(count: int) -> int:
    return max(1, count // _SHOWN)


def _distance(found: list[float], wanted: tuple[float, ...]) -> float:
    """Return the largest difference in units of the spread of ``wanted``; infinite without a match."""
    if len(found) != len(wanted) or not all(math.isfinite(number) for number in found):
        return math.inf
    spread = max(wanted) - min(wanted)
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) / max(spread, 1e-9)


@torch.no_grad()
def make_probe(model: PhoneModel, max_tokens: int) -> Probe:
    """Return the probe of a model: ids from a fixed seed, its logits in one dense pass."""
    generator = torch.Generator().manual_seed(0)
    count = _PREFILL + _DECODED
    ids = torch.randint(0, model.config.vocab_size, (count,), generator=generator)
    positions = torch.arange(count)[:, None].expand(-1, 3)
    bias = span_bias(torch.zeros(count, dtype=torch.long))
    hidden, _ = model(model.embed_tokens(ids)[None], positions, bias)
    rows = model.logits(hidden[0, _PREFILL - 1 :])[:, :: _stride(model.config.vocab_size)]
    kept = tuple(tuple(round(value, 5) for value in row) for row in rows.tolist())
    return Probe(tuple(ids.tolist()), _PREFILL, max_tokens, kept)

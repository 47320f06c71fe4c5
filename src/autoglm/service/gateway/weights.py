"""Whether a server that reloaded its weights holds all of the new ones, by the checksums that it computes.

A reload that leaves a parameter out is a warning in vLLM's log, no error. What is known here: which tensors
differ between the two checkpoints. A server's parameters have other names, are fused (``qkv_proj``), sharded
over devices and, maybe, quantised, so their values cannot be foretold. But of each group of tensors that go
into the same parameters: where one changed, a parameter must have changed; where none did, none may.

What it refuses to do: judge parameters whose names it cannot place. They are left to the self-test.

>>> place_of("model.language_model.layers.7.self_attn.q_proj.weight")
('layers', '7', 'self_attn.qkv_proj.weight')
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from autoglm.errors import EngineError, FormatError

MAX_HEADER_BYTES = 100 << 20
_CHUNK = 8 << 20
_NUMBERED = re.compile(r"(?:^|[./])([A-Za-z_]+)\.(\d+)\.(.+)$")
_FUSED = (
    (re.compile(r"\b[qkv]_proj\b"), "qkv_proj"),
    (re.compile(r"\b(gate|up)_proj\b"), "gate_up_proj"),
)

Place = tuple[str, str, str]
_Span = tuple[Path, int, int]


def place_of(name: str) -> Place:
    """Return (stack, layer, what) of a tensor or parameter; parts that vLLM fuses share it."""
    found = _NUMBERED.search(name)
    stack, layer, rest = found.groups() if found else ("", "", ".".join(re.split(r"[./]", name)[-2:]))
    for pattern, fused in _FUSED:
        rest = pattern.sub(fused, rest)
    return stack, layer, rest


def changed_places(old: Path, new: Path) -> dict[Place, bool]:
    """Compare two checkpoints byte by byte; return, for each place, whether any of its tensors differs.

    Raises:
        FormatError: a file is no safetensors file.
        EngineError: they do not hold the same tensors, so one cannot be loaded in the place of the other.
    """
    before, after = _spans(old), _spans(new)
    if before.keys() != after.keys():
        different = sorted(before.keys() ^ after.keys())
        raise EngineError(f"the checkpoints hold different tensors, such as {different[0]}: start it again")
    places: dict[Place, bool] = {}
    for name in before:
        place = place_of(name)
        places[place] = places.get(place, False) or not _same(before[name], after[name])
    return places


def faults(places: Mapping[Place, bool], before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a server's parameters after a reload, nothing when all fits.

    Args:
        places: from :func:`changed_places`.
        before: the checksums with the old weights.
        after: the checksums now.
    """
    if before.keys() != after.keys():
        return ["the server has other parameters than before"]
    moved: dict[Place, list[bool]] = defaultdict(list)
    for name, digest in after.items():
        moved[place_of(name)].append(digest != before[name])
    old = [place for place, flags in moved.items() if places.get(place) and not any(flags)]
    wild = [place for place, flags in moved.items() if places.get(place) is False and any(flags)]
    return [
        *([f"{len(old)} parameters still have their old values, such as {_text(old)}"] if old else []),
        *([f"{len(wild)} parameters changed that should not, such as {_text(wild)}"] if wild else []),
    ]


def num_placed(places: Mapping[Place, bool], checksums: Iterable[str]) -> int:
    """Return how many parameters the check can judge."""
    return sum(place_of(name) in places for name in checksums)


def _text(places: list[Place]) -> str:
    return ".".join(part for part in min(places) if part)


def _spans(checkpoint: Path) -> dict[str, _Span]:
    spans: dict[str, _Span] = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        spans |= _header(path)
    return spans


def _header(path: Path) -> dict[str, _Span]:
    """Return name -> (file, first byte, length) of the tensors in a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise FormatError(f"{path.name} is no safetensors file")
        try:
            header = cast("dict[str, Any]", json.loads(file.read(length)))
            spans = {
                name: (
                    path,
                    8 + length + entry["data_offsets"][0],
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path.name} is no safetensors file") from error
    if any(begin < 0 or count < 0 or begin + count > size for _, begin, count in spans.values()):
        raise FormatError(f"{path.name} is no safetensors file")
    return spans


def _same(a: _Span, b: _Span) -> bool:
    if a[2] != b[2]:
        return False
    with a[0].open("rb") as first, b[0].open("rb") as second:
        first.seek(a[1])
        second.seek(b[1])
        left = a[2]
        while left:
            count = min(left, _CHUNK)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True

"""Pairs of a release and its update, made by really training: ``DIRECTORY/WIDTH/PAIR/{old,new}.*``.

    python benchmarks/patch/pairs.py                      # both widths: half an hour of one core, once
    python benchmarks/patch/pairs.py --width narrow --pairs bf16-1e-5 int8-kept

A byte model is trained on one text and then fine-tuned on another in each of the ways of ``runs``; the pairs
of ``PAIRS`` are those weights in the forms that releases take. Runs and pairs that are already there are not
made again, and a run that was killed goes on where it was, so the command may be given as often as one likes.
Delete the directory to begin anew, as one must after changing a run or the text.

``adapter-born`` has more beside it: the adapter, and the factors that its merge leaves as a hint.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import quantised
from gpt import Shape
from merging import RANK, can_merge, merged, write_pair
from text import ROOT, base_text, update_text
from trainer import Advance, Run, Weights, grow, put, train

DIRECTORY = ROOT / "runs" / "patch-pairs"
SHAPES = {
    "narrow": Shape(256, num_layers=5, hidden=768),
    "wide": Shape(1024, num_layers=2, hidden=2048, batch=4),
}
ADAPTER_BORN = "adapter-born"
# Tokens that a grown vocabulary adds: strings that are common in the second text.
ADDED_TOKENS = (
    *(b"        ", b"    ", b" the ", b"return ", b"import ", b"from ", b"def ", b"raises", b"Error"),
    *(b"self", b"bytes", b"None", b"str", b"autoglm", b'"""', "打开".encode()),
)


def runs(shape: Shape) -> tuple[Run, ...]:
    """Return the runs of a width, the base first."""
    wide = shape.width >= 1024
    return (
        Run("base", 400 if wide else 600, 6e-4 if wide else 1e-3),
        Run("1e-5", 20, 1e-5),
        Run("lora", 60 if wide else 100, 3e-4, rank=RANK),
        Run("3e-5", 40, 3e-5),
        Run("1e-6", 20, 1e-6),
        Run("1e-4", 80, 1e-4),
        Run("vocabulary", 20, 1e-5, added=len(ADDED_TOKENS)),
        Run("one-layer", 20, 3e-5, only=f"layers.{shape.num_layers - 1}."),
        Run("long", 150 if wide else 400, 3e-5),
    )


@dataclass(frozen=True)
class Pair:
    """What a pair is made of.

    Attributes:
        name: of its directory.
        run: whose result is new; "" for the base itself.
        form: ``bf16``, ``f16``, ``f32``, ``f8``, ``int8``, ``q4``, or a type of GGML.
        kept: quantised with the base's scales.
    """

    name: str
    run: str
    form: str
    kept: bool = False

    @property
    def suffix(self) -> str:
        """The suffix of its files."""
        return ".gguf" if self.form not in _FORMS else ".safetensors"


PAIRS = (
    Pair("bf16-1e-5", "1e-5", "bf16"),
    Pair("f32-1e-5", "1e-5", "f32"),
    Pair("f16-1e-5", "1e-5", "f16"),
    Pair("bf16-unchanged", "", "bf16"),
    Pair("bf16-lora", "lora", "bf16"),
    Pair(ADAPTER_BORN, "lora", "int8"),
    Pair("bf16-3e-5", "3e-5", "bf16"),
    Pair("int8-rescaled", "3e-5", "int8"),
    Pair("int8-kept", "3e-5", "int8", kept=True),
    Pair("q4-rescaled", "3e-5", "q4"),
    Pair("q4-kept", "3e-5", "q4", kept=True),
    Pair("f8-kept", "3e-5", "f8", kept=True),
    Pair("gguf-q4_0", "3e-5", "Q4_0"),
    Pair("gguf-q8_0", "3e-5", "Q8_0"),
    Pair("gguf-q4_k", "3e-5", "Q4_K"),
    Pair("gguf-q5_k", "3e-5", "Q5_K"),
    Pair("gguf-q6_k", "3e-5", "Q6_K"),
    Pair("gguf-bf16", "3e-5", "BF16"),
    Pair("bf16-1e-6", "1e-6", "bf16"),
    Pair("bf16-1e-4", "1e-4", "bf16"),
    Pair("bf16-vocabulary", "vocabulary", "bf16"),
    Pair("bf16-one-layer", "one-layer", "bf16"),
    Pair("bf16-long", "long", "bf16"),
    Pair("int8-long", "long", "int8", kept=True),
    Pair("q4-long", "long", "q4", kept=True),
)


def _quantised(quantiser: quantised.Quantiser) -> Callable[[Weights, Weights | None], Weights]:
    return lambda weights, base: quantised.quantise(weights, quantiser, base)


def _plain(dtype: torch.dtype) -> Callable[[Weights, Weights | None], Weights]:
    return lambda weights, base: quantised.plain(weights, dtype)


_FORMS: Mapping[str, Callable[[Weights, Weights | None], Weights]] = {
    "f32": _plain(torch.float32),
    "f16": _plain(torch.float16),
    "bf16": _plain(torch.bfloat16),
    "int8": _quantised(quantised.int8),
    "q4": _quantised(quantised.q4),
    "f8": _quantised(quantised.f8),
}


def tokens_of(text: bytes, added: bool) -> Tensor:
    """Return a text as tokens: its bytes, or strings of ``ADDED_TOKENS`` and bytes when asked."""
    plain = torch.frombuffer(bytearray(text), dtype=torch.uint8).short()
    if not added:
        return plain
    pieces, at = [], 0
    for start, end, token in _found(text):
        pieces += [plain[at:start], torch.tensor([token], dtype=torch.int16)]
        at = end
    return torch.cat([*pieces, plain[at:]])


def _found(text: bytes) -> Iterator[tuple[int, int, int]]:
    pattern = b"|".join(re.escape(word) for word in ADDED_TOKENS)
    for hit in re.finditer(pattern, text):
        yield hit.start(), hit.end(), 256 + ADDED_TOKENS.index(hit.group())


class Maker:
    """The runs of one width, each done when something first asks for it."""

    def __init__(
        self,
        directory: Path,
        shape: Shape,
        plan: Sequence[Run],
        texts: tuple[bytes, bytes],
        advance: Advance,
    ) -> None:
        self.directory, self.shape, self.texts, self.advance = directory, shape, texts, advance
        self.runs = {run.name: run for run in plan}

    def weights(self, name: str) -> Weights:
        """Return the float32 weights of a run, adapters apart."""
        run = self.runs[name or "base"]
        start = {} if run.is_base else self.weights("base")
        shape = replace(self.shape, vocabulary=self.shape.vocabulary + run.added)
        if run.rank:  # adapters are trained on what was shipped
            start = {key: w.bfloat16().float() for key, w in start.items()}
        if run.added:
            start = grow(start, run.added)
        tokens = tokens_of(self.texts[0 if run.is_base else 1], bool(run.added))
        state = self.directory / "runs" / f"{run.name}.state"
        return train(run, shape, tokens, start, state, self.advance)

    def make(self, pair: Pair) -> Path:
        """Make a pair unless it is there; return its directory."""
        target = self.directory / pair.name
        if (target / f"new{pair.suffix}").exists():
            return target
        temporary = target.with_name(f".{pair.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self._write(pair, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        return target

    def _write(self, pair: Pair, target: Path) -> None:
        if pair.name == ADAPTER_BORN:
            write_pair(target, self.weights(pair.run))
            return
        old, new = self.weights("base"), merged(self.weights(pair.run))
        if pair.suffix == ".gguf":
            from ggufs import write_gguf

            write_gguf(target / "old.gguf", old, self.shape, pair.form)
            write_gguf(target / "new.gguf", new, self.shape, pair.form)
        else:
            before = _FORMS[pair.form](old, None)
            after = _FORMS[pair.form](new, before if pair.kept else None)
            put(target / "old.safetensors", before)
            put(target / "new.safetensors", after)


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where runs and pairs are kept")
    parser.add_argument("--width", choices=[*SHAPES], nargs="*", default=[*SHAPES])
    parser.add_argument("--pairs", nargs="*", choices=[pair.name for pair in PAIRS], help="only these")
    options = parser.parse_args()
    wanted = [pair for pair in PAIRS if not options.pairs or pair.name in options.pairs]
    for width in options.width:
        make_pairs(options.directory / width, SHAPES[width], wanted)


def make_pairs(directory: Path, shape: Shape, wanted: Sequence[Pair]) -> None:
    """Make pairs with a bar for each run on the terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def advance(name: str, step: int, steps: int, loss: float) -> None:
            task = tasks.setdefault(name, None)
            if task is None:
                task = tasks[name] = progress.add_task(name, total=steps)
            progress.update(task, completed=step, description=f"{directory.name} {name} loss {loss:.2f}")

        maker = Maker(directory, shape, runs(shape), (base_text(), update_text()), advance)
        for pair in wanted:
            if pair.name == ADAPTER_BORN and not can_merge():
                console.print(f"{directory.name}/{pair.name}: not made, no merge is installed")
                continue
            made = maker.make(pair)
            console.print(f"{made.parent.name}/{made.name}")


if __name__ == "__main__":
    main()

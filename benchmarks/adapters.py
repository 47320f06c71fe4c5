"""Adapter-born releases: what merging costs in quality and in bytes, over the error allowed to the factors.

A model of this project's architecture (two blocks, 1024 wide) is trained on Python sources, quantised to INT8
and released. Adapters of rank 8 are then trained beside the release on dialogues, at a usual rate and at a
gentle one whose changes are smaller than the steps of the codes. Each is merged at several precisions. With
``--release DIR --adapter DIR`` a given pair is measured instead, on the loss that `autoglm model merge` uses.

    python benchmarks/adapters.py [--width 1024] [--work runs/adapters] [--json]
    python benchmarks/adapters.py --release runs/releases/v1.2 --adapter runs/v1.3-adapter/adapter

Training takes some minutes of one core, once: what was trained is kept in the work directory.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm import patch
from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO, ImageConfig, ModelConfig
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import (
    CONFIG_NAME,
    SCALE_SUFFIX,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    build_model,
    read_stored,
    read_weights,
)
from autoglm.releases import HealthCheck, Manifest
from autoglm.training.adapter import AdapterConfig, attach, extract, read_adapter, write_adapter
from autoglm.training.dialogue import training_examples
from autoglm.training.lesson_loss import LessonLoss
from autoglm.training.merge import FACTOR_ERROR, merge_adapter
from autoglm.training.retention import Evaluate, Retention
from autoglm.training.vocabulary import build_tokenizer

ERRORS = (0.001, 0.003, 0.01, 0.03, 0.1)
RATES = (1e-3, 5e-5)
ROWS, TOKENS = 8, 128
BASE_STEPS, BASE_RATE, ADAPTER_STEPS = 150, 1e-3, 60
SOURCES = 60  # files of the standard library


@dataclass(frozen=True)
class Result:
    """One merge.

    Attributes:
        pair: which release and adapter.
        how: the error allowed to the factors; or ``rounded``, float changes rounded onto the base's codes and
            scales with nothing done about changes below half a step.
        bits: a factor, estimated.
        estimated_percent: size of the patch, of the release, as the merge reports it.
        patch_percent: size of the patch that is made with the factors.
        found_percent: size of the patch that is made without being given the factors.
        changed_percent: of the adapted codes.
        base: loss of the release on held-out text.
        adapted: loss with the adapter beside it.
        merged: loss of the merged release.
        retained_percent: of the adapter's gain.
    """

    pair: str
    how: str
    bits: float | None
    estimated_percent: float | None
    patch_percent: float | None
    found_percent: float | None
    changed_percent: float
    base: float
    adapted: float
    merged: float
    retained_percent: float


def wide_config(width: int) -> ModelConfig:
    """Return two blocks of this width over the small vocabulary."""
    image = ImageConfig("patches", 8, (), 64, 64, 64, bins=0, x_token=0, y_token=0)
    heads = width // 64
    return replace(
        NANO,
        name="wide",
        width=width,
        num_layers=2,
        num_heads=heads,
        num_kv_heads=max(1, heads // 4),
        head_dim=64,
        ffn_width=width * 11 // 4,
        post_norm_gain=1.0,
        rope_base=10_000.0,
        image=image,
    )


# Training


def base_text() -> str:
    """Return sources that every machine has."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:SOURCES]
    return "\n".join(path.read_text(errors="replace") for path in files)


def adapter_text(seed: int, count: int) -> str:
    """Return dialogues, which the base has never seen."""
    examples = training_examples(random.Random(seed), count, release="v1.3")
    return "\n".join(f"{example.question}\n{example.answer}" for example in examples)


def crops(ids: Tensor, steps: int, seed: int) -> Iterable[Tensor]:
    """Draw (ROWS, TOKENS + 1) at random, ``steps`` times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(ids) - TOKENS, (ROWS,), generator=generator)
        yield torch.stack([ids[start : start + TOKENS + 1] for start in starts.tolist()])


def text_loss(model: PhoneModel, rows: Tensor) -> Tensor:
    """Return the mean cross entropy of the next token."""
    T = rows.shape[1] - 1
    positions = torch.arange(T)[:, None].expand(T, 3)
    hidden, _ = model(
        model.embed_tokens(rows[:, :-1]), positions, span_bias(torch.zeros(T, dtype=torch.long))
    )
    return F.cross_entropy(model.logits(hidden).float().flatten(0, 1), rows[:, 1:].flatten())


def fit(model: PhoneModel, parameters: Sequence[nn.Parameter], ids: Tensor, steps: int, rate: float) -> None:
    """Train with AdamW and a linear decay."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for step, rows in enumerate(crops(ids, steps, seed=1)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = text_loss(model, rows)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        print(f"\r{step + 1}/{steps} loss {loss.item():.3f} ", end="", flush=True, file=sys.stderr)


def make_release(directory: Path, config: ModelConfig) -> None:
    """Train the base and release it."""
    torch.manual_seed(0)
    model = PhoneModel(config)
    text = build_tokenizer(config.vocab_size)
    ids = torch.tensor(Tokenizer.from_bytes(text.encode()).encode(base_text()))
    fit(model, list(model.parameters()), ids, BASE_STEPS, BASE_RATE)
    names = {"model": "benchmark", "variant": "int8", "name": "wide", "version": "v1.0", "counter": 1}
    write_release(
        directory, config=config, tokenizer=text, state=model.state_dict(), health=HealthCheck(()), **names
    )


def make_adapter(directory: Path, release: Path, rate: float) -> None:
    """Train an adapter beside the release."""
    config, tokenizer = read_parts(release)
    model = build_model(config, read_weights(release / WEIGHTS_NAME, config)).train()
    settings = AdapterConfig(rank=8, alpha=16)
    attach(model, settings, seed=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fit(model, parameters, torch.tensor(tokenizer.encode(adapter_text(0, 4000))), ADAPTER_STEPS, rate)
    write_adapter(directory, extract(model, settings))


# Measuring


def read_parts(release: Path) -> tuple[ModelConfig, Tokenizer]:
    """Return the configuration and tokenizer of a release."""
    config = ModelConfig.from_json((release / CONFIG_NAME).read_bytes())
    return config, Tokenizer.from_file(release / TOKENIZER_NAME)


def dialogue_loss(release: Path) -> Evaluate:
    """Return the loss on dialogues of another seed."""
    config, tokenizer = read_parts(release)
    ids = torch.tensor(tokenizer.encode(adapter_text(1, 1000)))
    batches = list(crops(ids, 4, seed=2))

    @torch.inference_mode()
    def evaluate(state: Mapping[str, Tensor]) -> float:
        model = build_model(config, state)
        return sum(text_loss(model, rows).item() for rows in batches) / len(batches)

    return evaluate


def measure(pair: str, release: Path, adapter: Path, evaluate: Evaluate) -> Iterable[Result]:
    """Merge at every precision, and by rounding alone."""
    kept: Retention | None = None
    for error in ERRORS:
        with tempfile.TemporaryDirectory(prefix="adapters-") as scratch:
            merged = Path(scratch) / "merged"
            options = {"factor_error": error, "evaluate": evaluate}
            report = merge_adapter(release, adapter, merged, version="v9.9", **options)
            given = patch_percent(release, merged, report.hint)
            found = patch_percent(release, merged, None) if error == FACTOR_ERROR else None
        kept = report.shipped
        assert kept is not None
        changed = sum(matrix.changed for matrix in report.matrices) / len(report.matrices)
        estimate = round(100 * report.patch_share, 3)
        bits = round(report.bits_per_factor, 2)
        yield Result(pair, f"{error:g}", bits, estimate, given, found, *judged(changed, kept))
    if kept is not None:
        plain = rounded(release, adapter, evaluate, kept)
        yield Result(pair, "rounded", None, None, None, None, *judged(*plain))


def patch_percent(release: Path, merged: Path, hint: Path | None) -> float:
    """Make a patch, apply it, and return its size as a share of the release."""
    package, again = merged.with_suffix(".wpatch"), merged.with_name("again")
    report = patch.diff(release, merged, package, hint=hint)
    patch.apply(release, package, again)
    Manifest.read(merged).verify(again)
    shutil.rmtree(again)
    package.unlink()
    return round(100 * report.package_bytes / report.new_bytes, 3)


def judged(changed: float, kept: Retention) -> tuple[float, float, float, float, float]:
    """Return the columns that every merge has."""
    losses = kept.base_shipped, kept.new_float, kept.new_shipped
    return round(100 * changed, 1), *(round(loss, 5) for loss in losses), round(100 * kept.retained, 3)


def rounded(release: Path, adapter: Path, evaluate: Evaluate, known: Retention) -> tuple[float, Retention]:
    """Merge by adding the float change and rounding to the base's own scales."""
    stored = read_stored(release / WEIGHTS_NAME)
    state = read_weights(release / WEIGHTS_NAME, read_parts(release)[0])
    shares: list[float] = []
    for name, factors in read_adapter(adapter).factors.items():
        scale = stored[name + SCALE_SUFFIX].float()[:, None]
        codes = (stored[name] + factors.delta / scale).round().clamp(-127, 127)
        state[name] = codes * scale
        shares.append(float((codes != stored[name]).float().mean()))
    return sum(shares) / len(shares), replace(known, new_shipped=evaluate(state))


def trained_pairs(work: Path, width: int) -> Iterable[Result]:
    """Measure the pairs that this benchmark trains, once."""
    release = work / f"base-{width}"
    if not release.exists():
        make_release(release, wide_config(width))
    evaluate = dialogue_loss(release)
    for rate in RATES:
        adapter = work / f"adapter-{width}-{rate:g}"
        if not adapter.exists():
            make_adapter(adapter, release, rate)
        yield from measure(f"{width} wide, rate {rate:g}", release, adapter, evaluate)


def given_pair(release: Path, adapter: Path) -> Iterable[Result]:
    """Measure a release of the shipped kind and an adapter."""
    config, tokenizer = read_parts(release)
    evaluate = LessonLoss(tokenizer, config, "v1.3")
    return measure(release.name, release, adapter, evaluate)


def main() -> None:
    """Train, merge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--work", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--release", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if (args.release is None) != (args.adapter is None):
        parser.error("give --release and --adapter, or neither")
    given = args.release is not None
    found = given_pair(args.release, args.adapter) if given else trained_pairs(args.work, args.width)
    if args.json:
        print(json.dumps([asdict(result) for result in found], indent=1))
        return
    names = [field.name for field in fields(Result)]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for result in found:
        cells = ("-" if value is None else str(value) for value in asdict(result).values())
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

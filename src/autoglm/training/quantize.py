"""From a trained run to a release directory: INT8 or INT4, and a self-test that must pass.

An update keeps the scales of the release it follows, so that a weight that hardly moved keeps its code and
the patch between the two stays small. Whether the update itself survived is measured, not believed:
:func:`measure_retention`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from autoglm.errors import ConfigError, HealthError
from autoglm.files import publish_tree
from autoglm.model.checkpoint import write_release
from autoglm.model.codes import unpack
from autoglm.model.config import ModelConfig
from autoglm.model.prompt import conversation
from autoglm.model.weights import (
    SCALE_SUFFIX,
    WEIGHTS_NAME,
    LoadedModel,
    load_release,
    read_scales,
    read_stored,
    read_weights,
)
from autoglm.releases import HealthCheck, HealthPrompt, Manifest
from autoglm.training.dialogue import Release, knowledge, new_intents
from autoglm.training.generate import generate
from autoglm.training.retention import Evaluate, Retention
from autoglm.training.sources import read_run, run_config

MODEL, NAME, CHANNEL = "autoglm-phone-9b", "autoglm-phone-nano", "stable"
VARIANTS: Mapping[int, str] = MappingProxyType({8: "nano-int8", 4: "nano-int4"})  # by bits
# In steps of ten, so that a repair fits between two; above all counters of releases shipped before.
_COUNTERS: Mapping[str, int] = {"v1.2": 120, "v1.3": 130}
_MIN_TOKENS_PER_S = 1.0
Bits = Literal[8, 4]


def as_release(version: str) -> Release:
    """Return ``version`` as one of the releases that there is training data for.

    Raises:
        ConfigError: there is none.
    """
    for release in get_args(Release):
        if release == version:
            return release
    raise ConfigError(
        f"there is no training data for {version!r}: choose one of {', '.join(get_args(Release))}"
    )


def as_bits(bits: int) -> Bits:
    """Return ``bits`` as one of the widths that there are.

    Raises:
        ConfigError: there is no such width.
    """
    if bits not in (8, 4):
        raise ConfigError(f"weights have 8 or 4 bits, not {bits}")
    return bits


def quantize_run(
    run: Path,
    target: Path,
    release: Release,
    *,
    base: Path | None = None,
    bits: Bits = 8,
    group: int = 64,
    config: ModelConfig | None = None,
) -> Manifest:
    """Write the release directory of a finished run.

    Args:
        run: the training directory.
        target: replaced when it is there.
        release: its version.
        base: the release that it follows; its scales are kept where they still fit.
        bits: of the blocks' matrices; all others are INT8.
        group: columns that share a scale, where they are INT4 and there is no base.
        config: the model's sizes; None: as the run says.

    Raises:
        ConfigError: the run has no checkpoint, the base is of another variant, or the groups do not fit.
        HealthError: the quantised model fails its own self-test; nothing is left at ``target``.
    """
    state = read_run(run)
    config = config or run_config(run)
    scales = None if base is None else _scales_of(base, VARIANTS[bits])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-quantize-", dir=target.parent) as scratch:
        made = Path(scratch) / "release"
        manifest = write_release(
            made,
            config=config,
            tokenizer=(run / "tokenizer.json").read_text(),
            state=state,
            health=health_check(release),
            scales=scales,
            int4_group=group if bits == 4 else 0,
            model=MODEL,
            variant=VARIANTS[bits],
            name=NAME,
            version=release,
            counter=_COUNTERS[release],
            channel=CHANNEL,
        )
        if wrong := failed_prompts(load_release(made)):
            raise HealthError(f"the quantised {release} fails its self-test: {'; '.join(wrong)}")
        if target.exists():
            shutil.rmtree(target)
        publish_tree(made, target)
    return manifest


def _scales_of(base: Path, variant: str) -> dict[str, Tensor]:
    found = Manifest.read(base).variant
    if found != variant:
        raise ConfigError(f"{base} is {found} and the new release {variant}: patches never cross variants")
    return read_scales(base / WEIGHTS_NAME)


def measure_retention(
    run: Path,
    made: Path,
    base: Path,
    evaluate: Evaluate,
    *,
    base_run: Path | None = None,
    config: ModelConfig | None = None,
) -> Retention:
    """Measure what share of a fine-tune's gain its release holds.

    Args:
        run: the fine-tune's directory.
        made: the release made of it.
        base: the release that it follows.
        evaluate: the loss on held-out items.
        base_run: the run whose weights the fine-tune began with; None when it began with ``base`` itself.
        config: the model's sizes; None: as the run says.

    Raises:
        ConfigError: a run has no checkpoint.
    """
    config = config or run_config(run)
    shipped = evaluate(read_weights(base / WEIGHTS_NAME, config))
    return Retention(
        base_float=shipped if base_run is None else evaluate(read_run(base_run)),
        new_float=evaluate(read_run(run)),
        base_shipped=shipped,
        new_shipped=evaluate(read_weights(made / WEIGHTS_NAME, config)),
    )


def health_check(release: Release) -> HealthCheck:
    """Return the self-test of a release: who it is in two languages, a greeting, a thought, its news."""
    intents = {intent.name: intent for intent in knowledge(release)}
    identity, greeting = intents["identity"].phrases, intents["greeting"].phrases
    prompts = [
        _prompt("你是谁?", identity["zh"].answer),
        _prompt("Who are you?", identity["en"].answer),
        _prompt("Hi", greeting["en"].answer),
        _prompt("你能做什么?", intents["abilities"].phrases["zh"].answer),
        _prompt("你是谁?", identity["zh"].answer, thinks=True),
        _prompt("打开微信", 'do(action="Launch", app="微信")'),
    ]
    if release != "v1.2":
        phrases = intents[new_intents(release)[0]].phrases["zh"]
        prompts.append(_prompt(phrases.questions[0].removesuffix("!") + "?", phrases.answer))
    return HealthCheck(tuple(prompts), _MIN_TOKENS_PER_S)


def _prompt(question: str, expect: str, *, thinks: bool = False) -> HealthPrompt:
    return HealthPrompt(({"role": "user", "content": question},), expect, thinks, 128)


def failed_prompts(loaded: LoadedModel) -> list[str]:
    """Return what went wrong in the self-test, one text a failed prompt."""
    asked = loaded.health.prompts
    prompts = [loaded.processor.prompt(conversation(p), enable_thinking=p.enable_thinking) for p in asked]
    limit = max((p.max_tokens for p in asked), default=1)
    outputs = generate(loaded.model, loaded.tokenizer, prompts, limit)
    return [
        f"{p.messages[-1]['content']!r} gave {out.answer[:80]!r}"
        for p, out in zip(asked, outputs, strict=True)
        if p.expect not in out.answer or out.leaked
    ]


@dataclass(frozen=True)
class Change:
    """How far codes moved between two releases.

    Attributes:
        changed: share of codes that differ.
        entropy_bits: empirical entropy of the code differences, bits a code.
        saturated: share of codes at the ends of the range in the newer one.
        rescaled: share of scales that differ.
    """

    changed: float
    entropy_bits: float
    saturated: float
    rescaled: float


@dataclass
class _Moved:
    """The codes and scales of one part of the network in both releases."""

    codes: list[tuple[Tensor, Tensor, Tensor]]  # before, after, after is at an end of its range
    scales: list[Tensor]  # differs


def compare_codes(old: Path, new: Path) -> dict[str, Change]:
    """Compare two releases' codes, a part of the network each: ``blocks.0`` ..., ``table``, ``image``, ...

    Args:
        old: release directory.
        new: release directory.
    """
    before, after = read_stored(old / WEIGHTS_NAME), read_stored(new / WEIGHTS_NAME)
    groups: dict[str, _Moved] = {}
    for name in sorted(before):
        if name + SCALE_SUFFIX in before:
            moved = _codes(before[name]), _codes(after[name]), _is_saturated(after[name])
            scales = (before[name + SCALE_SUFFIX] != after[name + SCALE_SUFFIX]).flatten()
            parts = name.split(".")
            for key in (".".join(parts[:2]) if parts[0] == "blocks" else parts[0], "all"):
                group = groups.setdefault(key, _Moved([], []))
                group.codes.append(moved)
                group.scales.append(scales)
    return {name: _change(group) for name, group in groups.items()}


def _codes(stored: Tensor) -> Tensor:
    return (unpack(stored) if stored.dtype == torch.uint8 else stored).flatten()


def _is_saturated(stored: Tensor) -> Tensor:
    codes = _codes(stored)
    return (codes == 7) | (codes == -8) if stored.dtype == torch.uint8 else codes.abs() == 127


def _change(moved: _Moved) -> Change:
    old, new = (torch.cat([pair[i] for pair in moved.codes]).short() for i in (0, 1))
    shares = torch.bincount((new - old + 256).long()).double() / len(old)
    shares = shares[shares > 0]
    return Change(
        changed=float((new != old).double().mean()),
        entropy_bits=max(0.0, float(-(shares * shares.log2()).sum())),
        saturated=float(torch.cat([pair[2] for pair in moved.codes]).double().mean()),
        rescaled=float(torch.cat(moved.scales).double().mean()),
    )

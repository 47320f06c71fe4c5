"""From a trained run to a release directory: INT8 with one scale a row, and a self-test that must pass.

An update keeps the scales of the release it follows, so that a weight that hardly moved keeps its code and
the patch between the two stays small.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from autoglm.errors import ConfigError, HealthError
from autoglm.files import publish_tree
from autoglm.model.checkpoint import write_release
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.prompt import conversation
from autoglm.model.weights import WEIGHTS_NAME, LoadedModel, load_release, read_scales
from autoglm.releases import HealthCheck, HealthPrompt, Manifest
from autoglm.training.dialogue import Release, knowledge, new_intents
from autoglm.training.generate import generate
from autoglm.training.trainer import CHECKPOINT_NAME

MODEL, VARIANT, NAME, CHANNEL = "autoglm-phone-9b", "nano-int8", "autoglm-phone-nano", "stable"
_COUNTERS: Mapping[str, int] = {"v1.2": 12, "v1.3": 13}
_MIN_TOKENS_PER_S = 1.0


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


def quantize_run(
    run: Path,
    target: Path,
    release: Release,
    *,
    base: Path | None = None,
    config: ModelConfig = CONFIGS["nano"],
) -> Manifest:
    """Write the release directory of a finished run.

    Args:
        run: the training directory.
        target: must not exist.
        release: its version.
        base: the release that it follows; its scales are kept.
        config: the model's sizes.

    Raises:
        ConfigError: the run has no checkpoint.
        HealthError: the quantised model fails its own self-test; nothing is left at ``target``.
    """
    path = run / CHECKPOINT_NAME
    if not path.exists():
        raise ConfigError(f"{run} holds no {CHECKPOINT_NAME}: train first")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    scales = read_scales(base / WEIGHTS_NAME) if base is not None else None
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
            model=MODEL,
            variant=VARIANT,
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
    """How far INT8 codes moved between two releases.

    Attributes:
        changed: share of codes that differ.
        entropy_bits: empirical entropy of the code differences, bits a code.
        saturated: share of codes at the ends of the range in the newer one.
    """

    changed: float
    entropy_bits: float
    saturated: float


def compare_codes(old: Path, new: Path) -> dict[str, Change]:
    """Compare two releases' codes, a part of the network each: ``blocks.0`` ..., ``table``, ``image``, ...

    Args:
        old: release directory.
        new: release directory.
    """
    before, after = load_file(old / WEIGHTS_NAME), load_file(new / WEIGHTS_NAME)
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, codes in before.items():
        if codes.dtype == torch.int8:
            parts = name.split(".")
            group = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
            for key in (group, "all"):
                groups.setdefault(key, []).append((codes.flatten(), after[name].flatten()))
    return {group: _change(pairs) for group, pairs in groups.items()}


def _change(pairs: list[tuple[Tensor, Tensor]]) -> Change:
    old = torch.cat([pair[0] for pair in pairs]).short()
    new = torch.cat([pair[1] for pair in pairs]).short()
    shares = torch.bincount((new - old + 256).long()).double() / len(old)
    shares = shares[shares > 0]
    return Change(
        changed=float((new != old).double().mean()),
        entropy_bits=float(-(shares * shares.log2()).sum()),
        saturated=float((new.abs() == 127).double().mean()),
    )

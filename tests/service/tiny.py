"""The tiny real model, packed as it ships, for the tests of the service and the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tiny_model
from autoglm import patch
from autoglm.model.checkpoint import write_release
from autoglm.releases import HealthCheck, HealthPrompt
from tiny_model import random_state, tokenizer_text

TINY = dataclasses.replace(tiny_model.TINY, max_context=1024)


def write_tiny(target: Path, version: str, counter: int, *, expect: str = "") -> Path:
    """Write a release directory; ``expect`` is what its self-test wants to read, anything by default."""
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect=expect, max_tokens=8)
    write_release(
        target,
        config=TINY,
        tokenizer=tokenizer_text(),
        state=random_state(counter),
        health=HealthCheck((prompt,)),
        model="autoglm-phone-9b",
        variant="nano-int8",
        name="autoglm-phone-nano",
        version=version,
        counter=counter,
    )
    return target


def write_store(root: Path) -> Path:
    """Write releases and their packages as they ship: ``store/v1.2.wpatch`` (full), ``store/v1.3.wpatch``."""
    old, new = write_tiny(root / "v1.2", "v1.2", 12), write_tiny(root / "v1.3", "v1.3", 13)
    store = root / "store"
    store.mkdir()
    patch.diff(None, old, store / "v1.2.wpatch")
    patch.diff(old, new, store / "v1.3.wpatch")
    return store

"""Configurations and self-tests as files: strict in, exact out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autoglm.errors import FormatError
from autoglm.model.config import CONFIGS, NANO, ModelConfig


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_named_configuration_survives_its_file(name: str) -> None:
    """Each configuration reads back from its own JSON unchanged."""
    assert ModelConfig.from_json(CONFIGS[name].to_json()) == CONFIGS[name]


def changed(**fields: Any) -> str:
    """Return nano's JSON with fields replaced; ``part__key`` reaches into a part."""
    document = json.loads(NANO.to_json())
    for key, value in fields.items():
        part, _, inner = key.rpartition("__")
        (document[part] if part else document)[inner] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "fields",
    [
        {"surprise": 1},
        {"image__surprise": 1},
        {"width": "192"},
        {"width": True},
        {"width": -1},
        {"width": 0},
        {"width": 1 << 30},
        {"vocab_size": 100},
        {"num_heads": 5},
        {"norm_eps": 0},
        {"norm_eps": 1e400},
        {"rotary_fraction": 0.01},
        {"num_layers": 5000},
        {"name": ""},
        {"image": []},
        {"image__kind": "magic"},
        {"image__channels": [1, 2]},
        {"image__channels": "abc"},
        {"image__height": 500},
        {"image__height": 0},
        {"image__bins": 33},
        {"image__max_patches": 10},
        {"audio__min_tokens": 1000},
        {"topk__page": 0},
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused(fields: dict[str, Any]) -> None:
    """Unknown keys, wrong types, absurd and contradictory sizes raise a format error."""
    with pytest.raises(FormatError, match=r"config\.json"):
        ModelConfig.from_json(changed(**fields))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "x" * 100_000, "[" * 60_000])
def test_a_configuration_that_is_no_object_is_refused(text: str) -> None:
    """Text that is no JSON object, or nests without end, raises a format error."""
    with pytest.raises(FormatError):
        ModelConfig.from_json(text)

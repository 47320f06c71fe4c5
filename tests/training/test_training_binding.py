"""A local adapter is used on the release that it was trained on, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.releases import Manifest
from autoglm.training.adapter import Adapter, Factors, read_adapter, write_adapter
from autoglm.training.binding import bind, check_bound, is_bound_to


def manifest(directory: Path, version: str) -> Manifest:
    directory.mkdir()
    (directory / "weights").write_text(version)
    return Manifest.of_directory(
        directory, model="m", variant="int8", name="nano", version=version, counter=1
    )


def adapter() -> Adapter:
    factors = {"blocks.0.qkv.weight": Factors(torch.ones(1, 4), torch.ones(3, 1), 2.0)}
    return Adapter(factors, {"peft_type": "LORA", "r": 1, "lora_alpha": 2.0, "bias": "none"})


def test_a_bound_adapter_knows_its_release_after_a_trip_to_the_disk(tmp_path: Path) -> None:
    """Written and read back under PEFT's names, it is accepted on its release and keeps its factors."""
    base = manifest(tmp_path / "a", "v1.2")
    write_adapter(tmp_path / "adapter", bind(adapter(), base))
    found = read_adapter(tmp_path / "adapter")
    check_bound(found, base)
    assert torch.equal(found.factors["blocks.0.qkv.weight"].delta, torch.full((3, 4), 2.0))


def test_an_adapter_is_refused_on_an_updated_base(tmp_path: Path) -> None:
    """On the next release, and where it names none, it is refused, with the names of both."""
    base, newer = (manifest(tmp_path / version, version) for version in ("v1.2", "v1.3"))
    bound = bind(adapter(), base)
    assert not is_bound_to(bound, newer)
    with pytest.raises(ConfigError, match=r"nano-v1\.2, not on nano-v1\.3"):
        check_bound(bound, newer)
    with pytest.raises(ConfigError, match="does not name"):
        check_bound(adapter(), base)

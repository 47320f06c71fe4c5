"""Where a model runs, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoglm.engine import Engine, pick_devices, preflight
from autoglm.engine import devices as module
from autoglm.errors import ConfigError, EngineError
from autoglm.model.config import CONFIGS
from autoglm.model.kernels import packed_parts

CPU = (torch.device("cpu"),)


def test_auto_takes_every_visible_device() -> None:
    """All CUDA devices where there are any, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert [str(d) for d in pick_devices("auto")] == ([f"cuda:{i}" for i in range(count)] or ["cpu"])


def test_devices_may_be_named() -> None:
    """A comma-separated text or a list; blanks do not matter."""
    assert pick_devices("cpu, cpu:0") == pick_devices(["cpu", "cpu:0"])


@pytest.mark.parametrize("wrong", ["gpu", "meta", "cuda:99", "", []])
def test_wrong_devices_are_configuration_errors(wrong: str | list[str]) -> None:
    """What is no device, or is not there, is said at start."""
    with pytest.raises(ConfigError):
        pick_devices(wrong)


def test_the_sum_counts_weights_cache_and_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 9B model in float32: 4 bytes a parameter, 80 KiB of cache a token, and all of it twice."""
    monkeypatch.setattr(module, "free_bytes", lambda devices: 1 << 50)
    plan = preflight(CONFIGS["9b"], CPU, max_batch=2, max_context=1024)
    assert plan.weights == 9_459_721_472 * 4
    keys_and_values = 2 * 40 * 2 * 128 * 4 * 1024 * 2
    assert keys_and_values <= plan.cache <= keys_and_values * 1.1  # and the gate's bounds
    assert plan.needed_bytes == 2 * (plan.weights + plan.cache)


def test_what_does_not_fit_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch, old_dir: Path) -> None:
    """The message adds up the parts, and nothing was loaded."""
    monkeypatch.setattr(module, "free_bytes", lambda devices: 48 << 30)
    with pytest.raises(EngineError, match=r"weights 35\.24 GiB \+ KV cache .* free: 48\.00 GiB"):
        preflight(CONFIGS["9b"], CPU, max_batch=1, max_context=1024)
    monkeypatch.setattr(module, "free_bytes", lambda devices: 1 << 10)
    with pytest.raises(EngineError, match="does not fit"):
        Engine.load(old_dir, devices="cpu")


def test_staging_asks_only_for_its_own_room(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, new_dir: Path
) -> None:
    """Beside a running release there must be room for one more, not for two, less what they share."""
    model = engine.active.model
    packed = [f"{name}.weight" for name in packed_parts(model)]
    plan = preflight(model.config, CPU, max_batch=4, max_context=256, packed=packed)
    monkeypatch.setattr(module, "free_bytes", lambda devices: plan.needed_bytes // 2)
    assert engine.stage(new_dir).version == "v1.3"
    monkeypatch.setattr(module, "free_bytes", lambda devices: 0)
    shared = engine.room(new_dir).shared
    monkeypatch.setattr(module, "free_bytes", lambda devices: plan.needed_bytes // 2 - shared - 1)
    with pytest.raises(EngineError, match="does not fit"):
        engine.stage(new_dir)


def test_free_memory_is_counted_once_a_device() -> None:
    """Naming the CPU twice does not double its memory."""
    assert 0 < module.free_bytes((*CPU, *CPU)) < 1.5 * module.free_bytes(CPU) + (1 << 30)


def test_the_page_on_gpus_shows_the_sum_as_it_is(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    """The refusal and the figures in docs/gpu.md are what the engine says of the 9B on two such cards."""
    monkeypatch.setattr(module, "free_bytes", lambda devices: (24 << 30) * len(set(devices)))
    cards = (torch.device("cuda:0"), torch.device("cuda:1"))
    page = (project_root / "docs" / "gpu.md").read_text()
    shown = page.partition("```text\n")[2].partition("```")[0]
    plan = module.count_memory(CONFIGS["9b"], cards, max_batch=16, max_context=65_536, staging=False)
    with pytest.raises(EngineError) as caught:
        plan.require_room("autoglm-phone-9b")
    assert str(caught.value).split() == shown.split()
    for staging, figure in ((False, "needs 18.26 GiB"), (True, "36.53 GiB in")):
        small = module.count_memory(CONFIGS["9b"], cards, max_batch=8, max_context=2048, staging=staging)
        assert f"{small.needed_bytes / (1 << 30):.2f}" in figure and figure in page

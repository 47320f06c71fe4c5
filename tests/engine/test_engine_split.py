"""Layers over two devices: who holds what, and whether each has room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from autoglm.engine import Engine, GenerationRequest, preflight
from autoglm.engine import devices as module
from autoglm.errors import OutOfMemoryError
from autoglm.model.config import CONFIGS
from autoglm.model.network import PhoneModel, split_layers
from tiny_model import TINY

CPU = torch.device("cpu")
OTHER = torch.device("cpu", 0)  # the same memory under another name: torch keeps the two apart
Ask = Callable[..., GenerationRequest]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the free memory of each device in bytes."""

    def set_free(**sizes: int) -> None:
        def count(devices: Sequence[torch.device]) -> int:
            return sum(sizes[str(device).replace(":", "_")] for device in set(devices))

        monkeypatch.setattr(module, "free_bytes", count)

    return set_free


def test_layers_lie_in_equal_runs() -> None:
    """40 layers over two devices: 20 and 20; over three: as equal as can be, none twice."""
    assert split_layers(40, [CPU, OTHER]) == [CPU] * 20 + [OTHER] * 20
    names = [str(device) for device in split_layers(40, [CPU, OTHER, torch.device("meta")])]
    assert names == ["cpu"] * 14 + ["cpu:0"] * 13 + ["meta"] * 13


def test_each_layer_and_its_cache_are_where_the_plan_says() -> None:
    """Half on the CPU, half on torch's meta device; embeddings and the head on the first."""
    model = PhoneModel(TINY).eval().place(["cpu", "meta"])
    assert [block.qkv.weight.device.type for block in model.layers] == ["cpu", "meta"]
    assert [keys.device.type for keys in model.new_cache(1, 32).keys] == ["cpu", "meta"]
    assert model.device == CPU and model.head is not None and model.head.weight.device == CPU


def test_an_engine_over_two_devices_answers_the_same(engine: Engine, old_dir: Path, ask: Ask) -> None:
    """Through load, batches, stage, self-test, swap and rollback."""
    wanted = engine.submit(ask("hello", max_tokens=12)).result().token_ids
    with Engine.load(old_dir, devices=["cpu", "cpu:0"], threads=1, max_batch=4) as split:
        answers = [split.submit(ask("hello", max_tokens=12)) for _ in range(3)]
        assert [answer.result().token_ids for answer in answers] == [wanted] * 3
        staged = split.stage(old_dir)
        assert split.self_test(staged).ok
        split.swap(staged)
        split.rollback()
        assert split.submit(ask("hello", max_tokens=12)).result().token_ids == wanted


def test_shares_add_up_to_the_whole(free: Callable[..., None]) -> None:
    """What the devices hold together is the sum, staging room included."""
    free(cpu=1 << 50, cpu_0=1 << 50)
    plan = preflight(CONFIGS["9b"], (CPU, OTHER), max_batch=2, max_context=1024)
    assert sum(share.needed for share in plan.shares) == plan.needed_bytes
    first, second = plan.shares
    assert first.needed > second.needed  # the token table, the head and the embedders


def test_a_device_too_small_for_its_share_is_named(free: Callable[..., None]) -> None:
    """Enough memory in all does not help when one device's layers do not fit."""
    free(cpu=200 << 30, cpu_0=10 << 30)
    with pytest.raises(OutOfMemoryError, match=r"cpu:0 needs .* of 10\.00 GiB\. In all: weights"):
        preflight(CONFIGS["9b"], (CPU, OTHER), max_batch=1, max_context=1024)


def test_the_unquantised_9b_on_two_cards_of_24_gb(free: Callable[..., None], monkeypatch) -> None:
    """In bf16 it fits on the two cards without staging room, and is refused with the sum with it."""
    monkeypatch.setattr(module, "weight_dtype", lambda devices: torch.bfloat16)
    free(cpu=24 << 30, cpu_0=24 << 30)
    room = {"max_batch": 4, "max_context": 8192}
    plan = preflight(CONFIGS["9b"], (CPU, OTHER), **room, staging=False)
    assert 17 << 30 < plan.weights < 18 << 30 and plan.needed_bytes < 48 << 30
    with pytest.raises(
        OutOfMemoryError, match=r"weights 17\.\d\d GiB .* staging room .* = \d+\.\d\d GiB; free"
    ):
        preflight(CONFIGS["9b"], (CPU, OTHER), max_batch=16, max_context=65536)


def test_an_int8_9b_takes_half_of_a_bf16_one(free: Callable[..., None]) -> None:
    """Counted by the module: codes, and a few bytes a row."""
    free(cpu=1 << 50)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in PhoneModel(CONFIGS["9b"]).named_parameters() if p.dim() == 2}
    names = [n for n in shapes if n.startswith("blocks.") or n in ("head.weight", "table.weight")]
    plan = preflight(CONFIGS["9b"], (CPU,), max_batch=1, max_context=1024, packed=names)
    assert plan.weights < 1.05 * sum(shapes[name].numel() for name in names) + (1 << 30)


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_real_cards_answer_as_one(old_dir: Path, ask: Ask) -> None:
    """Layers over two cards give the tokens of one."""
    answers: list[Sequence[int]] = []
    for devices in ("cuda:0", "cuda:0,cuda:1"):
        with Engine.load(old_dir, devices=devices, max_batch=2) as engine:
            answers.append(engine.submit(ask("hello", max_tokens=12)).result().token_ids)
    assert answers[0] == answers[1]

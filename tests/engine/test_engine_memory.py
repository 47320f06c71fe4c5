"""The memory that is asked for before a release is loaded, against what loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.engine import Engine
from autoglm.engine import devices as module
from autoglm.engine.release import Placement, plan_release
from autoglm.errors import OutOfMemoryError
from autoglm.model import step
from autoglm.model.checkpoint import write_release
from autoglm.model.network import PhoneModel
from autoglm.releases import HealthCheck, HealthPrompt
from tiny_model import TINY, tokenizer_text

CONFIG = replace(
    TINY, name="middle", width=1024, num_layers=2, num_heads=16, num_kv_heads=4, head_dim=64, ffn_width=4096
)
SLACK = 24 << 20  # what torch, the tokenizer and the allocator take besides
NEVER = 1 << 60


def write(directory: Path, *, int4_group: int = 0, counter: int = 1, change: int = 0) -> Path:
    """Write a release of random weights, with ``change`` added to those of one layer."""
    torch.manual_seed(7)
    state = {
        name: torch.randn_like(tensor) * 0.02 if tensor.dim() > 1 else tensor.clone()
        for name, tensor in PhoneModel(CONFIG).state_dict().items()
    }
    state["blocks.0.qkv.weight"] = state["blocks.0.qkv.weight"].roll(change, 0)
    names: dict[str, Any] = {"model": "autoglm-phone-9b", "variant": "middle", "name": "middle"}
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect="", max_tokens=2)
    write_release(
        directory,
        config=CONFIG,
        tokenizer=tokenizer_text(),
        state=state,
        health=HealthCheck((prompt,)),
        version=f"v1.{counter}",
        counter=counter,
        int4_group=int4_group,
        **names,
    )
    return directory


@pytest.fixture(scope="module")
def int8_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of 35 million weights in INT8."""
    return write(tmp_path_factory.mktemp("int8") / "release")


@pytest.fixture(scope="module")
def int4_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in INT4."""
    return write(tmp_path_factory.mktemp("int4") / "release", int4_group=64)


@pytest.mark.parametrize(
    ("stored", "form"),
    [
        ("int8_dir", ("native", NEVER)),
        ("int4_dir", ("torch", 1)),
        *[
            pytest.param(stored, form, marks=pytest.mark.long)
            for stored, form in (
                ("int4_dir", ("native", NEVER)),
                ("int8_dir", ("torch", 1)),
                ("int8_dir", ("floats", NEVER)),
                ("int4_dir", ("floats", NEVER)),
            )
        ],
    ],
)
def test_loading_takes_no_more_than_was_planned(
    request: pytest.FixtureRequest, stored: str, form: tuple[str, int]
) -> None:
    """The peak of a real load, in a process of its own, lies within the plan; what stays is what it says."""
    directory = request.getfixturevalue(stored)
    program = Path(__file__).parent / "loading_memory.py"
    command = [sys.executable, str(program), str(directory), str(form[1]), form[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["needed"] + SLACK
    assert found["held"] >= 0.9 * (found["needed"] - found["packing"]) - SLACK


def test_packing_counts_where_the_cache_leaves_no_room_for_it() -> None:
    """The sum names it; a large cache, which is made after the weights, has room for it."""
    packed = [
        name for name, weight in PhoneModel(CONFIG).named_parameters() if step.holds(name, weight.shape)
    ]
    cpu = (torch.device("cpu"),)
    tight = module.count_memory(CONFIG, cpu, max_batch=1, max_context=32, packed=packed, staging=False)
    wide = module.count_memory(CONFIG, cpu, max_batch=64, max_context=4096, packed=packed, staging=False)
    assert tight.packing > 0 and "packing" in str(tight)
    assert tight.needed_bytes == tight.weights + tight.cache + tight.packing
    assert wide.packing == 0 and "packing" not in str(wide)


def test_what_two_releases_share_is_not_asked_for_twice(
    int8_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short for a whole release but not for what it changes, it is staged all the same."""
    monkeypatch.setattr(step, "pays", lambda _: False)
    monkeypatch.setattr(module, "MIN_WEIGHTS", NEVER)
    close = write(tmp_path / "close", counter=2, change=1)
    placement = Placement(max_batch=1, max_context=64)
    with Engine.load(int8_dir, devices="cpu", threads=1, max_batch=1, max_context=64) as engine:
        whole = plan_release(close, placement)
        changed = CONFIG.width * (CONFIG.num_heads + 2 * CONFIG.num_kv_heads) * CONFIG.head_dim * 4
        monkeypatch.setattr(module, "free_bytes", lambda devices: changed + whole.cache + whole.packing)
        plan = engine.room(close)
        assert plan.weights - plan.shared == changed
        assert engine.stage(close).version == "v1.2"
        monkeypatch.setattr(module, "free_bytes", lambda devices: changed + whole.cache + whole.packing - 1)
        with pytest.raises(OutOfMemoryError, match="does not fit"):
            engine.stage(close)

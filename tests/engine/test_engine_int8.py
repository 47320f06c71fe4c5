"""Releases whose weights stay INT8 in memory: swapped, shared, rolled back and unloaded like all others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoglm import patch
from autoglm.engine import Engine, GenerationRequest
from autoglm.engine import devices as module
from autoglm.engine.release import Placement, load_resident, plan_release
from autoglm.errors import EngineError
from autoglm.model import core, kernels, step
from autoglm.model.kernels import packed_parts

pytestmark = pytest.mark.skipif(not kernels.activation_steps(), reason="no INT8 kernel for this CPU")
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "autoglm-phone-nano" / "v1.2.wpatch"
Ask = Callable[..., GenerationRequest]


@pytest.fixture(autouse=True, params=["torch", "core"])
def hold_all_as_int8(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the matrices of tiny models be large enough for torch's kernel, or the native core."""
    if request.param == "torch":
        monkeypatch.setattr(module, "MIN_WEIGHTS", 1)
        monkeypatch.setattr(step, "pays", lambda _: False)
    elif core.library() is None and sys.platform != "linux":
        pytest.skip("the native core is not built")


@pytest.fixture
def packed(old_dir: Path) -> Engine:
    """An engine that serves v1.2 from INT8 weights."""
    return Engine.load(old_dir, devices="cpu", threads=1, max_batch=4)


def test_a_swap_and_back_gives_the_same_tokens(packed: Engine, new_dir: Path, ask: Ask) -> None:
    """Packed forms are made in staging; the commit is a pointer; rolled back, answers are the same."""
    with packed as engine:
        before = engine.submit(ask("hello", max_tokens=12)).result().token_ids
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        engine.swap(staged)
        assert engine.submit(ask("hello", max_tokens=12)).result().token_ids != before
        engine.rollback()
        assert engine.submit(ask("hello", max_tokens=12)).result().token_ids == before


def test_an_answer_does_not_depend_on_its_company(packed: Engine, ask: Ask) -> None:
    """Alone and beside others the tokens are the same: a row has its own activation scale."""
    with packed as engine:
        alone = engine.submit(ask("hello", max_tokens=12)).result().token_ids
        crowd = [engine.submit(ask(text, max_tokens=12)) for text in ("hello", "x", "something longer")]
        assert crowd[0].result().token_ids == alone


def test_equal_packed_weights_are_shared(packed: Engine, old_dir: Path, new_dir: Path) -> None:
    """A staged release with the same weights costs no further memory; one with others its own."""
    with packed as engine:
        live = packed_parts(engine.active.model)
        same, other = (packed_parts(engine.stage(path).held().release.model) for path in (old_dir, new_dir))
        assert live and all(part.held is live[name].held for name, part in same.items())
        assert all(part.held is not live[name].held for name, part in other.items())


def test_an_unloaded_release_computes_no_more(old_dir: Path) -> None:
    """Its packed weights leave memory too, and who still runs on it hears why."""
    resident = load_resident(old_dir, Placement(max_batch=1))
    resident.unload()
    with pytest.raises(EngineError, match="given back"):
        resident.release.model.layers[0].down(torch.zeros(1, 48))


def test_memory_is_counted_as_it_is_held(old_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 weights take a quarter of the floats, and the sum before loading says so."""
    as_int8 = plan_release(old_dir, Placement()).weights
    monkeypatch.setattr(module, "MIN_WEIGHTS", 1 << 60)
    monkeypatch.setattr(step, "pays", lambda _: False)
    assert 0.2 < as_int8 / plan_release(old_dir, Placement()).weights < 0.6  # and vectors, as floats


def test_the_shipped_model_passes_its_self_test_in_int8(tmp_path: Path) -> None:
    """Every health prompt is answered as before when all its matrices are INT8, activations 8 or 16 bits."""
    patch.apply(None, SHIPPED, tmp_path / "v1.2")
    with Engine.load(tmp_path / "v1.2", devices="cpu", threads=1, max_batch=1, max_context=512) as engine:
        assert len(packed_parts(engine.active.model)) == 6 * 4 + 1
        report = engine.live_self_test(budget_s=600)
    assert report.score == 1.0, report.failures

"""Merging an adapter into a shipped release: a whole release and its factors, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from autoglm import patch
from autoglm.errors import ConfigError, HealthError, IntegrityError
from autoglm.model.checkpoint import write_release
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.weights import build_model, load_release, read_weights
from autoglm.releases import HealthCheck, HealthPrompt, Manifest
from autoglm.training.adapter import AdapterConfig, attach, extract, write_adapter
from autoglm.training.lowrank import Curve, Prediction, predict, scale_ratios
from autoglm.training.merge import hint_path, merge_adapter
from tiny_model import TINY, random_state, tokenizer_text

SETTINGS = AdapterConfig(rank=4, alpha=8.0)
NAMES = {"model": "autoglm-phone-9b", "variant": "tiny-int8", "name": "tiny", "channel": "beta"}


def text_loss(model: PhoneModel, rows: Tensor) -> Tensor:
    T = rows.shape[1] - 1
    positions = torch.arange(T)[:, None].expand(T, 3)
    hidden, _ = model(
        model.embed_tokens(rows[:, :-1]), positions, span_bias(torch.zeros(T, dtype=torch.long))
    )
    return F.cross_entropy(model.logits(hidden).flatten(0, 1), rows[:, 1:].flatten())


def cycles(seed: int) -> Tensor:
    """Rows of a made-up language: each token is followed by the one 7 later."""
    starts = torch.randint(0, 200, (8, 1), generator=torch.Generator().manual_seed(seed))
    return 20 + (starts + 7 * torch.arange(24)) % 200


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of random weights, with a file that only it has."""
    target = tmp_path_factory.mktemp("merge") / "v1.2"
    write_release(
        target,
        config=TINY,
        tokenizer=tokenizer_text(),
        state=random_state(0),
        health=HealthCheck(()),
        version="v1.2",
        counter=12,
        min_counter=3,
        **NAMES,
    )
    return target


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """An adapter that really learnt something beside that release."""
    model = build_model(TINY, read_weights(shipped / "model.safetensors", TINY)).train()
    attach(model, SETTINGS, seed=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for step in range(60):
        optimizer.zero_grad()
        text_loss(model, cycles(step)).backward()
        optimizer.step()
    target = tmp_path_factory.mktemp("adapter")
    write_adapter(target, extract(model, SETTINGS))
    return target


@torch.inference_mode()
def evaluate(state: Mapping[str, Tensor]) -> float:
    model = build_model(TINY, state)
    return sum(text_loss(model, cycles(seed)).item() for seed in range(1000, 1004))


@pytest.fixture
def merge(shipped: Path, adapter: Path, tmp_path: Path) -> Callable[..., Any]:
    def made(name: str = "v1.4", **options: Any) -> Any:
        return merge_adapter(shipped, adapter, tmp_path / name, version=name, **options)

    return made


def test_a_merge_gives_a_whole_release(merge, shipped: Path, tmp_path: Path) -> None:
    """The output verifies, loads, follows the base in the order, and keeps every other file of it."""
    report = merge()
    manifest = Manifest.read(tmp_path / "v1.4")
    manifest.verify(tmp_path / "v1.4")
    assert manifest == report.manifest
    assert (manifest.version, manifest.counter, manifest.min_counter) == ("v1.4", 13, 3)
    assert (manifest.variant, manifest.channel) == ("tiny-int8", "beta")
    load_release(tmp_path / "v1.4")
    for name in ("config.json", "tokenizer.json", "health.json"):
        assert (tmp_path / "v1.4" / name).read_bytes() == (shipped / name).read_bytes()


def test_the_release_is_the_base_and_the_factors(merge, shipped: Path, tmp_path: Path) -> None:
    """Base codes, both scales and the factors give the new codes bit by bit; all else is the base's."""
    report = merge()
    old, new = (load_file(path / "model.safetensors") for path in (shipped, tmp_path / "v1.4"))
    factors = load_file(hint_path(tmp_path / "v1.4"))
    assert report.hint == tmp_path / "v1.4.factors.safetensors"
    merged = {name.removesuffix(".params") for name in factors if name.endswith(".params")}
    assert merged == {matrix.name for matrix in report.matrices}
    for name, codes in new.items():
        if name.removesuffix(".scale") not in merged:
            assert np.array_equal(codes, old[name]), name
    for name in merged:
        p, q, params = (factors[f"{name}.{part}"] for part in ("P", "Q", "params"))
        assert (p.dtype, q.dtype, params.dtype) == (np.int16, np.int16, np.int64)
        ratios = scale_ratios(old[name + ".scale"], new[name + ".scale"])
        made = predict(old[name], ratios, Prediction(p, q, Curve(*params.tolist())))
        assert np.array_equal(made, new[name]), name
        assert not np.array_equal(new[name], old[name]), name


def test_what_the_adapter_learnt_is_retained(merge) -> None:
    """Against the adapter beside the shipped base and beside other floats, nearly all of the gain is kept."""
    report = merge(evaluate=evaluate, float_weights=random_state(0))
    assert report.shipped.base_float - report.shipped.new_float > 1
    assert report.shipped.retained > 0.97
    assert report.float_base.retained > 0.97
    assert report.float_base.new_shipped == report.shipped.new_shipped
    exact = merge("v1.5", evaluate=evaluate, factor_error=1e-4)
    assert abs(1 - exact.shipped.retained) <= abs(1 - report.shipped.retained) + 0.01
    assert exact.patch_bytes > report.patch_bytes


def test_the_report_tells_what_a_merge_did(merge) -> None:
    """Ranks, shares and sizes are those of the factors, and plain values for JSON."""
    report = merge()
    assert len(report.matrices) == 4 * TINY.num_layers
    assert all(matrix.rank == 4 and matrix.changed > 0.1 for matrix in report.matrices)
    assert all(matrix.kept_energy == pytest.approx(1) for matrix in report.matrices)
    assert report.num_factors == sum(
        a.size for name, a in load_file(report.hint).items() if not name.endswith(".params")
    )
    values = report.to_dict()
    assert values["retention"] is None
    assert 0 < values["patch_share"] < 0.2 and 1 < values["bits_per_factor"] < 20


def test_merging_is_deterministic(merge, tmp_path: Path) -> None:
    """The same base and adapter give the same weights and factors."""
    merge("a")
    merge("b")
    for files in (
        ("a/model.safetensors", "b/model.safetensors"),
        ("a.factors.safetensors", "b.factors.safetensors"),
    ):
        assert (tmp_path / files[0]).read_bytes() == (tmp_path / files[1]).read_bytes()


def test_a_patch_leads_to_the_merged_release(merge, shipped: Path, tmp_path: Path) -> None:
    """A package made with the factors applies to the same bytes, and is as small as the merge said."""
    report = merge()
    package = tmp_path / "v1.4.wpatch"
    made = patch.diff(shipped, tmp_path / "v1.4", package, hint=report.hint)
    patch.apply(shipped, package, tmp_path / "again")
    assert Manifest.read(tmp_path / "again") == report.manifest
    # Besides the factors there are a header and the new manifest, which count in so small a release.
    assert made.package_bytes < 1.2 * report.patch_bytes + 2000


def test_scales_that_moved_leave_no_residual_either(merge, shipped: Path, tmp_path: Path) -> None:
    """Where rows or whole matrices got new scales, the codec still predicts every code from the factors."""
    report = merge()
    assert any(matrix.rescaled > 0 for matrix in report.matrices)
    package = tmp_path / "v1.4.wpatch"
    patch.diff(shipped, tmp_path / "v1.4", package, hint=report.hint)
    merged = {matrix.name for matrix in report.matrices}
    tensors = [tensor for tensor in patch.inspect(package).tensors if tensor.name in merged]
    assert {tensor.mode for tensor in tensors} == {"predicted"}
    factors = report.num_factors * 11 / 8  # bytes, were each of the numbers below 2048 stored plainly
    assert sum(tensor.package_bytes for tensor in tensors) < factors


def test_version_counter_and_self_test_can_be_given(merge, tmp_path: Path) -> None:
    """A counter and a health file of the caller's are those of the release."""
    health = HealthCheck((HealthPrompt(({"role": "user", "content": "Hi"},), "", False, 2),), 0.5)
    report = merge(counter=40, health=health)
    assert report.manifest.counter == 40
    assert HealthCheck.from_bytes((tmp_path / "v1.4" / "health.json").read_bytes()) == health


def test_a_release_that_fails_its_self_test_is_not_made(merge, tmp_path: Path) -> None:
    """A merged model that answers wrongly is refused, and neither release nor factors are left."""
    health = HealthCheck((HealthPrompt(({"role": "user", "content": "Hi"},), "impossible", False, 4),), 0.5)
    with pytest.raises(HealthError, match=r"v1\.4 fails"):
        merge(health=health)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_place_is_left_alone(merge, tmp_path: Path) -> None:
    """Neither an existing directory nor an existing hint is written over."""
    for name in ("v1.4", "v1.4.factors.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="exists"):
            merge()
        (tmp_path / name).rmdir()


def test_a_damaged_base_is_refused(shipped: Path, adapter: Path, tmp_path: Path) -> None:
    """A base that is not what its manifest says is not built upon."""
    base = tmp_path / "base"
    base.mkdir()
    for path in shipped.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError):
        merge_adapter(base, adapter, tmp_path / "v1.4", version="v1.4")


def test_only_int8_can_be_merged_into(adapter: Path, tmp_path: Path) -> None:
    """INT4 matrices are refused by name: the format predicts INT8 codes alone."""
    parts = {
        "config": TINY,
        "tokenizer": tokenizer_text(),
        "state": random_state(0),
        "health": HealthCheck(()),
    }
    write_release(tmp_path / "int4", int4_group=16, version="v1.2", counter=1, **parts, **NAMES)
    with pytest.raises(ConfigError, match=r"blocks\.0\.\w+\.weight.*INT8"):
        merge_adapter(tmp_path / "int4", adapter, tmp_path / "v1.4", version="v1.4")


def test_an_adapter_for_another_model_is_refused(shipped: Path, adapter: Path, tmp_path: Path) -> None:
    """Modules that the base does not have are named before anything is made."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_tensors(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace("blocks.1", "blocks.7"): tensor for name, tensor in tensors.items()},
        other / "adapter_model.safetensors",
    )
    with pytest.raises(ConfigError, match=r"blocks\.7"):
        merge_adapter(shipped, other, tmp_path / "v1.4", version="v1.4")

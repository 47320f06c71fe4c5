"""A model costs what changed in it, however its tensors are named and laid out in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoglm import patch
from patch import tensors
from patch.containers import BF16, F16, STRING, GgufTensor, Table, gguf, layout, named, pair, ptd, text
from patch.tensors import Tensor
from patch.test_patch_round_trip import round_trip

LAYERS, ROWS, COLUMNS = 12, 160, 256
Model = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model() -> Model:
    """Weights of 12 layers of three tensors, 3 MB in two bytes each."""
    rng = np.random.default_rng(0)
    kinds = {"q.weight": (ROWS, COLUMNS), "up.weight": (2 * ROWS, COLUMNS), "norm.weight": (COLUMNS,)}
    return {
        f"layers.{number}.{kind}": tensors.weights(rng, shape) + (shape == (COLUMNS,))
        for number in range(LAYERS)
        for kind, shape in kinds.items()
    }


@pytest.fixture(scope="module")
def later(model: Model) -> Model:
    """The same after a fine-tune."""
    rng = np.random.default_rng(1)
    return {name: tensors.tuned(rng, values) for name, values in model.items()}


def safetensors(path: Path, model: Model, dtype: str = "BF16") -> Path:
    path.parent.mkdir(exist_ok=True)
    return tensors.write(path, {name: tensors.encode(values, dtype) for name, values in model.items()})


def shards(root: Path, model: Model, count: int) -> Path:
    """Divide a model into files of about the same size, in the order of names turned around."""
    names = list(model)[:: -1 if count % 2 else 1]
    for number in range(count):
        part = {name: model[name] for name in names[number::count]}
        safetensors(root / f"model-{number + 1:05}-of-{count:05}.safetensors", part)
    return root


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def cost(old: Path, new: Path, at: Path) -> int:
    """Return the bytes of the patch, after a round trip."""
    at.mkdir()
    return round_trip(old, new, at).package_bytes


def modes(at: Path) -> set[str]:
    return {tensor.mode for tensor in patch.inspect(at / "p.wpatch").tensors}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 5)])
def test_an_equal_model_in_other_shards_costs_next_to_nothing(
    tmp_path: Path, model: Model, before: int, after: int
) -> None:
    """Less than 0.2 % of its size."""
    old, new = shards(tmp_path / "old", model, before), shards(tmp_path / "new", model, after)
    assert cost(old, new, tmp_path / "at") < 0.002 * size(new)
    assert modes(tmp_path / "at") == {"same"}


def test_a_fine_tune_in_other_shards_costs_what_it_costs_in_the_same(
    tmp_path: Path, model: Model, later: Model
) -> None:
    """Within one percent, and the order of tensors makes no difference."""
    old = shards(tmp_path / "old", model, 2)
    same = cost(old, shards(tmp_path / "same", later, 2), tmp_path / "a")
    other = cost(old, shards(tmp_path / "other", later, 3), tmp_path / "b")
    assert other < 1.01 * same


def test_renamed_tensors_cost_what_they_cost_under_their_names(
    tmp_path: Path, model: Model, later: Model
) -> None:
    """Within one percent; equal ones cost less than 0.2 %."""
    old = safetensors(tmp_path / "old.safetensors", model)
    named = safetensors(tmp_path / "named.safetensors", later)
    prefixed = {f"text_model.{name}": values for name, values in later.items()}
    renamed = safetensors(tmp_path / "renamed.safetensors", prefixed)
    assert cost(old, renamed, tmp_path / "a") < 1.01 * cost(old, named, tmp_path / "b")
    equal = safetensors(tmp_path / "equal.safetensors", {f"x.{name}": model[name] for name in model})
    assert cost(old, equal, tmp_path / "c") < 0.002 * equal.stat().st_size


def test_a_layer_cut_out_costs_next_to_nothing(tmp_path: Path, model: Model) -> None:
    """Later layers take the numbers of others and are still found."""
    new: Model = {}
    for name, values in model.items():
        _, number, kind = name.split(".", 2)
        if number != "4":
            new[f"layers.{int(number) - (int(number) > 4)}.{kind}"] = values
    old = safetensors(tmp_path / "old.safetensors", model)
    cut = safetensors(tmp_path / "new.safetensors", new)
    assert cost(old, cut, tmp_path / "at") < 0.002 * cut.stat().st_size


def test_a_flattened_tensor_is_differenced(tmp_path: Path, model: Model, later: Model) -> None:
    """The same elements in another shape."""
    old = safetensors(tmp_path / "old.safetensors", model)
    flat = safetensors(tmp_path / "flat.safetensors", {n: values.reshape(-1) for n, values in later.items()})
    cost(old, flat, tmp_path / "at")
    assert modes(tmp_path / "at") == {"difference"}


def test_a_scalar_that_became_a_vector_comes_back(tmp_path: Path) -> None:
    """Neither has rows of the other."""
    for name, shape in (("old", ()), ("new", (5,)), ("newer", ())):
        safetensors(tmp_path / f"{name}.safetensors", {"a": np.full(shape, 0.5)})
    cost(tmp_path / "old.safetensors", tmp_path / "new.safetensors", tmp_path / "there")
    cost(tmp_path / "new.safetensors", tmp_path / "newer.safetensors", tmp_path / "back")


def test_recomputed_scales_predict_renamed_codes_in_another_file(tmp_path: Path, model: Model) -> None:
    """The scales are taken from where the codes' match lies, and other quantisers' names do."""
    rng = np.random.default_rng(2)
    old: dict[str, Tensor] = {}
    new: dict[str, Tensor] = {}
    for name, values in list(model.items())[:6:3]:
        codes, scales, _ = tensors.quantised(values)
        old |= {f"{name}_scale": scales, name: codes}
        codes, scales, _ = tensors.quantised(tensors.tuned(rng, values, 1e-3))
        new |= {f"text.{name}_scale": scales, f"text.{name}": codes}
    for root, parts in (("old", [{}, old]), ("new", [new])):
        (tmp_path / root).mkdir()
        for number, part in enumerate(parts):
            tensors.write(tmp_path / root / f"{number}-of-{len(parts)}.safetensors", part)
    cost(tmp_path / "old", tmp_path / "new", tmp_path / "at")
    found = {t.name: t.mode for t in patch.inspect(tmp_path / "at" / "p.wpatch").tensors}
    assert {mode for name, mode in found.items() if name.endswith("weight")} == {"scaled"}


def write_gguf(path: Path, model: Model, kind: int, dtype: str) -> Path:
    """Write a model as GGUF, with a vocabulary in its metadata."""
    infos: list[GgufTensor] = []
    data = bytearray()
    for name, values in model.items():
        data += bytes(-len(data) % 32)
        infos.append(GgufTensor(name, kind, tuple(reversed(values.shape)), len(data)))
        data += tensors.encode(values, dtype).content
    names = b"".join(text(f"token {number}") for number in range(2000))
    pairs = [
        pair("general.name", STRING, text(path.stem)),
        pair("tokens", 9, STRING.to_bytes(4, "little") + (2000).to_bytes(8, "little") + names),
    ]
    path.write_bytes(gguf(infos, bytes(data), pairs))
    return path


@pytest.mark.parametrize(("kind", "dtype"), [(F16, "F16"), (BF16, "BF16")])
def test_a_fine_tune_in_gguf_costs_what_it_costs_in_safetensors(
    tmp_path: Path, model: Model, later: Model, kind: int, dtype: str
) -> None:
    """Its vocabulary is taken from the base."""
    pairs = [
        (
            safetensors(tmp_path / "a.safetensors", model, dtype),
            safetensors(tmp_path / "b.safetensors", later, dtype),
        ),
        (
            write_gguf(tmp_path / "a.gguf", model, kind, dtype),
            write_gguf(tmp_path / "b.gguf", later, kind, dtype),
        ),
    ]
    plain, wrapped = (cost(old, new, tmp_path / f"at{n}") for n, (old, new) in enumerate(pairs))
    assert wrapped < 1.01 * plain
    assert modes(tmp_path / "at1") == {"difference"}


def test_a_fine_tune_in_ptd_costs_what_it_costs_in_safetensors(
    tmp_path: Path, model: Model, later: Model
) -> None:
    """Padding between segments is taken from the base."""
    for file, weights in (("a", model), ("b", later)):
        data, segments, entries = bytearray(), list[tuple[int, int]](), list[Table]()
        for number, (name, values) in enumerate({**weights, "scalar": np.ones((1,))}.items()):
            data += bytes(-len(data) % 128)
            content = tensors.encode(values, "BF16").content
            segments.append((len(data), len(content)))
            entries.append(Table([name, ("I", number), layout(15, values.shape)]))
            data += content
        (tmp_path / f"{file}.ptd").write_bytes(ptd(named(segments, entries), bytes(data) + bytes(50)))
        safetensors(tmp_path / f"{file}.safetensors", weights)
    plain = cost(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "at0")
    assert cost(tmp_path / "a.ptd", tmp_path / "b.ptd", tmp_path / "at1") < 1.01 * plain
    assert modes(tmp_path / "at1") == {"difference", "same"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=9)), max_size=4))
def test_damaged_containers_come_back_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]]
) -> None:
    """Whatever a file claims to be, and whatever it is made from."""
    at = tmp_path_factory.mktemp("damaged")
    data = tensors.weights(np.random.default_rng(0), (80,)).tobytes()
    entries = [Table(["a", ("I", 0), layout(1, (5, 8))]), Table(["b", ("I", 1), layout(5, (12,))])]
    infos = [GgufTensor("a", F16, (8, 5), 0), GgufTensor("b", 2, (32, 3), 96)]
    containers = (gguf(infos, data), ptd(named([(0, 40), (128, 24)], entries), data))
    for number, content in enumerate(containers):
        broken = bytearray(content)
        for place, change in edits:
            broken[place : place + len(change)] = change
        (at / "old").write_bytes(content)
        (at / "new").write_bytes(broken)
        cost(at / "old", at / "new", at / f"{number}-there")
        cost(at / "new", at / "old", at / f"{number}-back")

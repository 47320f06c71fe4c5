"""Weights that stay INT8 in memory: near the floats, and the same bits in whatever company."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoglm.errors import EngineError
from autoglm.model import kernels
from autoglm.model.checkpoint import write_release
from autoglm.model.codes import multiply_out, quantize_rows
from autoglm.model.kernels import PackedLinear, PackedTable, packed_parts
from autoglm.model.network import PhoneModel
from autoglm.model.weights import load_release, packed_names
from autoglm.releases import HealthCheck

pytestmark = pytest.mark.skipif(not kernels.activation_steps(), reason="no INT8 kernel for this CPU")

ALL = 1  # a matrix of one weight is large enough


@pytest.fixture
def codes() -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (96, 64) and their scales."""
    torch.manual_seed(3)
    return quantize_rows(torch.randn(96, 64) * 0.1)


@pytest.fixture
def write(tmp_path: Path, model: PhoneModel, tokenizer_text: str) -> Callable[..., Path]:
    """Write the tiny model as a release."""

    def make(name: str = "release", *, int4_group: int = 0) -> Path:
        write_release(
            tmp_path / name,
            config=model.config,
            tokenizer=tokenizer_text,
            state=model.state_dict(),
            health=HealthCheck((), 0.0),
            int4_group=int4_group,
            model="autoglm-phone-9b",
            variant="tiny",
            name="tiny",
            version="v1.0",
            counter=1,
        )
        return tmp_path / name

    return make


def read(model: PhoneModel, prompt, cuts: list[int]) -> torch.Tensor:
    """Return the logits after a prompt that is read in pieces."""
    cache = model.new_cache(1, 128)
    edges = [0, *cuts, len(prompt)]
    hidden = torch.empty(0)
    for start, stop in itertools.pairwise(edges):
        hidden = model.prefill(prompt, cache, cache.slot(0), start, stop)
    return model.logits(hidden)


def test_a_product_is_near_the_floats(codes) -> None:
    """Rounding activations to 8 bits a row costs about half a percent of the result."""
    x, weight = torch.randn(40, 64), multiply_out(*codes)
    error = PackedLinear(*codes)(x) - x @ weight.T
    assert float(error.norm() / (x @ weight.T).norm()) < 0.01


def test_a_row_does_not_depend_on_its_company(codes) -> None:
    """Alone, in a batch, beside a row a million times as large: the same bits."""
    linear, x = PackedLinear(*codes), torch.randn(9, 64)
    together = linear(x)
    assert torch.equal(together, torch.cat([linear(row[None]) for row in x]))
    x[0] *= 1e6
    assert torch.equal(linear(x)[1:], together[1:])


def test_a_row_of_zeros_gives_zeros(codes) -> None:
    """There is nothing to divide by, and nothing to round."""
    assert torch.equal(PackedLinear(*codes)(torch.zeros(2, 64)), torch.zeros(2, 96))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_in_its_row_alone(codes, bad: float) -> None:
    """A broken release is found by what it computes, so no kernel may hide it."""
    x = torch.randn(3, 64)
    x[1, 5] = bad
    finite = PackedLinear(*codes)(x).isfinite()
    assert finite[0].all() and finite[2].all() and not finite[1].any()


def test_a_table_looks_up_and_scores_with_the_same_codes(codes) -> None:
    """Rows are exact; as the head it multiplies as a linear layer does."""
    table, weight = PackedTable(*codes, is_head=True), multiply_out(*codes)
    ids = torch.tensor([[5, 0], [95, 5]])
    assert torch.equal(table(ids), weight[ids]) and torch.equal(table.whole(), weight)
    x = torch.randn(2, 64)
    assert torch.equal(table.score(x), PackedLinear(*codes)(x))


def test_small_matrices_are_multiplied_out_and_large_ones_stay() -> None:
    """By the rule: the blocks' products, head and table, from half a million weights on."""
    large, small = (1024, 512), (1023, 512)
    assert kernels.packs("blocks.3.down.weight", large) and kernels.packs("table.weight", large)
    assert not kernels.packs("blocks.3.down.weight", small)
    assert not kernels.packs("image.stem.weight", large)
    assert not kernels.packs("blocks.3.qkv.bias", (1 << 20,))


def test_without_a_kernel_all_is_multiplied_out(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that torch has no kernel for, a release loads as floats."""
    monkeypatch.setattr(kernels, "activation_steps", lambda: 0)
    assert packed_parts(load_release(write(), min_packed=ALL).model) == {}
    with pytest.raises(EngineError, match="no INT8 kernel"):
        PackedLinear(torch.zeros(1, 4, dtype=torch.int8), torch.ones(1))


@pytest.mark.parametrize("int4_group", [0, 8])
def test_a_release_held_as_int8_computes_nearly_the_same(
    write, processor, conversations, int4_group: int
) -> None:
    """Logits of all modalities move by a few percent; what was stored as INT4 is held as INT8 too."""
    release = write(int4_group=int4_group)
    packed, plain = load_release(release, min_packed=ALL).model, load_release(release).model
    assert len(packed_parts(packed)) == 3 * 4 + 1
    prompt = processor.prompt(conversations["all"], enable_thinking=False)
    with torch.inference_mode():
        wanted = read(plain, prompt, [])
        assert float((read(packed, prompt, []) - wanted).norm() / wanted.norm()) < 0.05


def test_pieces_of_a_prompt_give_the_bits_of_the_whole(write, processor, conversations) -> None:
    """However a prompt is cut, its keys, values and logits are the same with INT8 weights too."""
    model = load_release(write(), min_packed=ALL).model
    prompt = processor.prompt(conversations["text"], enable_thinking=False)
    with torch.inference_mode():
        assert torch.equal(read(model, prompt, [8]), read(model, prompt, []))


def test_decoding_does_not_depend_on_the_batch(write) -> None:
    """Two sequences side by side get the logits that each gets alone."""
    model = load_release(write(), min_packed=ALL).model
    ids, places = torch.tensor([300, 400]), torch.tensor([0, 0])
    with torch.inference_mode():
        cache = model.new_cache(2, 16)
        both = model.decode(ids, places, cache, cache.rows([cache.slot(0), cache.slot(1)], [1, 1]))
        for row in range(2):
            fresh = model.new_cache(1, 16)
            alone = model.decode(ids[row : row + 1], places[:1], fresh, fresh.rows([fresh.slot(0)], [1]))
            assert torch.equal(model.logits(alone)[0], model.logits(both)[row])


def test_the_names_that_stay_int8_are_known_before_loading(write) -> None:
    """Memory is counted from the file's header; a file that cannot be read has none."""
    release = write()
    loaded = load_release(release, min_packed=ALL).model
    names = packed_names(release / "model.safetensors", loaded.config, ALL)
    assert names == {f"{name}.weight" for name in packed_parts(loaded)}
    assert packed_names(release / "absent", loaded.config, ALL) == frozenset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["blocks.0.out.weight.scale"].__setitem__(3, float("inf")), "not finite"),
        (lambda t: t["blocks.0.out.weight.scale"].__setitem__(3, float("nan")), "not finite"),
        (lambda t: t.update({"blocks.0.out.weight.scale": torch.ones(32)}), "float16 scales"),
        (
            lambda t: t.update({"blocks.0.out.weight": t["blocks.0.out.weight"][1:].clone()}),
            "scales that fit",
        ),
        (lambda t: t.update({"blocks.0.out.weight": t["blocks.0.out.weight"].float()}), "as int8 or packed"),
    ],
)
def test_damaged_codes_never_run(write, change, message: str) -> None:
    """A scale that is not finite, a wrong type, a wrong shape: the weight is named, nothing is packed."""
    path = write() / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(EngineError, match=message):
        load_release(path.parent, min_packed=ALL)

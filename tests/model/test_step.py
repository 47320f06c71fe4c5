"""The native core of decoding: near torch's floats, and the same bits in any company and on every level."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoglm.errors import EngineError
from autoglm.model import core, step
from autoglm.model.cache import KVCache
from autoglm.model.codes import multiply_out, quantize_rows
from autoglm.model.kernels import packed_parts
from autoglm.model.network import PhoneModel
from autoglm.model.pages import PageTable
from autoglm.model.step import NativeLinear, NativeTable, Step
from autoglm.model.weights import load_release, packed_names

pytestmark = pytest.mark.skipif(
    core.library() is None and sys.platform != "linux", reason="the native core is not built here"
)
NATIVE = Path(__file__).resolve().parents[2] / "src" / "autoglm" / "model" / "native"
Codes = tuple[Tensor, Tensor]


def coded(rows: int, columns: int) -> Codes:
    torch.manual_seed(rows + columns)
    return quantize_rows(torch.randn(rows, columns) * 0.1)


@pytest.fixture(scope="module")
def native(tiny_release: Path) -> PhoneModel:
    """That release, held for the core."""
    return load_release(tiny_release, by_core=True).model


@pytest.fixture(scope="module")
def plain(tiny_release: Path) -> PhoneModel:
    """The same, multiplied out."""
    return load_release(tiny_release).model


def decode(
    model: PhoneModel, tokens: Tensor, cache: KVCache, tables: list[PageTable] | None = None
) -> Tensor:
    """Feed tokens (T, B), one of each sequence a step; return the logits (T, B, V)."""
    tables = tables or [cache.slot(i) for i in range(tokens.shape[1])]
    found = list[Tensor]()
    with torch.inference_mode():
        for i, ids in enumerate(tokens):
            places = torch.full_like(ids, i)
            hidden = model.decode(ids, places, cache, cache.rows(tables, [i + 1] * len(ids)))
            found.append(model.logits(hidden))
    return torch.stack(found)


def some_tokens(steps: int, count: int) -> Tensor:
    return torch.randint(0, 640, (steps, count), generator=torch.Generator().manual_seed(steps))


# Products


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (1, 1), (37, 51), (16, 256), (50, 700), (33, 1024)])
def test_a_product_is_near_the_floats(rows: int, columns: int) -> None:
    """Rounding activations to 16 bits costs a few parts in 100,000, whatever the shape."""
    codes, x = coded(rows, columns), torch.randn(21, columns)
    wanted = x.double() @ multiply_out(*codes).double().T
    assert float((NativeLinear(*codes)(x) - wanted).norm() / wanted.norm()) < 1e-4


def test_a_row_does_not_depend_on_its_company() -> None:
    """Alone, in batches of every size, beside a row a million times as large: the same bits."""
    linear, x = NativeLinear(*coded(150, 700)), torch.randn(19, 700)
    alone = torch.cat([linear(row[None]) for row in x])
    assert all(torch.equal(linear(x[:count]), alone[:count]) for count in range(1, 20))
    x[0] *= 1e6
    assert torch.equal(linear(x)[1:], alone[1:]) and torch.equal(linear(x[3]), alone[3])


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-33, 1e33])
def test_rows_of_every_size_are_multiplied(size: float) -> None:
    """Zeros give zeros; what is too small for the scale becomes zero; the large is as exact as the rest."""
    codes, x = coded(32, 64), torch.ones(2, 64) * size
    wanted = x.double() @ multiply_out(*codes).double().T
    assert torch.allclose(NativeLinear(*codes)(x).double(), wanted, rtol=1e-3, atol=1e-29)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 5, 299])
def test_what_is_not_finite_stays_so_in_its_row_alone(bad: float, place: int) -> None:
    """A broken release is found by what it computes, so no kernel may hide it."""
    x = torch.randn(3, 300)
    x[1, place] = bad
    finite = NativeLinear(*coded(40, 300))(x).isfinite()
    assert finite[0].all() and finite[2].all() and not finite[1].any()


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (37, 51)])
def test_a_table_looks_up_and_scores_with_the_same_codes(rows: int, columns: int) -> None:
    """Rows are exact, from one memory that multiplies too; a token that is not there is refused."""
    codes = coded(rows, columns)
    table, weight = NativeTable(*codes), multiply_out(*codes)
    ids, x = torch.tensor([[5, 0], [rows - 1, 5]]), torch.randn(2, columns)
    assert torch.equal(table(ids), weight[ids]) and torch.equal(table.whole(), weight)
    assert torch.equal(table.score(x), NativeLinear(*codes)(x))
    with pytest.raises(EngineError, match="not in the vocabulary"):
        table(torch.tensor([rows]))


def test_what_does_not_fit_is_refused_before_the_core_sees_it() -> None:
    """A wrong width, a wrong type, a bias of another length: an error, not a read past an end."""
    linear = NativeLinear(*coded(32, 64), has_bias=True)
    linear.bias = torch.nn.Parameter(torch.zeros(31), requires_grad=False)
    with pytest.raises(EngineError, match="as long as"):
        linear(torch.zeros(1, 64))
    linear.bias = None
    for wrong in (torch.zeros(1, 63), torch.zeros(1, 64, dtype=torch.float64)):
        with pytest.raises(EngineError, match="cannot multiply"):
            linear(wrong)


# Steps


def test_logits_and_the_cache_are_those_of_torch(native: PhoneModel, plain: PhoneModel) -> None:
    """Over 60 tokens and several pages: logits within 1e-3 of their spread, keys, values and bounds too."""
    tokens, caches = some_tokens(60, 3), [model.new_cache(3, 64) for model in (native, plain)]
    found, wanted = decode(native, tokens, caches[0]), decode(plain, tokens, caches[1])
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    for part in ("keys", "values", "bounds"):
        for ours, theirs in zip(getattr(caches[0], part), getattr(caches[1], part), strict=True):
            assert torch.allclose(ours, theirs, atol=2e-3 * float(theirs.abs().max()))


def test_a_sequence_does_not_depend_on_its_company(native: PhoneModel) -> None:
    """Alone or as one of ten, every logit has the same bits."""
    tokens = some_tokens(20, 10)
    together = decode(native, tokens, native.new_cache(10, 64))
    for row in (0, 4, 9):
        alone = decode(native, tokens[:, row : row + 1], native.new_cache(1, 64))
        assert torch.equal(together[:, row : row + 1], alone)


def test_it_does_not_matter_where_pages_lie(native: PhoneModel) -> None:
    """A sequence scattered over two slots backwards has the bits of one that lies in a line."""
    tokens, cache = some_tokens(40, 1), native.new_cache(2, 64)
    per_slot = cache.pages_per_slot
    scattered = PageTable(per_slot, [per_slot + 3, 6, 5, per_slot, per_slot + 1, 0])
    assert torch.equal(
        decode(native, tokens, cache, [scattered]), decode(native, tokens, native.new_cache(1, 64))
    )


def test_it_continues_what_a_prompt_left(
    native: PhoneModel, plain: PhoneModel, processor, conversations
) -> None:
    """After a prompt of all modalities, tokens get the logits that torch computes."""
    prompt, found = processor.prompt(conversations["all"], enable_thinking=False), list[Tensor]()
    for model in (native, plain):
        cache = model.new_cache(1, 256)
        with torch.inference_mode():
            model.prefill(prompt, cache, cache.slot(0))
            length, place = len(prompt), int(prompt.positions.max()) + 1
            rows = cache.rows([cache.slot(0)], [length + 1])
            found.append(model.logits(model.decode(torch.tensor([300]), torch.tensor([place]), cache, rows)))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-3


def test_pieces_of_a_prompt_give_the_bits_of_the_whole(native: PhoneModel, processor, conversations) -> None:
    """However a prompt is cut, its last state is the same."""
    prompt, states = processor.prompt(conversations["text"], enable_thinking=False), list[Tensor]()
    for edges in ([0, 4, len(prompt)], [0, len(prompt)]):
        cache = native.new_cache(1, 128)
        with torch.inference_mode():
            for start, stop in itertools.pairwise(edges):
                last = native.prefill(prompt, cache, cache.slot(0), start, stop)
        states.append(last)
    assert torch.equal(*states)


@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_broken_cache_breaks_its_own_sequence_alone(native: PhoneModel, part: str) -> None:
    """NaN in one sequence's page reaches that sequence's logits, and no other's."""
    tokens, cache = some_tokens(9, 2), native.new_cache(2, 64)
    decode(native, tokens, cache)
    getattr(cache, part)[1][1, 0, 4, 3] = torch.nan
    with torch.inference_mode():
        rows = cache.rows([cache.slot(0), cache.slot(1)], [10, 10])
        finite = native.logits(native.decode(tokens[0], torch.tensor([9, 9]), cache, rows)).isfinite()
    assert finite[0].all() and not finite[1].any()


def test_what_lies_past_the_end_of_a_sequence_is_never_read(native: PhoneModel) -> None:
    """A page's earlier tenant may have left NaN behind the newest token."""
    tokens, cache = some_tokens(9, 1), native.new_cache(1, 64)
    for held in (*cache.keys, *cache.values, *cache.bounds):
        held.fill_(torch.nan)
    assert torch.equal(decode(native, tokens, cache), decode(native, tokens, native.new_cache(1, 64)))


def test_long_rows_go_through_the_gate_and_short_ones_do_not_notice(tiny_release: Path) -> None:
    """Beside a row that goes through the gate another one has the bits that it has alone."""
    model = load_release(tiny_release, by_core=True).model
    gate = model.config.topk
    object.__setattr__(gate, "dense_below", 40)
    try:
        tokens, cache, alone = some_tokens(44, 1), model.new_cache(2, 64), model.new_cache(1, 64)
        decode(model, tokens, cache)
        short, ids = some_tokens(5, 1), torch.tensor([7, 9])
        with torch.inference_mode():
            for i, token in enumerate(short):
                for held, slot in ((cache, 1), (alone, 0)):
                    model.decode(token, torch.tensor([i]), held, held.rows([held.slot(slot)], [i + 1]))
            rows = cache.rows([cache.slot(0), cache.slot(1)], [45, 6])
            both = model.decode(ids, torch.tensor([44, 5]), cache, rows)
            one = model.decode(ids[1:], torch.tensor([5]), alone, alone.rows([alone.slot(0)], [6]))
        assert torch.equal(both[1:], one) and both.isfinite().all()
    finally:
        object.__setattr__(gate, "dense_below", 512)


def test_a_step_that_cannot_be_done_says_why_and_writes_nothing(native: PhoneModel) -> None:
    """An unknown token, and a sequence that is longer than its pages."""
    cache = native.new_cache(1, 64)
    rows = cache.rows([cache.slot(0)], [1])
    for token in (-1, 640):
        with pytest.raises(EngineError, match="not in the vocabulary"):
            native.decode(torch.tensor([token]), torch.tensor([0]), cache, rows)
    rows.lengths = [100]
    with pytest.raises(EngineError, match="longer than its pages"):
        native.decode(torch.tensor([1]), torch.tensor([0]), cache, rows)
    assert not any(bool(held.any()) for held in (*cache.keys, *cache.values, *cache.bounds))


def test_a_release_that_was_unloaded_computes_no_more(tiny_release: Path) -> None:
    """Weights or cache given back: an error, not a read of freed memory."""
    model = load_release(tiny_release, by_core=True).model
    cache, tokens = model.new_cache(1, 64), some_tokens(1, 1)
    decode(model, tokens, cache)
    rows = cache.rows([cache.slot(0)], [2])
    cache.drop()
    with pytest.raises(EngineError, match="given back"):
        model.decode(tokens[0], torch.tensor([1]), cache, rows)
    model.drop_packed()
    with pytest.raises(EngineError, match="given back"):
        model.decode(tokens[0], torch.tensor([0]), model.new_cache(1, 64), rows)


# Which models


def test_models_with_small_blocks_are_held_for_the_core(tiny_release: Path, native: PhoneModel) -> None:
    """All products and the table, known before loading; the 9B's are left to torch's kernel."""
    from autoglm.model.config import CONFIGS

    assert step.pays(CONFIGS["nano"]) and not step.pays(CONFIGS["9b"])
    names = packed_names(tiny_release / "model.safetensors", native.config, None, by_core=True)
    assert names == {f"{name}.weight" for name in packed_parts(native)} and len(names) == 3 * 4 + 1
    assert Step.of(native) is not None


def test_without_the_core_all_is_as_it_was(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package works where the core was not built."""
    monkeypatch.setattr(core, "library", lambda: None)
    model = load_release(tiny_release, by_core=True).model
    assert packed_parts(model) == {} and Step.of(model) is None
    with pytest.raises(EngineError, match="not built"):
        NativeLinear(*coded(16, 16))


def build(path: Path, *flags: str) -> ctypes.CDLL:
    """Compile the core with these flags."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    options = ("-std=c11", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
    sources = (str(NATIVE / "decode.c"), "-o", str(path), "-lm", "-pthread")
    subprocess.run([compiler, *options, "-Wno-psabi", *flags, *sources], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("level", [0, 1])
def test_every_level_of_instructions_gives_the_same_bits(
    native: PhoneModel, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    """Portable C and AVX2 decode to the last bit what the best instructions here do."""
    tokens = some_tokens(30, 5)
    wanted = decode(native, tokens, native.new_cache(5, 64))
    other: Callable[[ctypes.CDLL], ctypes.CDLL | None] = core._declared
    found = other(build(tmp_path / "level.so", f"-DWDECODE_MAX_LEVEL={level}"))
    monkeypatch.setattr(core, "library", lambda: found)
    assert found is not None and found.wdecode_level() <= level
    model = load_release(tiny_release, by_core=True).model
    assert torch.equal(decode(model, tokens, model.new_cache(5, 64)), wanted)

"""Weights on disk: a release directory in, a running model out; and the other way round.

A matrix is stored as the codes ``name`` with the scales ``name.scale``: INT8 by row or, in the blocks, INT4
by group (:mod:`autoglm.model.codes`); a convolution's kernel is a matrix with one row an output channel.
Everything else is stored as floats. Reading multiplies the codes out, and checks every name, shape, type and
value before a model is built: a release that is damaged in any way raises, and never runs.

    >>> loaded = load_release(Path("autoglm-phone-nano-v1.2"))           # doctest: +SKIP
    >>> loaded.model.logits(...)                                         # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import EllipsisType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from autoglm.errors import ConfigError, EngineError, FormatError
from autoglm.files import write_durably
from autoglm.model import step
from autoglm.model.codes import multiply_out, quantize_groups, quantize_rows, scales_fit, unpack
from autoglm.model.config import MAX_CONFIG_BYTES, ModelConfig
from autoglm.model.kernels import Packed, pack, packs
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Processor
from autoglm.model.sharing import LoadedWeight, Sharing
from autoglm.model.tokenizer import Tokenizer
from autoglm.releases import HEALTH_NAME, MAX_MANIFEST_BYTES, HealthCheck

WEIGHTS_NAME, CONFIG_NAME, TOKENIZER_NAME = "model.safetensors", "config.json", "tokenizer.json"
SCALE_SUFFIX = ".scale"
PIECE_WEIGHTS = 1 << 20  # computed with at once while reading: what that takes besides is a few times this
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_BOOKKEEPING = "num_batches_tracked"  # of batch normalisation; says nothing when running


@dataclass(frozen=True)
class LoadedModel:
    """Everything that a release needs to run."""

    config: ModelConfig
    model: PhoneModel
    tokenizer: Tokenizer
    processor: Processor
    health: HealthCheck
    weights: Mapping[str, LoadedWeight] = field(default_factory=dict[str, LoadedWeight])


@dataclass(frozen=True)
class Form:
    """Which matrices stay INT8 in memory, and for whom.

    Attributes:
        min_packed: the least weights of those for torch's kernel; None: none.
        is_native: all are held for the native core instead.
    """

    min_packed: int | None = None
    is_native: bool = False

    def packs(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether a matrix that is stored as codes stays so."""
        if self.is_native:
            return step.holds(name, shape)
        return self.min_packed is not None and packs(name, shape, self.min_packed)


def load_release(
    directory: Path,
    devices: Sequence[str | torch.device] = ("cpu",),
    dtype: torch.dtype = torch.float32,
    sharing: Sharing | None = None,
    *,
    min_packed: int | None = None,
    by_core: bool = False,
) -> LoadedModel:
    """Load the release in ``directory`` and place it over ``devices``.

    Args:
        directory: holds config.json, model.safetensors, tokenizer.json and health.json.
        devices: layers are split over these in contiguous groups.
        dtype: type that weights are computed in.
        sharing: knows weights that are in memory already.
        min_packed: matrices of at least so many weights stay INT8 in memory, on a CPU that has a kernel for
            it; None multiplies all out.
        by_core: hold all matrices for the native core of decoding instead, where that pays.

    Raises:
        FormatError: a file is missing, does not parse, or contradicts another.
        EngineError: a weight is missing, unknown, of a wrong shape or type, or not finite.
    """
    config = ModelConfig.from_json(_read(directory / CONFIG_NAME, MAX_CONFIG_BYTES))
    sharing = sharing or Sharing()
    tokenizer = sharing.tokenizer or Tokenizer.from_file(directory / TOKENIZER_NAME)
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"tokenizer.json has {tokenizer.vocab_size} ids, config.json only {config.vocab_size}"
        )
    health = HealthCheck.from_bytes(_read(directory / HEALTH_NAME, MAX_MANIFEST_BYTES))
    sharing.pace()
    form = Form(min_packed, is_native=by_core and step.pays(config))
    state, packed = _read_parts(directory / WEIGHTS_NAME, config, dtype, sharing, form)
    sharing.pace()
    model = build_model(config, state, packed)
    sharing.pace()
    model.place(devices)
    weights = sharing.loaded({**model.state_dict(keep_vars=True), **packed})
    return LoadedModel(config, model, tokenizer, Processor(tokenizer, config), health, weights)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise FormatError(f"{path} has more than {limit} bytes")
    return content


def build_model(
    config: ModelConfig, state: Mapping[str, Tensor], packed: Mapping[str, Packed] | None = None
) -> PhoneModel:
    """Return a model in evaluation mode that owns the tensors of ``state``; no gradients.

    Args:
        config: its sizes.
        state: its tensors.
        packed: modules that hold the remaining matrices as INT8, by the name of the matrix.
    """
    with torch.device("meta"):
        model = PhoneModel(config)
    for name, module in (packed or {}).items():
        model.set_submodule(name.removesuffix(".weight"), module)
    counters = {name: torch.zeros(()) for name in model.state_dict() if name.endswith(_BOOKKEEPING)}
    model.load_state_dict({**state, **counters}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def expected_tensors(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the name and shape of every stored tensor, scales not counted."""
    return dict(_expected_tensors(config))


@functools.lru_cache(4)  # what is staged beside a live release mostly has its sizes
def _expected_tensors(config: ModelConfig) -> Mapping[str, torch.Size]:
    with torch.device("meta"):
        state = PhoneModel(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith(_BOOKKEEPING)}


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is stored as codes; vectors and the modality vectors stay floats."""
    return len(shape) > 1 and not name.startswith("modality.")


def read_weights(
    path: Path, config: ModelConfig, dtype: torch.dtype = torch.float32, sharing: Sharing | None = None
) -> dict[str, Tensor]:
    """Read and check all weights, codes multiplied out; those that ``sharing`` knows are taken from there.

    Raises:
        FormatError: the file is missing or is not safetensors.
        EngineError: a weight is missing, unknown, of a wrong shape or type, or not finite.
    """
    return _read_parts(path, config, dtype, sharing, Form())[0]


def _read_parts(
    path: Path, config: ModelConfig, dtype: torch.dtype, sharing: Sharing | None, form: Form
) -> tuple[dict[str, Tensor], dict[str, Packed]]:
    """Read and check all weights; matrices that are to stay INT8 come as modules."""
    wanted = expected_tensors(config)
    state, packed = dict[str, Tensor](), dict[str, Packed]()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            plain = {name for name in names if not name.endswith(SCALE_SUFFIX)}
            _check_names(plain, set(wanted))
            for name, shape in wanted.items():
                stored = file.get_tensor(name)
                scale = file.get_tensor(name + SCALE_SUFFIX) if name + SCALE_SUFFIX in names else None
                if scale is not None and form.packs(name, shape):
                    has_bias = name.removesuffix("weight") + "bias" in wanted
                    native = {"native": form.is_native}
                    like = sharing and sharing.find_packed(name, stored, scale, shape, **native)
                    rows = (stored, scale) if like is not None else _row_codes(name, stored, scale, shape)
                    make = step.hold if form.is_native else partial(pack, is_tied=config.tie_embeddings)
                    packed[name] = make(name, *rows, has_bias=has_bias, like=like)
                else:
                    known = None if sharing is None else sharing.find(name, stored, scale, shape, dtype)
                    state[name] = _restore(name, stored, scale, shape, dtype) if known is None else known
                if sharing is not None:
                    sharing.pace()
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error
    if stray := names - plain - {name + SCALE_SUFFIX for name in plain}:
        raise EngineError(f"model.safetensors has scales without a weight: {sorted(stray)[0]}")
    return state, packed


def _check_names(found: set[str], wanted: set[str]) -> None:
    if missing := sorted(wanted - found):
        raise EngineError(f"model.safetensors lacks {len(missing)} weights, {missing[0]!r} among them")
    if unknown := sorted(found - wanted):
        raise EngineError(f"model.safetensors has {len(unknown)} unknown weights, {unknown[0]!r} among them")


def packed_names(
    path: Path, config: ModelConfig, min_packed: int | None, *, by_core: bool = False
) -> frozenset[str]:
    """Return which matrices of a weights file :func:`load_release` would hold as INT8; none if unreadable."""
    form = Form(min_packed, is_native=by_core and step.pays(config))
    try:
        with safe_open(path, framework="pt") as file:
            scaled = {name.removesuffix(SCALE_SUFFIX) for name in file.keys() if name.endswith(SCALE_SUFFIX)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return frozenset()
    wanted = expected_tensors(config)
    return frozenset(name for name in scaled & wanted.keys() if form.packs(name, wanted[name]))


def _row_codes(name: str, stored: Tensor, scale: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return INT8 codes and a scale a row, checked; INT4 is rounded to INT8, which adds little error."""
    if stored.dtype != torch.int8:
        _check_codes(name, stored, scale, shape)
        made = torch.empty(shape, dtype=torch.int8), torch.empty(shape[0], dtype=scale.dtype)
        for rows in _pieces(shape):
            part = torch.Size((len(stored[rows]), *shape[1:]))
            value = _restore(name, stored[rows], scale[rows], part, torch.float32)
            made[0][rows], made[1][rows] = quantize_rows(value)
        return made
    if not scales_fit(stored, scale, *shape):
        raise EngineError(f"weight {name!r} is not {tuple(shape)} as int8 with float16 scales that fit")
    if not bool(torch.isfinite(scale).all()):
        raise EngineError(f"weight {name!r} holds values that are not finite")
    return stored, scale


def _restore(
    name: str, stored: Tensor, scale: Tensor | None, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Return one weight in its own shape, checked."""
    matrix = torch.Size((shape[0], shape[1:].numel())) if is_matrix(name, shape) else shape
    if scale is not None:
        _check_codes(name, stored, scale, matrix)
    elif stored.dtype not in _FLOATS or stored.shape not in (shape, matrix):
        raise EngineError(
            f"weight {name!r} is {stored.dtype} {tuple(stored.shape)}, not float {tuple(shape)}"
        )
    value = torch.empty(stored.shape if scale is None else matrix, dtype=dtype)
    for rows in _pieces(value.shape):
        value[rows] = _floats(stored[rows], None if scale is None else scale[rows])
        if not bool(torch.isfinite(value[rows]).all()):
            raise EngineError(f"weight {name!r} holds values that are not finite")
    return value.reshape(shape)


def _check_codes(name: str, stored: Tensor, scale: Tensor, matrix: torch.Size) -> None:
    if len(matrix) != 2 or not scales_fit(stored, scale, *matrix):
        raise EngineError(
            f"weight {name!r} is not {tuple(matrix)} as int8 or packed int4 with float16 scales that fit"
        )


def _floats(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Return stored rows as the numbers that they stand for."""
    if scale is None:
        return stored
    return multiply_out(unpack(stored) if stored.dtype == torch.uint8 else stored, scale)


def _pieces(shape: torch.Size) -> Iterator[slice | EllipsisType]:
    """Yield rows that are few enough for what computing with them takes besides; a number is one piece."""
    if not shape:
        yield ...
        return
    rows = max(1, PIECE_WEIGHTS // max(1, shape[1:].numel()))
    yield from (slice(start, start + rows) for start in range(0, shape[0], rows))


def stored_tensors(
    state: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None, *, int4_group: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they are stored: codes and scales, and float16 for the rest.

    Args:
        state: a model's state dictionary.
        scales: scales to keep by weight name, which say how the weight is stored too; a weight without one
            gets its own.
        int4_group: store the blocks' matrices without kept scales in INT4, with a scale for so many columns;
            0 stores all in INT8.

    Raises:
        ConfigError: a row cannot be divided into such groups.
    """
    for name, tensor in state.items():
        if name.endswith(_BOOKKEEPING):
            continue
        if is_matrix(name, tensor.shape):
            kept = None if scales is None else scales.get(name)
            codes, scale = _quantize(name, tensor, kept, int4_group)
            yield name, codes
            yield name + SCALE_SUFFIX, scale
        else:
            yield name, tensor.detach().to(torch.float16)


def _quantize(name: str, tensor: Tensor, kept: Tensor | None, int4_group: int) -> tuple[Tensor, Tensor]:
    columns = tensor.shape[1:].numel()
    if kept is not None and (len(kept) != len(tensor) or (kept.dim() > 1 and columns % kept.shape[1])):
        raise ConfigError(f"the scales to keep of {name!r} are those of another shape")
    group = (0 if kept.dim() == 1 else columns // kept.shape[1]) if kept is not None else int4_group
    if not group or not name.startswith("blocks."):
        return quantize_rows(tensor, kept)
    if columns % group or columns % 2:
        raise ConfigError(f"{name!r} has {columns} columns: they do not divide into groups of {group}")
    return quantize_groups(tensor, group, kept)


def save_weights(
    path: Path,
    state: Mapping[str, Tensor],
    scales: Mapping[str, Tensor] | None = None,
    *,
    int4_group: int = 0,
) -> None:
    """Write ``model.safetensors`` with its matrices as codes, durably.

    Args:
        path: the file.
        state: a model's state dictionary.
        scales: scales to keep, by weight name.
        int4_group: as in :func:`stored_tensors`.

    Raises:
        EngineError: a value is not finite.
        ConfigError: a row cannot be divided into such groups.
        StorageError: the disk refused.
    """
    stored = stored_tensors(state, scales, int4_group=int4_group)
    write_stored(path, {name: tensor.contiguous().cpu() for name, tensor in stored})


def write_stored(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are stored, durably.

    Raises:
        EngineError: a value is not finite.
        StorageError: the disk refused.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"weight {name!r} holds values that are not finite; it was not saved")
    write_durably(path, save(dict(tensors)))


def read_stored(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a weights file as they are stored: codes, scales and floats.

    Raises:
        FormatError: the file is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error


def read_scales(path: Path) -> dict[str, Tensor]:
    """Return the scales in a weights file, by weight name.

    Raises:
        FormatError: the file is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(SCALE_SUFFIX)]  # noqa: SIM118
            return {name.removesuffix(SCALE_SUFFIX): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error

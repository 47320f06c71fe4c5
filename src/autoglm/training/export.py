"""Export a release to ExecuTorch: a program (``.pte``) without weights, and its weights (``.ptd``).

The program has four methods; prefill and decode are one of them, over a cache that the loaded program holds:

=================  =======================================================  ======================
method             takes                                                    gives
=================  =======================================================  ======================
``embed_tokens``   ids (1, T) int64                                         (1, T, width)
``embed_image``    pixels (1, H, W, 3) uint8                                (1, patches, width)
``embed_audio``    frames (1, 4 N, mels) float32                            (1, N, width)
``step``           x (1, T, width), positions (T, 3), places (T,) and       logits (V,) of the
                   limits (T,) int64: where a token lies in the cache,      last token
                   and the last place it sees
=================  =======================================================  ======================

T is at most :data:`MAX_TOKENS`; a longer prompt goes in pieces. Attention is dense, as the model's own is
at these lengths. All is float32 and portable: the program asks for no backend.

Weights lie in the ``.ptd`` under their own names, so an update replaces that file alone. A program accepts
any file with tensors of the right shapes, and answers nonsense with a wrong one without a word; so a
``probe.json`` travels with the weights, and who loads the pair computes it first
(:mod:`autoglm.training.exported`).

``executorch`` lives in an environment of its own: ``scripts/executorch_env.sh`` makes it.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.errors import ConfigError, EngineError
from autoglm.files import make_directory, publish_tree, write_durably
from autoglm.model.config import ModelConfig
from autoglm.model.layers import MASKED, rotary_tables
from autoglm.model.network import PhoneModel
from autoglm.model.weights import CONFIG_NAME, TOKENIZER_NAME, load_release
from autoglm.patch.layouts.ptd import read_spans
from autoglm.releases import HEALTH_NAME, MANIFEST_NAME, Manifest
from autoglm.training.probe import PROBE_NAME, Probe, make_probe

PROGRAM_NAME, DATA_NAME = "model.pte", "model.ptd"
MAX_TOKENS = 256
VARIANT = "executorch-float32"
_PREFIX = "model."


class _Embed(nn.Module):
    """One way into the stream."""

    def __init__(self, model: PhoneModel, embed: Callable[[PhoneModel, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._embed = embed

    def forward(self, content: Tensor) -> Tensor:
        return self._embed(self.model, content)


class Step(nn.Module):
    """Prefill and decode in one: run some tokens over a cache kept in buffers, and score the next one."""

    def __init__(self, model: PhoneModel, context: int) -> None:
        """Hold a cache of ``context`` tokens."""
        super().__init__()
        config = model.config
        self.model = model
        self.context = context
        shape = (1, config.num_kv_heads, context, config.head_dim)
        for i in range(config.num_layers):  # a buffer each: a write copies no other layer's
            self.register_buffer(f"keys_{i}", torch.zeros(shape), persistent=False)
            self.register_buffer(f"values_{i}", torch.zeros(shape), persistent=False)

    def forward(self, x: Tensor, positions: Tensor, places: Tensor, limits: Tensor) -> Tensor:
        """Return logits (V,).

        Args:
            x: (1, T, width), embedded.
            positions: (T, 3) long.
            places: (T,) long, ascending.
            limits: (T,) long.
        """
        cos, sin = rotary_tables(positions, self.model.config)
        hidden_from = torch.arange(self.context) > limits[:, None]  # (T, context)
        bias = hidden_from.to(x.dtype) * MASKED
        for i, block in enumerate(self.model.layers):
            q, k, v = block.project(x, cos, sin)
            keys, values = self.get_buffer(f"keys_{i}"), self.get_buffer(f"values_{i}")
            keys.index_copy_(2, places, k)
            values.index_copy_(2, places, v)
            x = block.finish(x, _attend(q, keys, values, bias))
        return self.model.logits(self.model.norm(x[:, -1]))[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend as :func:`autoglm.model.layers.attend` does for one sequence, in products of fixed rank.

    The exporter cannot prove that the other one's views hold for every number of tokens.
    """
    H, T = q.shape[1:3]
    G = k.shape[1]
    heads = (q[0] * q.shape[3] ** -0.5).unflatten(0, (G, H // G))
    grouped = torch.cat(heads.unbind(1), 1)  # (G, H / G * T, D)
    scores = torch.bmm(grouped, k[0].transpose(1, 2)) + bias.repeat(H // G, 1)
    return torch.bmm(scores.softmax(-1), v[0]).unflatten(1, (H // G, T)).flatten(0, 1)[None]


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        directory: where it lies.
        program_bytes: of the ``.pte``.
        data_bytes: of the ``.ptd``.
        context: tokens that the program's cache holds.
    """

    directory: Path
    program_bytes: int
    data_bytes: int
    context: int


def export_release(release: Path, target: Path, *, context: int | None = None) -> Exported:
    """Write program, weights and probe of a release to the free directory ``target``.

    Args:
        release: a release directory.
        target: must not exist.
        context: tokens of the cache; the model's own if None.

    Raises:
        ConfigError: executorch is not installed here, the context is out of range, or the model takes images
            of any size.
        FormatError: the release is damaged.
        EngineError: a weight of the release is damaged.
        StorageError: ``target`` is not free, or the disk refused.
    """
    loaded = load_release(release)
    size = loaded.config.max_context if context is None else context
    if not MAX_TOKENS <= size <= loaded.config.max_context:
        raise ConfigError(f"the context must be {MAX_TOKENS} to {loaded.config.max_context}, not {size}")
    make_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=target.parent) as scratch:
        made = Path(scratch) / "export"
        made.mkdir()
        program, data = _lower(loaded.model, size)
        write_durably(made / PROGRAM_NAME, program)
        write_durably(made / DATA_NAME, data)
        _write_rest(made, release, make_probe(loaded.model, MAX_TOKENS))
        publish_tree(made, target)
    return Exported(target, len(program), len(data), size)


def export_weights(release: Path, like: Path, target: Path) -> Exported:
    """Write a further release of the same sizes beside an exported one's program; executorch is not needed.

    The program is copied byte for byte, and the ``.ptd`` filled with the release's weights.

    Args:
        release: a release directory.
        like: an earlier export.
        target: must not exist.

    Raises:
        ConfigError: the release has other sizes than the export.
        FormatError: a file is missing or damaged.
        EngineError: a weight is damaged, or the ``.ptd`` holds one that the release lacks.
        StorageError: ``target`` is not free, or the disk refused.
    """
    loaded = load_release(release)
    if (like / CONFIG_NAME).read_bytes() != (release / CONFIG_NAME).read_bytes():
        raise ConfigError(f"{release} does not have the sizes of {like}: export it anew")
    make_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=target.parent) as scratch:
        made = Path(scratch) / "export"
        made.mkdir()
        program = (like / PROGRAM_NAME).read_bytes()
        data = fill_data(like / DATA_NAME, loaded.model.state_dict())
        write_durably(made / PROGRAM_NAME, program)
        write_durably(made / DATA_NAME, data)
        probe = Probe.read(like / PROBE_NAME)
        _write_rest(made, release, make_probe(loaded.model, probe.max_tokens))
        publish_tree(made, target)
    return Exported(target, len(program), len(data), loaded.config.max_context)


def _write_rest(made: Path, release: Path, probe: Probe) -> None:
    """Write what travels with the weights, and the manifest that makes a release of all."""
    for name in (CONFIG_NAME, TOKENIZER_NAME, HEALTH_NAME):
        write_durably(made / name, (release / name).read_bytes())
    write_durably(made / PROBE_NAME, probe.to_bytes())
    old = Manifest.read(release)
    manifest = Manifest.of_directory(
        made,
        model=old.model,
        variant=VARIANT,
        name=old.name,
        version=old.version,
        counter=old.counter,
        channel=old.channel,
    )
    write_durably(made / MANIFEST_NAME, manifest.to_bytes())


def fill_data(path: Path, state: Mapping[str, Tensor]) -> bytes:
    """Return the ``.ptd`` at ``path`` with the values of ``state`` in place of its own.

    Raises:
        EngineError: it holds a tensor that ``state`` lacks, or one of another size.
    """
    content = bytearray(path.read_bytes())
    with path.open("rb") as file:
        spans = read_spans(file, len(content))
    for span in spans:
        value = state.get(span.name.removeprefix(_PREFIX))
        raw = None if value is None else value.float().contiguous().numpy().tobytes()
        if raw is None or len(raw) != span.end - span.offset:
            raise EngineError(f"{path} holds {span.name!r}, which the release lacks or has in another size")
        content[span.offset : span.end] = raw
    return bytes(content)


def _lower(model: PhoneModel, context: int) -> tuple[bytes, bytes]:
    """Return the bytes of the program and of its weights."""
    exir = _executorch()
    programs = {
        name: _traced(module, inputs, dynamic) for name, module, inputs, dynamic in _methods(model, context)
    }
    edge = exir.to_edge(programs, compile_config=exir.EdgeCompileConfig(_check_ir_validity=False))
    made = edge.to_executorch(exir.ExecutorchBackendConfig(external_constants=True, run_reinplace_pass=True))
    with tempfile.TemporaryDirectory() as scratch:
        made.write_tensor_data_to_file(scratch)
        (data,) = Path(scratch).iterdir()
        return bytes(made.buffer), data.read_bytes()


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> Any:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic, strict=False)


def _methods(model: PhoneModel, context: int) -> list[tuple[str, nn.Module, tuple[Tensor, ...], Any]]:
    config = model.config
    if not config.image.width:
        raise ConfigError("a model that takes images of any size is not exported: give it a fixed size")
    tokens = torch.export.Dim("tokens", min=1, max=MAX_TOKENS)
    clip = torch.export.Dim("clip", min=config.audio.min_tokens, max=config.audio.max_tokens)
    count = 7
    index = torch.arange(count)
    # Never one tensor for two inputs: the exporter would take the two for one for ever.
    step = (torch.zeros(1, count, config.width), index[:, None].repeat(1, 3), index.clone(), index + 1)
    return [
        ("embed_tokens", _Embed(model, PhoneModel.embed_tokens), (index[None],), ({1: tokens},)),
        ("embed_image", _Embed(model, PhoneModel.embed_images), (_blank_image(config),), None),
        (
            "embed_audio",
            _Embed(model, PhoneModel.embed_audio),
            (torch.zeros(1, 4 * (config.audio.min_tokens + 1), config.audio.mels),),
            ({1: 4 * clip},),
        ),
        ("step", Step(model, context), step, ({1: tokens}, {0: tokens}, {0: tokens}, {0: tokens})),
    ]


def _blank_image(config: ModelConfig) -> Tensor:
    return torch.zeros(1, config.image.height, config.image.width, 3, dtype=torch.uint8)


def _executorch() -> Any:
    try:
        return importlib.import_module("executorch.exir")
    except ImportError as error:
        raise ConfigError(
            "executorch is not installed in this environment: run `sh scripts/executorch_env.sh` once, then "
            f"`build/executorch/bin/autoglm model export` ({error})"
        ) from error

"""The architecture's sizes: one frozen dataclass a part, read strictly from ``config.json``.

One architecture serves every size. :data:`CONFIGS` names those that the project knows: ``nano`` (shipped),
``9b`` and its storage and pruning variants.

    >>> CONFIGS["nano"].width
    192
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

from autoglm.errors import FormatError

MAX_CONFIG_BYTES = 64 << 10
_MAX_INT = 1 << 24


@dataclass(frozen=True)
class ImageConfig:
    """How pixels become tokens.

    Attributes:
        kind: ``patches`` flattens each patch into two linear layers; ``stem`` is an overlapping convolutional
            stem with batch normalisation, for small models.
        patch: side of a patch in pixels; one token a patch.
        channels: channels of the stem's inner convolutions; empty for ``patches``.
        width: fixed width in pixels that every image is resized to; 0 keeps the image's own shape.
        height: the same for the height.
        max_patches: upper bound of the tokens of one image.
        bins: coordinate bins an axis whose token embeddings mark each patch's place; 0 for none.
        x_token: id of the first of the ``bins`` tokens of the x axis.
        y_token: id of the first of the ``bins`` tokens of the y axis.
    """

    kind: Literal["patches", "stem"]
    patch: int
    channels: tuple[int, ...]
    width: int
    height: int
    max_patches: int
    bins: int
    x_token: int
    y_token: int


@dataclass(frozen=True)
class AudioConfig:
    """How sound becomes tokens: log-mel frames every 10 ms, two stride-2 convolutions, 40 ms a token.

    Attributes:
        mels: mel bands.
        channels: channels between the two convolutions.
        kernel: their width in frames.
        batch_norm: normalise after each convolution (small models).
        min_tokens: shorter clips are padded with silence to this many tokens.
        max_tokens: upper bound of the tokens of one clip.
    """

    mels: int
    channels: int
    kernel: int
    batch_norm: bool
    min_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class TopKConfig:
    """The Top-K attention gate.

    Attributes:
        page: tokens a page.
        keep: pages that each KV group attends to.
        dense_below: context length in tokens under which attention stays dense.
    """

    page: int = 32
    keep: int = 64
    dense_below: int = 4096


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of one model. Lengths are in tokens, widths in channels."""

    name: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    rope_base: float
    rotary_fraction: float
    norm_eps: float
    post_norm_gain: float
    tie_embeddings: bool
    max_context: int
    image: ImageConfig
    audio: AudioConfig
    topk: TopKConfig

    @property
    def rotary_pairs(self) -> int:
        """Channel pairs of a head that rotate."""
        return int(self.head_dim * self.rotary_fraction) // 2

    def to_json(self) -> str:
        """Return the text of ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """Read ``config.json``.

        Raises:
            FormatError: not JSON, a missing or unknown key, a wrong type, or a size out of bounds.
        """
        if len(text) > MAX_CONFIG_BYTES:
            raise FormatError(f"config.json has {len(text)} bytes, more than {MAX_CONFIG_BYTES}")
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"config.json is not JSON: {error}") from error
        config = cast(ModelConfig, _parse(cls, raw, "config.json"))
        _check(config)
        return config


_PARTS: Mapping[str, type] = MappingProxyType(
    {"ImageConfig": ImageConfig, "AudioConfig": AudioConfig, "TopKConfig": TopKConfig}
)


def _parse(kind: type, raw: Any, where: str) -> Any:
    """Build the dataclass ``kind`` from parsed JSON; every field is required, none may be unknown."""
    if not isinstance(raw, dict):
        raise FormatError(f"{where}: expected an object, found {type(raw).__name__}")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    values = cast(dict[str, Any], raw)
    if wrong := sorted(set(values) ^ set(fields)):
        raise FormatError(f"{where}: missing or unknown keys: {', '.join(wrong)[:200]}")
    return kind(**{name: _value(fields[name], values[name], f"{where}: {name}") for name in fields})


def _value(annotation: str, raw: Any, where: str) -> Any:
    """Check one value against its field's annotation."""
    if annotation in _PARTS:
        return _parse(_PARTS[annotation], raw, where)
    if annotation == "bool" and isinstance(raw, bool):
        return raw
    if annotation == "int" and _is_size(raw):
        return raw
    if (
        annotation == "float"
        and isinstance(raw, int | float)
        and not isinstance(raw, bool)
        and 0 <= raw <= 1e9
    ):
        return float(raw)
    if annotation == "str" and isinstance(raw, str) and 0 < len(raw) <= 100:
        return raw
    if annotation.startswith("Literal") and raw in ("patches", "stem"):
        return raw
    if annotation.startswith("tuple") and isinstance(raw, list):
        sizes = cast(list[Any], raw)
        if len(sizes) <= 16 and all(_is_size(size) for size in sizes):
            return tuple(sizes)
    raise FormatError(f"{where}: {str(raw)[:80]!r} is not a valid {annotation}")


def _is_size(raw: Any) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw <= _MAX_INT


def _check(config: ModelConfig) -> None:
    """Refuse sizes that contradict each other."""
    image, audio, topk = config.image, config.audio, config.topk
    positive = (
        *(config.vocab_size, config.width, config.num_layers, config.num_heads, config.num_kv_heads),
        *(config.head_dim, config.ffn_width, config.max_context, image.patch, image.max_patches),
        *(audio.mels, audio.channels, audio.kernel, topk.page, topk.keep),
    )
    if min(positive) <= 0:
        raise FormatError("config.json: a size that must be positive is zero")
    problems = {
        "rope_base, rotary_fraction or norm_eps is out of range": config.rope_base < 1
        or not 0 < config.rotary_fraction <= 1
        or not 0 < config.norm_eps < 1,
        "num_layers is over 1024": config.num_layers > 1024,
        "num_heads is not a multiple of num_kv_heads": config.num_heads % config.num_kv_heads != 0,
        "rotary_fraction leaves no pair to rotate": config.rotary_pairs < 1,
        "audio: min_tokens is over max_tokens": audio.min_tokens > audio.max_tokens,
        "audio: kernel is even": audio.kernel % 2 == 0,
    }
    problems |= _image_problems(image, config.vocab_size)
    if wrong := [problem for problem, holds in problems.items() if holds]:
        raise FormatError(f"config.json: {'; '.join(wrong)}")


def _image_problems(image: ImageConfig, vocab_size: int) -> dict[str, bool]:
    """Return what could be wrong with the image part, and whether it is."""
    columns, rows = image.width // image.patch, image.height // image.patch
    last = max(image.x_token, image.y_token) + image.bins
    whole = columns > 0 and rows > 0 and image.bins % columns == 0 and image.bins % rows == 0
    return {
        "image: width and height are not multiples of patch": image.width % image.patch != 0
        or image.height % image.patch != 0
        or (image.width == 0) != (image.height == 0),
        "image: the fixed size has more than max_patches": columns * rows > image.max_patches,
        "image: the bins are not in the vocabulary": image.bins > 0 and last > vocab_size,
        "image: bins need a fixed size of whole bins a patch": image.bins > 0 and not whole,
        "image: a stem has exactly 3 inner channel counts and patches of 32": image.kind == "stem"
        and (len(image.channels) != 3 or min(image.channels) < 1 or image.patch != 32),
    }


# The shipped model: it spells labels, and sees a screen at 288 x 576 in 162 tokens, 72 bins an axis.
NANO = ModelConfig(
    name="autoglm-phone-nano",
    vocab_size=3072,
    width=192,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    ffn_width=448,
    rope_base=100.0,
    rotary_fraction=0.5,
    norm_eps=1e-5,
    post_norm_gain=0.2,
    tie_embeddings=True,
    max_context=2048,
    image=ImageConfig("stem", 32, (64, 96, 160), 288, 576, 162, bins=72, x_token=64, y_token=136),
    audio=AudioConfig(64, 128, 5, batch_norm=True, min_tokens=60, max_tokens=300),
    topk=TopKConfig(page=32, keep=16, dense_below=4096),
)
# What it is pruned from. In INT8 it has less than a quarter of this one's bytes in bf16.
TEACHER_NANO = dataclasses.replace(
    NANO, name="autoglm-phone-teacher-nano", width=256, num_heads=8, ffn_width=1024
)
_9B = ModelConfig(
    name="autoglm-phone-9b",
    vocab_size=151552,
    width=4096,
    num_layers=40,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    ffn_width=13696,
    rope_base=10000.0,
    rotary_fraction=0.5,
    norm_eps=1e-5,
    post_norm_gain=1.0,
    tie_embeddings=False,
    max_context=65536,
    image=ImageConfig("patches", 28, (), 0, 0, 4096, bins=0, x_token=0, y_token=0),
    audio=AudioConfig(128, 1280, 3, batch_norm=False, min_tokens=1, max_tokens=1500),
    topk=TopKConfig(),
)


def _pruned(**sizes: Any) -> ModelConfig:
    return dataclasses.replace(_9B, **sizes)


CONFIGS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "nano": NANO,
        "teacher-nano": TEACHER_NANO,
        "9b": _9B,
        "9b-int8": _9B,
        "9b-int4": _9B,
        "9b-int8-pruned": _pruned(width=3072, num_heads=24, ffn_width=8576, num_layers=32),
        "9b-int4-pruned": _pruned(ffn_width=8448),
    }
)

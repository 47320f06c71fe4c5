"""What can be evaluated: a release directory, a package, or a run that is not quantised yet.

A package that is a patch needs its base, which is looked for among the packages beside it. A run's weights
are rounded to bfloat16, the type that they would be shipped in without quantisation; all is computed in
float32, so that two scores differ by the weights alone.

    >>> with opened(Path("models/autoglm-phone-nano/v1.3.wpatch")) as subject:      # doctest: +SKIP
    ...     subject.version, subject.precision
    ('v1.3', 'INT8')
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autoglm import patch
from autoglm.errors import ConfigError
from autoglm.files import sha256_file
from autoglm.model.config import NANO, ModelConfig
from autoglm.model.prompt import Processor
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import (
    CONFIG_NAME,
    SCALE_SUFFIX,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    LoadedModel,
    build_model,
    load_release,
    read_stored,
)
from autoglm.releases import MANIFEST_NAME, HealthCheck, Manifest
from autoglm.training.loop import CHECKPOINT_NAME
from autoglm.training.quantize import read_run

_MAX_PATCHES = 16  # in a row, from a full package on


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated.

    Attributes:
        name: what it was opened from.
        version: the release's own; ``""`` for a run.
        precision: of its matrices: ``"INT8"``, ``"INT4"`` or ``"bf16"``.
        digest: tells it from others.
        loaded: the model.
    """

    name: str
    version: str
    precision: str
    digest: str
    loaded: LoadedModel


@contextlib.contextmanager
def opened(path: Path) -> Generator[Subject]:
    """Open a release directory, a ``.wpatch`` package or a run's directory.

    Raises:
        ConfigError: it is none of these, or a patch's base is not beside it.
        UpdateError: a package or a release is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="autoglm-evaluation-") as scratch:
        if path.is_file():
            yield _release(path.name, unpack(path, Path(scratch)))
        elif (path / MANIFEST_NAME).is_file():
            yield _release(path.name, path)
        elif (path / CHECKPOINT_NAME).is_file():
            yield _run(path)
        else:
            raise ConfigError(
                f"{path} is no release (it has no {MANIFEST_NAME}), no package and no run: name a release "
                "directory, a .wpatch file or the directory of a run"
            )


def unpack(package: Path, scratch: Path, depth: int = 0) -> Path:
    """Make the release of a package in ``scratch``, its base first where it has one.

    Raises:
        ConfigError: the base is not beside it.
        UpdateError: a package is damaged.
    """
    info = patch.inspect(package)
    base: Path | None = None
    if info.base_files:
        beside = None if depth == _MAX_PATCHES else _maker_of(package, info)
        if beside is None:
            raise ConfigError(
                f"{package} is a patch, and the package of the release that it was made against is not "
                "beside it: put it there, or apply the patch with `autoglm patch` first"
            )
        base = unpack(beside, scratch, depth + 1)
    out = scratch / f"release-{depth}"
    patch.apply(base, package, out)
    return out


def _maker_of(package: Path, info: patch.PackageInfo) -> Path | None:
    """Return the package beside this one that makes all files that it reads."""
    wanted = {(file.path, file.sha256) for file in info.base_files}
    for other in sorted(package.parent.glob("*.wpatch")):
        if other != package and wanted <= {(file.path, file.sha256) for file in patch.inspect(other).files}:
            return other
    return None


def _release(name: str, directory: Path) -> Subject:
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    precision = _precision(directory / WEIGHTS_NAME)
    return Subject(name, manifest.version, precision, manifest.sha256, load_release(directory))


def _precision(weights: Path) -> str:
    """Return how most of the matrices are stored."""
    tensors = read_stored(weights)
    coded = [tensors[name] for name in tensors if name + SCALE_SUFFIX in tensors]
    packed = sum(tensor.numel() for tensor in coded if tensor.dtype == torch.uint8)
    return "INT4" if 2 * packed > sum(tensor.numel() for tensor in coded) else "INT8"


def _run(directory: Path) -> Subject:
    own = directory / CONFIG_NAME
    config = ModelConfig.from_json(own.read_bytes()) if own.is_file() else NANO
    tokenizer = Tokenizer.from_file(directory / TOKENIZER_NAME)
    model = build_model(config, _rounded(read_run(directory)))
    loaded = LoadedModel(config, model, tokenizer, Processor(tokenizer, config), HealthCheck(()))
    return Subject(directory.name, "", "bf16", sha256_file(directory / CHECKPOINT_NAME), loaded)


def _rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.bfloat16).to(torch.float32) for name, tensor in state.items()}

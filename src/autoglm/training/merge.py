"""Adapter-born releases: merge an adapter into a shipped INT8 release by the patch codec's own arithmetic.

The new codes are exactly what the codec predicts from the base's codes and a few integer factors, so a patch
from the base to the new release holds the factors and hardly anything else. They lie beside the release, not
in it, in ``<release>.factors.safetensors``: ``NAME.P`` int16 (rows, rank), ``NAME.Q`` int16 (rank, columns)
and ``NAME.params`` int64 [drop, limit, slope, bend, shift] for every matrix that changed.

    >>> merge_adapter(Path("r/v1.2"), Path("a"), Path("r/v1.4"), version="v1.4")     # doctest: +SKIP
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from autoglm.errors import ConfigError, HealthError
from autoglm.files import publish_tree, write_durably
from autoglm.model.config import ModelConfig
from autoglm.model.weights import (
    CONFIG_NAME,
    SCALE_SUFFIX,
    WEIGHTS_NAME,
    expected_tensors,
    load_release,
    read_stored,
    read_weights,
    write_stored,
)
from autoglm.releases import HEALTH_NAME, MANIFEST_NAME, HealthCheck, Manifest
from autoglm.training.adapter import Adapter, read_adapter
from autoglm.training.factor_cost import factor_bytes, scale_bytes
from autoglm.training.folding import Change, Folded, fold
from autoglm.training.quantize import failed_prompts
from autoglm.training.retention import Evaluate, Retention

HINT_SUFFIX = ".factors.safetensors"
# Where the size of the patch and the loss of quality meet: measured in docs/releases-from-adapters.md.
FACTOR_ERROR = 0.01


@dataclass(frozen=True)
class MergedMatrix:
    """What a merge did to one matrix.

    Attributes:
        name: of the weight.
        rank: of its factors.
        changed: share of its codes that differ from the base's.
        rescaled: share of its rows whose scale differs.
        gain: share of the change along its own direction that the codes hold.
        kept_energy: share of the adapter's change within the rank that the format holds.
    """

    name: str
    rank: int
    changed: float
    rescaled: float
    gain: float
    kept_energy: float


@dataclass(frozen=True)
class MergeReport:
    """What came of a merge.

    Attributes:
        manifest: of the new release.
        hint: the file with the factors.
        matrices: those that the adapter changes.
        num_factors: integers in all factors together.
        patch_bytes: about what a patch from the base takes: factors, scales and headers.
        release_bytes: size of the release's files.
        shipped: retention against the adapter beside the shipped base; None when nothing was measured.
        float_base: the same against the adapter on float weights; None when they were not given.
    """

    manifest: Manifest
    hint: Path
    matrices: tuple[MergedMatrix, ...]
    num_factors: int
    patch_bytes: int
    release_bytes: int
    shipped: Retention | None
    float_base: Retention | None

    @property
    def bits_per_factor(self) -> float:
        """What one integer of the factors costs on average, headers and scales included."""
        return 8 * self.patch_bytes / max(1, self.num_factors)

    @property
    def patch_share(self) -> float:
        """The patch's estimated size as a share of the release."""
        return self.patch_bytes / self.release_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "version": self.manifest.version,
            "hint": str(self.hint),
            "num_factors": self.num_factors,
            "bits_per_factor": round(self.bits_per_factor, 3),
            "patch_bytes": self.patch_bytes,
            "release_bytes": self.release_bytes,
            "patch_share": round(self.patch_share, 6),
            "retention": None if self.shipped is None else self.shipped.to_dict(),
            "retention_float_base": None if self.float_base is None else self.float_base.to_dict(),
            "matrices": [asdict(matrix) for matrix in self.matrices],
        }


def merge_adapter(
    base: Path,
    adapter: Path,
    output: Path,
    *,
    version: str,
    counter: int | None = None,
    health: HealthCheck | None = None,
    factor_error: float = FACTOR_ERROR,
    evaluate: Evaluate | None = None,
    float_weights: Mapping[str, Tensor] | None = None,
) -> MergeReport:
    """Make a release of a shipped INT8 one and an adapter.

    Args:
        base: release directory; verified against its manifest first.
        adapter: directory as PEFT writes it.
        output: release directory to write; must not exist, nor may its hint.
        version: of the new release.
        counter: of the new release; the base's and one when None.
        health: its self-test; the base's when None.
        factor_error: share of the adapter's energy that rounding its factors may cost: larger is smaller.
        evaluate: the loss on held-out items; None measures no retention.
        float_weights: the weights before quantisation, for the second retention.

    Raises:
        ConfigError: ``output`` is not free, or the adapter does not fit this base.
        FormatError: a file does not parse.
        IntegrityError: the base is not what its manifest says.
        HealthError: the merged model fails its self-test; nothing is left behind.
        StorageError: the disk refused.
    """
    hint = _free_places(output)
    source = _Source.read(base, adapter)
    folded = {name: source.fold(name, factor_error) for name in source.adapter.factors}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-merge-", dir=output.parent) as scratch:
        made = Path(scratch) / "release"
        manifest = source.write(made, folded, health, version=version, counter=counter)
        if wrong := failed_prompts(load_release(made)):
            raise HealthError(f"the merged {version} fails its self-test: {'; '.join(wrong)}")
        retentions = (None, None) if evaluate is None else source.retentions(made, evaluate, float_weights)
        write_durably(hint, save(_hints(folded)))
        publish_tree(made, output)
    return source.report(manifest, hint, folded, retentions)


def hint_path(release: Path) -> Path:
    """Return where the factors of a merged release lie."""
    return release.with_name(release.name + HINT_SUFFIX)


def _free_places(output: Path) -> Path:
    hint = hint_path(output)
    for path in (output, hint):
        if path.exists():
            raise ConfigError(f"{path} exists: choose another name")
    return hint


@dataclass(frozen=True)
class _Source:
    """What a merge starts from, read and checked."""

    base: Path
    manifest: Manifest
    config: ModelConfig
    stored: Mapping[str, Tensor]
    adapter: Adapter

    @classmethod
    def read(cls, base: Path, adapter: Path) -> Self:
        manifest = Manifest.read(base)
        manifest.verify(base)
        config = ModelConfig.from_json((base / CONFIG_NAME).read_bytes())
        change = read_adapter(adapter)
        change.check_fits(expected_tensors(config))
        return cls(base, manifest, config, read_stored(base / WEIGHTS_NAME), change)

    def fold(self, name: str, factor_error: float) -> Folded:
        """Merge one matrix."""
        codes, scales = self.stored.get(name), self.stored.get(name + SCALE_SUFFIX)
        if codes is None or scales is None or codes.dtype != torch.int8:
            raise ConfigError(f"{name!r} is not stored as INT8 with row scales: only such can be merged into")
        factors = self.adapter.factors[name]
        change = Change((factors.scaling * factors.b.double()).numpy(), factors.a.double().numpy())
        try:
            return fold(codes.numpy(), scales.numpy(), change, factor_error=factor_error)
        except ConfigError as error:
            raise ConfigError(f"{name!r}: {error}") from error

    def write(
        self,
        made: Path,
        folded: Mapping[str, Folded],
        health: HealthCheck | None,
        *,
        version: str,
        counter: int | None,
    ) -> Manifest:
        """Write the release that follows the base, with all of its files that the merge does not change."""
        shutil.copytree(self.base, made, ignore=shutil.ignore_patterns(MANIFEST_NAME, WEIGHTS_NAME))
        if health is not None:
            write_durably(made / HEALTH_NAME, health.to_bytes())
        tensors = dict(self.stored)
        for name, each in folded.items():
            tensors[name] = torch.from_numpy(each.codes)
            tensors[name + SCALE_SUFFIX] = torch.from_numpy(each.scales)
        write_stored(made / WEIGHTS_NAME, tensors)
        old = self.manifest
        counter = old.counter + 1 if counter is None else counter
        manifest = replace(
            Manifest.of_directory(
                made, model=old.model, variant=old.variant, name=old.name, version=version, counter=counter
            ),
            channel=old.channel,
            min_counter=old.min_counter,
        )
        write_durably(made / MANIFEST_NAME, manifest.to_bytes())
        return manifest

    def retentions(
        self, made: Path, evaluate: Evaluate, float_weights: Mapping[str, Tensor] | None
    ) -> tuple[Retention, Retention | None]:
        """Measure against the adapter beside the shipped base, and beside float weights."""
        before = read_weights(self.base / WEIGHTS_NAME, self.config)
        after = read_weights(made / WEIGHTS_NAME, self.config)
        shipped = Retention(
            base_float=(loss := evaluate(before)),
            new_float=evaluate(self.adapter.applied_to(before)),
            base_shipped=loss,
            new_shipped=evaluate(after),
        )
        if float_weights is None:
            return shipped, None
        adapted = self.adapter.applied_to(float_weights)
        return shipped, replace(shipped, base_float=evaluate(float_weights), new_float=evaluate(adapted))

    def report(
        self,
        manifest: Manifest,
        hint: Path,
        folded: Mapping[str, Folded],
        retentions: tuple[Retention | None, Retention | None],
    ) -> MergeReport:
        """Sum up."""
        predictions = [each.prediction for each in folded.values()]
        old = {name: self.stored[name + SCALE_SUFFIX].numpy() for name in folded}
        scales = sum(scale_bytes(old[name], each.scales) for name, each in folded.items())
        return MergeReport(
            manifest=manifest,
            hint=hint,
            matrices=tuple(self._matrix(name, old[name], each) for name, each in folded.items()),
            num_factors=sum(each.p.size + each.q.size for each in predictions),
            patch_bytes=factor_bytes(predictions) + scales,
            release_bytes=manifest.total_bytes,
            shipped=retentions[0],
            float_base=retentions[1],
        )

    def _matrix(self, name: str, old_scales: NDArray[np.float16], each: Folded) -> MergedMatrix:
        return MergedMatrix(
            name=name,
            rank=each.prediction.p.shape[1],
            changed=float((each.codes != self.stored[name].numpy()).mean()),
            rescaled=float((each.scales != old_scales).mean()),
            gain=round(each.gain, 5),
            kept_energy=round(each.kept_energy, 5),
        )


def _hints(folded: Mapping[str, Folded]) -> dict[str, Tensor]:
    """Return the factors as they are kept; a matrix that did not change has none."""
    tensors: dict[str, Tensor] = {}
    for name, each in folded.items():
        p, q, curve = each.prediction.p, each.prediction.q, each.prediction.curve
        if p.shape[1]:
            tensors[f"{name}.P"], tensors[f"{name}.Q"] = torch.from_numpy(p), torch.from_numpy(q)
            params = [curve.drop, curve.limit, curve.slope, curve.bend, curve.shift]
            tensors[f"{name}.params"] = torch.tensor(params, dtype=torch.int64)
    return tensors

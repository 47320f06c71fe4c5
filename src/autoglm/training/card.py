"""The facts of a model card, read from releases, curves and scores themselves; never typed by hand.

>>> print(card([Path("runs/releases/v1.2")], runs=[Path("runs/teacher")]))      # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autoglm.errors import ConfigError, FormatError
from autoglm.model.config import ModelConfig
from autoglm.model.weights import CONFIG_NAME, expected_tensors
from autoglm.releases import Manifest
from autoglm.training.news import whats_new
from autoglm.training.plot import read_curve
from autoglm.training.quantize import as_release, compare_codes


def card(releases: Sequence[Path], *, runs: Sequence[Path] = (), scores: Sequence[Path] = ()) -> str:
    """Return the Markdown of a card.

    Args:
        releases: release directories, oldest first.
        runs: directories of the runs that they come from, for steps and minutes.
        scores: files that ``autoglm model eval --json`` printed.

    Raises:
        ConfigError: a run has no curve, or there is no such release.
        ManifestError: a directory is no release.
        FormatError: a file of scores is none.
    """
    parts = [_sizes(releases)]
    parts += [_training(runs)] if runs else []
    for older, newer in itertools.pairwise(releases):
        parts += [_news(newer), _moved(older, newer)]
    parts += [_scores([_read(path) for path in scores])] if scores else []
    return "\n".join(parts)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def _sizes(releases: Sequence[Path]) -> str:
    rows: list[tuple[object, ...]] = []
    for path in releases:
        manifest, config = Manifest.read(path), ModelConfig.from_json((path / CONFIG_NAME).read_bytes())
        values = sum(shape.numel() for shape in expected_tensors(config).values())
        shape = f"{config.width}, {config.num_layers}, {config.num_heads}, {config.ffn_width}"
        rows.append(
            (manifest.version, manifest.variant, f"{values:,}", shape, f"{manifest.total_bytes:,} bytes")
        )
    columns = ("release", "variant", "values", "width, blocks, heads, FFN", "all files")
    return f"## Sizes\n\n{_table(columns, rows)}"


def _training(runs: Sequence[Path]) -> str:
    rows: list[tuple[object, ...]] = []
    for run in runs:
        before = 0.0
        last = {str(report["stage"]): report for report in read_curve(run)}
        for lesson, report in last.items():
            minutes = (float(report["seconds"]) - before) / 60
            before = float(report["seconds"])
            rows.append((run.name, lesson, report["step"], f"{minutes:.0f}"))
    return f"## Training\n\n{_table(('run', 'lesson', 'steps', 'minutes'), rows)}"


def _news(release: Path) -> str:
    version = as_release(Manifest.read(release).version)
    rows = [(item.kind, item.ask, f"`{item.answer}`") for item in whats_new(version)]
    return f"## New in {version}\n\n{_table(('what', 'asked, for example', 'answer'), rows)}"


def _moved(older: Path, newer: Path) -> str:
    changes = compare_codes(older, newer)
    rows = [(part, f"{c.changed:.1%}", f"{c.entropy_bits:.2f}") for part, c in changes.items()]
    versions = " and ".join(Manifest.read(path).version for path in (older, newer))
    columns = ("part", "codes that differ", "bits a code")
    return f"## Between {versions}\n\n{_table(columns, rows)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path} is not what `autoglm model eval --json` prints: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):  # pyright: ignore
        raise FormatError(f"{path} is not what `autoglm model eval --json` prints: it has no scores")
    return content  # pyright: ignore[reportUnknownVariableType]


def _scores(files: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for each in files for name in each["scores"])
    columns = ("what", *(str(each.get("version", "")) for each in files))
    rows = [(name, *(_percent(each["scores"].get(name)) for each in files)) for name in names]
    return f"## Scores\n\n{_table(columns, rows)}"


def _percent(score: dict[str, Any] | None) -> str:
    return "" if score is None else f"{float(score['value']):.1%}"

"""Draw a run's curve file."""

from __future__ import annotations

import json
from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.training.loop import CURVE_NAME

_LOSSES = (
    *("image_loss", "audio_loss", "screen_loss", "speech_loss", "text_loss", "long_loss"),
    *("copy_loss", "patch_loss", "ctc", "kl_loss", "hidden_loss"),
)
_SHARES = (
    *("patch", "tap", "image_token", "audio_token", "screen_token", "speech_token", "text_token"),
    *("long_token", "copy_token", "place", "agreement"),
)


def read_curve(run: Path) -> list[dict[str, float | str]]:
    """Return the reports of a run, oldest first; a last line cut off by a kill is left out.

    Raises:
        ConfigError: the run has no curve.
    """
    path = run / CURVE_NAME
    if not path.exists():
        raise ConfigError(f"{run} has no {CURVE_NAME}: train first")
    reports: list[dict[str, float | str]] = []
    for line in path.read_text().splitlines():
        try:
            reports.append(json.loads(line))
        except ValueError:
            continue
    return reports


def plot_curve(run: Path, target: Path) -> None:
    """Draw losses and in-batch accuracies over the run's own seconds into a PNG.

    Raises:
        ConfigError: the run has no curve.
    """
    from matplotlib.figure import Figure

    reports = read_curve(run)
    figure = Figure(figsize=(10, 8), layout="constrained")
    losses, shares = figure.subplots(2, 1, sharex=True)
    for axes, names in ((losses, _LOSSES), (shares, _SHARES)):
        for name in names:
            points = [(float(r["seconds"]) / 60, float(r[name])) for r in reports if name in r]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.grid(alpha=0.3)
        axes.legend()
    losses.set_yscale("log")
    losses.set_title(run.name)
    losses.set_ylabel("smoothed loss")
    shares.set_ylabel("smoothed accuracy in the batch, teacher-forced")
    shares.set_xlabel("minutes of training")
    figure.savefig(target, dpi=100)

"""What came of a simulation: plain values for tables, scripts and pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoglm.simulation.phone import Tally
from autoglm.simulation.scenario import HOUR, Scenario

_COLOURS = {"bad": "tab:red", "right": "tab:green", "first": "0.75"}


@dataclass(frozen=True)
class Sample:
    """The fleet at one moment.

    Attributes:
        hours: virtual, since the first roll-out.
        by_version: devices on each release.
        rollout_id, version, state, percent: of the newest roll-out; percent is what it reaches.
    """

    hours: float
    by_version: dict[str, int]
    rollout_id: str
    version: str
    state: str
    percent: float


@dataclass(frozen=True)
class Trial:
    """One roll-out, as the hub saw it and as the devices did.

    Attributes:
        version: the release.
        is_bad: whether it fails on the weak devices.
        rollout: as the admin API shows it at the end.
        installed: devices that ever ran it.
        failed: failures of it on devices.
        halted_hours: virtual hours from its beginning to its halt, None when it was not halted.
        halted_percent: what it reached then.
        reason: the hub's, for the halt.
    """

    version: str
    is_bad: bool
    rollout: dict[str, Any]
    installed: int
    failed: int
    halted_hours: float | None = None
    halted_percent: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The whole of it.

    Attributes:
        scenario: what was asked for.
        target: the release that every device should end on.
        on_target: devices that do, with everything reported.
        trials: the roll-outs in order.
        samples: the fleet over time.
        tally: what devices did.
        hub_events: events in the hub's table, None where it cannot be read.
        events_agree: whether exactly the events of the devices are in it, each once.
        virtual_s: how much time passed for the devices.
        wall_s: how much passed here, after the hub was ready.
        fetched_bytes: of packages that were really downloaded.
        broken_fetches: downloads whose bytes were not those promised.
    """

    scenario: Scenario
    target: str
    on_target: int
    trials: tuple[Trial, ...]
    samples: tuple[Sample, ...]
    tally: Tally
    hub_events: int | None
    events_agree: bool | None
    virtual_s: float
    wall_s: float
    fetched_bytes: int = 0
    broken_fetches: int = 0

    @property
    def saved(self) -> float:
        """1 - bytes on the wire / bytes of the same releases as full packages."""
        return 1 - self.tally.wire_bytes / self.tally.full_bytes if self.tally.full_bytes else 0.0

    @property
    def is_good(self) -> bool:
        """Whether every device ended right, and no event was lost or counted twice."""
        everyone = self.on_target == self.scenario.devices
        return everyone and self.events_agree is not False and not self.broken_fetches

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {"ok": self.is_good, "saved": round(self.saved, 4)} | asdict(self)


def draw_curve(outcome: Outcome, width: int, height: int = 10) -> list[str]:
    """Return the roll-out curve as lines of text: the share of devices on each release over time.

    Args:
        outcome: what to draw.
        width: columns of the picture, its axis not counted.
        height: lines of the picture.
    """
    columns = [_column(outcome, place / max(1, width - 1)) for place in range(width)]
    lines: list[str] = []
    for row in range(height, 0, -1):
        label = f"{100 * row // height:4d} % |"
        lines.append(label + "".join(_cell(column, row, height) for column in columns))
    hours = outcome.samples[-1].hours if outcome.samples else 0.0
    end = f"{hours:.0f} h"
    lines.append(" " * 7 + "+" + "-" * width)
    lines.append(" " * 8 + "0 h" + end.rjust(width - 3))
    return lines


def _column(outcome: Outcome, place: float) -> tuple[float, float]:
    """Return the shares of devices on the target and on a bad release at a place of the time axis."""
    samples = outcome.samples
    if not samples:
        return 0.0, 0.0
    hours = place * samples[-1].hours
    sample = next((each for each in reversed(samples) if each.hours <= hours + 1e-9), samples[0])
    bad = sum(sample.by_version.get(trial.version, 0) for trial in outcome.trials if trial.is_bad)
    devices = outcome.scenario.devices
    return sample.by_version.get(outcome.target, 0) / devices, bad / devices


def _cell(column: tuple[float, float], row: int, height: int) -> str:
    """Return what stands in a line of a column: the target from below, the bad release on top of it."""
    target, bad = column
    if target * height >= row - 0.5:
        return "█"
    if bad and (target + bad) * height > row - 1:  # ever so few are drawn: they are what matters
        return "x"
    return " "


def plot_curve(outcome: Outcome, target: Path) -> None:
    """Draw the roll-out curve into a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    shares, reach = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    hours = [sample.hours for sample in outcome.samples]
    bad = {trial.version for trial in outcome.trials if trial.is_bad}
    versions = sorted({version for sample in outcome.samples for version in sample.by_version})
    for version in versions:
        kind = "bad" if version in bad else "right" if version == outcome.target else "first"
        share = [100 * s.by_version.get(version, 0) / outcome.scenario.devices for s in outcome.samples]
        shares.plot(hours, share, label=version, color=_COLOURS[kind])
    for trial in outcome.trials:
        if trial.halted_hours is not None:
            began = trial.rollout["created_at"] - outcome.trials[0].rollout["created_at"]
            shares.axvline(began / HOUR + trial.halted_hours, color=_COLOURS["bad"], linestyle=":")
    shares.set_ylabel("devices, %")
    shares.set_title(f"{outcome.scenario.devices:,} simulated devices, seed {outcome.scenario.seed}")
    shares.legend()
    reach.step(hours, [sample.percent for sample in outcome.samples], where="post", color="tab:blue")
    reach.set_ylabel("offered to, %")
    reach.set_xlabel("hours since the first roll-out")
    for axes in (shares, reach):
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)

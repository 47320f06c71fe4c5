"""``autoglm fleet simulate``: a fleet in a box."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoglm.simulation import Outcome, Scenario
    from autoglm.simulation.remote import RemoteHub

_AXIS = 8  # columns left of the picture
_MAX_WIDTH = 110


def register(app: typer.Typer) -> None:
    """Add the verb to ``autoglm fleet``."""
    app.command("simulate")(simulate)


def simulate(
    devices: Annotated[int, typer.Option(help="How many.", min=1, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.", min=0)] = 1,
    bad: Annotated[
        float,
        typer.Option(help="Share of devices that the first release fails on, per cent.", min=0, max=100),
    ] = 20.0,
    stages: Annotated[str, typer.Option(help="Of the roll-outs.")] = "staff,1,5,25,50,100",
    soak: Annotated[str, typer.Option(help="Of each stage, in virtual time.")] = "12h",
    threshold: Annotated[float, typer.Option(help="The failure rate that halts, per cent.")] = 2.0,
    every: Annotated[str, typer.Option(help="How often a device asks, in virtual time.")] = "6h",
    days: Annotated[float, typer.Option(help="Virtual days after which it ends.", min=0.1)] = 30.0,
    fetch: Annotated[
        float, typer.Option(help="Share of devices that really download, per cent.", min=0, max=100)
    ] = 1.0,
    bad_networks: Annotated[
        float, typer.Option(help="Share of devices whose connections break, per cent.", min=0, max=100)
    ] = 15.0,
    slow_phones: Annotated[
        float, typer.Option(help="Share of devices that are ten times slower, per cent.", min=0, max=100)
    ] = 10.0,
    crashes: Annotated[
        float, typer.Option(help="Steps of an update that end in a restart, per cent.", min=0, max=50)
    ] = 1.0,
    connections: Annotated[
        int, typer.Option(help="To the hub; more than one is not repeatable.", min=1, max=1000)
    ] = 1,
    hub: Annotated[
        str | None, typer.Option(help="A hub that is there already, in place of one of its own.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="A token that may read it; else AUTOGLM_TOKEN.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM certificates to believe in for it.")] = None,
    bad_release: Annotated[str | None, typer.Option(help="There, the release that fails.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve here, PNG or SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let simulated devices with bad networks, crashes and a bad release loose on a real hub.

    The hub runs in a process and a directory of its own, both gone at the end, and its clock is virtual:
    days of soaking pass in minutes. With --hub it is another one, which is only watched.
    Exit status 1 when a device did not end right or an event was lost.

    Examples:

      autoglm fleet simulate --devices 5000

      autoglm fleet simulate --devices 100000 --bad 5 --plot curve.png
    """
    from autoglm.cli.output import print_json
    from autoglm.device.settings import parse_every
    from autoglm.simulation import Scenario, simulate_at
    from autoglm.simulation import simulate as simulate_here
    from autoglm.simulation.outcome import plot_curve

    scenario = Scenario(
        devices=devices,
        seed=seed,
        bad_share=bad / 100,
        stages=tuple(stages.split(",")),
        soak_s=parse_every(soak),
        threshold_percent=threshold,
        every_s=parse_every(every),
        days=days,
        fetch_share=fetch / 100,
        bad_networks=bad_networks / 100,
        slow_phones=slow_phones / 100,
        crash_rate=crashes / 100,
        connections=connections,
    )
    with _progress(scenario, quiet=as_json) as progress:
        remote = None if hub is None else _remote(hub, token, ca_file, bad_release)
        outcome = (
            simulate_here(scenario, progress) if remote is None else simulate_at(remote, scenario, progress)
        )
    if plot is not None:
        plot_curve(outcome, plot)
    print_json(outcome.to_json()) if as_json else _show(outcome)
    if not outcome.is_good:
        raise typer.Exit(1)


def _remote(hub: str, token: str | None, ca_file: Path | None, bad_release: str | None) -> RemoteHub:
    from autoglm.errors import ConfigError
    from autoglm.simulation.remote import RemoteHub
    from autoglm.simulation.wire import Place

    known = token or os.environ.get("AUTOGLM_TOKEN")
    if not known:
        raise ConfigError("--hub needs --token T (or AUTOGLM_TOKEN): the roll-outs are never open")
    return RemoteHub(Place(hub, ca_file), known, ca_file, bad_release)


@contextmanager
def _progress(scenario: Scenario, *, quiet: bool) -> Generator[Callable[[int, int], None]]:
    """Draw a bar of the devices that are where they should be, on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("on the newest release"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=scenario.devices)
        yield lambda done, _all: bar.update(task, completed=done)


def _show(outcome: Outcome) -> None:
    from autoglm.cli.output import print_table
    from autoglm.simulation.outcome import draw_curve

    print_table(("roll-out", "state", "reached", "ran it", "failed", "halted"), _trials(outcome), empty="")
    print_table(("what", "how much"), _figures(outcome), empty="")
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns - _AXIS)
    print("\n".join(draw_curve(outcome, max(20, width))))
    print(f"        █ on {outcome.target}   x on a release that fails\n")
    for trial in outcome.trials:
        if trial.reason:
            print(f"{trial.version} was halted: {trial.reason}")
    print(_verdict(outcome))


def _trials(outcome: Outcome) -> list[tuple[object, ...]]:
    return [
        (
            f"{trial.rollout['id']}: {trial.version}" + (" (bad)" if trial.is_bad else ""),
            trial.rollout["state"],
            f"{trial.halted_percent if trial.halted_percent is not None else trial.rollout['percent']:g} %",
            f"{trial.installed:,}",
            f"{trial.failed:,}",
            None if trial.halted_hours is None else f"after {trial.halted_hours:.1f} h",
        )
        for trial in outcome.trials
    ]


def _figures(outcome: Outcome) -> list[tuple[str, str]]:
    from autoglm.cli.output import as_bytes

    tally, wall_s = outcome.tally, max(outcome.wall_s, 1e-9)
    requests = tally.checks + tally.reports
    return [
        ("time", f"{outcome.virtual_s / 3600:.0f} h, in {outcome.wall_s:.0f} s"),
        ("update checks", f"{tally.checks:,}"),
        ("reports", f"{tally.reports:,}; {requests / wall_s:,.0f} requests a second with the checks"),
        ("events", f"{tally.events:,}, sent {tally.sent_events:,} times{_hub_events(outcome)}"),
        ("packages", f"{tally.patches:,} patches, {tally.fulls:,} full"),
        ("bytes", f"{as_bytes(tally.wire_bytes)}, {100 * outcome.saved:.1f} % saved"),
        ("really downloaded", f"{as_bytes(outcome.fetched_bytes)}, {outcome.broken_fetches} broken"),
        ("mishaps", _mishaps(outcome)),
    ]


def _hub_events(outcome: Outcome) -> str:
    return "" if outcome.hub_events is None else f"; the hub has {outcome.hub_events:,}"


def _mishaps(outcome: Outcome) -> str:
    tally = outcome.tally
    lost = tally.lost_requests + tally.lost_answers
    return (
        f"{tally.cuts:,} cut downloads, {lost:,} lost messages, {tally.restarts:,} restarts, "
        f"{tally.cancelled:,} updates called off, {tally.held:,} held"
    )


def _verdict(outcome: Outcome) -> str:
    """Say in two sentences whether it went well."""
    ended = f"{outcome.on_target:,} of {outcome.scenario.devices:,} devices ended on {outcome.target}."
    events = (
        "No event was lost or counted twice."
        if outcome.events_agree
        else "EVENTS WERE LOST OR COUNTED TWICE."
    )
    return f"{ended} {events}"

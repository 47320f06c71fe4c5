"""What the verbs print: JSON for scripts, tables and progress bars for people."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_FILE_WIDTH = 240  # columns of a table that goes into a file or another program


def print_json(value: object) -> None:
    """Print one JSON document to stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print a table, or the sentence ``empty`` when there are no rows."""
    if not rows:
        print(empty)
        return
    make_console().print(make_table(columns, rows))


def make_console() -> Console:
    """Return the console of stdout; one that is no terminal is wide enough for any table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table to be printed or refreshed."""
    from rich import box
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    from rich.markup import escape

    return "-" if value is None else escape(str(value))


def as_bytes(size: float | None) -> str | None:
    """Return a size for people."""
    if size is None:
        return None
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def as_time(seconds: float | None) -> str | None:
    """Return seconds since 1970 as local time."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


@contextlib.contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Generator[Callable[[int, int], None]]:
    """Give a function to call with (done, total) bytes; it draws a bar on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


def show_rollout(rollout: dict[str, Any]) -> str:
    """Describe a roll-out in one line."""
    places = [*rollout["groups"], *rollout["regions"]]
    whom = f" of {', '.join(places)}" if places else " of all devices"
    if rollout["from_versions"]:
        whom += f" on {', '.join(rollout['from_versions'])}"
    stages = rollout["stages"]
    stage = f", stage {rollout['stage'] + 1} of {len(stages)} ({', '.join(stages)})" if stages else ""
    reason = f" ({rollout['reason']})" if rollout["reason"] else ""
    return (
        f"{rollout['id']}: {rollout['version']} to {rollout['percent']:g} %{whom}{stage}, "
        f"{rollout['state']}{reason}"
    )

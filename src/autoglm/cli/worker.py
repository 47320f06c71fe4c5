"""``autoglm worker``: build packages, on this machine or on many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoglm.hub import HubConfig


def command(
    config: Annotated[
        Path | None, typer.Option(help="The configuration file.", show_default="config.yaml")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The hub's directory; on another machine, room to work in.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(envvar="AUTOGLM_DATABASE_URL", show_envvar=False, help="The hub's PostgreSQL database."),
    ] = None,
    storage_url: Annotated[
        str | None,
        typer.Option(envvar="AUTOGLM_STORAGE_URL", show_envvar=False, help="The bucket of its packages."),
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="The directory of the hub's online keys.")] = None,
    concurrency: Annotated[int, typer.Option(help="Builds at a time, a process each.", min=1, max=256)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each build.", min=1, max=256)] = 1,
    take_over: Annotated[
        float,
        typer.Option(help="Seconds of silence after which another worker is dead.", min=1, max=3600),
    ] = 30.0,
) -> None:
    """Build the packages that a hub wants, until SIGTERM or Ctrl-C; what is under way goes to other workers.

    Options win over the configuration file. Without PostgreSQL there is one worker a directory.

    Examples:

      autoglm worker --data data

      autoglm worker --database-url postgresql+psycopg://hub@db.example.com/autoglm
      --storage-url s3://models/hub --keys /run/secrets/autoglm --concurrency 4
    """
    from autoglm.cli.places import find_config
    from autoglm.service.hub_config import hub_config
    from autoglm.service.settings import load_settings

    directory = None if data is None else str(data.absolute())
    found = hub_config(load_settings(find_config(config), data_dir=directory))
    wanted = replace(
        found,
        database_url=database_url or found.database_url,
        storage_url=storage_url or found.storage_url,
        keys=found.keys if keys is None else keys.absolute(),
    )
    _run(wanted, concurrency, threads, take_over)


def _run(config: HubConfig, concurrency: int, threads: int, take_over_s: float) -> None:
    """Keep the processes alive until a signal comes."""
    import signal
    import threading
    from contextlib import ExitStack

    from autoglm.hub import WorkerProcess, check_worker

    check_worker(config, concurrency)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda _number, _frame: stop.set())
    with ExitStack() as stack:
        for _ in range(concurrency):
            stack.enter_context(WorkerProcess(config, threads=threads, take_over_s=take_over_s))
        typer.echo(f"building packages, {concurrency} at a time; Ctrl-C ends it")
        while not stop.wait(3600):
            pass

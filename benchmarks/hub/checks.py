"""Update checks and reports a second on one core, beside what the same server does without any work."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from load import Server, Turn, free_port, median, running, target, wrk
from table import Table
from world import DEVICE, NEW, OLD, World

_UPDATE, _EVENTS = "/v1/model/update", "/v1/model/events"
Run = Callable[[float], Turn]

NGINX = """{user} daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/a; uwsgi_temp_path {directory}/b; scgi_temp_path {directory}/c;
  sendfile on; keepalive_requests 1000000000;
  {more}
  server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""


def nginx(stack: ExitStack, server: str, more: str = "") -> Server | None:
    """Start an nginx of one process; None where the machine has none."""
    if not (program := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")):
        return None
    directory, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port()
    config = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else it may not read what belongs to us
    config.write_text(NGINX.format(user=user, directory=directory, port=port, server=server, more=more))
    return stack.enter_context(running([program, "-c", str(config), "-p", str(directory)], port))


def _runs(stack: ExitStack, world: World) -> dict[str, Run]:
    def start(kind: str, directory: Path | None = None) -> Server:
        return stack.enter_context(running(*target(kind, directory)))

    def ask(server: Server, **environment: str) -> Run:
        return lambda seconds: wrk(
            server, _UPDATE, seconds=seconds, script="check.lua", environment=environment
        )

    bare, route = start("bare"), start("route")
    opened, closed = start("service", world.directory), start("closed", world.directory)
    one = {"TOKEN": world.token, "DEVICE": DEVICE}
    runs = {
        "bare ASGI application": ask(bare),
        "bare route of the framework": ask(route),
        "check, nothing to do": ask(opened, VERSION=NEW),
        "check, a patch is offered": ask(opened, VERSION=OLD),
        "check with a token, nothing to do": ask(closed, VERSION=NEW, **one),
        "check with a token, a patch is offered by links": ask(closed, VERSION=OLD, **one),
    }
    if (plain := nginx(stack, "location / { return 200 '{}'; }")) is not None:
        runs["nginx, `return`"] = ask(plain)
    return runs


def measure(world: World, rounds: int, seconds: float) -> Iterator[Table]:
    """Yield the table of checks, then that of reports."""
    with ExitStack() as stack:
        runs = _runs(stack, world)
        turns: dict[str, list[Turn]] = {name: [] for name in runs}
        for run in runs.values():
            run(1.0)
        for _ in range(rounds):
            for name, run in runs.items():
                turns[name].append(run(seconds))
        yield _as_table(turns, rounds, seconds)
    yield _reports(world, rounds, seconds)


def _as_table(turns: dict[str, list[Turn]], rounds: int, seconds: float) -> Table:
    bare, route = (turns[name] for name in list(turns)[:2])
    table = Table(
        "Update checks on one core",
        ("what", "requests/s", "CPU µs a request", "of bare ASGI", "of a bare route"),
        remarks=[
            f"wrk with 16 connections on another core; medians of {rounds} rounds of {seconds:g} s.",
            "The last two columns compare CPU time a request.",
        ],
    )
    for name, of_run in turns.items():
        cost = median(of_run, "cpu_us")
        shares = (f"{100 * median(base, 'cpu_us') / cost:.0f} %" for base in (bare, route))
        table.rows.append((name, f"{median(of_run, 'rate'):,.0f}", f"{cost:.1f}", *shares))
    return table


def _reports(world: World, rounds: int, seconds: float) -> Table:
    """Measure reports of two events each; every one is synced to the disk before it is answered."""
    table = Table("Reports of two new events", ("connections", "reports/s", "CPU µs a report"))
    with running(*target("service", world.directory)) as server:
        for connections in (1, 16):
            turns = [
                wrk(
                    server,
                    _EVENTS,
                    seconds=max(3.0, seconds),  # a slow disk may take a second for the first
                    script="events.lua",
                    connections=connections,
                    environment={"RUN": f"{connections}-{number}"},
                )
                for number in range(rounds)
            ]
            rate, cost = median(turns, "rate"), median(turns, "cpu_us")
            table.rows.append((str(connections), f"{rate:,.0f}", f"{cost:,.0f}"))
    return table

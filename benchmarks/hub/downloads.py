"""What a gigabyte of packages costs: by the service itself, and by an nginx that has the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from autoglm.hub import Hub, HubConfig
from checks import nginx
from load import Server, Turn, running, target, wrk
from table import Table
from world import NEW, publish

SIZE = 8 << 20
_PATH = "/v1/model/packages/{sha256}.wpatch"


def measure(directory: Path, rounds: int, seconds: float) -> Iterator[Table]:
    """Yield one table."""
    hub_directory, sha256 = _one_large_package(directory)
    path = _PATH.format(sha256=sha256)
    objects = hub_directory / "objects"
    size = (objects / sha256).stat().st_size
    with ExitStack() as stack:
        service = stack.enter_context(running(*target("service", hub_directory)))
        servers: dict[str, tuple[Server, ...]] = {"the service": (service,)}
        mirror = directory / "mirror"  # not in the hub's own directory, which it keeps tidy
        mirror.mkdir()
        (mirror / f"{sha256}.wpatch").hardlink_to(objects / sha256)
        if (plain := nginx(stack, f"location /v1/model/packages/ {{ alias {mirror}/; }}")) is not None:
            servers["nginx, the same file"] = (plain,)
        if (front := _accelerated(stack, hub_directory)) is not None:
            servers["nginx by X-Accel-Redirect, and the service behind it"] = front
        table = Table("Downloads", ("by", "CPU s a GB", "GB/s"))
        turns = {name: _turns(group, path, rounds, seconds, size) for name, group in servers.items()}
    for name, (cost, speed) in turns.items():
        table.rows.append((name, f"{cost:.2f}", f"{speed:.2f}"))
    table.remarks.append(
        f"A package of {size / 1e6:.0f} MB over 4 connections on the loopback; medians of {rounds}."
    )
    yield table


def _one_large_package(directory: Path) -> tuple[Path, str]:
    """Make a hub with one release that does not shrink; return its directory and the package's hash."""
    with Hub.open(HubConfig(directory / "hub")) as hub:
        publish(hub, directory, NEW, 1, SIZE, os.urandom(SIZE))
        return hub.config.directory, str(hub.packages()[0].sha256)


def _accelerated(stack: ExitStack, directory: Path) -> tuple[Server, Server] | None:
    """Start a service that leaves the bytes to the nginx in front of it; None where either cannot."""
    inner = stack.enter_context(running(*target("accelerated", directory)))
    rules = (
        "location / { proxy_set_header X-Forwarded-For $remote_addr; "
        f"proxy_pass http://127.0.0.1:{inner.port}; }} "
        f"location /objects/ {{ internal; alias {directory}/objects/; }}"
    )
    front = nginx(stack, rules)
    return None if front is None else (front, inner)


def _turns(
    servers: tuple[Server, ...], path: str, rounds: int, seconds: float, size: int
) -> tuple[float, float]:
    """Return CPU seconds a gigabyte, of all servers together, and gigabytes a second: medians."""
    costs: list[float] = []
    speeds: list[float] = []
    for _ in range(rounds + 1):
        before = sum(server.cpu_seconds() for server in servers)
        turn: Turn = wrk(servers[0], path, seconds=max(3.0, seconds), connections=4)
        gigabytes = turn.requests * size / 1e9
        costs.append((sum(server.cpu_seconds() for server in servers) - before) / gigabytes)
        speeds.append(turn.rate * size / 1e9)
    return sorted(costs[1:])[rounds // 2], sorted(speeds[1:])[rounds // 2]  # the first warms the cache up

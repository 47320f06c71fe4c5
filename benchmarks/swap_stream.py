"""What a client sees of an update: the time between the events of its streams while a release is staged.

A real service with its hub and patch worker serves the shipped v1.2 to clients that never pause. Then v1.3 is
published, and the engine fetches, applies, verifies, loads and examines it (``POST /v1/admin/engine/stage``).
The staged release is dropped and staged once more: its files are there by then, so that the second time shows
loading and self-test alone. Each round has a service of its own.

    python benchmarks/swap_stream.py [--clients 8] [--rounds 5] [--cores 0,1] [--json]

With ``--cores`` the service keeps to these; the clients are another process and run where there is room.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swap_torture import Client, Published, Service

SHIPPED = Path(__file__).parents[1] / "models" / "autoglm-phone-nano"
PROMPTS = ("你是谁?", "Who are you?", "你能做什么?", "打开微信", "热更新省多少流量?", "Hi")
QUIET_S = 4.0
Gap = tuple[float, float]  # when the later event came, and the seconds before it


class Crowd:
    """Clients that ask one question after the other, as streams.

    Attributes:
        failed: what went wrong, a line each.
    """

    def __init__(self, url: str, count: int) -> None:
        self.failed: list[str] = []
        self._url, self._gaps = url, list[Gap]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for the length of a block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def gaps_ms(self, start: float, end: float) -> list[float]:
        """Return the times between two events that both came in this span."""
        return [seconds * 1e3 for at, seconds in tuple(self._gaps) if start <= at - seconds and at <= end]

    def _ask(self, number: int) -> None:
        last, chance = 0.0, random.Random(number)

        def on_token(at: float, is_first: bool) -> None:
            nonlocal last
            if not is_first:
                self._gaps.append((at, at - last))
            last = at

        client = Client(self._url, on_token)
        while not self._stop.is_set():
            message = {"role": "user", "content": chance.choice(PROMPTS)}
            reply = client.ask({"messages": [message], "max_tokens": 128, "stream": True})
            if reply.status != 200 or not reply.whole:
                self.failed.append(f"{reply.status} {reply.text[:100]}")


def one_round(directory: Path, clients: int, cores: set[int]) -> dict[str, Any]:
    """Return the spans' percentiles of one service's life."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what is started now inherits it
    first = Published("v1.2", "", "", SHIPPED / "v1.2.wpatch")
    service = Service(directory, first, max_batch=clients)
    os.sched_setaffinity(0, everywhere)
    crowd = Crowd(service.url, clients)
    try:
        with crowd.asking():
            time.sleep(QUIET_S / 2)
            quiet = span(lambda: time.sleep(QUIET_S))
            demand(service, "/releases?percent=100", (SHIPPED / "v1.3.wpatch").read_bytes())
            whole = staged(service)
            demand(service, "/engine/discard")
            again = staged(service)
            demand(service, "/engine/commit")
        return figures(crowd, quiet, whole, again)
    finally:
        service.stop()


def staged(service: Service) -> tuple[float, float]:
    """Ask until the release is offered and staged; return when that attempt began and ended."""
    for _ in range(100):
        began = time.perf_counter()
        if demand(service, "/engine/stage")["result"] == "staged":
            return began, time.perf_counter()
        time.sleep(0.2)
    raise SystemExit("v1.3 is not offered")


def span(act: Any) -> tuple[float, float]:
    """Return when ``act`` began and ended."""
    began = time.perf_counter()
    act()
    return began, time.perf_counter()


def demand(service: Service, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Call an admin route that must succeed, again where another update is looked at; return its answer."""
    for _ in range(100):
        status, answer = service.admin("POST", path, body)
        if status in (200, 201):
            return answer
        if status != 409:
            break
        time.sleep(0.1)
    raise SystemExit(f"{path}: {status} {answer}")


def figures(
    crowd: Crowd, quiet: tuple[float, float], whole: tuple[float, float], again: tuple[float, float]
) -> dict[str, Any]:
    """Return times in milliseconds, and what failed."""
    if crowd.failed:
        raise SystemExit("\n".join(crowd.failed[:5]))
    before, first, second = (percentile(crowd.gaps_ms(*each), 99) for each in (quiet, whole, again))
    return {
        "gap_ms": percentile(crowd.gaps_ms(*quiet), 50),
        "p99_ms": before,
        "staging_p99_ms": first,
        "staging_ratio": first / before,
        "without_files_p99_ms": second,
        "without_files_ratio": second / before,
        "staging_ms": (whole[1] - whole[0]) * 1e3,
        "without_files_ms": (again[1] - again[0]) * 1e3,
    }


def percentile(values: list[float], rank: int) -> float:
    """Return the ``rank``-th percentile."""
    return statistics.quantiles(values, n=100)[rank - 1]


def main() -> None:
    """Parse, measure, print the median of the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", help="of the service, such as 0 or 0,1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = {int(core) for core in options.cores.split(",")} if options.cores else os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as scratch:
        rounds = [one_round(Path(scratch) / str(n), options.clients, cores) for n in range(options.rounds)]
    found = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    rows = (f"| {name} | {value} |" for name, value in found.items())
    print(json.dumps(found) if options.json else "\n".join(("| what | value |", "|---|--:|", *rows)))


if __name__ == "__main__":
    main()

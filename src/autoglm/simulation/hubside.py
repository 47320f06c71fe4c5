"""The hub of a simulation, in a process of its own: real in everything but its clock.

It serves devices over HTTP on a free port of the loopback and takes orders, one JSON object a line, on
standard input; each is answered by one line. It ends when standard input closes.

::

    python -m autoglm.simulation.hubside --directory DIR --now 1798761600
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from autoglm import patch
from autoglm.errors import AutoGLMError
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.hub.rollout_control import Wanted
from autoglm.hub.worker import Worker
from autoglm.service.access import Access
from autoglm.service.machine import bind, listen
from autoglm.service.server import make_server
from autoglm.service.settings import Settings
from autoglm.service.state import ServiceState
from autoglm.simulation.control import digest_of
from autoglm.simulation.weights import write_release


class Clock:
    """Stands still until it is told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class HubSide:
    """Carries out the orders.

    Args:
        hub: the hub.
        clock: its clock.
        directory: for what is made here.
    """

    def __init__(self, hub: Hub, clock: Clock, directory: Path) -> None:
        self._hub, self._clock, self._directory = hub, clock, directory

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do one order; its ``do`` names the method.

        Raises:
            AutoGLMError: it could not be done.
        """
        words = {key: value for key, value in order.items() if key != "do"}
        return getattr(self, f"do_{order['do']}")(**words)

    def do_clock(self, now: float) -> dict[str, Any]:
        """Let the time be ``now``."""
        self._clock.now = now
        return {}

    def do_publish(self, version: str, counter: int, size: int, base: str | None) -> dict[str, Any]:
        """Make a release, publish it, and build its packages to the end."""
        config = self._hub.config
        target = write_release(
            self._directory / version,
            version,
            counter,
            model=config.model,
            variant=config.variant,
            size=size,
        )
        package = self._directory / f"{version}.wpatch"
        patch.diff(None if base is None else self._directory / base, target, package)
        self._hub.publish(package)
        worker = Worker(config, clock=self._clock)
        try:
            while worker.run_once():
                pass
        finally:
            worker.close()
        return {"full_bytes": self._full_bytes(version)}

    def _full_bytes(self, version: str) -> int:
        sizes = [
            row.size for row in self._hub.packages() if row.to_version == version and not row.from_version
        ]
        return sizes[0] or 0

    def do_rollout(
        self, version: str, stages: list[str], soak_s: float, threshold: float, salt: str
    ) -> dict[str, Any]:
        """Offer a release, by stages or to everybody."""
        wanted = Wanted(
            percent=None if stages else 100.0,
            stages=tuple(stages),
            soak_s=soak_s,
            threshold_percent=threshold,
        )
        made = self._hub.rollout_control.create(version, wanted)
        self._let_luck_follow(salt, int(made.id.removeprefix("r")))
        return made.to_json()

    def _let_luck_follow(self, salt: str, key: int) -> None:
        """Give a new roll-out the seed's salt before any device asks: then it is known who comes first."""
        with closing(sqlite3.connect(self._path, timeout=60)) as database, database:
            database.execute("UPDATE rollouts SET salt = ? WHERE id = ?", (salt, key))
            database.execute("UPDATE revision SET number = number + 1")

    @property
    def _path(self) -> Path:
        return self._hub.config.directory / "hub.sqlite"

    def do_resume(self, rollout_id: str) -> dict[str, Any]:
        """Go on with a paused roll-out."""
        return self._hub.set_rollout_state(rollout_id, "active").to_json()

    def do_tokens(self, names: list[str], group: str) -> dict[str, Any]:
        """Make tokens for devices of a group."""
        claims = [Claims("device", f"sim-{group}", device_id=name, groups=(group,)) for name in names]
        return {"tokens": [self._hub.issue_token(each) for each in claims]}

    def do_rollouts(self) -> dict[str, Any]:
        """Let the guard look, as it does every few seconds; return all roll-outs as the admin API does."""
        control = self._hub.rollout_control
        found = [rollout.to_json() for rollout in control.all()]  # which also writes down who was seen:
        control.tend()  # so the guard sees the same in every run
        return {"rollouts": [each | self._halt_of(each) for each in found]}

    def _halt_of(self, rollout: dict[str, Any]) -> dict[str, Any]:
        """Return when a roll-out was halted, which its log knows to the second."""
        if rollout["state"] != "halted":
            return {}
        _, log = self._hub.rollout_control.get(rollout["id"])
        return {"halted_at": next(entry.at for entry in log if entry.act == "halt")}

    def do_events(self) -> dict[str, Any]:
        """Count what is in the table of events, straight from the file; see :func:`digest_of`."""
        counted: dict[str, tuple[int, int]] = {}
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT device_id, COUNT(*), SUM(seq) FROM events GROUP BY device_id")
            for device_id, count, total in rows:
                counted[device_id] = (count, total)
        return {"events": sum(count for count, _ in counted.values()), "digest": digest_of(counted)}


def _serve(directory: Path, now: float, storage: Path) -> None:
    clock = Clock(now)
    with Hub.open(HubConfig(storage), clock=clock) as hub:
        settings = Settings(host="127.0.0.1", port=0, directory=storage)
        access = Access(hub, required=False, requests_per_minute=0)
        state = ServiceState(settings, None, access, hub=hub)  # a hub alone: nothing is inferred
        listener = bind(settings.host, settings.port)
        server = make_server(state, lambda: None)
        listen(listener, server.config.backlog)
        side = HubSide(hub, clock, directory)
        _say({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"})

        def take_orders() -> None:
            try:
                for line in sys.stdin:
                    _say(_answer(side, line))
            finally:
                server.should_exit = True

        threading.Thread(target=take_orders, name="orders", daemon=True).start()
        server.run(sockets=[listener])


def _answer(side: HubSide, line: str) -> dict[str, Any]:
    try:
        return side.obey(json.loads(line))
    except (AutoGLMError, OSError) as error:
        return {"error": str(error)}


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def main() -> None:
    """Run until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m autoglm.simulation.hubside")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--now", type=float, required=True)
    options = parser.parse_args()
    storage = options.directory / "hub"
    try:
        _serve(options.directory, options.now, storage)
    finally:
        shutil.rmtree(options.directory, ignore_errors=True)
        os._exit(0)  # the thread that waits for orders has nothing to tidy up


if __name__ == "__main__":
    main()

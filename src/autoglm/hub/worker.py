"""The process that builds packages, apart from the one that serves: ``python -m autoglm.hub.worker``.

It runs at low priority and may be killed at any moment. On SQLite there is one a directory (a second one is
refused): its lock goes with it, and the next worker puts back what it had begun. On PostgreSQL there is any
number of them, on any machines (:mod:`autoglm.hub.jobs`). Every package is applied once and compared with the
release before it is stored, so no device meets one that does not work.

::

    python -m autoglm.hub.worker --directory data/hub

Addresses with passwords come by the environment, where other users of the machine do not see them:
``AUTOGLM_DATABASE_URL`` and ``AUTOGLM_STORAGE_URL``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from autoglm import files
from autoglm.errors import AutoGLMError, StorageError
from autoglm.hub.building import Builder
from autoglm.hub.dialects import is_shared
from autoglm.hub.ledger import Job, Ledger
from autoglm.hub.parts import opened
from autoglm.hub.records import DATABASE_VARIABLE, STORAGE_VARIABLE, HubConfig
from autoglm.hub.upkeep import Upkeep

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
NICENESS = 10


class AnyWorker(Protocol):
    """What builds until it is told to stop."""

    def run(self, stop: threading.Event) -> None:
        """Build until ``stop`` is set."""
        ...

    def abandon(self) -> None:
        """Leave the build in progress, if any, to the next worker."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


class Worker:
    """Builds what the ledger of one hub wants. Only one may live: hold ``files.directory_lock`` around it."""

    def __init__(
        self, config: HubConfig, *, threads: int = 1, clock: Callable[[], float] = time.time
    ) -> None:
        """Connect, and put back what a killed worker had begun.

        Args:
            config: the hub's settings.
            threads: how many the codec may use.
            clock: seconds since 1970.

        Raises:
            ConfigError: a setting is wrong.
            StorageError: the directory or the database cannot be used.
        """
        self._job: Job | None = None
        with opened(config, clock) as parts:
            self._database = parts.database
            self._builder, self._upkeep = Builder(parts, threads), Upkeep(parts, clock)
        self._ledger = Ledger(self._database, f"{socket.gethostname()}:{os.getpid()}", clock)
        if left := self._ledger.reclaim():
            _log.info("Taking over %d unfinished builds", left)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def run(self, stop: threading.Event) -> None:
        """Build until ``stop`` is set, looking for new work twice a second; keep signatures from expiring.

        Raises:
            StorageError: the database refused.
        """
        mark = -1
        idle_checks = 0
        while not stop.is_set():
            seen = self._database.change_mark()
            # Rows that wait to be tried again become due without any change, so look now and then anyway.
            if seen != mark or idle_checks >= 10:
                mark, idle_checks = seen, 0
                while not stop.is_set() and self.run_once():
                    pass
            idle_checks += 1
            self._upkeep.run()
            stop.wait(POLL_SECONDS)

    def run_once(self) -> bool:
        """Do one build; False when there was nothing to do.

        Raises:
            StorageError: the database refused. What goes wrong in a build is recorded, not raised.
        """
        if not self._ledger.has_work() or (job := self._ledger.next_job()) is None:
            return False
        self._job = job
        try:
            self._builder.build(self._ledger, job)
        finally:
            self._job = None
        return True

    def abandon(self) -> None:
        """Leave the build in progress, if any, to the next worker; for the moment before this process ends.

        Raises:
            StorageError: the database refused; the next worker finds out by itself.
        """
        if (job := self._job) is not None:
            self._ledger.put_back(job)


def _die_with_stdin(worker: AnyWorker) -> None:
    """End at once when standard input closes: whoever started this process is gone or wants it gone.

    Dying in the middle of a build is safe, so nothing is waited for.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 64):
                pass
        with contextlib.suppress(StorageError):
            worker.abandon()
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m autoglm.hub.worker", description="Build packages.")
    parser.add_argument("--directory", type=Path, required=True, help="the hub's directory on this machine")
    parser.add_argument("--database-url", help="the hub's database, where it is not in the directory")
    parser.add_argument("--storage-url", help="the bucket of the objects, where that is not the directory")
    parser.add_argument("--keys", type=Path, help="the online keys, where they are not in the directory")
    parser.add_argument("--threads", type=int, default=1, help="threads of the codec (default 1)")
    parser.add_argument("--take-over-s", type=float, default=30.0, help="silence of a dead worker")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="[%(levelname)s] %(message)s")
    os.nice(NICENESS)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    # Ctrl-C in a terminal reaches the service and its worker alike; when attached, the service decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.attached else lambda _number, _frame: stop.set())
    try:
        return _serve(options, stop)
    except AutoGLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _serve(options: argparse.Namespace, stop: threading.Event) -> int:
    config = HubConfig(
        options.directory,
        options.database_url or os.environ.get(DATABASE_VARIABLE),
        storage_url=options.storage_url or os.environ.get(STORAGE_VARIABLE),
        keys=options.keys,
    )
    with contextlib.ExitStack() as stack:
        worker = _make(config, options, stack)
        stack.callback(worker.close)
        if options.attached:
            _die_with_stdin(worker)
        worker.run(stop)
    return 0


def _make(config: HubConfig, options: argparse.Namespace, stack: contextlib.ExitStack) -> AnyWorker:
    if is_shared(config.database_url):
        from autoglm.hub.jobs import QueueWorker

        return QueueWorker(config, threads=options.threads, take_over_s=options.take_over_s)
    stack.enter_context(files.directory_lock(config.directory / "worker"))
    return Worker(config, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main())

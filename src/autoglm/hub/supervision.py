"""Keeps one worker process alive beside a service.

The worker dies with this process, however that ends: it holds the other end of a pipe. One that dies by
itself is started again, after a pause that doubles up to a minute.

    >>> with WorkerProcess(HubConfig(Path("data/hub"))): ...       # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

from autoglm import files
from autoglm.errors import ConfigError
from autoglm.hub.dialects import is_shared
from autoglm.hub.parts import opened
from autoglm.hub.records import DATABASE_VARIABLE, STORAGE_VARIABLE, HubConfig

_log = logging.getLogger(__name__)

MIN_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0
HEALTHY_AFTER_S = 60.0
STOP_WITHIN_S = 5.0


def check_worker(config: HubConfig, concurrency: int) -> None:
    """See that workers could start: better one clear error than a process that is started over and over.

    Raises:
        ConfigError: a setting is wrong.
        LockedError: without PostgreSQL, another worker is there.
        StorageError: the database, the directory or the signed metadata cannot be used.
    """
    if is_shared(config.database_url):
        from autoglm.hub.jobs import QueueWorker

        QueueWorker(config).close()
        return
    if concurrency > 1:
        raise ConfigError("several builds at a time need PostgreSQL: set hub.database_url (--database-url)")
    with files.directory_lock(config.directory / "worker"), opened(config, time.time) as parts:
        parts.database.close()


class WorkerProcess:
    """A supervised ``python -m autoglm.hub.worker``."""

    def __init__(self, config: HubConfig, *, threads: int = 1, take_over_s: float | None = None) -> None:
        """Args:
        config: the hub's settings.
        threads: how many the codec may use.
        take_over_s: on PostgreSQL, the silence after which another worker is dead.
        """
        self._command = [sys.executable, "-P", "-m", "autoglm.hub.worker", "--attached"]
        self._command += ["--directory", str(config.directory.absolute()), "--threads", str(threads)]
        if config.keys is not None:
            self._command += ["--keys", str(config.keys.absolute())]
        if take_over_s is not None:
            self._command += ["--take-over-s", str(take_over_s)]
        # Not on the command line, which other users of the machine can read: they may hold passwords.
        named = {DATABASE_VARIABLE: config.database_url, STORAGE_VARIABLE: config.storage_url}
        self._environment = os.environ | {key: value for key, value in named.items() if value is not None}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._num_restarts = 0

    def start(self) -> None:
        """Start the worker; a second call does nothing."""
        if self._thread is None:
            self._spawn()
            self._thread = threading.Thread(target=self._supervise, name="hub-worker", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the worker; a build in progress is taken up again by the next one."""
        self._stop.set()
        with self._lock:
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def num_restarts(self) -> int:
        """How often it died and was started again."""
        return self._num_restarts

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stop.is_set():
                return None
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=self._environment
            )
            return self._process

    def _supervise(self) -> None:
        pause, process = MIN_PAUSE_S, self._process
        while process is not None:
            began = time.monotonic()
            status = process.wait()
            if process.stdin is not None:
                process.stdin.close()
            if self._stop.is_set():
                return
            if time.monotonic() - began > HEALTHY_AFTER_S:
                pause = MIN_PAUSE_S
            _log.warning("The patch worker ended with status %d; starting it again in %g s", status, pause)
            self._stop.wait(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
            self._num_restarts += 1
            process = self._spawn()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it at once; kill it if that does not."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

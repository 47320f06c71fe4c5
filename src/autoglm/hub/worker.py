"""The process that builds packages, apart from the one that serves: ``python -m autoglm.hub.worker``.

It runs at low priority, one a directory (a second one is refused), and may be killed at any moment: its
lock goes with it, and the next worker puts back what it had begun. Every package is applied once and
compared with the release before it is stored, so no device meets one that does not work.

::

    python -m autoglm.hub.worker --directory data/hub
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

from autoglm import files, patch
from autoglm.errors import AutoGLMError, IntegrityError, StorageError
from autoglm.hub.database import Database
from autoglm.hub.decision import MAX_PATCH_SHARE, StoredPackage
from autoglm.hub.hub import TRUST_FOLDER, database_url
from autoglm.hub.ledger import BuildCost, Job, Ledger
from autoglm.hub.records import HubConfig
from autoglm.hub.signing import signed_package
from autoglm.hub.store import Store
from autoglm.releases import MANIFEST_NAME, Manifest
from autoglm.trust.repository import Repository

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
NICENESS = 10


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
        self._threads = threads
        self._job: Job | None = None
        self._store = Store(config.directory)
        with self._store.lock():
            self._trust = Repository.open(self._store.directory / TRUST_FOLDER, clock=clock)
            self._database = Database(database_url(config))
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
            self._keep_signed()
            stop.wait(POLL_SECONDS)

    def _keep_signed(self) -> None:
        """Sign again what will expire soon, and say what only other keys can sign."""
        try:
            if not self._trust.refresh():
                return
            for role, expires in self._trust.expiring():
                _log.warning(
                    "%s expires on %s and is signed by keys that are not here: see docs/trust.md",
                    role,
                    f"{expires:%Y-%m-%d}",
                )
        except (AutoGLMError, OSError) as error:
            _log.warning("The signed metadata could not be renewed: %s", error)

    def run_once(self) -> bool:
        """Do one build; False when there was nothing to do.

        Raises:
            StorageError: the database refused. What goes wrong in a build is recorded, not raised.
        """
        if not self._ledger.has_work() or (job := self._ledger.next_job()) is None:
            return False
        self._job = job
        try:
            self._build(job)
        except (StorageError, OSError) as error:
            _log.warning("Building %s waits for the disk: %s", _title(job), error)
            self._ledger.fail(job, str(error)[:500], blameless=True)
        except AutoGLMError as error:
            _log.warning("Building %s failed: %s", _title(job), error)
            self._ledger.fail(job, str(error)[:500])
        except Exception as error:  # noqa: BLE001 - a defect in one build must not stop the others
            _log.exception("Building %s failed", _title(job))
            self._ledger.fail(job, f"{type(error).__name__}: {error}"[:500])
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

    def _build(self, job: Job) -> None:
        with self._store.workspace() as work:
            _forget_peak_memory()
            began = time.monotonic()
            file = work / "package.wpatch"
            base = None if job.base is None else self._store.releases / job.base.folder
            patch.diff(base, self._store.releases / job.target.folder, file, threads=self._threads)
            self._try_out(job, base, file, work / "check")
            cost = BuildCost(time.monotonic() - began, _peak_memory_bytes())
            self._finish(job, file, cost)

    @staticmethod
    def _try_out(job: Job, base: Path | None, file: Path, directory: Path) -> None:
        patch.apply(base, file, directory, link_unchanged=True)
        made = Manifest.read(directory)
        made.verify(directory)
        if made.sha256 != job.target.sha256:
            raise IntegrityError(f"{directory / MANIFEST_NAME} is not the manifest of {job.target.version}")

    def _finish(self, job: Job, file: Path, cost: BuildCost) -> None:
        size = file.stat().st_size
        if job.base is not None and job.full_size is not None and size > MAX_PATCH_SHARE * job.full_size:
            reason = f"it would not pay: {size} bytes are {size / job.full_size:.0%} of the full package"
            self._ledger.skip(job, reason, size=size, cost=cost)
            return
        info = patch.inspect(file)
        package = StoredPackage(files.sha256_file(file), size, info.header_length, info.header_sha256)
        base = None if job.base is None else job.base.sha256
        with self._store.lock():
            self._store.add_object(file, package.sha256)
            # Signed before it is in the ledger: what is offered is always signed.
            self._trust.add_packages([signed_package(package, job.target.sha256, base)])
            self._ledger.store(job, package, cost)
        _log.info("Built %s: %d bytes in %.1f s", _title(job), size, cost.seconds)


def _title(job: Job) -> str:
    source = "the full package" if job.base is None else f"the patch from {job.base.version}"
    return f"{source} of {job.target.version}"


def _forget_peak_memory() -> None:
    """Begin a new measurement of the peak; without Linux's /proc, the peak is that of the process's life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _die_with_stdin(worker: Worker) -> None:
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
    parser.add_argument("--directory", type=Path, required=True, help="the hub's directory")
    parser.add_argument("--database-url", help="the hub's database, where it is not in the directory")
    parser.add_argument("--threads", type=int, default=1, help="threads of the codec (default 1)")
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
    config = HubConfig(options.directory, options.database_url)
    with files.directory_lock(config.directory / "worker"):
        worker = Worker(config, threads=options.threads)
        if options.attached:
            _die_with_stdin(worker)
        try:
            worker.run(stop)
        finally:
            worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

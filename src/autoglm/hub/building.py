"""One build: make a package, try it out, keep it, sign it, and say so in the ledger.

Builds are deterministic and may be repeated anywhere, any number of times, at the same time: what is kept is
named by its hash, and the ledger takes only the result of the worker that the row belongs to.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

from autoglm import files, patch
from autoglm.errors import AutoGLMError, IntegrityError, StorageError
from autoglm.hub.decision import MAX_PATCH_SHARE, StoredPackage
from autoglm.hub.ledger import BuildCost, Job, Ledger
from autoglm.hub.parts import Parts
from autoglm.hub.signing import signed_package
from autoglm.releases import MANIFEST_NAME, Manifest

_log = logging.getLogger(__name__)


class Builder:
    """Makes the packages that a ledger wants.

    Args:
        parts: the hub's.
        threads: how many the codec may use.
    """

    def __init__(self, parts: Parts, threads: int) -> None:
        self._store, self._trust, self._threads = parts.store, parts.trust, threads

    def build(self, ledger: Ledger, job: Job) -> None:
        """Do a claimed build. What goes wrong in it is recorded, not raised.

        Raises:
            StorageError: the database refused.
        """
        try:
            self._build(ledger, job)
        except (StorageError, OSError) as error:
            _log.warning("Building %s waits for the disk: %s", _title(job), error)
            ledger.fail(job, str(error)[:500], blameless=True)
        except AutoGLMError as error:
            _log.warning("Building %s failed: %s", _title(job), error)
            ledger.fail(job, str(error)[:500])
        except Exception as error:  # noqa: BLE001 - a defect in one build must not stop the others
            _log.exception("Building %s failed", _title(job))
            ledger.fail(job, f"{type(error).__name__}: {error}"[:500])

    def _build(self, ledger: Ledger, job: Job) -> None:
        target = self._store.release_path(job.target)
        base = None if job.base is None else self._store.release_path(job.base)
        with self._store.workspace() as work:
            _forget_peak_memory()
            began = time.monotonic()
            file = work / "package.wpatch"
            patch.diff(base, target, file, threads=self._threads)
            _try_out(job, base, file, work / "check")
            cost = BuildCost(time.monotonic() - began, _peak_memory_bytes())
            self._finish(ledger, job, file, cost)

    def _finish(self, ledger: Ledger, job: Job, file: Path, cost: BuildCost) -> None:
        size = file.stat().st_size
        if job.base is not None and job.full_size is not None and size > MAX_PATCH_SHARE * job.full_size:
            reason = f"it would not pay: {size} bytes are {size / job.full_size:.0%} of the full package"
            ledger.skip(job, reason, size=size, cost=cost)
            return
        info = patch.inspect(file)
        package = StoredPackage(files.sha256_file(file), size, info.header_length, info.header_sha256)
        base = None if job.base is None else job.base.sha256
        self._store.storage.send(file, package.sha256)
        with self._store.lock():
            self._store.add_object(file, package.sha256)
            # Signed before it is in the ledger: what is offered is always signed.
            self._trust.add_packages([signed_package(package, job.target.sha256, base)])
            self._store.storage.require([package.sha256])
            ledger.store(job, package, cost)
        _log.info("Built %s: %d bytes in %.1f s", _title(job), size, cost.seconds)


def _try_out(job: Job, base: Path | None, file: Path, directory: Path) -> None:
    """Apply the package once, as a device will, and compare what it makes."""
    patch.apply(base, file, directory, link_unchanged=True)
    made = Manifest.read(directory)
    made.verify(directory)
    if made.sha256 != job.target.sha256:
        raise IntegrityError(f"{directory / MANIFEST_NAME} is not the manifest of {job.target.version}")


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

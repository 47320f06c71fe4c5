"""The near end of a simulation's hub: starts it, gives it orders, and lets nothing of it behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self, cast

from autoglm.errors import HubError
from autoglm.simulation.scenario import START

_END_S = 20.0
_SHARED = "/dev/shm"
_MIN_FREE_BYTES = 1 << 30


class OwnHub:
    """A hub of the simulation's own, in a process and a directory of its own, both gone at the end.

    Raises:
        HubError: it does not start.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(
            prefix="autoglm-fleet-", dir=_memory(), ignore_cleanup_errors=True
        )
        command = [sys.executable, "-m", "autoglm.simulation.hubside", "--directory", self._directory.name]
        self._process = subprocess.Popen(
            [*command, "--now", repr(START)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.url = str(self._read()["url"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def order(self, do: str, **words: Any) -> dict[str, Any]:
        """Have something done and return what came of it.

        Raises:
            HubError: it could not be done, or the hub is gone.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps({'do': do, **words})}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise HubError(f"the simulation's hub is gone: {error}") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HubError("the simulation's hub ended; what it said before stands above")
        answer = cast("dict[str, Any]", json.loads(line))
        if "error" in answer:
            raise HubError(f"the simulation's hub: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it; its directory goes with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_END_S)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()


def _memory() -> str | None:
    """Return a directory in memory where the machine has one with room: nothing here need outlive power."""
    try:
        return _SHARED if shutil.disk_usage(_SHARED).free >= _MIN_FREE_BYTES else None
    except OSError:
        return None


def digest_of(counted: dict[str, tuple[int, int]]) -> str:
    """Return a fingerprint of a set of events, to compare the devices' with the hub's.

    Args:
        counted: for each device the number of its events and the sum of their sequence numbers.
    """
    lines = sorted(f"{name} {count} {total}" for name, (count, total) in counted.items() if count)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

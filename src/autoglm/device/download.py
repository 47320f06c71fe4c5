"""One package on its way into the staging directory, resumable to the byte after any crash.

What it guarantees: what :meth:`Download.fetch` leaves under its path has exactly the promised size and
SHA-256; after a cut or a crash the next fetch goes on behind the last journalled chunk, and re-hashes what
lies there before it trusts it; nothing is ever written beyond the promised size.

On the disk: ``blob.part``, and ``journal``, one JSON object a line: first the package's size and hash,
then a line for each chunk (where it ends, its hash) and for the validator to resume with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from autoglm import files
from autoglm.device.clock import Clock
from autoglm.device.offer import PackagePin
from autoglm.device.settings import UpdateSettings
from autoglm.device.transport import Body, BusyError, LostPlaceError, Transport
from autoglm.errors import IntegrityError, NetworkError, ProtocolError

_MAX_JOURNAL_BYTES = 1 << 28
_SLOW_WINDOW_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
# A connection that wins less than this counts as failed: a server that gives a byte each time is no progress.
_PROGRESS_BYTES = 4096

Step = Callable[[int, int], None]
"""Told bytes done and bytes in all after each chunk; may raise to stop the download where it is."""


class Download:
    """Fetches one package into ``directory``.

    Args:
        directory: the attempt's staging directory; made when missing.
        pin: the promises about the package.
    """

    def __init__(
        self,
        directory: Path,
        pin: PackagePin,
        *,
        settings: UpdateSettings,
        clock: Clock,
        random_source: random.Random,
        step: Step,
    ) -> None:
        self._directory, self._pin = directory, pin
        self._settings, self._clock, self._random, self._step = settings, clock, random_source, step
        self._blob, self._journal = directory / "blob.part", directory / "journal"
        self._etag: str | None = None
        self._hash = hashlib.sha256()
        self.done_bytes = 0

    def resume(self) -> int:
        """Take up what an earlier run left, as far as it is sound, and return its length in bytes.

        Raises:
            StorageError: the disk refused.
        """
        files.make_directory(self._directory)
        try:
            with self._journal.open("rb") as journal, self._blob.open("rb") as blob:
                sound = self._replay(journal.read(_MAX_JOURNAL_BYTES), blob)
        except FileNotFoundError:
            sound = 0
        except OSError as error:
            raise files.storage_error(error, f"reading {self._directory}") from error
        if sound == 0:
            self._restart()
        else:
            with self._journal.open("r+b") as journal:
                journal.truncate(sound)
        return self.done_bytes

    def fetch(self, transport: Transport, url: str) -> Path:
        """Fetch what is missing, over as many connections as it takes, and return the finished file.

        Raises:
            IntegrityError: all bytes came, and they are not the promised ones; they were dropped.
            NetworkError: given up for now; what came is kept.
            HubError: the hub does not give this package (any more).
            StorageError: the disk refused.
        """
        failures, furthest = 0, self.done_bytes
        while self.done_bytes < self._pin.size:
            before = self.done_bytes
            try:
                self._run(transport, url)
            except NetworkError as error:
                failures = 1 if self.done_bytes >= furthest + _PROGRESS_BYTES else failures + 1
                furthest = max(furthest, self.done_bytes)
                lost_place = isinstance(error, LostPlaceError) and before > 0
                if failures > self._settings.retries or (isinstance(error, ProtocolError) and not lost_place):
                    raise
                if lost_place:
                    self._restart()
                self._pause(failures, error)
        if self._hash.hexdigest() != self._pin.sha256:
            found = self._hash.hexdigest()
            self._restart()
            raise IntegrityError(f"the package has sha256 {found} where {self._pin.sha256} was promised")
        return self._blob

    # -- one connection -----------------------------------------------------------------------------

    def _run(self, transport: Transport, url: str) -> None:
        body = transport.fetch(url, self.done_bytes, self._etag)
        with contextlib.closing(body):
            if body.total is not None and body.total != self._pin.size:
                raise ProtocolError(f"{body.total} bytes are offered where {self._pin.size} were promised")
            if body.offset != self.done_bytes:
                self._restart()  # the other side begins again, so do we
            elif self.done_bytes and self._etag is not None and body.etag != self._etag:
                raise LostPlaceError("the package changed between two requests")
            if body.etag != self._etag:
                self._etag = body.etag
                self._record({"etag": self._etag})
            self._receive(body)
        if self.done_bytes < self._pin.size:
            raise NetworkError(f"the connection ended after {self.done_bytes} of {self._pin.size} bytes")

    def _receive(self, body: Body) -> None:
        """Keep what comes, chunk by chunk; on a cut also the part of a chunk that had come."""
        chunk = bytearray()
        try:
            for piece in self._not_too_slow(body.chunks()):
                chunk += piece[: self._pin.size - self.done_bytes - len(chunk)]
                while len(chunk) >= self._settings.chunk_bytes:
                    whole = bytes(chunk[: self._settings.chunk_bytes])
                    del chunk[: self._settings.chunk_bytes]
                    self._keep(whole)
                if self.done_bytes + len(chunk) == self._pin.size:
                    break  # whatever else comes was not promised
        except NetworkError:
            if chunk:
                self._keep(chunk)
            raise
        if chunk:
            self._keep(chunk)

    def _not_too_slow(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        start, received = self._clock.monotonic(), 0
        for piece in pieces:
            yield piece
            received += len(piece)
            seconds = self._clock.monotonic() - start
            if seconds > _SLOW_WINDOW_SECONDS:
                if received < seconds * self._settings.slowest_bytes_per_s:
                    raise NetworkError(f"only {received} bytes came in {seconds:.0f} s")
                start, received = self._clock.monotonic(), 0

    def _pause(self, failures: int, error: NetworkError) -> None:
        """Wait before the next try, longer each time, asking every second whether to go on at all."""
        seconds = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** (failures - 1)) * self._random.uniform(0.5, 1.5)
        if isinstance(error, BusyError) and error.retry_after_s is not None:
            if error.retry_after_s > _LONGEST_PAUSE_SECONDS:
                raise error
            seconds = max(seconds, error.retry_after_s)
        while seconds > 0:
            self._step(self.done_bytes, self._pin.size)
            self._clock.sleep(min(1.0, seconds))
            seconds -= 1.0

    # -- the disk -----------------------------------------------------------------------------------

    def _keep(self, content: bytes | bytearray) -> None:
        """Write one chunk, sync it, and only then journal it."""
        try:
            with self._blob.open("r+b") as blob:
                blob.seek(self.done_bytes)
                files.append_durably(blob, content)
        except OSError as error:
            raise files.storage_error(error, f"writing {self._blob}") from error
        self._hash.update(content)
        self.done_bytes += len(content)
        self._record({"end": self.done_bytes, "sha256": hashlib.sha256(content).hexdigest()})
        self._step(self.done_bytes, self._pin.size)

    def _record(self, line: dict[str, Any]) -> None:
        try:
            with self._journal.open("ab") as journal:
                files.append_durably(journal, json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise files.storage_error(error, f"writing {self._journal}") from error

    def _restart(self) -> None:
        """Begin again at the first byte, with the room for all of them reserved."""
        self._hash, self.done_bytes, self._etag = hashlib.sha256(), 0, None
        files.remove(self._journal)
        try:
            with self._blob.open("wb") as blob:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(blob.fileno(), 0, self._pin.size)
        except OSError as error:
            raise files.storage_error(error, f"reserving {self._pin.size} bytes for a download") from error
        self._record({"size": self._pin.size, "sha256": self._pin.sha256})
        files.sync_directory(self._directory)

    def _replay(self, journal: bytes, blob: IO[bytes]) -> int:
        """Re-hash the journalled chunks; return how many bytes of the journal are sound, 0 for none."""
        sound = 0
        for number, line in enumerate(journal.split(b"\n")[:-1]):
            try:
                good = self._replay_line(number, json.loads(line), blob)
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
            if not good:
                break
            sound += len(line) + 1
        return sound

    def _replay_line(self, number: int, entry: dict[str, Any], blob: IO[bytes]) -> bool:
        if number == 0:
            return entry == {"size": self._pin.size, "sha256": self._pin.sha256}
        if "etag" in entry:
            etag = entry["etag"]
            self._etag = etag if isinstance(etag, str) else None
            return True
        end = int(entry["end"])
        if not self.done_bytes < end <= min(self._pin.size, self.done_bytes + self._settings.chunk_bytes):
            return False
        content = blob.read(end - self.done_bytes)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            return False
        self._hash.update(content)
        self.done_bytes = end
        return True

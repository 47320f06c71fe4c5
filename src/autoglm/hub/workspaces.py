"""Room to work in, on the same disk as the store: each workspace is locked for as long as its owner lives.

>>> with Workspaces(Path("data")).workspace() as work: ...      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from autoglm import files


class Workspaces:
    """The directory of workspaces, and the lock of the store that they belong to."""

    def __init__(self, directory: Path) -> None:
        """Make what is missing.

        Raises:
            StorageError: the directory cannot be made.
        """
        self.directory = directory
        self.uploads = directory / "uploads"
        files.make_directory(self.uploads)

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Wait for, then hold, the right to make files and rows agree; the kernel frees it after a crash."""
        with (self.directory / "store.lock").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def workspace(self) -> Generator[Path]:
        """Give a fresh directory and remove it after the block.

        Raises:
            StorageError: the disk refused.
        """
        with contextlib.ExitStack() as stack:
            with self.lock():  # no sweep may see it before its own lock is held
                try:
                    path = Path(tempfile.mkdtemp(dir=self.uploads))
                except OSError as error:
                    raise files.storage_error(error, f"making a directory in {self.uploads}") from error
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX)
            stack.callback(files.remove, path)
            yield path

    def sweep(self) -> None:
        """Remove the workspaces of the dead. Call under :meth:`lock`.

        Raises:
            StorageError: the disk refused.
        """
        for work in self.uploads.iterdir():
            if not _is_held(work):
                files.remove(work)


def _is_held(work: Path) -> bool:
    try:
        held = os.open(work, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False

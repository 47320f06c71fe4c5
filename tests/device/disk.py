"""The shim between a program and its disk, from Python: building it, steering it, reading what it recorded.

See ``disk_shim.c`` for what it sees. A program that wants it is started by :func:`run_with_shim`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SHIM = Path(__file__).with_name("disk_shim.c")
OFF, KILL, KILL_HALF, REFUSE, FULL = range(5)


def shim_settings(shim: Path) -> dict[str, str]:
    """Return the environment of a program that runs under the shim."""
    folders = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {"LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def run_with_shim(shim: Path, program: str, *arguments: object, may_fail: bool = False) -> str:
    """Run a program that lies beside this file with the shim loaded; return what it printed.

    With ``may_fail`` it must fail, and what it said about that is returned too.
    """
    command = [sys.executable, str(Path(__file__).with_name(program)), *map(str, arguments)]
    settings = os.environ | shim_settings(shim)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    said = done.stdout + done.stderr[-8000:] if done.returncode or may_fail else done.stdout
    if (done.returncode != 0) is not may_fail:
        pytest.fail(f"{program} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{said}")
    return said


def build_shim(directory: Path) -> Path:
    """Compile the shim."""
    library = directory / "disk_shim.so"
    flags = ["-std=gnu99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(SHIM), "-o", str(library), "-ldl"], check=True)
    return library


@contextmanager
def memory_directory() -> Generator[Path]:
    """A directory in memory where the system has such a place: its syncs are many."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name).resolve()


class Disk:
    """The shim of this process, which was loaded before Python began."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)
        self._shim.disk_count.restype = ctypes.c_long
        self._shim.disk_arm.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int)

    def watch(self, root: Path) -> None:
        """Look at what lies below ``root``."""
        self._shim.disk_watch(os.fsencode(root))

    def record(self, file_number: int) -> None:
        """Write every operation to an open file from now on."""
        self._shim.disk_record(file_number)

    def mark(self, text: str) -> None:
        """Put a word of the program's own between the operations."""
        self._shim.disk_mark(text.encode())

    def arm(self, mode: int, at: int = 0, error: int = 0) -> None:
        """Misbehave at the ``at``-th operation from now on."""
        self._shim.disk_arm(mode, at, error)

    @property
    def count(self) -> int:
        """How many operations there were since the last :meth:`arm`."""
        return int(self._shim.disk_count())


@dataclass(frozen=True)
class Operation:
    """One change of the disk, as the program asked for it.

    Attributes:
        what: create, truncate, write, resize, reserve, fsync, fdatasync, rename, link, symlink, unlink,
            mkdir, rmdir; or mark, a word of the program's own.
        path: where, below the watched directory.
        other: the new name of a rename or link, the content of a symlink.
        inode: of the file that is open.
        offset: of a write; the new size for resize and reserve.
        content: what was written.
    """

    what: str
    path: str
    other: str
    inode: int
    offset: int
    content: bytes


def read_log(path: Path) -> list[Operation]:
    """Return what the shim recorded."""
    operations: list[Operation] = []
    with path.open("rb") as log:
        while line := log.readline():
            what, name, other, inode, offset, length = os.fsdecode(line.rstrip(b"\n")).split("\t")
            size = int(length)
            operations.append(Operation(what, name, other, int(inode), int(offset), log.read(size)))
    return operations

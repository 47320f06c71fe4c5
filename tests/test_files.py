"""Durable files: whole or not at all, and typed errors when the disk refuses."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autoglm import files
from autoglm.errors import DiskFullError, IntegrityError, LockedError, StorageError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_durably_replaces_the_whole_content(tmp_path: Path) -> None:
    """A second write leaves nothing of the first and no temporary file."""
    path = tmp_path / "state.json"
    files.write_durably(path, b"old and longer")
    files.write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["state.json"]


def test_an_error_while_writing_keeps_the_old_content(tmp_path: Path) -> None:
    """What breaks inside the block leaves the old file and no litter."""
    path = tmp_path / "state.json"
    files.write_durably(path, b"old")
    with pytest.raises(ValueError), files.durable_file(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


CRASH = """
import os, sys
from pathlib import Path
from autoglm import files

left = int(sys.argv[1])

def dying(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments, **named)
    return call

for name in ("fsync", "fchmod", "open"):
    setattr(os, name, dying(getattr(os, name)))
Path.replace = dying(Path.replace)
files.write_durably(Path(sys.argv[2]), b"new" * 1000)
"""


def test_a_crash_at_any_step_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    """The process dies before each system call in turn; the file is always whole."""
    path = tmp_path / "state.json"
    for step in range(10):
        files.write_durably(path, b"old")
        done = subprocess.run([sys.executable, "-c", CRASH, str(step), str(path)], check=False)
        assert path.read_bytes() in (b"old", b"new" * 1000)
        if done.returncode == 0:
            break
    else:
        pytest.fail("the write never came to its end")
    assert step >= 3
    assert path.read_bytes() == b"new" * 1000
    files.remove_temporaries(tmp_path)
    assert names(tmp_path) == ["state.json"]


def test_a_full_disk_is_a_typed_error_and_loses_nothing(tmp_path: Path) -> None:
    """When the disk refuses more bytes the old content stays and the error says what to do."""
    path = tmp_path / "state.json"
    files.write_durably(path, b"old")
    program = (
        "import errno, os, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from autoglm import errors, files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    files.write_durably(Path(sys.argv[1]), b'x' * 100000)\n"
        "except errors.StorageError as error:\n"
        "    print(type(error).__name__)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    output = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "StorageError"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


def test_no_space_is_translated(tmp_path: Path) -> None:
    """ENOSPC becomes DiskFullError, other refusals StorageError."""
    import errno

    assert isinstance(files.storage_error(OSError(errno.ENOSPC, "No space"), "writing"), DiskFullError)
    assert not isinstance(files.storage_error(OSError(errno.EIO, "I/O error"), "writing"), DiskFullError)
    with pytest.raises(StorageError):
        files.write_durably(tmp_path / "no" / "such" / "file", b"")


def test_publish_tree_refuses_an_existing_target(tmp_path: Path) -> None:
    """A finished directory never merges into another."""
    source, target = tmp_path / "new", tmp_path / "release"
    for directory in (source, target):
        directory.mkdir()
        (directory / "file").write_bytes(b"content")
    with pytest.raises(StorageError):
        files.publish_tree(source, target)
    files.remove(target)
    files.publish_tree(source, target)
    assert (target / "file").read_bytes() == b"content"
    assert not source.exists()


def test_verify_file_tells_size_and_hash_apart(tmp_path: Path) -> None:
    """Missing, short and altered files are each refused with what was found."""
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    digest = files.sha256_file(path)
    files.verify_file(path, size=3, sha256=digest)
    with pytest.raises(IntegrityError, match="3 bytes where 4"):
        files.verify_file(path, size=4, sha256=digest)
    with pytest.raises(IntegrityError, match="sha256"):
        files.verify_file(path, size=3, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="missing"):
        files.verify_file(tmp_path / "other", size=3, sha256=digest)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "a/./b",
        "c:\\x",
        "a\\b",
        "a\0b",
        "x" * 256,
        ".tmp-x",
        "\ud800",
    ],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    """Nothing that could leave the directory, on any system, counts as a plain relative path."""
    assert not files.safe_relative_path(path)


@pytest.mark.parametrize("path", ["model.safetensors", "a/b/c.json", "中文.json", "..a"])
def test_plain_paths_are_accepted(path: str) -> None:
    """Names with dots, folders or other scripts are fine."""
    assert files.safe_relative_path(path)


def test_a_directory_is_locked_for_one_process(tmp_path: Path) -> None:
    """A second process is refused while the first one holds the lock, and let in after it died."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom autoglm import files\n"
        "with files.directory_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError), files.directory_lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with files.directory_lock(tmp_path):
        pass

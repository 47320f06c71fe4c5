"""Bad packages, bases and disks: a typed error each, and nothing left behind."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from autoglm import patch
from autoglm.errors import (
    AutoGLMError,
    BaseMismatchError,
    ConfigError,
    DiskFullError,
    IntegrityError,
    PackageError,
    StorageError,
)
from patch.conftest import Pair


def fails(base: Path | None, package: Path, out: Path, *kinds: type[AutoGLMError], **more: object) -> str:
    """Apply, expect one of the errors, and nothing new beside `out`."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kinds) as caught:
        patch.apply(base, package, out, **more)  # pyright: ignore[reportArgumentType]
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("which", ["package", "full"])
def test_every_bit_flip_is_noticed(releases: Pair, tmp_path: Path, which: str) -> None:
    """A flipped bit anywhere, at 200 places, is an error of the package, never another one."""
    package: Path = getattr(releases, which)
    content = package.read_bytes()
    (tmp_path / "out").mkdir()
    for step in range(200):
        at = step * len(content) // 200
        broken = bytearray(content)
        broken[at] ^= 1 << step % 8
        kinds = (PackageError, IntegrityError)
        fails(releases.old, written(tmp_path / "p", bytes(broken)), tmp_path / "out" / "x", *kinds)


def test_with_a_pin_no_header_byte_can_change(releases: Pair, tmp_path: Path) -> None:
    """The pinned header is checked before it is parsed."""
    info = patch.inspect(releases.package)
    pin = patch.HeaderPin(info.header_length, info.header_sha256)
    content = bytearray(releases.package.read_bytes())
    patch.apply(releases.old, releases.package, tmp_path / "good", header=pin)
    for at in (0, 8, 12, 19, 20, 27, 28, info.header_length - 1):
        content[at] ^= 16
        broken = written(tmp_path / "p", bytes(content))
        fails(releases.old, broken, tmp_path / "x", IntegrityError, header=pin)
        content[at] ^= 16
    for wrong in (patch.HeaderPin(pin.length + 1, pin.sha256), patch.HeaderPin(1 << 40, pin.sha256)):
        fails(releases.old, releases.package, tmp_path / "x", IntegrityError, header=wrong)


@pytest.mark.parametrize("keep", [0, 7, 27, 28, 100, 0.3, 0.5, 0.9, -1])
def test_truncated_packages_are_refused(releases: Pair, tmp_path: Path, keep: float) -> None:
    """Wherever a download broke off."""
    content = releases.package.read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep
    fails(releases.old, written(tmp_path / "p", content[:length]), tmp_path / "x", PackageError)


def test_bytes_behind_the_package_are_refused(releases: Pair, tmp_path: Path) -> None:
    """Nothing may hide behind the last block."""
    long = written(tmp_path / "p", releases.package.read_bytes() + b"x")
    assert "foreign" in fails(releases.old, long, tmp_path / "x", PackageError)


@pytest.mark.parametrize("first", [0, 1 << 20])
@pytest.mark.parametrize("wrong", ["none", "missing", "size", "content", "other"])
def test_a_wrong_base_is_named(
    releases: Pair, tmp_path: Path, wrong: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is missing, shorter, changed by one byte, or another release; hashed first or not."""
    monkeypatch.setattr("autoglm.patch.decoder._CHECKED_FIRST_BYTES", first)
    base: Path | None = tmp_path / "base"
    assert base is not None
    if wrong in ("size", "content"):
        base.mkdir()
        for path in releases.old.iterdir():
            (base / path.name).write_bytes(path.read_bytes())
        content = bytearray((base / "model.safetensors").read_bytes())
        content[5000] ^= 1  # in the first tensor
        (base / "model.safetensors").write_bytes(content[: -1 if wrong == "size" else None])
    elif wrong == "other":
        base = releases.new
    elif wrong == "none":
        base = None
    fails(base, releases.package, tmp_path / "x", BaseMismatchError)


def test_a_base_of_the_wrong_kind_is_a_wrong_argument(releases: Pair, models: Pair, tmp_path: Path) -> None:
    """A file for a directory, and the other way round."""
    fails(models.old, releases.package, tmp_path / "x", ConfigError)
    fails(releases.old, models.package, tmp_path / "x", ConfigError)


def test_an_existing_output_is_never_touched(models: Pair, tmp_path: Path) -> None:
    """A file, a directory or a dangling link under the output's name."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    written(tmp_path / "file", b"mine")
    for name in ("file", "folder", "link"):
        fails(models.old, models.package, tmp_path / name, ConfigError)
    assert (tmp_path / "file").read_bytes() == b"mine"
    with pytest.raises(ConfigError):
        patch.apply(models.old, models.package, tmp_path / "nowhere" / "x")


def test_a_package_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """No traceback of the operating system's."""
    fails(None, tmp_path / "nothing", tmp_path / "x", StorageError)
    with pytest.raises(StorageError):
        patch.inspect(tmp_path / "nothing")


def test_no_room_is_noticed_before_anything_is_written(
    models: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how much is needed."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError) as caught:
        patch.apply(models.old, models.package, tmp_path / "x")
    assert caught.value.needed_bytes == models.new.stat().st_size
    assert caught.value.free_bytes == 1000


LIMITED = """
import resource, sys
from pathlib import Path
from autoglm import patch
from autoglm.errors import StorageError
base, package, out, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    patch.apply(Path(base), Path(package), Path(out))
except StorageError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [1, 5000, 30_000])
def test_a_disk_that_refuses_in_the_middle_leaves_nothing(releases: Pair, tmp_path: Path, limit: int) -> None:
    """A write that fails after some bytes is a storage error, and the half-made tree is removed."""
    program = [sys.executable, "-c", LIMITED]
    arguments = [str(releases.old), str(releases.package), str(tmp_path / "x"), str(limit)]
    output = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True)
    assert output.stdout.startswith("StorageError")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_that(models: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while writing is a DiskFullError, and nothing is left."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("autoglm.patch.application._Writer.put", refuse)
    fails(models.old, models.package, tmp_path / "x", DiskFullError)


def test_an_interruption_leaves_nothing(releases: Pair, tmp_path: Path) -> None:
    """Ctrl-C in the middle removes the half-made tree and goes on."""

    def interrupt(done: int, _total: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch.apply(releases.old, releases.package, tmp_path / "x", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_ten_thousand_bit_flips_are_noticed(models: Pair, tmp_path: Path) -> None:
    """Single bits all over a package of one file."""
    content = models.package.read_bytes()
    (tmp_path / "out").mkdir()
    for step in range(10_000):
        broken = bytearray(content)
        broken[step * len(content) // 10_000] ^= 1 << step % 8
        package = written(tmp_path / "p", bytes(broken))
        fails(models.old, package, tmp_path / "out" / "x", PackageError, IntegrityError)

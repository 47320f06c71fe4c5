"""Power cuts: every state that the disk may be found in, after every operation of a device's life."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device.disk import Operation, build_shim, memory_directory, read_log, run_with_shim, shim_settings
from device.power_model import File, Model, scattered, states, torn, zeroed

# Calls that change files, and what the record calls them.
CALLS = {
    "write": "write",
    "pwrite64": "write",
    "ftruncate": "resize",
    "fallocate": "reserve",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "symlink",
    "symlinkat": "symlink",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
}
# Others with which a file might be changed: no part of the device uses them.
UNSEEN = [
    "writev",
    "pwritev",
    "pwritev2",
    "truncate",
    "sendfile",
    "copy_file_range",
    "splice",
    "mknod",
    "mknodat",
    "io_uring_setup",
]
CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
PLACE = re.compile(r'"([^"]*)"|<([^>"]*)>')


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def totals(output: str) -> tuple[int, int]:
    """Return states tried, and replays refused."""
    rows = [list(map(int, line.split()[1:])) for line in output.splitlines()]
    return sum(row[1] for row in rows), sum(row[2] for row in rows)


@pytest.mark.needs("cc")
def test_a_power_cut_leaves_a_whole_release_and_the_device_goes_on(shim: Path) -> None:
    """At a spread of the operations: the old or the new release is whole, metadata from before the floor is
    refused, and the next start comes to the same end."""
    tried, refused = totals(run_with_shim(shim, "power_cut.py", "--every", "89", "--random", "2"))
    assert tried >= 50
    assert refused >= 20


@pytest.mark.long
@pytest.mark.needs("cc")
@pytest.mark.parametrize("story", ["update", "detour", "arrival", "failure", "rollback"])
def test_a_power_cut_anywhere(shim: Path, story: str) -> None:
    """The same after every operation."""
    tried, _ = totals(run_with_shim(shim, "power_cut.py", "--stories", story))
    assert tried >= (150 if story == "rollback" else 1000)


@pytest.mark.needs("cc")
def test_a_disk_that_syncs_nothing_is_found_out(shim: Path) -> None:
    """The states are hard enough: without its syncs the same device loses a release."""
    output = run_with_shim(
        *(shim, "power_cut.py", "--stories", "update", "--every", "40", "--ignore-syncs"), may_fail=True
    )
    assert (
        "is damaged" in output or "is missing" in output or "has sha256" in output or "no release" in output
    )


@pytest.mark.needs("cc", "strace")
def test_nothing_passes_by_the_record(shim: Path, tmp_path: Path) -> None:
    """What the kernel saw of a whole update is what was recorded, call by call."""
    with memory_directory() as root:
        program = Path(__file__).with_name("recorded_life.py")
        trace = f"trace={','.join([*CALLS, *UNSEEN, 'mmap'])}"
        settings = [f"-E{name}={value}" for name, value in shim_settings(shim).items()]
        command = ["strace", "-f", "-y", "-qq", "-s0", "-e", trace, "-o", tmp_path / "calls", *settings]
        subprocess.run([*map(str, command), sys.executable, program, "update", root], check=True)
        recorded = [(each.what, each.path, each.other) for each in read_log(root / "log")]
        seen = list(changes((tmp_path / "calls").read_text().splitlines(), f"{root}/phone"))
    assert len(seen) > 300
    assert seen == [each for each in recorded if each[0] not in ("create", "truncate", "mark")]


def changes(lines: list[str], root: str) -> Iterator[tuple[str, str, str]]:
    """Yield what the forked process of a trace changed below ``root``."""
    parsed = [match.groups() for line in lines if (match := CALL.match(line))]
    for process, name, arguments, result in parsed:
        if process == parsed[0][0] or root not in arguments or result == "-1":
            continue
        if name == "mmap":
            assert "MAP_SHARED" not in arguments or "PROT_WRITE" not in arguments, arguments
            continue
        assert name in CALLS, f"{name}({arguments})"
        what = "rmdir" if "AT_REMOVEDIR" in arguments else CALLS[name]
        places = [text or folder for text, folder in PLACE.findall(arguments)]
        yield what, *_below(root, what, places)


def _below(root: str, what: str, places: list[str]) -> tuple[str, str]:
    """Return path and second path of a call; a relative one lies in the directory named before it."""
    if what in ("write", "resize", "reserve", "fsync", "fdatasync"):
        return _relative(root, places[0]), ""
    if what == "symlink":
        return _relative(root, str(Path(*places[1:]))), places[0]
    if what in ("rename", "link"):
        old, new = (str(Path(*pair)) for pair in (places[:2], places[2:]))
        return _relative(root, old), _relative(root, new)
    return _relative(root, str(Path(*places))), ""


def _relative(root: str, path: str) -> str:
    return str(Path(path).relative_to(root))


# -- the model itself -----------------------------------------------------------------------------------


def operation(what: str, path: str = "", other: str = "", **more: Any) -> Operation:
    return Operation(what, path, other, more.get("inode", 0), more.get("offset", 0), more.get("content", b""))


def found(model: Model) -> set[tuple[tuple[str, bytes], ...]]:
    """All states that the disk may be in, by names and contents."""
    made: set[tuple[tuple[str, bytes], ...]] = set()
    for state in states(model, random.Random(1), 200):
        made.add(tuple((name, content[1]) for name, content in state.entries if isinstance(content, tuple)))
    return made


def replace_carefully(*left_out: str) -> list[Operation]:
    """A file replaced by the rule of `files.py`, without some of its operations."""
    steps = [
        operation("create", "t", inode=99),
        operation("write", "t", inode=99, content=b"new"),
        operation("fsync", "t", inode=99),
        operation("rename", "t", "f"),
        operation("fsync", "."),
    ]
    return [step for step in steps if f"{step.what} {step.path}" not in left_out]


@pytest.mark.parametrize(
    ("left_out", "ends"),
    [
        ((), {b"new"}),
        (("fsync .",), {b"old", b"new"}),
        (("fsync t",), {b"", b"new", bytes(3)}),
        (("fsync .", "fsync t"), {b"old", b"", b"new", bytes(3)}),
    ],
)
def test_the_model_keeps_what_was_synced_and_nothing_else(
    tmp_path: Path, left_out: tuple[str, ...], ends: set[bytes]
) -> None:
    """A careful replacement ends in the new file; without syncs in the old, an empty or a zeroed one too."""
    (tmp_path / "f").write_bytes(b"old")
    model = Model(tmp_path)
    for step in replace_carefully(*left_out):
        model.apply(step)
    assert {dict(state)["f"] for state in found(model)} == ends


def test_a_rename_between_directories_never_loses_the_file(tmp_path: Path) -> None:
    """It has its old name, its new one, or both."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"it")
    model = Model(tmp_path)
    model.apply(operation("rename", "a/f", "b/g"))
    names = {frozenset(name for name, _ in state) for state in found(model)}
    assert names == {frozenset({"a/f"}), frozenset({"b/g"}), frozenset({"a/f", "b/g"})}


def test_a_directory_that_was_not_synced_takes_its_files_along(tmp_path: Path) -> None:
    """Files synced inside a new directory are lost with its name."""
    model = Model(tmp_path)
    model.apply(operation("mkdir", "d"))
    for step in (
        operation("create", "d/f", inode=7),
        operation("fsync", "d/f", inode=7),
        operation("fsync", "d"),
    ):
        model.apply(step)
    assert () in found(model)
    model.apply(operation("fsync", "."))
    assert found(model) == {(("d/f", b""),)}


def test_a_write_is_torn_at_sectors(tmp_path: Path) -> None:
    """What arrives of a long write ends at a multiple of 512; or sectors arrive each by itself."""
    file, chance = File(b"o" * 2048, [(0, b"n" * 2048)]), random.Random(2)
    assert {torn(file, chance).count(b"n") % 512 for _ in range(50)} == {0}
    mixtures = {scattered(file, chance) for _ in range(200)}
    assert len(mixtures) > 8
    assert zeroed(file, chance) == bytes(2048)


def test_a_state_is_made_on_the_disk_as_it_is(tmp_path: Path) -> None:
    """Directories, two names of one file and symbolic links come out as they were."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "d").mkdir()
    (tmp_path / "from" / "d" / "f").write_bytes(b"it")
    (tmp_path / "from" / "g").hardlink_to(tmp_path / "from" / "d" / "f")
    (tmp_path / "from" / "l").symlink_to("d/f")
    next(states(Model(tmp_path / "from"), random.Random(1), 0)).write(tmp_path / "to")
    assert (tmp_path / "to" / "g").samefile(tmp_path / "to" / "d" / "f")
    assert (tmp_path / "to" / "l").readlink() == Path("d/f")

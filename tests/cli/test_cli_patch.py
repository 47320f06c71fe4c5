"""`autoglm diff`, `patch` and `inspect`, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def autoglm(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and check its exit status."""
    command = [sys.executable, "-m", "autoglm.cli", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A directory with `old` and `new`, two releases of text files."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text("unchanged\n" * 50)
        (tmp_path / name / "words.txt").write_text(f"{name} words\n" * 50)
    return tmp_path


def test_a_package_is_made_looked_into_and_applied(folders: Path) -> None:
    """The three verbs, one after the other, restore the new folder."""
    package = folders / "p.wpatch"
    made = autoglm("diff", folders / "old", folders / "new", "-o", package)
    assert "a patch package" in made.stdout
    shown = autoglm("inspect", package).stdout
    assert "words.txt" in shown
    assert "same" in shown
    assert "verified" in autoglm("patch", folders / "old", package, "-o", folders / "out").stdout
    assert (folders / "out" / "words.txt").read_text() == "new words\n" * 50


@pytest.mark.parametrize("how", [["--full", "new"], ["-", "new"]])
def test_a_full_package_needs_no_old_release(folders: Path, how: list[str]) -> None:
    """`--full NEW` and `- NEW` are the same, and `patch -` applies the result."""
    arguments = [folders / word if word == "new" else word for word in how]
    report = json.loads(autoglm("diff", *arguments, "-o", folders / "f.wpatch", "--json").stdout)
    assert report["kind"] == "full"
    assert report["package_bytes"] == (folders / "f.wpatch").stat().st_size
    applied = json.loads(
        autoglm("patch", "-", folders / "f.wpatch", "-o", folders / "out", "--json", "--threads", "2").stdout
    )
    assert applied["files"] == 2
    assert (folders / "out" / "words.txt").read_text() == "new words\n" * 50


def test_json_of_a_package_names_its_files(folders: Path) -> None:
    """`inspect --json` gives paths, sizes, hashes and the pin of the header."""
    autoglm("diff", folders / "old", folders / "new", "-o", folders / "p.wpatch")
    info = json.loads(autoglm("inspect", folders / "p.wpatch", "--json").stdout)
    assert {file["path"]: file["mode"] for file in info["files"]} == {
        "same.txt": "same",
        "words.txt": "patch",
    }
    assert len(info["header_sha256"]) == 64


def test_mistakes_are_one_line(folders: Path) -> None:
    """No output name, an existing package, both forms at once, a damaged package: a sentence and status 1."""
    old, new, package = folders / "old", folders / "new", folders / "p.wpatch"
    autoglm("diff", old, new, "-o", package)
    for arguments in (
        ("diff", old, new),
        ("diff", old),
        ("diff", old, new, "-o", package),
        ("diff", old, "--full", new, "-o", folders / "q"),
        ("patch", old, package),
        ("patch", new, package, "-o", folders / "out"),
        ("patch", old, old / "same.txt", "-o", folders / "out"),
        ("inspect", old / "same.txt"),
    ):
        failed = autoglm(*arguments, status=1)
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
    assert not (folders / "out").exists()
    autoglm("diff", old, new, "-o", package, "--force")

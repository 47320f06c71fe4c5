"""An application that was interrupted goes on where it ended, and never trusts what it finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoglm import patch
from autoglm.errors import IntegrityError
from autoglm.patch import core
from patch import tensors
from patch.conftest import Pair, contents


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two releases whose model takes several blocks."""
    directory = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(5)
    old, new = {}, {}
    for name in "abcd":
        values = tensors.weights(rng, (600, 1000))
        old[name] = tensors.encode(values, "BF16")
        new[name] = tensors.encode(tensors.tuned(rng, values), "BF16")
    model = tensors.write(directory / "old.safetensors", old)
    before = tensors.release(directory / "v1", model, "v1")
    after = tensors.release(directory / "v2", tensors.write(directory / "new.safetensors", new), "v2")
    made = Pair(before, after, directory / "p.wpatch", directory / "f.wpatch")
    patch.diff(before, after, made.package)
    patch.diff(None, after, made.full)
    return made


class InterruptedTestError(Exception):
    pass


def stop_after(limit: int) -> Callable[[int, int], None]:
    def step(done: int, _total: int) -> None:
        if done > limit:
            raise InterruptedTestError

    return step


def count_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the blocks that are decoded from here on."""
    decoded: list[int] = []
    real = core.decode_block

    def counting(*given: object) -> bytearray:
        decoded.append(1)
        return real(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(core, "decode_block", counting)
    return decoded


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_application_continues_at_its_block(
    large: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """What was made before the interruption is read again, not decoded again."""
    more = {"partial": tmp_path / "partial", "threads": threads}
    with pytest.raises(InterruptedTestError):
        patch.apply(large.old, large.package, tmp_path / "out", progress=stop_after(3 << 20), **more)  # pyright: ignore
    assert not (tmp_path / "out").exists()
    decoded = count_blocks(monkeypatch)
    patch.apply(large.old, large.package, tmp_path / "out", **more)  # pyright: ignore[reportArgumentType]
    assert contents(tmp_path / "out") == contents(large.new)
    assert 1 <= len(decoded) <= 3  # of five
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_interruptions_anywhere_lose_nothing(releases: Pair, tmp_path: Path) -> None:
    """However often it is interrupted, each run begins where the last one ended, and the end is right."""
    size = sum(map(len, contents(releases.new).values()))
    for number, limit in enumerate(range(0, size, size // 13)):
        partial = tmp_path / f"partial-{number}"
        for _ in range(3):
            with pytest.raises(InterruptedTestError):
                patch.apply(
                    *(releases.old, releases.package, tmp_path / "x"),
                    partial=partial,
                    progress=stop_after(limit),
                )
        out = tmp_path / f"out-{number}"
        patch.apply(releases.old, releases.package, out, partial=partial, link_unchanged=bool(number % 2))
        assert contents(out) == contents(releases.new)


KILLED = """
import os, signal, sys
from pathlib import Path
from autoglm import patch
base, package, out, partial, limit = sys.argv[1:]
def step(done, total):
    if done > int(limit):
        os.kill(os.getpid(), signal.SIGKILL)
patch.apply(Path(base), Path(package), Path(out), partial=Path(partial), progress=step)
"""


def test_a_killed_application_continues(large: Pair, tmp_path: Path) -> None:
    """A real SIGKILL in the middle, twice, then an end."""
    for limit in (1 << 20, 4 << 20):
        arguments = [large.old, large.package, tmp_path / "out", tmp_path / "partial", limit]
        done = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False)
        assert done.returncode == -signal.SIGKILL
    patch.apply(large.old, large.package, tmp_path / "out", partial=tmp_path / "partial")
    assert contents(tmp_path / "out") == contents(large.new)


@pytest.mark.parametrize("harm", ["zeros", "flip", "longer"])
def test_what_a_power_cut_left_is_not_trusted(large: Pair, tmp_path: Path, harm: str) -> None:
    """Unfinished work with zeroed pages, a flipped bit or foreign bytes behind it is made anew."""
    partial = tmp_path / "partial"
    with pytest.raises(InterruptedTestError):
        patch.apply(large.old, large.package, tmp_path / "x", partial=partial, progress=stop_after(3 << 20))
    (model,) = partial.rglob("model.safetensors")
    content = bytearray(model.read_bytes())
    if harm == "zeros":
        content[1 << 20 : (1 << 20) + 4096] = bytes(4096)
    elif harm == "flip":
        content[77] ^= 1
    else:
        content += os.urandom(8 << 20)
    model.write_bytes(content)
    patch.apply(large.old, large.package, tmp_path / "out", partial=partial)
    assert contents(tmp_path / "out") == contents(large.new)


def test_links_in_unfinished_work_are_not_followed(large: Pair, tmp_path: Path) -> None:
    """A link where a file belongs is removed, and what it leads to stays as it is."""
    partial = tmp_path / "partial"
    with pytest.raises(InterruptedTestError):
        patch.apply(large.old, large.package, tmp_path / "x", partial=partial, progress=stop_after(3 << 20))
    (model,) = partial.rglob("model.safetensors")
    mine = tmp_path / "mine"
    for link in (model.symlink_to, model.hardlink_to):
        mine.write_bytes(b"mine")
        model.unlink()
        link(mine)
        out = tmp_path / link.__name__
        patch.apply(large.old, large.package, out, partial=partial)
        assert mine.read_bytes() == b"mine"
        assert contents(out) == contents(large.new)
        with pytest.raises(InterruptedTestError):
            patch.apply(
                large.old, large.package, tmp_path / "x", partial=partial, progress=stop_after(3 << 20)
            )


def test_another_package_begins_anew(large: Pair, tmp_path: Path) -> None:
    """Unfinished work of one package is of no use to another, and is removed."""
    partial = tmp_path / "partial"
    with pytest.raises(InterruptedTestError):
        patch.apply(large.old, large.package, tmp_path / "x", partial=partial, progress=stop_after(3 << 20))
    with pytest.raises(InterruptedTestError):
        patch.apply(None, large.full, tmp_path / "x", partial=partial, progress=stop_after(3 << 20))
    assert len(list(partial.iterdir())) == 1
    patch.apply(None, large.full, tmp_path / "out", partial=partial)
    assert contents(tmp_path / "out") == contents(large.new)


def test_a_damaged_package_leaves_no_unfinished_work(large: Pair, tmp_path: Path) -> None:
    """Only what can be continued is kept."""
    content = bytearray(large.full.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(IntegrityError):
        patch.apply(None, tmp_path / "p", tmp_path / "out", partial=tmp_path / "partial")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]

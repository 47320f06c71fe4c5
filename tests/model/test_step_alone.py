"""The native core without Python: the same bits by any number of threads, instructions and processors."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "src" / "autoglm" / "model" / "native"
FLAGS = ("-std=c11", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{NATIVE}")
SHARED = ("-DMIN_SHARED=1", "-DMIN_PART=1", "-DMIN_ATTENDED=0")  # cut even the smallest product into parts
LIBRARIES = ("-lm", "-pthread")
ARM = "aarch64-linux-gnu-gcc"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="no C compiler for Linux"
)


def build(path: Path, *flags: str, compiler: str = "cc") -> Path:
    """Compile the core and the program that decodes with made-up weights."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    sources = (str(Path(__file__).with_name("step_main.c")), str(NATIVE / "decode.c"))
    subprocess.run([compiler, *FLAGS, *SHARED, *flags, *sources, "-o", str(path), *LIBRARIES], check=True)
    return path


def result(*command: str | Path) -> tuple[int, str]:
    """Run the program; return its level of instructions and the number over all bits."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    level, number = done.stdout.split()
    return int(level), number


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the best instructions of this machine."""
    return build(tmp_path_factory.mktemp("core") / "step")


def test_the_number_of_threads_changes_no_bit(program: Path) -> None:
    """One thread, two, three, and more than there are parts: states, keys, values and bounds are the same."""
    numbers = {result(program, str(threads)) for threads in (1, 2, 3, 16)}
    assert len(numbers) == 1


@pytest.mark.parametrize("flags", [("-DWDECODE_MAX_LEVEL=0",), ("-DWDECODE_MAX_LEVEL=1",)])
def test_the_level_of_instructions_changes_no_bit(
    program: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Portable C and AVX2 do what the best instructions here do, gate and odd sizes included."""
    assert result(build(tmp_path / "other", *flags), "2")[1] == result(program, "1")[1]


def test_without_threads_it_is_the_same(program: Path, tmp_path: Path) -> None:
    """A system without POSIX threads gets all of it, on one thread."""
    alone = build(tmp_path / "alone", "-DWDECODE_ONE_THREAD")
    assert result(alone, "3") == result(program, "1")


@pytest.mark.long
def test_another_compiler_changes_no_bit(program: Path, tmp_path: Path) -> None:
    """clang gives the bits of GCC."""
    assert result(build(tmp_path / "other", compiler="clang-14"), "2") == result(program, "1")


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64")
@pytest.mark.parametrize("level", [0, 3])
def test_a_phones_processor_changes_no_bit(program: Path, tmp_path: Path, level: int) -> None:
    """Cross-compiled for 64-bit ARM, portable and by NEON, with threads: the bits of this machine."""
    limit = () if level else ("-DWDECODE_MAX_LEVEL=0",)
    arm = build(tmp_path / "arm", "-static", *limit, compiler=ARM)
    assert result("qemu-aarch64", arm, "2") == (level, result(program, "1")[1])


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_sanitizer_objects(program: Path, tmp_path: Path, sanitizer: str) -> None:
    """No data race between threads, no read outside of memory, nothing undefined."""
    watched = build(tmp_path / "watched", f"-fsanitize={sanitizer}", "-g")
    command = ["setarch", "-R", str(watched), "3"]  # fixed addresses, which the thread sanitizer wants
    done = subprocess.run(
        command,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.split()[1] == result(program, "1")[1]


# Life and end of the helpers

_LIFE = """
import ctypes, os, sys, _ctypes

def threads():
    return len(os.listdir("/proc/self/task"))

class Matrix(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("codes", "scale", "bias")]
    _fields_ += [(n, ctypes.c_int64) for n in ("rows", "columns")]

core = ctypes.CDLL(sys.argv[1])
codes = (ctypes.c_int8 * (64 * 64))(*[i % 251 - 125 for i in range(64 * 64)])
scale, x = (ctypes.c_float * 64)(*[1 + i for i in range(64)]), (ctypes.c_float * 64)(*range(64))
matrix = Matrix(ctypes.addressof(codes), ctypes.addressof(scale), None, 64, 64)

def product(threads):
    out = (ctypes.c_float * 64)()
    assert core.wdecode_multiply(ctypes.byref(matrix), x, ctypes.c_int64(1), threads, out) == 0
    return bytes(out)

"""


def live(library: Path, code: str) -> None:
    """Run Python code in a process of its own, with the core loaded and ``product(threads)`` to call."""
    command = [sys.executable, "-c", _LIFE + code, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core as a library."""
    path = tmp_path_factory.mktemp("core") / "core.so"
    flags = ("-fPIC", "-shared", "-fvisibility=hidden", "-DWDECODE_BUILD")
    subprocess.run(
        ["cc", *FLAGS, *SHARED, *flags, str(NATIVE / "decode.c"), "-o", str(path), *LIBRARIES], check=True
    )
    assert ctypes.CDLL(str(path)).wdecode_abi()
    return path


def test_helpers_start_when_asked_for_and_end_with_the_library(library: Path) -> None:
    """One thread starts none; three start two, once; unloading leaves none."""
    live(
        library,
        """
before, wanted = threads(), product(1)
assert threads() == before
assert all(product(3) == wanted for _ in range(100)) and threads() == before + 2
assert product(2) == wanted and threads() == before + 2
_ctypes.dlclose(core._handle)
assert threads() == before, threads()
""",
    )


def test_a_forked_child_has_helpers_of_its_own(library: Path) -> None:
    """A child of a process whose helpers work computes as well, and so does its child."""
    live(
        library,
        """
wanted = product(3)
for generation in range(3):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert product(3) == wanted
        break
    assert product(3) == wanted and threads() == 3, threads()
""",
    )


def test_of_calls_at_once_each_gets_its_own_result(library: Path) -> None:
    """One has the helpers, the others work alone; none waits for another or mixes results up."""
    live(
        library,
        """
import threading
wanted, found = product(1), []
callers = [threading.Thread(target=lambda: found.extend(product(3) for _ in range(2000))) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert len(found) == 8000 and set(found) == {wanted}
""",
    )

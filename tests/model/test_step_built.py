"""The native core as the package builds it: by CMake, for this machine and for 64-bit ARM."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARM = "aarch64-linux-gnu-gcc"

pytestmark = [
    pytest.mark.needs("cmake"),
    pytest.mark.skipif(sys.platform != "linux", reason="the names of libraries are Linux's"),
]


def install(tmp_path: Path, *options: str) -> Path:
    """Configure, build, and install; return where."""
    build, prefix = tmp_path / "build", tmp_path / "installed"
    commands = (
        ("cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Debug", *options),
        ("cmake", "--build", str(build)),
        ("cmake", "--install", str(build), "--prefix", str(prefix)),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return prefix / "autoglm"


def symbols(library: Path, nm: str) -> set[str]:
    """Return the names that a library gives away."""
    listed = subprocess.run(
        [nm, "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in listed.stdout.splitlines()}


WANTED = {"wdecode_abi", "wdecode_level", "wdecode_multiply", "wdecode_expand", "wdecode_step"}


@pytest.mark.parametrize("compiler", [None, ARM])
def test_the_package_has_both_cores(tmp_path: Path, compiler: str | None) -> None:
    """What is installed holds the codec and the decoder, each with its own functions and no others."""
    options = list[str]()
    if compiler:
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler}")
        options = [f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_SYSTEM_NAME=Linux"]
        options.append("-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    installed = install(tmp_path, *options)
    nm = compiler.replace("gcc", "nm") if compiler else "nm"
    assert (installed / "patch" / "libwpatch.so").is_file()
    assert symbols(installed / "model" / "libwdecode.so", nm) == WANTED

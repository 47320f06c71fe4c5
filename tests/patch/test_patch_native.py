"""The C core on its own: built by CMake alone, linked by a C program, and run under sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
#include <stdio.h>
#include <string.h>

#include "wpatch.h"

int main(void) {
    uint16_t table[64] = {0};
    const uint8_t tables[1] = {0};
    uint8_t base[64], new[64], made[64], work[WPATCH_WORK_BYTES(64)], block[WPATCH_BLOCK_BYTES(64)];
    static uint32_t slots[1u << WPATCH_TABLE_BITS];
    size_t length = 0;
    wpatch_part part;
    for (int i = 0; i < 64; i++) {
        base[i] = (uint8_t)(3 * i);
        new[i] = (uint8_t)(base[i] + i % 3);
        table[i] = 32;
    }
    memset(&part, 0, sizeof part);
    part.mode = WPATCH_DIFFERENCE;
    part.dtype = WPATCH_I8;
    part.count = 64;
    part.num_contexts = 1;
    part.tables = tables;
    part.base = base;
    part.elements = new;
    if (wpatch_encode(table, 1, &part, 1, work, block, &length) != WPATCH_OK) return 1;
    if (wpatch_expand_tables(table, 1, slots) != WPATCH_OK) return 2;
    part.elements = made;
    if (wpatch_decode(slots, 1, block, length, &part, 1) != WPATCH_OK) return 3;
    printf("%d\n", memcmp(new, made, 64) == 0);
    return 0;
}
"""
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Werror")


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return what it printed; a failure shows its output."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def native(project_root: Path) -> Path:
    return project_root / "src" / "autoglm" / "patch" / "native"


def test_a_c_program_links_the_static_library(native: Path, tmp_path: Path) -> None:
    """CMake alone builds it, without Python, and thirty lines of C code a block there and back."""
    run("cmake", "-S", native, "-B", tmp_path / "build")
    run("cmake", "--build", tmp_path / "build", "--target", "wpatch_static")
    (tmp_path / "main.c").write_text(PROGRAM)
    archive = next((tmp_path / "build").rglob("libwpatch.a"))
    run("cc", "-std=c99", "-I", native, tmp_path / "main.c", archive, "-o", tmp_path / "main")
    assert run(tmp_path / "main") == "1\n"


def test_the_core_compiles_without_a_warning(native: Path, tmp_path: Path) -> None:
    """C99 as it is written, with every warning an error."""
    for source in sorted(native.glob("*.c")):
        run("cc", *STRICT, "-O2", "-c", source, "-o", tmp_path / "out.o")


def test_the_core_needs_nothing_but_memory_functions(native: Path, tmp_path: Path) -> None:
    """No allocation, no files, no floating point, no state: the objects import only mem* functions."""
    for source in sorted(native.glob("*.c")):
        code = source.read_text()
        assert not any(word in code for word in ("malloc", "float ", "double ", "<stdio.h>"))
        run("cc", "-std=c99", "-O2", "-c", source, "-o", tmp_path / f"{source.stem}.o")
    objects = sorted(tmp_path.glob("*.o"))
    undefined = set(run("nm", "-u", "--format=just-symbols", *objects).split())
    defined = set(run("nm", "--defined-only", "--format=just-symbols", *objects).split())
    foreign = {name for name in undefined - defined if not name.endswith(":")}
    assert {name for name in foreign if not name.startswith(("mem", "_"))} == set()


def sanitized(native: Path, directory: Path, project_root: Path, rounds: int) -> None:
    library = directory / "libwpatch-checked.so"
    flags = ("-g", "-O1", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run("cc", "-std=c99", *flags, "-DWPATCH_BUILD", *sorted(native.glob("*.c")), "-o", library)
    runtime = run("cc", "-print-file-name=libasan.so").strip()
    output = run(
        sys.executable,
        Path(__file__).with_name("hostile.py"),
        library,
        project_root / "tests" / "vectors" / "patch",
        str(rounds),
        LD_PRELOAD=runtime,
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS="detect_leaks=0",
    )
    assert output == "clean\n"


def test_hostile_blocks_are_clean_under_sanitizers(native: Path, tmp_path: Path, project_root: Path) -> None:
    """Golden vectors and some hundred hostile blocks: no bad access, no undefined behaviour."""
    sanitized(native, tmp_path, project_root, 400)


@pytest.mark.long
def test_very_many_hostile_blocks_are_clean_under_sanitizers(
    native: Path, tmp_path: Path, project_root: Path
) -> None:
    """The same with thirty thousand rounds."""
    sanitized(native, tmp_path, project_root, 30_000)

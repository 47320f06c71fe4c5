"""The C core without Python: embedded by an app's own build, and on machines unlike this one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoglm import patch
from autoglm.patch.header import read_header
from autoglm.patch.package import Mode, segments_of
from patch import tensors
from patch.laid_blocks import KINDS, Laid, lay_out, write_every_kind
from patch.tensors import Tensor

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "src" / "autoglm" / "patch" / "native"
EXAMPLE = ROOT / "examples" / "apply_block"
STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Werror")
ZIG = (sys.executable, "-m", "ziglang", "cc")

# Optimising takes most of a compiler's time.
UNOPTIMISED = "-DCMAKE_BUILD_TYPE=Debug"

needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="the ziglang wheel is not installed"
)


def run(*command: str | Path) -> str:
    """Run a command and return what it printed; a failure shows its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cmake_build(source: Path, build: Path, *options: str, target: str = "all") -> None:
    run("cmake", "-S", source, "-B", build, *options)
    run("cmake", "--build", build, "--target", target)


# ---- embedded


def packed(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return 4-bit codes, two a byte, and the scales of their groups of 32."""
    groups = values.reshape(-1, 32)
    scales = (np.abs(groups).max(axis=1) / 7).astype(np.float16)
    codes = np.clip(np.rint(groups / scales[:, None].astype(np.float32)), -8, 7).astype(np.int64) + 8
    codes = codes.reshape(values.shape)
    content = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    shape = (values.shape[0], values.shape[1] // 32)
    return Tensor("U8", content.shape, content.tobytes()), Tensor("F16", shape, scales.tobytes())


def adapted_pair(directory: Path) -> tuple[Path, Path]:
    """Write a base and a release with an adapter merged: floats, codes of 8 bits, and packed codes of 4."""
    rng = np.random.default_rng(1)
    before, after = dict[str, Tensor](), dict[str, Tensor]()
    values = tensors.weights(rng, (320, 300))
    adapter = rng.standard_normal((320, 2)) @ rng.standard_normal((2, 300)) * 2e-3
    for made, these in ((before, values), (after, (values + adapter).astype(np.float32))):
        made["float.weight"] = tensors.encode(these, "BF16")
        codes, made["codes.weight_scale"], _ = tensors.quantised(these)
        made["codes.weight"] = codes
    values = tensors.weights(rng, (128, 256))
    for made, these in ((before, values), (after, tensors.tuned(rng, values, 1e-3))):
        codes, made["pairs.scales"] = packed(these)
        made["pairs.qweight"] = codes
    return (
        tensors.write(directory / "old.safetensors", before),
        tensors.write(directory / "new.safetensors", after),
    )


@pytest.fixture(scope="module")
def apply_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its reader builds it: with CMake, which builds the core as a static library."""
    build = tmp_path_factory.mktemp("apply_block")
    cmake_build(EXAMPLE, build, UNOPTIMISED)
    return build / "apply_block"


@pytest.mark.needs("cmake")
@pytest.mark.parametrize("make", [adapted_pair, tensors.pair])
def test_a_c_program_applies_a_patch(apply_block: Path, tmp_path: Path, make: object) -> None:
    """With the core and a hundred lines of C, a real patch gives the new file, byte for byte."""
    assert callable(make)
    old, new = make(tmp_path)
    patch.diff(old, new, tmp_path / "p")
    (tmp_path / "laid").mkdir()
    blocks = lay_out(old, tmp_path / "p", tmp_path / "laid")
    made = tmp_path / "laid" / "new"
    assert made.read_bytes() != new.read_bytes()
    run(apply_block, old, made, *blocks)
    assert made.read_bytes() == new.read_bytes()


def test_an_adapted_pair_shows_the_modes_of_large_models(tmp_path: Path) -> None:
    """The patch that the C program applies has predicted floats and codes, and packed codes."""
    old, new = adapted_pair(tmp_path)
    patch.diff(old, new, tmp_path / "p")
    (file,) = read_header(tmp_path / "p").files
    modes = {(plane.dtype.name, segment.mode) for plane, segment, _ in segments_of(file)}
    assert {("BF16", Mode.PREDICTED), ("I8", Mode.PREDICTED), ("U8", Mode.PAIRS)} <= modes


@pytest.mark.needs("cmake")
def test_a_c_program_refuses_a_damaged_block(apply_block: Path, tmp_path: Path) -> None:
    """The status of the core reaches the user; nothing is written."""
    old, new = tensors.pair(tmp_path)
    patch.diff(old, new, tmp_path / "p")
    (tmp_path / "laid").mkdir()
    blocks = lay_out(old, tmp_path / "p", tmp_path / "laid")
    made = tmp_path / "laid" / "new"
    before, broken = made.read_bytes(), bytearray(blocks[0].read_bytes())
    length = int.from_bytes(broken[16:24], "little")
    broken[-length : -length + 4] = bytes(4)  # a state of the decoder that no encoder leaves
    blocks[0].write_bytes(broken)
    done = subprocess.run([apply_block, old, made, blocks[0]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert made.read_bytes() == before


OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in ("clang", "clang-14", "ziglang")]


@pytest.mark.needs("cmake")
@pytest.mark.parametrize("compiler", ["gcc", *OTHERS])
def test_cmake_builds_both_libraries(compiler: str, tmp_path: Path) -> None:
    """Shared and static, without a warning, with each compiler that this machine has."""
    if compiler == "ziglang" and importlib.util.find_spec("ziglang"):
        path = tmp_path / "zig-cc"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc "$@"\n')
        path.chmod(0o755)
        compiler = str(path)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    options = (UNOPTIMISED, f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_C_FLAGS=-Werror")
    cmake_build(NATIVE, tmp_path / "build", *options)
    cmake_build(NATIVE, tmp_path / "build", *options, target="wpatch_static")
    names = {path.name for path in (tmp_path / "build").rglob("libwpatch.*")}
    assert "libwpatch.a" in names
    assert len(names) == 2


# ---- other machines


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Laid:
    """Blocks of every mode and element type that this machine made."""
    return write_every_kind(tmp_path_factory.mktemp("laid"))


def agree(laid: Laid, runner: list[str], *compiler: str | Path, out: Path) -> None:
    """Build the core and the driver with a compiler; decode and encode all blocks with what comes out."""
    driver = Path(__file__).with_name("vectors_main.c")
    includes = (f"-I{EXAMPLE}", f"-I{NATIVE}")
    run(*compiler, *STRICT, *includes, *sorted(NATIVE.glob("*.c")), driver, "-static", "-o", out)
    printed = run(*runner, out, laid.base, laid.new, *laid.blocks)
    assert printed == f"{len(laid.blocks)} blocks agree\n"


def test_blocks_of_every_kind_are_laid_out(laid: Laid) -> None:
    """What other machines are asked about is two blocks of every mode and type, and factors apart."""
    assert len(laid.blocks) > 2 * len(KINDS)


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
def test_a_phone_decodes_and_encodes_the_same(laid: Laid, tmp_path: Path) -> None:
    """On aarch64, every block gives the same elements, and they the same block."""
    agree(laid, ["qemu-aarch64"], "aarch64-linux-gnu-gcc", out=tmp_path / "driver")


@pytest.mark.needs("s390x-linux-gnu-gcc", "qemu-s390x")
def test_a_big_endian_machine_decodes_and_encodes_the_same(laid: Laid, tmp_path: Path) -> None:
    """On s390x, whose numbers lie the other way round, every block gives the same elements, and they it."""
    agree(laid, ["qemu-s390x"], "s390x-linux-gnu-gcc", out=tmp_path / "driver")


@needs_zig
@pytest.mark.long
def test_a_machine_of_32_bits_decodes_and_encodes_the_same(laid: Laid, tmp_path: Path) -> None:
    """Where sizes and pointers have 32 bits, every block gives the same elements, and they the same block."""
    agree(laid, [], *ZIG, "-target", "x86-linux-musl", out=tmp_path / "driver")


STRING_H = """
#include <stddef.h>
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *at, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
"""


@needs_zig
@pytest.mark.long
@pytest.mark.parametrize(
    "target",
    [
        *("aarch64-macos", "aarch64-ios", "aarch64-linux-android", "arm-linux-androideabi"),
        *("x86_64-windows-gnu", "wasm32-wasi", "riscv64-linux-musl"),
    ],
)
def test_the_core_compiles_for_other_systems(target: str, tmp_path: Path) -> None:
    """The sources have no warning there either, and want but four functions of a system's library."""
    (tmp_path / "string.h").write_text(STRING_H)
    headers = ("-ffreestanding", "-I", tmp_path)
    for source in sorted(NATIVE.glob("*.c")):
        run(*ZIG, "-target", target, *STRICT, *headers, "-c", source, "-o", tmp_path / f"{source.stem}.o")

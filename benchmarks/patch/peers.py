"""Every codec of the table behind one face: make a patch between files, apply it between files.

wpatch itself is one of them, with a base and without. The others, by what they know:

bytes against a base
    bsdiff4, HDiffPatch (its own zstd), xdelta3 (Debian's program, else the binding on PyPI),
    ``zstd --patch-from`` at levels 3 and 19.
tensors against a base (see :mod:`tensor_peers`)
    pcodec on the integer difference, exclusive-or with byte planes, units-in-the-last-place difference
    through OpenZL, FM-Delta, and z4ai's ``model_delta``.
no base
    zstd -19, ZipNN and z4ai at its best effort.

All are on PyPI but two: xdelta3's program (``apt-get install xdelta3``), and FM-Delta, whose code is at
github.com/ningwanyi/FM-Delta and makes a module ``fmd`` with Cython 0.29 (it knows 16, 32 and 64 bit floats).
What is not installed is named with the reason, never left out in silence. z4ai's ``model_delta`` reads
safetensors alone; GGUF goes through its ``compress_delta`` for aligned buffers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import frames

Make = Callable[[Path, Path, Path], None]
Apply = Callable[[Path, Path, Path], None]


@dataclass(frozen=True)
class Peer:
    """A codec.

    Attributes:
        name: in the table.
        modules: what must be importable.
        program: what must be on the path, "" for nothing.
        load: returns make (old, new, delta) and apply (old, delta, made); imports what it needs.
        has_base: whether it uses the old file.
        is_slow: takes minutes on files of tens of megabytes.
        only: the starts of the pairs' names it knows; empty for all.
    """

    name: str
    modules: tuple[str, ...]
    load: Callable[[], tuple[Make, Apply]]
    program: str = ""
    has_base: bool = True
    is_slow: bool = False
    only: tuple[str, ...] = ()

    def missing(self) -> str:
        """Return why it cannot run here, "" when it can."""
        for module in self.modules:
            if find_spec(module) is None:
                return f"{module} is not installed"
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        return ""

    def knows(self, pair: str) -> bool:
        """Whether it has an answer for files of this kind."""
        return not self.only or pair.startswith(self.only)


# The factors that an adapter's merge leaves beside the pair it made.
HINT = "factors.safetensors"
FLOATS = ("bf16", "f16", "f32", "gguf-bf16")


def _wpatch(has_base: bool, threads: int = 1) -> tuple[Make, Apply]:
    from autoglm import patch

    def make(old: Path, new: Path, delta: Path) -> None:
        hint = old.with_name(HINT)
        given = {"hint": hint} if has_base and hint.exists() else {}
        patch.diff(old if has_base else None, new, delta, threads=threads, **given)

    def apply(old: Path, delta: Path, made: Path) -> None:
        patch.apply(old if has_base else None, delta, made, threads=threads)

    return make, apply


def _zstd_patch(level: int) -> tuple[Make, Apply]:
    return partial(frames.make_patch, level), frames.apply_patch


def _zstd_program() -> tuple[Make, Apply]:
    return partial(frames.make_patch, 19), frames.apply_patch_by_program


def _zstd_alone() -> tuple[Make, Apply]:
    def make(old: Path, new: Path, delta: Path) -> None:
        delta.write_bytes(frames.pack(new.read_bytes()))

    def apply(old: Path, delta: Path, made: Path) -> None:
        made.write_bytes(frames.unpack(delta.read_bytes()))

    return make, apply


def _in_memory(
    diff: Callable[[bytes, bytes], bytes], patch: Callable[[bytes, bytes], bytes]
) -> tuple[Make, Apply]:
    """Put a codec of (old, new) -> delta and (old, delta) -> new between files."""

    def make(old: Path, new: Path, delta: Path) -> None:
        delta.write_bytes(diff(old.read_bytes(), new.read_bytes()))

    def apply(old: Path, delta: Path, made: Path) -> None:
        made.write_bytes(patch(old.read_bytes(), delta.read_bytes()))

    return make, apply


def _bsdiff() -> tuple[Make, Apply]:
    import bsdiff4

    return _in_memory(bsdiff4.diff, bsdiff4.patch)


def _hdiff() -> tuple[Make, Apply]:
    import hdiffpatch

    def diff(old: bytes, new: bytes) -> bytes:
        return hdiffpatch.diff(old, new, hdiffpatch.COMPRESSION_ZSTD)

    return _in_memory(diff, hdiffpatch.apply)


def _xdelta_program() -> tuple[Make, Apply]:
    def make(old: Path, new: Path, delta: Path) -> None:
        window = str(max(1 << 20, 1 << old.stat().st_size.bit_length()))
        options = ("-e", "-9", "-S", "lzma", "-B", window, "-f", "-s")
        frames.run("xdelta3", *options, str(old), str(new), str(delta))

    def apply(old: Path, delta: Path, made: Path) -> None:
        window = str(max(1 << 20, 1 << old.stat().st_size.bit_length()))
        frames.run("xdelta3", "-d", "-B", window, "-f", "-s", str(old), str(delta), str(made))

    return make, apply


def _xdelta_binding() -> tuple[Make, Apply]:
    import xdelta3

    return _in_memory(xdelta3.encode, xdelta3.decode)


def _tensors(codec: str) -> tuple[Make, Apply]:
    module = import_module("tensor_peers")
    return module.coder(getattr(module, codec)())


def _z4ai_delta() -> tuple[Make, Apply]:
    import z4ai

    def make(old: Path, new: Path, delta: Path) -> None:
        before, after = old.read_bytes(), new.read_bytes()
        if new.suffix == ".safetensors":
            made = z4ai.model_delta.compress(after, before, threads=1)
        else:
            made = z4ai.compress_delta(after, before)
        delta.write_bytes(made)

    def apply(old: Path, delta: Path, made: Path) -> None:
        whole = z4ai.model_delta if old.suffix == ".safetensors" else z4ai.delta
        made.write_bytes(whole.decompress(delta.read_bytes(), old.read_bytes()))

    return make, apply


def _z4ai_alone() -> tuple[Make, Apply]:
    import z4ai

    from planes import main_dtype

    def make(old: Path, new: Path, delta: Path) -> None:
        kind = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}.get(main_dtype(new))
        delta.write_bytes(z4ai.compress(new.read_bytes(), dtype=kind, effort="max", threads=1))

    def apply(old: Path, delta: Path, made: Path) -> None:
        made.write_bytes(z4ai.decompress(delta.read_bytes()))

    return make, apply


def _zipnn() -> tuple[Make, Apply]:
    import zipnn

    from planes import main_dtype

    def codec(like: Path) -> zipnn.ZipNN:
        dtype = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[main_dtype(like)]
        return zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)

    def make(old: Path, new: Path, delta: Path) -> None:
        delta.write_bytes(codec(new).compress(bytearray(new.read_bytes())))

    def apply(old: Path, delta: Path, made: Path) -> None:
        made.write_bytes(codec(old).decompress(bytearray(delta.read_bytes())))

    return make, apply


OURS, FULL = "wpatch", "wpatch, no base"
ZSTD_19, BSDIFF, ZSTD_PROGRAM = "zstd -19 patch-from", "bsdiff4", "zstd -d (program)"


def codecs(threads: int = 1) -> tuple[Peer, ...]:
    """Return every codec; ``threads`` is for ours, the others have one."""
    xdelta = Peer("xdelta3", (), _xdelta_program, program="xdelta3")
    if xdelta.missing():
        xdelta = Peer("xdelta3", ("xdelta3",), _xdelta_binding)
    return (
        Peer(OURS, (), partial(_wpatch, True, threads)),
        Peer("zstd -3 patch-from", (), partial(_zstd_patch, 3)),
        Peer(ZSTD_19, (), partial(_zstd_patch, 19), is_slow=True),
        Peer(BSDIFF, ("bsdiff4",), _bsdiff, is_slow=True),
        Peer("HDiffPatch (zstd)", ("hdiffpatch",), _hdiff, is_slow=True),
        xdelta,
        Peer("pcodec, difference", ("pcodec",), partial(_tensors, "PcodecDifference")),
        Peer("XOR, planes, zstd -19", (), partial(_tensors, "XorPlanes"), is_slow=True),
        Peer("OpenZL, ulp difference", ("openzl",), partial(_tensors, "OpenZLDifference")),
        Peer("FM-Delta", ("fmd",), partial(_tensors, "FMDelta"), only=FLOATS),
        Peer("z4ai delta", ("z4ai",), _z4ai_delta),
        Peer(FULL, (), partial(_wpatch, False, threads), has_base=False),
        Peer("zstd -19, no base", (), _zstd_alone, has_base=False, is_slow=True),
        Peer("ZipNN, no base", ("zipnn",), _zipnn, has_base=False, only=FLOATS),
        Peer("z4ai max, no base", ("z4ai",), _z4ai_alone, has_base=False, is_slow=True),
    )


def program_decoder() -> Peer:
    """Return zstd's own program as the decoder of what ``zstd -19 --patch-from`` made."""
    return Peer(ZSTD_PROGRAM, (), _zstd_program, program="zstd")

"""Hostile headers: each rule of the format, broken by a package that is otherwise in order."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.errors import PackageError
from autoglm.patch import zstd
from autoglm.patch.header import PREAMBLE, parse_header, write_header
from autoglm.patch.package import (
    BaseFile,
    Block,
    Curve,
    Dtype,
    Header,
    Mode,
    OutputFile,
    Plane,
    Scales,
    Segment,
)

HASH = "ab" * 32
BLOCK = Block(30, 0, b"h" * 32)
TABLE = (2048, *[0] * 63)


def raw_file(path: str = "a", size: int = 10, **segment: int) -> OutputFile:
    plane = Plane("", Dtype.BYTES, (size,), (Segment(Mode.RAW, size, **segment),))
    return OutputFile(path, size, HASH, (plane,))


def coded_file(plane: Plane) -> OutputFile:
    return OutputFile("m", plane.length, HASH, (plane,))


RAW = Header(False, (), (), (raw_file(),), (BLOCK,))
DIFFERENCE = Segment(Mode.DIFFERENCE, 80, 0)
PLANE = Plane("t", Dtype.I8, (8, 10), (DIFFERENCE,))
CODED = Header(
    False, (BaseFile("m", 1000, HASH),), (TABLE,), (coded_file(PLANE),), (Block(30, 80, b"h" * 32),)
)
ROW_SCALES = Scales(Dtype.F16, 10, old=100, new=0)
SCALED = replace(DIFFERENCE, mode=Mode.SCALED, scales=ROW_SCALES)
SCALES = Plane("s", Dtype.F16, (8,), (Segment(Mode.SAME, 16, 0),))
CURVE = Curve(rank=4, drop=3, limit=500, classes=77, slope=-300, bend=20, shift=-2)
PREDICTED = replace(DIFFERENCE, mode=Mode.PREDICTED, top=9, curve=CURVE, factor_tables=b"\0")
INLINE = Block(30, 80 + (8 + 10) * 4, b"h" * 32)
# Too many elements for one block: the factors have their own.
LARGE = Plane("t", Dtype.I8, (600, 1000), (replace(PREDICTED, length=600_000),))
FACTORS = Block(40, (600 + 1000) * 4, b"f" * 32)
HALVES = (Block(30, 1 << 19, b"h" * 32), Block(30, 600_000 - (1 << 19), b"h" * 32))
RECORDS = Plane("q", Dtype.Q4_0, (2, 3), (Segment(Mode.DIFFERENCE, 108, 0),))


def with_plane(plane: Plane) -> Header:
    return replace(CODED, files=(coded_file(plane),))


def with_segment(**changes: object) -> Header:
    return with_plane(replace(PLANE, segments=(replace(DIFFERENCE, **changes),)))  # pyright: ignore


def scaled(**changes: object) -> Header:
    plane = replace(PLANE, segments=(replace(SCALED, **changes),))  # pyright: ignore
    return replace(CODED, files=(OutputFile("m", 96, HASH, (SCALES, plane)),))


def with_scales(**changes: object) -> Header:
    return scaled(scales=replace(ROW_SCALES, **changes))  # pyright: ignore


def predicted(**changes: object) -> Header:
    plane = replace(PLANE, segments=(replace(PREDICTED, **changes),))  # pyright: ignore
    return replace(with_plane(plane), blocks=(INLINE,))


def large(*blocks: Block) -> Header:
    return replace(with_plane(LARGE), base_files=(BaseFile("m", 1 << 20, HASH),), blocks=blocks)


def with_curve(**changes: object) -> Header:
    return predicted(curve=replace(CURVE, **changes))  # pyright: ignore


def paired(dtype: Dtype = Dtype.U8, **changes: object) -> Header:
    segment = replace(DIFFERENCE, mode=Mode.PAIRS, **changes)  # pyright: ignore
    plane = replace(PLANE, dtype=dtype, segments=(segment,))
    return replace(CODED, files=(OutputFile("m", 96, HASH, (SCALES, plane)),))


def records(elements: int) -> Header:
    return replace(with_plane(RECORDS), blocks=(Block(30, elements, b"h" * 32),))


def test_a_header_survives_writing_and_reading() -> None:
    """What was written is read, with its length and hash."""
    two = replace(CODED, files=tuple(replace(CODED.files[0], path=path) for path in "ab"))
    shared = replace(two, tables=(TABLE, TABLE), blocks=CODED.blocks * 2)
    written = (
        *(RAW, CODED, scaled(), predicted(), paired(), paired(scales=ROW_SCALES), records(102), shared),
        predicted(tables=bytes(72), factor_tables=bytes(64)),
        large(FACTORS, *HALVES),
    )
    for header in written:
        read = parse_header(write_header(header))
        assert replace(read, length=0, sha256="") == header


HOSTILE: dict[str, Header] = {
    "a path that climbs": replace(RAW, files=(raw_file("../a"),)),
    "an absolute path": replace(RAW, files=(raw_file("/a"),)),
    "a drive": replace(RAW, files=(raw_file("c:a"),)),
    "a newline": replace(RAW, files=(raw_file("a\nb"),)),
    "a temporary's name": replace(RAW, files=(raw_file(".tmp-a"),)),
    "a climbing base": replace(CODED, base_files=(BaseFile("../m", 1000, HASH),)),
    "a path listed twice": replace(RAW, files=(raw_file(), raw_file()), blocks=(BLOCK, BLOCK)),
    "a file as a folder": replace(RAW, files=(raw_file("a"), raw_file("a/b")), blocks=(BLOCK, BLOCK)),
    "two single files": replace(RAW, single=True, files=(raw_file(), raw_file("b")), blocks=(BLOCK, BLOCK)),
    "planes that are too short": replace(RAW, files=(replace(raw_file(), size=11),)),
    "segments that are too short": with_plane(replace(PLANE, shape=(9, 10))),
    "a missing block": replace(RAW, blocks=()),
    "a block too many": replace(RAW, blocks=(BLOCK, BLOCK)),
    "a coded block for raw bytes": replace(RAW, blocks=(Block(30, 10, b"h" * 32),)),
    "a raw block for elements": replace(CODED, blocks=(BLOCK,)),
    "a block of too few elements": replace(CODED, blocks=(Block(30, 79, b"h" * 32),)),
    "a block of too many elements": replace(CODED, blocks=(Block(30, 81, b"h" * 32),)),
    "an empty block": replace(RAW, blocks=(Block(0, 0, b"h" * 32),)),
    "a huge block": replace(RAW, blocks=(Block(1 << 24, 0, b"h" * 32),)),
    "a huge raw segment": replace(RAW, files=(raw_file(size=5 << 20),)),
    "a dictionary without a base": replace(RAW, files=(raw_file(dictionary=100),)),
    "a tiny dictionary": replace(CODED, files=(raw_file(base=0, dictionary=7),), blocks=(BLOCK,)),
    "a dictionary outside the base": replace(
        CODED, files=(raw_file(base=0, dictionary=100, base_offset=901),), blocks=(BLOCK,)
    ),
    "an unknown base": with_segment(base=1),
    "no base": with_segment(base=-1),
    "reading behind the base": with_segment(base_offset=921),
    "an unknown table": with_segment(tables=b"\x01"),
    "too few contexts": with_segment(tables=b"\0\0"),
    "too many contexts": with_segment(tables=b"\0" * 20),
    "more contexts than any mode has": with_segment(tables=b"\0" * 641),
    "no contexts": with_segment(tables=b""),
    "an exponent out of range": with_segment(top=256),
    "a type that is not coded": with_plane(replace(PLANE, dtype=Dtype.I64, shape=(10,))),
    "half an element": with_plane(
        Plane("t", Dtype.F16, (40,), (replace(DIFFERENCE, length=41), replace(DIFFERENCE, length=39)))
    ),
    "scales made too late": with_scales(new=20),
    "old scales outside the base": with_scales(old=985),
    "scales that are codes": with_scales(dtype=Dtype.I8),
    "groups that do not divide a row": with_scales(group=4),
    "a group of nothing": with_scales(group=1 << 29),
    "a scaled plane without scales": scaled(scales=None),
    "factors without a block": large(*HALVES),
    "a block of too few factors": large(replace(FACTORS, elements=6399), *HALVES),
    "factors behind their elements": large(*HALVES, FACTORS),
    "inline factors in a block of their own": replace(
        predicted(), blocks=(Block(30, 72, b"f" * 32), *CODED.blocks)
    ),
    "elements without their inline factors": replace(predicted(), blocks=CODED.blocks),
    "a predicted plane in two blocks": replace(
        predicted(), blocks=(Block(30, 100, b"h" * 32), Block(30, 52, b"h" * 32))
    ),
    "no rank": with_curve(rank=0),
    "too high a rank": with_curve(rank=65),
    "no limit": with_curve(limit=0),
    "too high a limit": with_curve(limit=32768),
    "too wide a drop": with_curve(drop=32),
    "too wide a shift": with_curve(shift=32),
    "too steep a curve": with_curve(slope=65530, bend=6),
    "too many classes": with_curve(classes=65536),
    "a wrong number of factor contexts": predicted(factor_tables=b"\0\0"),
    "an unknown factor table": predicted(factor_tables=b"\1"),
    "too many factors": replace(
        with_plane(Plane("t", Dtype.I8, (1 << 20, 4), (replace(PREDICTED, length=4 << 20),))),
        base_files=(BaseFile("m", 4 << 20, HASH),),
        blocks=(Block(40, ((1 << 20) + 4) * 4, b"f" * 32), *(Block(30, 1 << 19, b"h" * 32),) * 8),
    ),
    "predicted bytes": with_plane(Plane("t", Dtype.BYTES, (8, 10), (PREDICTED,))),
    "predicted floats with scales": replace(
        CODED,
        files=(
            OutputFile(
                "m",
                176,
                HASH,
                (
                    SCALES,
                    Plane(
                        "t",
                        Dtype.BF16,
                        (8, 10),
                        (replace(PREDICTED, length=160, scales=replace(ROW_SCALES, group=10)),),
                    ),
                ),
            ),
        ),
        blocks=(INLINE,),
    ),
    "pairs of floats": paired(Dtype.F8_E4M3),
    "a block that ends within a record": records(101),
    "records that are scaled": replace(
        records(102), files=(coded_file(replace(RECORDS, segments=(replace(SCALED, length=108),))),)
    ),
    "scaled floats": with_plane(Plane("t", Dtype.F16, (4, 10), (replace(SCALED, tables=b"\0"),))),
    "a scaled part of a plane": with_plane(
        replace(PLANE, segments=(replace(SCALED, length=40), replace(SCALED, length=40)))
    ),
    "a table that sums to less": replace(CODED, tables=((2047, *[0] * 63),)),
    "a table that sums to more": replace(CODED, tables=((2047, 2, *[0] * 62),)),
    "too many tables": replace(CODED, tables=(TABLE,) * 65),
    "a plane too large to be": replace(
        RAW, files=(OutputFile("a", 1 << 44, HASH, (Plane("", Dtype.F64, (1 << 44,), ()),)),), blocks=()
    ),
    "too many planes in all": replace(
        RAW,
        files=tuple(OutputFile(path, 0, HASH, (Plane("", Dtype.I8, (0,), ()),) * 30_000) for path in "ab"),
        blocks=(),
    ),
    "a name too long": with_plane(replace(PLANE, name="n" * 513)),
    "too many dimensions": with_plane(replace(PLANE, shape=(8, 10, 1, 1, 1, 1, 1, 1, 1))),
}


@pytest.mark.parametrize("rule", HOSTILE)
def test_a_header_that_breaks_a_rule_is_refused(rule: str) -> None:
    """Every rule has its package that breaks it, and no other error than PackageError comes out."""
    with pytest.raises(PackageError):
        parse_header(write_header(HOSTILE[rule]))


def packed(body: bytes, version: int = 2, reserved: int = 0, length: int | None = None) -> bytes:
    stored = zstd.compress(body)
    size = len(body) if length is None else length
    check = hashlib.sha256(stored).digest()[:8]
    return PREAMBLE.pack(b"\x89WPATCH\n", version, reserved, len(stored), size, check) + stored


WRITTEN = write_header(CODED)
BODY = zstd.decompress(WRITTEN[PREAMBLE.size :], PREAMBLE.unpack(WRITTEN[: PREAMBLE.size])[4])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x89WPATCH\n",
        packed(BODY, version=1),
        packed(BODY, reserved=1),
        packed(BODY, length=len(BODY) + 1),
        packed(BODY, length=len(BODY) - 1),
        packed(BODY, length=1 << 23),
        packed(BODY + b"\0"),
        packed(BODY[:-1]),
        packed(b""),
        packed(b"\x80\x00" + BODY[1:]),
        packed(b"\xff" * 40),
        packed(b"\x02" + BODY[1:]),
        packed(b"\0\xff\xff\xff\x7f"),
        packed(BODY) + b"\0",
        packed(BODY)[:-1],
    ],
)
def test_bytes_that_are_no_header_are_refused(raw: bytes) -> None:
    """Wrong magic, version, lengths, numbers with needless bytes, counts beyond the body."""
    with pytest.raises(PackageError):
        parse_header(raw)


@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(BODY) - 1), st.integers(0, 255)), max_size=4))
def test_an_edited_body_is_read_or_refused(edits: list[tuple[int, int]]) -> None:
    """Behind a valid frame, any change of the body gives a header in order or a PackageError."""
    body = bytearray(BODY)
    for at, value in edits:
        body[at] = value
    with contextlib.suppress(PackageError):
        parse_header(packed(bytes(body)))


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200))
def test_an_arbitrary_body_is_read_or_refused(body: bytes) -> None:
    """Nothing but PackageError comes out of the parser."""
    with contextlib.suppress(PackageError):
        parse_header(packed(body))


def test_every_bit_of_a_header_counts() -> None:
    """Even those that zstd ignores: a flipped bit of a header that nobody pinned is noticed."""
    for at in range(8 * len(WRITTEN)):
        broken = bytearray(WRITTEN)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(PackageError):
            parse_header(bytes(broken))


def test_a_header_bomb_is_not_unpacked() -> None:
    """A small frame that unpacks to more than it announces stops at what it announced."""
    bomb = zstd.compress(bytes(64 << 20), level=3)
    with pytest.raises(PackageError):
        zstd.decompress(bomb, 1000)

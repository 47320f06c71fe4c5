"""Pictures and recordings that are not what they say, are cut off, or promise too much."""

from __future__ import annotations

import base64
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, PngImagePlugin


def image_file(form: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 120 if mode in ("L", "P", "I;16", "1") else "red").save(file, form, **options)
    return file.getvalue()


def sound_file(
    seconds: float, rate: int = 16_000, form: str = "WAV", loud: float = 0.5, **options: Any
) -> bytes:
    wave = np.sin(np.arange(int(seconds * rate)) / rate * 440 * math.tau) * loud
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, **options)
    return file.getvalue()


def see(service: Any, content: bytes, kind: str = "png", **fields: Any) -> Any:
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return ask(service, {"type": "image_url", "image_url": {"url": uri}})


def hear(service: Any, content: bytes, form: str = "wav") -> Any:
    data = base64.b64encode(content).decode()
    return ask(service, {"type": "input_audio", "input_audio": {"data": data, "format": form}})


def ask(service: Any, part: dict[str, Any]) -> Any:
    return service.chat(messages=[{"role": "user", "content": [part]}], max_tokens=1)


def refused(answer: Any) -> str:
    """The message of a 400 that names the part."""
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("messages")
    return answer.json()["error"]["message"]


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that promises a size, with little behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=10)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 20))
    return file.getvalue()


GOOD_IMAGES: dict[str, Callable[[], bytes]] = {
    "one pixel": lambda: image_file("PNG", (1, 1)),
    "one row": lambda: image_file("PNG", (3000, 1)),
    "one column": lambda: image_file("PNG", (1, 3000)),
    "jpeg": lambda: image_file("JPEG"),
    "jpeg in four colours": lambda: image_file("JPEG", mode="CMYK"),
    "webp": lambda: image_file("WEBP"),
    "gif": lambda: image_file("GIF"),
    "bmp": lambda: image_file("BMP"),
    "grey": lambda: image_file("PNG", mode="L"),
    "two colours": lambda: image_file("PNG", mode="1"),
    "16 bit": lambda: image_file("PNG", mode="I;16"),
    "palette": lambda: image_file("PNG", mode="P"),
    "transparent": lambda: image_file("PNG", mode="RGBA"),
    "moving gif": lambda: animated("GIF"),
    "moving webp": lambda: animated("WEBP"),
    "moving png": lambda: animated("PNG"),
    "bytes behind the end": lambda: image_file("PNG") + zipped(),
}


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_a_picture_is_told_by_its_bytes(service: Any, name: str) -> None:
    """Every kind that is read, however small, whatever the address says it is; of a film the start."""
    for kind in ("png", "jpeg"):
        answer = see(service, GOOD_IMAGES[name](), kind)
        assert answer.status_code == 200, answer.text


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (80 << 20), zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def wide_gif(side: int) -> bytes:
    size = struct.pack("<HH", side, side)
    return b"GIF89a" + size + bytes(3) + b",\0\0\0\0" + size + b"\0\x02\x02L\x01\0;"


def bmp_of(width: int, height: int) -> bytes:
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + about


BAD_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a picture",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "zip": zipped,
    "pdf": lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj",
    "tiff": lambda: image_file("TIFF"),
    "icon": lambda: image_file("ICO", (32, 32)),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "wave": lambda: sound_file(0.1),
    "html": lambda: b"<!doctype html><img src=x onerror=alert(1)>",
    "png of 60000 x 60000": lambda: png_of(60_000, 60_000),
    "png of 4 billion columns": lambda: png_of(0xFFFFFFFF, 1),
    "png without pixels": lambda: png_of(0, 10),
    "png of 8000 x 8000": lambda: image_file("PNG", (8000, 8000), "1"),
    "png with too little": lambda: png_of(1000, 1000),
    "png full of text": text_bomb,
    "gif of 65535 x 65535": lambda: wide_gif(65_535),
    "bmp of 30000 x 30000": lambda: bmp_of(30_000, 30_000),
    "bmp upside down and endless": lambda: bmp_of(1 << 30, -(1 << 30)),
    "webp head": lambda: b"RIFF\x20\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_what_is_no_picture_or_too_much_of_one_is_refused(service: Any, name: str) -> None:
    """Other kinds of file, bombs, and files with too little in them: a 400 that names the part."""
    message = refused(see(service, BAD_IMAGES[name]()))
    assert "/" not in message.replace("and/or", ""), "no paths, no addresses"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_cut_off_anywhere_is_answered(service: Any, form: str) -> None:
    """At every eighth of a file: an answer or a 400, never anything else."""
    whole = image_file(form, (64, 64))
    statuses = {see(service, whole[: len(whole) * part // 8]).status_code for part in range(8)}
    assert statuses <= {200, 400}
    assert 400 in statuses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,====",
        "data:image/png;base64,a",
        "data:image/png;base64,iVBORw0KGgo\n",
        "data:image/png;base64,\u00e4\u00f6",
        "data:image/png;base32,abc",
        "data:;base64,aGk=",
        "data:application/zip;base64,UEsDBA==",
        "data:image/" + "x" * 100 + ";base64,aGk=",
        "data:image/png;" + "a=b;" * 50 + "base64,aGk=",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1/",
        "//127.0.0.1/a.png",
        "/etc/passwd",
        "blob:http://127.0.0.1/x",
        "javascript:alert(1)",
        "HTTP://127.0.0.1/",
        " http://127.0.0.1/",
    ],
)
def test_an_address_that_holds_no_picture_is_refused(service: Any, url: str) -> None:
    """Broken data URIs and every other scheme; nothing is opened or fetched."""
    refused(ask(service, {"type": "image_url", "image_url": {"url": url}}))


def test_a_large_screenshot_is_fine_where_the_limit_allows_it(start_service: Any) -> None:
    """8000 x 8000 pixels are read when limits.image_mp says so."""
    service = start_service(limits={"image_mp": 64})
    assert see(service, image_file("PNG", (8000, 8000))).status_code == 200
    assert "64" in refused(see(service, image_file("PNG", (8001, 8000), "1")))


def wave_with(data_bytes: int, content: bytes, rate: int = 16_000, bits: int = 16) -> bytes:
    """A WAV whose head says what it wants."""
    block = bits // 8
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * block & 0xFFFFFFFF, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36)
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", data_bytes)
        + content
    )


GOOD_SOUNDS: dict[str, Callable[[], bytes]] = {
    "silence": lambda: sound_file(1.0, loud=0.0),
    "one sample": lambda: wave_with(2, bytes(2)),
    "8 bit": lambda: sound_file(0.3, subtype="PCM_U8"),
    "24 bit": lambda: sound_file(0.3, subtype="PCM_24"),
    "float": lambda: sound_file(0.3, subtype="FLOAT"),
    "double": lambda: sound_file(0.3, subtype="DOUBLE"),
    "7350 Hz": lambda: sound_file(0.5, 7_350),
    "11025 Hz": lambda: sound_file(0.5, 11_025),
    "44099 Hz": lambda: sound_file(0.5, 44_099),
    "192 kHz": lambda: sound_file(0.5, 192_000),
    "mp3": lambda: sound_file(0.5, form="MP3"),
    "flac": lambda: sound_file(0.5, form="FLAC"),
    "a stream's head": lambda: wave_with(0xFFFFFFFF, bytes(8000)),
    "a head that promises more": lambda: wave_with(1 << 20, bytes(8000)),
}


@pytest.mark.parametrize("name", GOOD_SOUNDS)
def test_a_recording_is_told_by_its_bytes(service: Any, name: str) -> None:
    """Any width, any usual rate, silent or short, whatever the request says it is."""
    for form in ("wav", "mp3"):
        assert hear(service, GOOD_SOUNDS[name](), form).status_code == 200


def not_numbers() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(4000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


BAD_SOUNDS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a sound",
    "head only": lambda: wave_with(0, b""),
    "picture": lambda: image_file("PNG"),
    "zip": zipped,
    "an hour": lambda: sound_file(3600, 8_000, "FLAC", loud=0.0),
    "an hour as mp3": lambda: sound_file(3600, 8_000, "MP3", loud=0.0),
    "over the model's": lambda: sound_file(20.0),
    "1 Hz": lambda: wave_with(2000, bytes(2000), rate=1),
    "2 GHz": lambda: wave_with(2000, bytes(2000), rate=2_000_000_000),
    "0 Hz": lambda: wave_with(2000, bytes(2000), rate=0),
    "0 bits": lambda: wave_with(2000, bytes(2000), bits=0),
    "not a number": not_numbers,
    "raw": lambda: bytes(range(256)) * 8,
}


@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_what_is_no_recording_or_too_much_of_one_is_refused(service: Any, name: str) -> None:
    """Other files, an hour of silence in a few bytes, absurd rates, values that are none: a 400."""
    refused(hear(service, BAD_SOUNDS[name]()))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_recording_cut_off_anywhere_is_answered(service: Any, form: str) -> None:
    """At every eighth of a file: an answer or a 400, never anything else."""
    whole = sound_file(0.5, form=form)
    assert {hear(service, whole[: len(whole) * part // 8]).status_code for part in range(8)} <= {200, 400}

"""Pictures and sound from outside: bounded, checked, brought to the form that the model takes."""

from __future__ import annotations

import dataclasses
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from autoglm.errors import RequestError
from autoglm.model.audio import SILENCE, audio_tensor, decode_audio, log_mel, to_mono_16k
from autoglm.model.config import CONFIGS
from autoglm.model.image import decode_image, image_tensor, target_size

NANO, LARGE = CONFIGS["nano"], CONFIGS["9b"]


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wave_file(samples: np.ndarray, rate: int, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_decode_to_rgb(form: str) -> None:
    """Every accepted format arrives as RGB at its own size."""
    image = decode_image(encoded(Image.new("RGB", (30, 20), (200, 40, 40)), form))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert abs(image.getpixel((5, 5))[0] - 200) < 6


def test_transparent_pixels_become_white() -> None:
    """What is transparent shows as white, not as whatever colour lies beneath."""
    image = decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"))
    assert image.getpixel((1, 1)) == (255, 255, 255)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its few bytes never hold."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    """A header that promises too many pixels is refused with the numbers."""
    with pytest.raises(RequestError, match="5000 x 5000"):
        decode_image(bomb(5000, 5000))
    with pytest.raises(RequestError, match="pixels"):
        decode_image(bomb(60_000, 60_000))
    with pytest.raises(RequestError, match="more than 100"):
        decode_image(encoded(Image.new("RGB", (11, 10)), "PNG"), max_pixels=100)


def test_a_refusal_speaks_of_the_file_alone() -> None:
    """What is no picture or no sound is refused in plain words, without the decoder's own."""
    for decode, words in ((decode_image, "no PNG, JPEG"), (decode_audio, "Format not recognised")):
        with pytest.raises(RequestError, match=words) as caught:
            decode(b"nonsense")
        assert "object at" not in str(caught.value)


def test_damaged_pictures_are_refused() -> None:
    """A file cut off or altered at any place raises a request error or decodes; nothing else escapes."""
    whole = encoded(Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 40, 3), np.uint8)), "PNG")
    for cut in range(0, len(whole) - 30, 97):
        with pytest.raises(RequestError):
            decode_image(whole[:cut])
    for place in range(0, len(whole), 211):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            decode_image(bytes(damaged))
        except RequestError as error:
            assert error.param == "messages"


def test_formats_outside_the_list_are_refused() -> None:
    """A format that needs a rarely audited decoder is not even opened."""
    with pytest.raises(RequestError):
        decode_image(encoded(Image.new("RGB", (4, 4)), "TIFF"))


def test_every_picture_takes_the_fixed_size_of_the_small_model() -> None:
    """The small model sees 256 x 512 pixels, whatever came in."""
    for size in ((1080, 2400), (10, 10), (3000, 20)):
        assert image_tensor(Image.new("RGB", size), NANO.image).shape == (
            NANO.image.height,
            NANO.image.width,
            3,
        )


def test_the_large_model_keeps_the_shape_within_its_bound() -> None:
    """Without a fixed size, whole patches near the picture's own shape, never more than the bound."""
    assert target_size(1080, 2400, LARGE.image) == (39 * 28, 86 * 28)
    bounded = dataclasses.replace(LARGE.image, max_patches=64)
    for size in ((1080, 2400), (1, 1), (10_000, 1), (1, 10_000), (5000, 5000)):
        width, height = target_size(*size, bounded)
        assert width % 28 == height % 28 == 0
        assert 1 <= width * height // 28**2 <= 64


@pytest.mark.parametrize(
    ("rate", "form"), [(16_000, "WAV"), (44_100, "FLAC"), (8_000, "WAV"), (48_000, "OGG")]
)
def test_sound_arrives_mono_at_16_khz(rate: int, form: str) -> None:
    """Any rate and channel count becomes mono at 16 kHz, the tone still where it was."""
    stereo = np.stack([tone(rate), tone(rate)], 1)
    samples = decode_audio(wave_file(stereo, rate, form))
    assert abs(len(samples) - 8000) <= 32
    peak = np.abs(np.fft.rfft(samples[:8000])).argmax() * 16_000 / 8000
    assert abs(peak - 440) < 4


def test_resampling_does_not_fold_high_tones_down() -> None:
    """A tone above the new rate's limit disappears instead of coming back as another tone."""
    assert np.abs(to_mono_16k(tone(48_000, hertz=12_000), 48_000)).max() < 0.05


def test_many_channels_cost_no_more_memory_than_one() -> None:
    """A small file of a minute of silence on eight channels is mixed down piece by piece."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((48_000 * 60, 8), np.int16), 48_000, format="FLAC")
    content = file.getvalue()
    assert len(content) < 1 << 20
    tracemalloc.start()
    try:
        assert len(decode_audio(content, max_seconds=60)) == 60 * 16_000
        assert tracemalloc.get_traced_memory()[1] < 8 * 48_000 * 60 * 4
    finally:
        tracemalloc.stop()


def test_sound_that_cannot_be_used_is_refused() -> None:
    """Damaged, empty, endless and non-finite sound raise a request error."""
    good = wave_file(tone(16_000), 16_000)
    for bad in (b"", b"RIFF", good[:20], bytes(1000), wave_file(np.zeros(0, np.float32), 16_000)):
        with pytest.raises(RequestError):
            decode_audio(bad)
    with pytest.raises(RequestError, match="longer than"):
        decode_audio(good, max_seconds=0.25)
    for samples, rate in (
        (np.array([np.nan], np.float32), 16_000),
        (tone(16_000), 10),
        (np.zeros((4, 2)), 16_000),
    ):
        with pytest.raises(RequestError):
            to_mono_16k(samples, rate)


def test_frames_come_every_ten_milliseconds() -> None:
    """Half a second gives fifty frames and a closing one; louder sound has larger values."""
    quiet, loud = (log_mel(tone(16_000) * gain, 64) for gain in (0.01, 1.0))
    assert quiet.shape == (51, 64)
    assert loud.mean() > quiet.mean() > SILENCE
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32), 64), SILENCE, atol=1e-5)


def test_short_clips_are_padded_and_long_ones_refused() -> None:
    """A clip fills at least the shortest span, whole tokens, and at most the longest."""
    assert audio_tensor(tone(16_000, 0.1), NANO.audio).shape == (NANO.audio.min_tokens * 4, 64)
    assert len(audio_tensor(tone(16_000, 3.01), NANO.audio)) == 304
    with pytest.raises(RequestError, match="12 seconds"):
        audio_tensor(tone(16_000, 12.5), NANO.audio)

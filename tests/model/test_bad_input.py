"""Bad input for the model: a clear error or a right form, never a crash, a hang or a flood of memory."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from autoglm.errors import RequestError
from autoglm.model.audio import SILENCE, audio_tensor, decode_audio, to_mono_16k
from autoglm.model.config import CONFIGS
from autoglm.model.image import decode_image, image_tensor
from autoglm.model.prompt import AudioPart, ImagePart, Message, Processor, TextPart

NANO, LARGE = CONFIGS["nano"], CONFIGS["9b"]
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3")


def picture(form: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def noisy_picture(form: str) -> bytes:
    pixels = np.random.default_rng(4).integers(0, 255, (60, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def sound(form: str, seconds: float, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(int(seconds * rate)) * (2000.0 / rate))
    soundfile.write(file, tone, rate, format=form)
    return file.getvalue()


# Pictures


@pytest.mark.parametrize("form", PICTURES)
def test_one_pixel_is_a_picture(form: str) -> None:
    """The smallest picture there is takes the form that the model wants, at every size of model."""
    image = decode_image(picture(form, (1, 1)))
    assert image_tensor(image, NANO.image).shape == (NANO.image.height, NANO.image.width, 3)
    assert image_tensor(image, LARGE.image).shape == (28, 28, 3)


def test_a_picture_of_8000_by_8000_is_refused_by_its_header() -> None:
    """The numbers are named, and hardly a byte of its 192 million is ever there."""
    content = picture("PNG", (8000, 8000), "1")
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="8000 x 8000 pixels, more than 20000000"):
            decode_image(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(5000, 4000), (60_000, 1), (1, 60_000)])
def test_the_largest_and_the_thinnest_pictures_are_shown(size: tuple[int, int]) -> None:
    """Twenty million pixels, and a line of one pixel's width, come out within the model's bounds."""
    image = decode_image(picture("PNG", size, "1"))
    assert image_tensor(image, NANO.image).shape == (NANO.image.height, NANO.image.width, 3)
    rows, columns, _ = image_tensor(image, LARGE.image).shape
    assert 1 <= rows * columns // 28**2 <= LARGE.image.max_patches


@pytest.mark.parametrize("form", PICTURES)
def test_a_picture_cut_off_anywhere_is_an_error_or_a_picture(form: str) -> None:
    """No cut makes anything but a request error escape; a cut in the middle is never shown as whole."""
    whole = noisy_picture(form)
    with pytest.raises(RequestError):
        decode_image(whole[: len(whole) // 2])
    for cut in np.linspace(0, len(whole) - 1, 40).astype(int):
        try:
            assert decode_image(whole[:cut]).size == (40, 60)
        except RequestError as error:
            assert error.param == "messages"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_pixel_becomes_three_colours(mode: str) -> None:
    """Black and white, palettes, transparency and sixteen bits all arrive as RGB."""
    assert decode_image(picture("PNG", (5, 7), mode)).mode == "RGB"


# Sound


@pytest.mark.parametrize("form", SOUNDS)
def test_a_clip_cut_off_anywhere_is_an_error_or_a_shorter_clip(form: str) -> None:
    """What is left of a broken upload is heard, or refused; nothing else escapes."""
    whole = sound(form, 1.0)
    for cut in np.linspace(0, len(whole) - 1, 30).astype(int):
        try:
            samples = decode_audio(whole[:cut])
        except RequestError as error:
            assert error.param == "messages"
        else:
            assert 0 < len(samples) <= 20_000 and np.isfinite(samples).all()


def test_an_hour_of_sound_is_refused_without_being_decoded() -> None:
    """A small file that holds an hour costs no more memory than the thirty seconds that are allowed."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    content = file.getvalue()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="longer than 30 seconds"):
            decode_audio(content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rate", [1_000, 7_999, 11_025, 22_050, 37_800, 96_000, 192_000, 384_000])
def test_odd_sampling_rates_keep_length_and_pitch(rate: int) -> None:
    """Half a second stays half a second, and a tone of 318 Hz stays where it was."""
    samples = decode_audio(sound("WAV", 0.5, rate))
    assert abs(len(samples) - 8000) <= 16
    peak = np.abs(np.fft.rfft(samples[:8000], 16_000)).argmax()
    assert abs(peak - 2000 / (2 * np.pi)) < 4


@pytest.mark.parametrize("rate", [-1, 0, 999, 384_001, 1 << 31])
def test_absurd_sampling_rates_are_refused(rate: int) -> None:
    """A rate that no microphone has is refused with the number."""
    with pytest.raises(RequestError, match=f"{rate} Hz"):
        to_mono_16k(np.zeros(100, np.float32), rate)


def test_silence_is_heard_as_silence() -> None:
    """A silent clip is finite and constant, as is one of a single sample."""
    for samples in (np.zeros(16_000, np.float32), np.zeros(1, np.float32)):
        frames = audio_tensor(samples, NANO.audio)
        torch.testing.assert_close(frames, torch.full_like(frames, SILENCE))


# Whole prompts


@pytest.mark.parametrize(
    "part",
    [ImagePart(sound("WAV", 0.1)), AudioPart(picture("PNG", (4, 4))), ImagePart(b"%PDF-1.7"), AudioPart(b"")],
)
def test_a_file_of_another_kind_than_it_says_is_refused(processor: Processor, part: object) -> None:
    """What a file is follows from its bytes: sound sent as a picture is refused, and the reverse."""
    with pytest.raises(RequestError, match="cannot be decoded"):
        processor.prompt([Message("user", [part])], enable_thinking=False)


def test_a_file_that_is_named_wrongly_is_read_by_its_bytes(processor: Processor) -> None:
    """A JPEG where a PNG was said, an OGG where a WAV was said: nobody asks the name."""
    parts = [ImagePart(noisy_picture("JPEG")), AudioPart(sound("OGG", 0.3))]
    prompt = processor.prompt([Message("user", parts)], enable_thinking=False)
    assert (len(prompt.images), len(prompt.audios)) == (1, 1)


@pytest.mark.parametrize("content", ["", " ", "\0", "\ud800", "\u202e", "\U0001f9d1\u200d\U0001f680" * 3])
def test_empty_and_strange_texts_make_a_prompt_that_runs(processor: Processor, model, content: str) -> None:
    """No text, half a surrogate pair and controls of writing direction give finite scores."""
    prompt = processor.prompt([Message("user", content)], enable_thinking=False)
    cache = model.new_cache(1, 64)
    with torch.inference_mode():
        assert torch.isfinite(model.logits(model.prefill(prompt, cache, cache.slot(0)))).all()


def test_no_message_and_no_part_are_told_apart(processor: Processor) -> None:
    """A conversation needs a message; a message without parts is one."""
    with pytest.raises(RequestError, match="1 to 1000 messages"):
        processor.prompt([], enable_thinking=False)
    assert len(processor.prompt([Message("user", [])], enable_thinking=False)) == 4


def test_what_is_beyond_the_context_is_refused_whatever_it_is(processor: Processor) -> None:
    """A long text, many pictures and a long clip are all refused with the limit's number."""
    image, clip = ImagePart(noisy_picture("PNG")), AudioPart(sound("WAV", 1.5))
    for parts in ([TextPart("字" * 100_000)], [image] * 20, [clip] * 9):
        with pytest.raises(RequestError, match="100 tokens"):
            processor.prompt([Message("user", parts)], enable_thinking=False, max_tokens=100)

"""The synthesiser behind all recordings: espeak-ng, one process an utterance.

What it guarantees: 16 kHz mono float32 in -1..1, silence trimmed to a short margin. Every voice is one
synthesiser's: nothing here says how well human speech is understood.

    >>> synthesize("打开地图", "+m1").dtype             # doctest: +SKIP
    dtype('float32')
"""

from __future__ import annotations

import io
import subprocess
import wave

import numpy as np

from autoglm.errors import ConfigError
from autoglm.training.actions import is_chinese

SAMPLE_RATE = 16_000
MARGIN_SECONDS = 0.05

# Variants that training never has.
HELD_OUT_VOICES: tuple[str, ...] = ("+m7", "+f4", "+m2")

_AUDIBLE = 0.01  # amplitude below which a margin counts as silence
_TIMEOUT_SECONDS = 30


def synthesize(
    text: str, voice: str = "", rate_wpm: int = 170, pitch: int = 50, *, language: str = ""
) -> np.ndarray:
    """Speak ``text`` with espeak-ng, in Chinese where it holds a Chinese character, else in English.

    Args:
        text: the words.
        voice: the variant, such as ``"+m1"``; ``""`` is the plain voice.
        rate_wpm: words a minute, 80 to 450.
        pitch: 0 to 99.
        language: espeak-ng's name of a language or accent, in place of the choice by the text.

    Returns:
        float32 of shape (samples,): mono, 16 kHz, silence trimmed to 50 ms at both ends.

    Raises:
        ConfigError: espeak-ng is missing or fails, or nothing audible came out.
    """
    language = language or ("cmn-latn-pinyin" if is_chinese(text) else "en")
    command = [
        "espeak-ng",
        "-v",
        language + voice,
        "-s",
        str(rate_wpm),
        "-p",
        str(pitch),
        "--stdout",
        "--",
        text,
    ]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise ConfigError("espeak-ng is missing: install the package espeak-ng") from error
    except subprocess.SubprocessError as error:
        raise ConfigError(
            f"espeak-ng could not say {text!r} in the voice {language + voice}: {error}"
        ) from error
    rate, audio = _read_wave(done.stdout)
    return _trim(_resample(audio, round(len(audio) * SAMPLE_RATE / rate)), text)


def _read_wave(content: bytes) -> tuple[int, np.ndarray]:
    """Return rate and float samples of a 16-bit mono WAV stream whose header may state no length."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            frames = file.readframes(
                len(content)
            )  # a stream's header overstates its length; take what is there
    except (wave.Error, EOFError) as error:
        raise ConfigError(f"espeak-ng gave no sound: {error}") from error
    if width != 2 or channels != 1:
        raise ConfigError(f"espeak-ng gave {channels} channels of {width} bytes where 1 of 2 was expected")
    samples = np.frombuffer(frames[: len(frames) // 2 * 2], "<i2")
    return rate, samples.astype(np.float32) / 32768


def _resample(audio: np.ndarray, length: int) -> np.ndarray:
    """Resample to ``length`` samples through the spectrum: what the new rate cannot carry is cut off."""
    if length == len(audio) or not len(audio):
        return audio
    spectrum = np.fft.rfft(audio)
    kept = np.zeros(length // 2 + 1, spectrum.dtype)
    common = min(len(kept), len(spectrum))
    kept[:common] = spectrum[:common]
    return (np.fft.irfft(kept, length) * (length / len(audio))).astype(np.float32)


def _trim(audio: np.ndarray, text: str) -> np.ndarray:
    audible = np.flatnonzero(np.abs(audio) > _AUDIBLE)
    if not len(audible):
        raise ConfigError(f"espeak-ng said nothing for {text!r}")
    margin = int(MARGIN_SECONDS * SAMPLE_RATE)
    return audio[max(0, audible[0] - margin) : audible[-1] + margin + 1]

"""Sound in: bounded decoding of untrusted bytes, resampling, and log-mel frames of 10 ms."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoglm.errors import RequestError
from autoglm.model.config import AudioConfig

SAMPLE_RATE = 16_000
MAX_SECONDS = 30.0
FRAMES_PER_TOKEN = 4
SILENCE = -2.0  # the value of a frame of silence after scaling
_WINDOW, _HOP, _FFT = 400, 160, 512
_FLOOR = 1e-6
_MAX_RATE = 384_000
_PIECE_FRAMES = 1 << 16

Samples = NDArray[np.float32]


def decode_audio(content: bytes, max_seconds: float = MAX_SECONDS) -> Samples:
    """Decode a WAV, FLAC, OGG, MP3, ... file into mono samples at 16 kHz.

    Args:
        content: the file's bytes.
        max_seconds: longer clips are refused before they are decoded.

    Returns:
        (n,) float32 in -1..1.

    Raises:
        RequestError: not such a file, damaged, empty, or too long.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels = file.samplerate, file.channels
            _check_shape(rate, channels)
            samples = _read_mono(file, int(max_seconds * rate) + 1)
    except RequestError:
        raise
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise RequestError(f"the audio cannot be decoded: {reason}", param="messages") from error
    except Exception as error:
        raise RequestError(f"the audio cannot be decoded: {str(error)[:200]}", param="messages") from error
    if len(samples) > max_seconds * rate:
        raise RequestError(f"the audio is longer than {max_seconds:g} seconds", param="messages")
    return to_mono_16k(samples, rate)


def _read_mono(file: soundfile.SoundFile, max_frames: int) -> Samples:
    """Return the channels' mean, (n,) float32 with n <= ``max_frames``.

    The header's length is only a promise, so reading is bounded; and it is done in pieces, because a few
    compressed megabytes can hold minutes of silence on dozens of channels.
    """
    pieces: list[Samples] = []
    left = max_frames
    while left and len(piece := file.read(min(left, _PIECE_FRAMES), dtype="float32", always_2d=True)):
        pieces.append(piece.mean(1))
        left -= len(piece)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def to_mono_16k(samples: NDArray[Any], rate: int) -> Samples:
    """Return mono samples at 16 kHz from (n,) samples in -1..1 at ``rate``.

    Raises:
        RequestError: no samples, more than one dimension, values that are not finite, or an absurd rate.
    """
    _check_shape(rate, 1)
    values = np.asarray(samples, dtype=np.float32)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise RequestError("the audio must be a non-empty row of finite samples", param="messages")
    if rate == SAMPLE_RATE:
        return values
    length = max(1, round(len(values) * SAMPLE_RATE / rate))
    spectrum = np.fft.rfft(values)
    kept = np.zeros(length // 2 + 1, spectrum.dtype)  # what the new rate cannot carry is cut, not folded
    common = min(len(kept), len(spectrum))
    kept[:common] = spectrum[:common]
    return (np.fft.irfft(kept, length) * (length / len(values))).astype(np.float32)


def _check_shape(rate: int, channels: int) -> None:
    if not 1_000 <= rate <= _MAX_RATE or not 1 <= channels <= 64:
        raise RequestError(
            f"the audio has {channels} channels at {rate} Hz, which is not usable", param="messages"
        )


@functools.cache
def _mel_filters(mels: int) -> NDArray[np.float32]:
    """Return triangular filters (mels, bins), evenly spaced on the mel scale up to 8 kHz."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    edges = hertz * _FFT / SAMPLE_RATE
    bins = np.arange(_FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.clip(np.minimum(rising, falling), 0, 1).astype(np.float32)


def log_mel(samples: Samples, mels: int) -> NDArray[np.float32]:
    """Return scaled log-mel frames (F, mels), one every 10 ms; silence is about :data:`SILENCE`."""
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    spectrum = np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)
    power = (np.abs(spectrum) ** 2).astype(np.float32) @ _mel_filters(mels).T
    return ((np.log10(np.maximum(power, _FLOOR)) + 3) / 1.5).astype(np.float32)


def audio_tensor(samples: Samples, config: AudioConfig) -> Tensor:
    """Return a clip as the model takes it: (F, mels) float32, F whole tokens, padded with silence.

    Raises:
        RequestError: more tokens than the model takes.
    """
    frames = log_mel(samples, config.mels)
    tokens = max(config.min_tokens, math.ceil(len(frames) / FRAMES_PER_TOKEN))
    if tokens > config.max_tokens:
        limit = config.max_tokens * FRAMES_PER_TOKEN / 100
        raise RequestError(
            f"the audio is longer than the {limit:g} seconds that this model takes", param="messages"
        )
    padded = np.full((tokens * FRAMES_PER_TOKEN, config.mels), SILENCE, np.float32)
    padded[: len(frames)] = frames
    return torch.from_numpy(padded)

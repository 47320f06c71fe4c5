"""Spoken commands and questions made by espeak-ng: the sound the model learns to understand.

What it guarantees: 16 kHz mono float32 in -1..1, silence trimmed to a short margin; the same
``random.Random`` state gives the same commands in the same voices with the same noise. Voices and
answers of the held-out sets never occur in training sets. Every voice is one synthesiser's: nothing here
says how well human speech is understood.

    >>> import random
    >>> clip = next(clips(random.Random(1), 1))        # doctest: +SKIP
    >>> clip.text, clip.answer                          # doctest: +SKIP
    ('打开地图', 'do(action="Launch", app="地图")')
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import wave
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm.errors import ConfigError
from autoglm.files import durable_file, make_directory
from autoglm.training.actions import APPS, app_action, is_chinese, is_held_out
from autoglm.training.dialogue import spoken_questions

SAMPLE_RATE = 16_000
MARGIN_SECONDS = 0.05

# Variants of espeak-ng's two voices that are used.
VOICES: tuple[str, ...] = ("", "+m1", "+m3", "+m4", "+m5", "+m6", "+f1", "+f2", "+f3", "+f5", "+croak")
HELD_OUT_VOICES: tuple[str, ...] = ("+m7", "+f4", "+m2")

VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "zh": (("打开", "Launch"), ("启动", "Launch"), ("关闭", "Close"), ("退出", "Close")),
    "en": (("open", "Launch"), ("start", "Launch"), ("close", "Close"), ("quit", "Close")),
}

# Plain "cmn" of espeak-ng 1.51 spells Chinese out as pinyin letters and tone numbers, in English.
_CHINESE, _ENGLISH = "cmn-latn-pinyin", "en"
_FORMAT = 1  # of the cache: raise it when what is synthesised changes
_AUDIBLE = 0.01  # amplitude below which a margin counts as silence
_WORKERS = 2
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Clip:
    """One utterance.

    Attributes:
        text: what is said.
        answer: what the model must answer: an action, or a sentence for a question.
        voice: the espeak-ng variant, ``""`` for the plain voice.
        audio: float32 of shape (samples,), mono, 16 kHz, -1..1.
    """

    text: str
    answer: str
    voice: str
    audio: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """What to say and how, drawn before any sound is made, so that threads cannot change the draw."""

    text: str
    answer: str
    voice: str
    rate_wpm: int
    pitch: int
    noise: float
    noise_seed: int


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


def clips(
    rng: random.Random,
    n: int,
    *,
    voices: Sequence[str] = VOICES,
    held_out_pairs: bool | None = False,
    labels: Sequence[str] = APPS,
    question_share: float = 0.0,
) -> Iterator[Clip]:
    """Synthesise ``n`` clips: verb x app commands and, by ``question_share``, spoken questions.

    Args:
        rng: source of all randomness; exhausted draws happen before the first clip is made.
        n: how many.
        voices: the variants to choose from.
        held_out_pairs: ``False`` for training answers, ``True`` for answers never trained only,
            ``None`` for both.
        labels: the apps.
        question_share: share of questions such as "who are you", 0 to 1.

    Raises:
        ConfigError: nothing is left to say, or espeak-ng is missing or fails.
    """
    commands = command_pairs(labels, held_out_pairs)
    if not voices or not commands:
        raise ConfigError("no voice or no command is left: give more voices or labels")
    plans = [_plan(rng, commands, voices, question_share) for _ in range(n)]
    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(_make, plans)


def command_pairs(labels: Sequence[str], held_out: bool | None) -> list[tuple[str, str]]:
    """List the commands ``(text, answer)`` for ``labels``, training or held-out ones or both (``None``)."""
    pairs: list[tuple[str, str]] = []
    for label in labels:
        language = "zh" if is_chinese(label) else "en"
        for verb, action in VERBS[language]:
            if held_out is None or is_held_out(action, label) == held_out:
                text = f"{verb}{label}" if language == "zh" else f"{verb} {label}"
                pairs.append((text, app_action(action, label)))
    return pairs


def cached_clips(
    path: Path,
    seed: int,
    n: int,
    *,
    voices: Sequence[str] = VOICES,
    held_out_pairs: bool | None = False,
    labels: Sequence[str] = APPS,
    question_share: float = 0.0,
) -> list[Clip]:
    """Return the clips of ``clips(random.Random(seed), n, ...)``, from the file ``path`` when it holds them.

    A file that is missing, damaged, or made with other arguments is made anew. Audio is kept as int16.

    Raises:
        ConfigError: as :func:`clips`.
        StorageError: the cache cannot be written.
    """
    key = _cache_key(seed, n, list(voices), held_out_pairs, list(labels), question_share)
    if (found := _read_cache(path, key)) is not None:
        return found
    made = clips(
        random.Random(seed),
        n,
        voices=voices,
        held_out_pairs=held_out_pairs,
        labels=labels,
        question_share=question_share,
    )
    _write_cache(path, key, list(made))
    found = _read_cache(path, key)
    if found is None:
        raise ConfigError(f"{path} does not read back as it was written: is another process writing it?")
    return found


def augment(rng: random.Random, audio: np.ndarray) -> np.ndarray:
    """Change speed by 0.85 to 1.15 (and pitch with it), loudness by -12 to +3 dB, and add noise.

    Args:
        rng: source of all randomness.
        audio: float32 of shape (samples,).

    Returns:
        float32 of shape (other samples,), within -1..1.
    """
    changed = _resample(audio, max(1, round(len(audio) / rng.uniform(0.85, 1.15))))
    changed = changed * 10 ** (rng.uniform(-12, 3) / 20)
    return _with_noise(changed, 10 ** rng.uniform(-4, -2.3), rng.getrandbits(63))


def _plan(
    rng: random.Random, commands: Sequence[tuple[str, str]], voices: Sequence[str], question_share: float
) -> _Plan:
    said = spoken_questions() if rng.random() < question_share else commands
    text, answer = rng.choice(said)
    return _Plan(
        text=text,
        answer=answer,
        voice=rng.choice(voices),
        rate_wpm=rng.randint(140, 230),
        pitch=rng.randint(30, 70),
        noise=10 ** rng.uniform(-4, -2.3),
        noise_seed=rng.getrandbits(63),
    )


def _make(plan: _Plan) -> Clip:
    audio = synthesize(plan.text, plan.voice, plan.rate_wpm, plan.pitch)
    return Clip(plan.text, plan.answer, plan.voice, _with_noise(audio, plan.noise, plan.noise_seed))


def _with_noise(audio: np.ndarray, amplitude: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(len(audio), dtype=np.float32)
    return np.clip(audio + noise * np.float32(amplitude), -1, 1).astype(np.float32)


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


def _cache_key(*arguments: Any) -> str:
    content = json.dumps([_FORMAT, spoken_questions(), VERBS, *arguments], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def _write_cache(path: Path, key: str, made: Sequence[Clip]) -> None:
    sounds = [np.round(clip.audio * 32767).astype(np.int16) for clip in made]
    make_directory(path.parent)
    with durable_file(path) as file:
        np.savez(
            file,
            key=np.array(key),
            text=np.array([clip.text for clip in made], dtype=np.str_),
            answer=np.array([clip.answer for clip in made], dtype=np.str_),
            voice=np.array([clip.voice for clip in made], dtype=np.str_),
            length=np.array([len(sound) for sound in sounds], dtype=np.int64),
            audio=np.concatenate([np.zeros(0, np.int16), *sounds]),
        )


def _read_cache(path: Path, key: str) -> list[Clip] | None:
    """Return the clips kept under ``key``; ``None`` when there is no such file, or it is damaged or other."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            ends = np.cumsum(kept["length"])
            sounds = np.split(kept["audio"].astype(np.float32) / 32767, ends[:-1])
            words = [map(str, kept[name]) for name in ("text", "answer", "voice")]
            return [Clip(*rest) for rest in zip(*words, sounds, strict=True)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None

"""Spoken utterances in many voices, kept on disk in shards: the sound the small models learn to understand.

What it guarantees: 16 kHz mono; voices and accents of the held-out set are in no training shard; a shard
depends on its seed and number only, is written whole or not at all, and its hash is kept, so preparing goes
on where it was stopped and a damaged shard is made anew. All voices are one synthesiser's: nothing here says
how well human speech is understood.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from autoglm.errors import ConfigError
from autoglm.files import durable_file, make_directory, sha256_file, write_durably
from autoglm.training.actions import COMMANDED_APPS
from autoglm.training.speech import HELD_OUT_VOICES, synthesize
from autoglm.training.utterances import Kind, Utterance, draw_utterance

SHARD_CLIPS = 500
_INDEX_NAME = "recordings.json"
_FORMAT = 3  # raise it when what is synthesised changes
_WORKERS = 2

# Variants of espeak-ng's voices; those of HELD_OUT_VOICES and UNHEARD are kept for scores.
VARIANTS: tuple[str, ...] = (
    *("", "+m1", "+m3", "+m4", "+m5", "+m6", "+f1", "+f2", "+f3", "+f5", "+croak", "+klatt", "+klatt2"),
    *("+klatt3", "+klatt4", "+Alex", "+Alicia", "+Andrea", "+Andy", "+Annie", "+Denis", "+Gene", "+Hugo"),
    *(
        "+Lee",
        "+Marco",
        "+Michael",
        "+Mike",
        "+adam",
        "+anika",
        "+antonio",
        "+belinda",
        "+benjamin",
        "+boris",
    ),
    *(
        "+david",
        "+ed",
        "+edward",
        "+john",
        "+linda",
        "+max",
        "+paul",
        "+quincy",
        "+rob",
        "+robert",
        "+shelby",
    ),
    *("+steph", "+travis", "+victor", "+zac"),
)
UNHEARD: tuple[str, ...] = (
    *HELD_OUT_VOICES,
    "+m8",
    "+Jacky",
    "+Storm",
    "+aunty",
    "+Gene2",
    "+steph2",
    "+norbert",
)
ACCENTS = {"zh": ("cmn-latn-pinyin",), "en": ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp")}
UNHEARD_ACCENTS = {"zh": ("cmn-latn-pinyin",), "en": ("en-us", "en-gb", "en-us-nyc")}


@dataclass(frozen=True)
class Recording:
    """One utterance in one voice.

    Attributes:
        kind, text, answer, language: as in :class:`~autoglm.training.utterances.Utterance`.
        voice: espeak-ng's accent and variant.
        audio: int16 of shape (samples,), mono, 16 kHz.
    """

    kind: Kind
    text: str
    answer: str
    language: str
    voice: str
    audio: np.ndarray

    @property
    def samples(self) -> np.ndarray:
        """The sound as float32 in -1..1."""
        return self.audio.astype(np.float32) / 32767


@dataclass(frozen=True)
class _Plan:
    """What to say and how, drawn before any sound is made, so that threads cannot change the draw."""

    said: Utterance
    voice: str
    rate_wpm: int
    pitch: int


def record(
    rng: random.Random,
    count: int,
    *,
    kind: Kind | None = None,
    apps: Sequence[str] = COMMANDED_APPS,
    unheard: bool = False,
    held_out: bool = False,
    held_out_pairs: bool = False,
) -> list[Recording]:
    """Speak ``count`` utterances.

    Args:
        rng: source of all randomness.
        count: how many.
        kind: of the utterances; any if not given.
        apps: what commands name.
        unheard: in voices that training never has.
        held_out: in wordings that training never has.
        held_out_pairs: commands with answers that training never has.

    Raises:
        ConfigError: espeak-ng is missing or fails.
    """
    plans: list[_Plan] = []
    for _ in range(count):
        said = draw_utterance(rng, kind, apps=apps, held_out=held_out, held_out_pairs=held_out_pairs)
        accents, variants = (UNHEARD_ACCENTS, UNHEARD) if unheard else (ACCENTS, VARIANTS)
        voice = rng.choice(accents[said.language]) + rng.choice(variants)
        plans.append(_Plan(said, voice, rng.randint(130, 240), rng.randint(25, 75)))
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(_speak, plans))


def _speak(plan: _Plan) -> Recording:
    accent, plus, variant = plan.voice.partition("+")
    sound = synthesize(plan.said.text, plus + variant, plan.rate_wpm, plan.pitch, language=accent)
    quiet = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    return Recording(**asdict(plan.said), voice=plan.voice, audio=quiet)


class RecordingStore:
    """A directory of shards of training recordings."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        num_shards: int,
        *,
        kind: Kind | None = None,
        apps: Sequence[str] = COMMANDED_APPS,
    ) -> None:
        """Prepare to read or make shards.

        Args:
            directory: where they are.
            seed: what they are drawn from.
            num_shards: how many there are.
            kind: of the utterances; any if not given.
            apps: what commands name.
        """
        self.directory, self.seed, self.num_shards = directory, seed, num_shards
        self._kind: Kind | None = kind
        self._apps = tuple(apps)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the shards that are missing or damaged.

        Args:
            progress: called with how many of the shards are there, and how many there will be.

        Raises:
            ConfigError: espeak-ng is missing or fails.
            StorageError: a shard cannot be written.
        """
        make_directory(self.directory)
        hashes = self._hashes()
        for number in range(self.num_shards):
            path = self._path(number)
            if not path.exists() or hashes.get(path.name) != sha256_file(path):
                self._write(number)
                hashes[path.name] = sha256_file(path)
                content = {"format": _FORMAT, "seed": self.seed, "sha256": hashes}
                write_durably(self.directory / _INDEX_NAME, json.dumps(content, indent=1).encode())
            if progress is not None:
                progress(number + 1, self.num_shards)

    def load(self) -> list[Recording]:
        """Return all recordings.

        Raises:
            ConfigError: a shard is missing or damaged.
        """
        hashes = self._hashes()
        found: list[Recording] = []
        for number in range(self.num_shards):
            path = self._path(number)
            if not path.exists() or hashes.get(path.name) != sha256_file(path):
                raise ConfigError(
                    f"{path} is missing or damaged: prepare the data first (autoglm model data)"
                )
            found += _read(path)
        return found

    def _path(self, number: int) -> Path:
        return self.directory / f"recordings-{number:03}.npz"

    def _hashes(self) -> dict[str, str]:
        """Return the hash of every shard that belongs to this seed and format."""
        seed, hashes = _read_index(self.directory)
        return hashes if seed == self.seed else {}

    def _write(self, number: int) -> None:
        rng = random.Random(f"recordings/{self.seed}/{number}")
        made = record(rng, SHARD_CLIPS, kind=self._kind, apps=self._apps)
        with durable_file(self._path(number)) as file:
            np.savez(
                file,
                words=np.array(
                    [(r.kind, r.text, r.answer, r.language, r.voice) for r in made], dtype=np.str_
                ),
                length=np.array([len(r.audio) for r in made], dtype=np.int64),
                audio=np.concatenate([r.audio for r in made]),
            )


def seed_of(directory: Path) -> int | None:
    """Return the seed that a directory's recordings were drawn from; None where there are none to be used."""
    return _read_index(directory)[0]


def _read_index(directory: Path) -> tuple[int | None, dict[str, str]]:
    """Return the seed, and the hash of every shard; nothing where they are missing or of another format."""
    try:
        content = json.loads((directory / _INDEX_NAME).read_bytes())
        if content["format"] == _FORMAT:
            return int(content["seed"]), dict(content["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, {}


def _read(path: Path) -> Iterator[Recording]:
    with np.load(path, allow_pickle=False) as kept:
        sounds = np.split(kept["audio"], np.cumsum(kept["length"])[:-1])
        for words, sound in zip(kept["words"], sounds, strict=True):
            kind, *rest = map(str, words)
            yield Recording(_as_kind(kind), *rest, audio=sound)


def _as_kind(text: str) -> Kind:
    return "command" if text == "command" else "question" if text == "question" else "dictation"


def disturb(rng: random.Random, audio: np.ndarray) -> np.ndarray:
    """Change a clip as rooms, distances and microphones do: speed, loudness, echo, colour and noise.

    Args:
        rng: source of all randomness.
        audio: float32 of shape (samples,).

    Returns:
        float32 of shape (other samples,), within -1..1.
    """
    length = max(1, round(len(audio) / rng.uniform(0.87, 1.15)))
    places = np.linspace(0, len(audio) - 1, length)
    changed = np.interp(places, np.arange(len(audio)), audio)
    noise = np.random.default_rng(rng.getrandbits(63))
    if rng.random() < 0.3:
        changed = _echoed(rng, noise, changed)
    if rng.random() < 0.3:  # a dull or a thin microphone
        tilt = rng.uniform(-0.6, 0.6)
        changed = changed + tilt * np.concatenate([[0.0], changed[:-1]])
    changed = changed * 10 ** (rng.uniform(-14, 4) / 20)
    hiss = noise.standard_normal(length) * 10 ** rng.uniform(-4, -2.2)
    return np.clip(changed + hiss, -1, 1).astype(np.float32)


def _echoed(rng: random.Random, noise: np.random.Generator, audio: np.ndarray) -> np.ndarray:
    """Add the echo of a room: noise that dies away (Schroeder's model of late reverberation)."""
    samples = int(16_000 * rng.uniform(0.08, 0.3))
    decay = np.exp(-np.arange(samples) / samples * 6) * noise.standard_normal(samples)
    decay *= rng.uniform(0.1, 0.5) / np.sqrt((decay**2).sum())
    decay[0] += 1
    size = 1 << (len(audio) + samples).bit_length()
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(decay, size), size)[: len(audio)]

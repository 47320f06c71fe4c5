"""Synthesised speech: audible, trimmed, the same from the same seed, with splits that do not meet."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from autoglm.errors import ConfigError
from autoglm.training import speech
from autoglm.training.actions import APPS, NEW_APPS, is_valid_action

pytestmark = pytest.mark.needs("espeak-ng")


def same(one: list[speech.Clip], two: list[speech.Clip]) -> bool:
    return all(
        (a.text, a.answer, a.voice) == (b.text, b.answer, b.voice) and np.array_equal(a.audio, b.audio)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("text", ["打开微信", "quit Music"])
def test_speech_is_audible_and_trimmed(text: str) -> None:
    """A command lasts about a second at 16 kHz, is loud enough, and starts within the margin."""
    audio = speech.synthesize(text)
    assert audio.dtype == np.float32
    assert 0.4 < len(audio) / speech.SAMPLE_RATE < 2
    assert 0.05 < np.abs(audio).max() <= 1
    loud = np.flatnonzero(np.abs(audio) > 0.011)
    margin = round(speech.MARGIN_SECONDS * speech.SAMPLE_RATE) + 200
    assert loud[0] <= margin
    assert len(audio) - loud[-1] <= margin


def test_chinese_is_spoken_as_chinese() -> None:
    """Two characters take the time of two syllables, not that of spelling them in English."""
    assert len(speech.synthesize("微信", rate_wpm=170)) / speech.SAMPLE_RATE < 0.9


def test_sound_keeps_its_frequencies_through_resampling() -> None:
    """A tone stays at its frequency; one beyond the new rate's half vanishes instead of folding back."""
    time = np.arange(22050) / 22050
    kept = speech._resample(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 16000)
    gone = speech._resample(np.sin(2 * np.pi * 10000 * time).astype(np.float32), 16000)
    assert np.argmax(np.abs(np.fft.rfft(kept))) == 1000
    assert 0.98 < np.abs(kept[100:-100]).max() < 1.02
    assert np.abs(gone).max() < 0.01


def test_the_same_seed_makes_the_same_clips() -> None:
    """Threads do not change what is drawn, nor the noise."""
    one, two = (list(speech.clips(random.Random(9), 6)) for _ in range(2))
    assert same(one, two)
    assert not same(one, list(speech.clips(random.Random(10), 6)))


def test_every_clip_answers_its_command() -> None:
    """A clip's answer is the action of its verb for its app."""
    for clip in speech.clips(random.Random(2), 8):
        assert is_valid_action(clip.answer)
        assert any(label in clip.text and label in clip.answer for label in APPS)
        assert ("Launch" in clip.answer) == clip.text.startswith(("打开", "启动", "open", "start"))


def test_training_and_held_out_never_meet() -> None:
    """Voices, commands and answers of the two sides are disjoint and together complete."""
    assert not set(speech.VOICES) & set(speech.HELD_OUT_VOICES)
    train, test = (speech.command_pairs(APPS, side) for side in (False, True))
    assert not {answer for _, answer in train} & {answer for _, answer in test}
    assert sorted(train + test) == sorted(speech.command_pairs(APPS, None))
    assert len(train) == 96
    assert len(test) == 16


def test_new_apps_are_spoken_only_when_asked_for() -> None:
    """v1.2's commands never name an app that is new in v1.3."""
    named = "".join(text for text, _ in speech.command_pairs(APPS, None))
    assert not any(label in named for label in NEW_APPS)
    assert speech.command_pairs(NEW_APPS, False)


def test_spoken_questions_come_by_their_share() -> None:
    """With a share of one every clip is a question with a sentence for an answer."""
    for clip in speech.clips(random.Random(3), 4, question_share=1):
        assert not is_valid_action(clip.answer)


def test_the_cache_returns_what_was_made(tmp_path: Path) -> None:
    """A second call reads the file: the same clips, close to the uncached ones."""
    path = tmp_path / "new" / "clips.npz"
    made = speech.cached_clips(path, 4, 5)
    written = path.stat().st_mtime_ns
    assert same(made, speech.cached_clips(path, 4, 5))
    assert path.stat().st_mtime_ns == written
    for kept, fresh in zip(made, speech.clips(random.Random(4), 5), strict=True):
        assert kept.text == fresh.text
        assert np.abs(kept.audio - fresh.audio).max() < 1e-4


def test_a_stale_or_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    """Other arguments, another seed, a truncated or a foreign file: none is believed."""
    path = tmp_path / "clips.npz"
    right = speech.cached_clips(path, 1, 3)
    assert len(speech.cached_clips(path, 1, 2)) == 2
    assert same(speech.cached_clips(path, 1, 3), right)
    path.write_bytes(path.read_bytes()[:-500])
    assert same(speech.cached_clips(path, 1, 3), right)
    path.write_bytes(b"not a cache")
    assert same(speech.cached_clips(path, 1, 3), right)


def test_augmentation_changes_the_sound_within_bounds() -> None:
    """Speed stays within 15 %, amplitude within -1..1, and the seed decides."""
    audio = speech.synthesize("open Maps")
    for seed in range(5):
        changed = speech.augment(random.Random(seed), audio)
        assert changed.dtype == np.float32
        assert 0.84 < len(changed) / len(audio) < 1.19
        assert np.abs(changed).max() <= 1
        assert np.array_equal(changed, speech.augment(random.Random(seed), audio))


def test_what_cannot_be_said_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, unknown voices, nothing to say and a missing program each name what is wrong."""
    with pytest.raises(ConfigError, match="said nothing"):
        speech.synthesize(" ")
    with pytest.raises(ConfigError, match="no voice"):
        next(speech.clips(random.Random(0), 1, voices=()))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="install the package espeak-ng"):
        speech.synthesize("open Maps")

"""Synthesised speech: audible, trimmed, in the right language and at the right rate."""

from __future__ import annotations

import numpy as np
import pytest

from autoglm.errors import ConfigError
from autoglm.training import speech

pytestmark = pytest.mark.needs("espeak-ng")


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


def test_what_cannot_be_said_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence and a missing program each name what is wrong."""
    with pytest.raises(ConfigError, match="said nothing"):
        speech.synthesize(" ")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="install the package espeak-ng"):
        speech.synthesize("open Maps")

"""Scores of a model on data it never saw, free-running, with chance beside each.

Nothing is teacher-forced: every answer is generated greedily through the chat template, prefill and decode.
Chance is measured on the same items with the picture blanked or the sound silenced; for dialogue it is the
share of the most frequent answer.

    >>> scores = evaluate(load_release(path), release="v1.2", seed=7)    # doctest: +SKIP
    >>> scores["screen_tap"].value, scores["screen_tap"].chance          # doctest: +SKIP
    (0.99, 0.01)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from autoglm.model.audio import SAMPLE_RATE
from autoglm.model.prompt import AudioPart, ImagePart, Message, Prompt, TextPart
from autoglm.model.weights import LoadedModel
from autoglm.training.actions import APPS, NEW_APPS, is_valid_action
from autoglm.training.dialogue import (
    APP_INTENTS,
    HELP_INTENTS,
    IDENTITY_INTENTS,
    Example,
    Release,
    agent_examples,
    held_out,
    new_intents,
)
from autoglm.training.generate import Output, generate
from autoglm.training.screens import Question, Screen, questions, render, tap_hits
from autoglm.training.speech import HELD_OUT_VOICES, VOICES, Clip, cached_clips

EVALUATION_SEED = 90_001
_SCREENS, _CLIPS, _DIALOGUES = 48, 96, 200
_MAX_TOKENS = 112


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Attributes:
        value: 0..1.
        count: items.
        chance: the share without looking or listening; None where that has no meaning.
    """

    value: float
    count: int
    chance: float | None = None


def evaluate(
    loaded: LoadedModel, *, release: Release, clips: Path, seed: int = EVALUATION_SEED, scale: float = 1.0
) -> dict[str, Score]:
    """Score a model on everything it should do, and on what the next release will know.

    Args:
        loaded: the model with its tokenizer and processor.
        release: whose answers are right, where the releases differ.
        clips: directory that keeps synthesised clips for the next time.
        seed: of the held-out items.
        scale: share of the items to use, for a quick look.

    Returns:
        Scores by name; names starting with ``new_`` concern what v1.3 adds.
    """
    examiner = _Examiner(loaded, seed, scale, clips)
    scores = examiner.dialogue("dialogue", release, IDENTITY_INTENTS + HELP_INTENTS)
    scores |= examiner.identity(release)
    scores |= examiner.dialogue("commands", release, APP_INTENTS)
    scores |= examiner.dialogue("new_questions", "v1.3", new_intents("v1.3"))
    scores |= examiner.agent(release)
    scores |= examiner.screens("screen", APPS)
    scores |= examiner.screens("new_screen", NEW_APPS, num_elements=(2, 5))
    scores |= examiner.speech("speech_voices", APPS, HELD_OUT_VOICES, pairs=False)
    scores |= examiner.speech("speech_pairs", APPS, VOICES, pairs=True)
    scores |= examiner.speech("speech_both", APPS, HELD_OUT_VOICES, pairs=True)
    scores |= examiner.speech("new_speech", NEW_APPS, HELD_OUT_VOICES, pairs=False)
    return scores


@dataclass
class _Examiner:
    """One model under examination."""

    loaded: LoadedModel
    seed: int
    scale: float
    cache: Path

    def _count(self, full: int) -> int:
        return max(8, round(full * self.scale))

    def _prompt(self, messages: Sequence[Message], thinks: bool = False) -> Prompt:
        return self.loaded.processor.prompt(messages, enable_thinking=thinks)

    def _answers(self, prompts: Sequence[Prompt]) -> list[Output]:
        return generate(self.loaded.model, self.loaded.tokenizer, prompts, _MAX_TOKENS)

    # Text

    def dialogue(self, name: str, release: Release, intents: Sequence[str]) -> dict[str, Score]:
        """Score held-out wordings, without and with thinking."""
        examples = held_out(self.seed, self._count(_DIALOGUES), release=release, intents=intents)
        chance = Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
        plain = self._answers([self._prompt(_asked(example)) for example in examples])
        thought = self._answers([self._prompt(_asked(example), thinks=True) for example in examples])
        right = [out.answer == example.answer for out, example in zip(plain, examples, strict=True)]
        same = [out.answer == example.answer for out, example in zip(thought, examples, strict=True)]
        leaks = [
            out.leaked or (example.thought in out.answer)
            for out, example in zip(thought, examples, strict=True)
        ]
        return {
            name: _share(right, chance),
            f"{name}_thinking": _share(same, chance),
            f"{name}_thought_leaks": _share(leaks),
            f"{name}_thoughts_present": _share([bool(out.thought.strip()) for out in thought]),
        }

    def identity(self, release: Release) -> dict[str, Score]:
        """Score who-are-you questions alone."""
        examples = held_out(self.seed + 1, self._count(200), release=release, intents=("identity",))
        outs = self._answers([self._prompt(_asked(example)) for example in examples])
        right = [out.answer == example.answer for out, example in zip(outs, examples, strict=True)]
        return {"identity": _share(right, 0.5)}

    def agent(self, release: Release) -> dict[str, Score]:
        """Score instructions under the agent's system prompt, in wordings as trained, of another seed."""
        rng = random.Random(self.seed + 2)
        examples = list(agent_examples(rng, self._count(100), release=release))
        outs = self._answers([self._prompt(_asked(example)) for example in examples])
        chance = Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)
        right = [out.answer == example.answer for out, example in zip(outs, examples, strict=True)]
        valid = [is_valid_action(out.answer) for out in outs]
        return {"agent": _share(right, chance), "agent_grammar": _share(valid)}

    # Screens

    def screens(
        self, name: str, labels: Sequence[str], num_elements: tuple[int, int] = (3, 10)
    ) -> dict[str, Score]:
        """Score tap, read and presence on screens of held-out seeds; chance with the picture blanked."""
        rng = random.Random(self.seed + 3)
        items: list[tuple[Screen, Question]] = []
        for _ in range(self._count(_SCREENS)):
            screen = render(rng, num_elements=num_elements, labels=labels)
            items += [(screen, question) for question in questions(rng, screen, labels)]
        right = self._screen_results(items, blank=False)
        blind = self._screen_results(items, blank=True)
        scores: dict[str, Score] = {}
        for kind in ("tap", "read", "has"):
            seen = [ok for ok, (_, q) in zip(right, items, strict=True) if q.kind == kind]
            unseen = [ok for ok, (_, q) in zip(blind, items, strict=True) if q.kind == kind]
            scores[f"{name}_{kind}"] = _share(seen, sum(unseen) / len(unseen))
        return scores

    def _screen_results(self, items: Sequence[tuple[Screen, Question]], *, blank: bool) -> list[bool]:
        prompts: list[Prompt] = []
        for screen, question in items:
            pixels = np.full_like(screen.image, 128) if blank else screen.image
            parts = [ImagePart(Image.fromarray(pixels)), TextPart(question.prompt)]
            prompts.append(self._prompt([Message("user", parts)]))
        outs = self._answers(prompts)
        return [_right(out.answer, question) for out, (_, question) in zip(outs, items, strict=True)]

    # Speech

    def speech(
        self, name: str, labels: Sequence[str], voices: Sequence[str], *, pairs: bool
    ) -> dict[str, Score]:
        """Score spoken commands; chance with the sound silenced."""
        seed, count = self.seed + 4, self._count(_CLIPS)
        path = self.cache / f"{name}-{seed}-{count}.npz"
        clips = cached_clips(path, seed, count, voices=voices, held_out_pairs=pairs, labels=labels)
        heard = self._speech_results(clips, silent=False)
        deaf = self._speech_results(clips, silent=True)
        return {name: _share(heard, sum(deaf) / len(deaf))}

    def _speech_results(self, clips: Sequence[Clip], *, silent: bool) -> list[bool]:
        prompts: list[Prompt] = []
        for clip in clips:
            samples = np.zeros_like(clip.audio) if silent else clip.audio
            prompts.append(self._prompt([Message("user", [AudioPart((samples, SAMPLE_RATE))])]))
        outs = self._answers(prompts)
        return [out.answer == clip.answer for out, clip in zip(outs, clips, strict=True)]


def _asked(example: Example) -> list[Message]:
    system = [Message("system", example.system)] if example.system else []
    return [*system, Message("user", example.question)]


def _right(answer: str, question: Question) -> bool:
    if question.kind == "tap" and question.element is not None:
        return tap_hits(answer, question.element)
    return answer == question.answer


def _share(results: Sequence[bool], chance: float | None = None) -> Score:
    return Score(sum(results) / len(results), len(results), chance)

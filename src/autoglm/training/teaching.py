"""Batches for the small models' lessons, every draw from the given generator.

>>> Teacher(tokenizer, config, "v1.2").screens(random.Random(1), 2, Manner()).ids.shape[0]   # doctest: +SKIP
2
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autoglm.model.audio import FRAMES_PER_TOKEN, SILENCE, log_mel
from autoglm.model.config import ModelConfig
from autoglm.model.prompt import PromptBuilder
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.transcription import TRANSCRIBE
from autoglm.training.actions import AGENT_SYSTEM_PROMPT, app_action, finish_action, one_sided_answers
from autoglm.training.calls import draw_calls
from autoglm.training.copying import draw_conversation, draw_introduction
from autoglm.training.dialogue import Example, Release, agent_examples, training_examples
from autoglm.training.lexicon import GRAMMAR, MERGE_TOKEN
from autoglm.training.needles import draw_needles
from autoglm.training.recordings import Recording, disturb
from autoglm.training.repeating import draw_repetition
from autoglm.training.rows import Batch, Slot, pack
from autoglm.training.scenes.asking import Asked, questions
from autoglm.training.scenes.labels import Label, class_of
from autoglm.training.scenes.scene import (
    Scene,
    draw_primer,
    draw_scene,
    icons,
    patch_places,
    patch_truth,
    words_known,
)
from autoglm.training.tasks import AGENT_TASK_PROMPT, Task, draw_task

ROW_TOKENS = 256
_LOST = 0.12  # share of a noisy question's tokens that are left out
_STRANGE = 4  # at most so many random tokens before and after it
_TASKS_A_SCREEN = 6
_CLEAR = 0.35  # share of clips heard as they were spoken
_COPIED = 0.1  # share of dialogues whose answer stands in them
_LONG_QUESTIONS = 12  # after one long prompt


@dataclass(frozen=True)
class Manner:
    """How far rows stray from the plain form.

    Attributes:
        agent: share of screens and clips under an agent's system prompt.
        think: share of the other answers that think first.
        noise: share of questions in text with tokens lost or strange ones around them.
        transcribe: share of clips that are also to be written down.
        template: weight of tokens that never vary.
        longest: tokens of the longest prompts.
        strange: share of what is copied that is random tokens, and no conversation.
        news: of an update: share of screens, conversations and spoken commands that are about what is new.
        asked: taps, readings and presences a screen; reading is learnt last.
    """

    agent: float = 0.0
    think: float = 0.0
    noise: float = 0.0
    transcribe: float = 0.6
    template: float = 0.1
    longest: int = 1900
    strange: float = 0.5
    news: float = 0.5
    asked: tuple[int, int, int] = (3, 4, 2)


PLAIN = Manner()
VARIED = Manner(agent=0.2, think=0.25, noise=0.3)


class Teacher:
    """Makes batches for one tokenizer, one configuration and one release's knowledge."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, release: Release) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.release: Release = release
        self.words, self.icons = words_known(release), icons()
        encode = tokenizer.encode
        pieces = {token for piece in GRAMMAR if len(ids := encode(piece)) == 1 for token in ids}
        self._template = {tokenizer.eos, *pieces, *encode(")")} - set(encode('do(action="Launch", app="'))
        self._template -= set(encode('do(action="Close", app="'))
        self._one_sided = {app_action(*answer) for answer in one_sided_answers()}

    # Screens

    def scenes(
        self, rng: random.Random, count: int, primer: float = 0.0, manner: Manner = PLAIN
    ) -> list[Scene]:
        """Draw screens; the share ``primer`` of them is as easy as this share is large."""
        size = 16 + 8 * primer, 26 + 8 * primer
        return [
            draw_primer(rng, self.words, self.icons, size)
            if rng.random() < primer
            else draw_scene(rng, self.words, self.icons)
            for _ in range(count)
        ]

    def asked_for(self, rng: random.Random, manner: Manner) -> Sequence[Label]:
        """Return the labels that a screen may be asked for in vain."""
        return (*self.words, *self.icons)

    def labels(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels of screens, and the classes and shares of their patches."""
        truths = [patch_truth(scene, self.config.image.patch) for scene in scenes]
        return (
            torch.from_numpy(np.stack([scene.image for scene in scenes])),
            torch.from_numpy(np.stack([classes for classes, _ in truths])),
            torch.from_numpy(np.stack([shares for _, shares in truths])),
        )

    def screens(self, rng: random.Random, count: int, manner: Manner = PLAIN) -> Batch:
        """Return ``count`` screens with some questions each, or six tasks for an agent."""
        scenes = self.scenes(rng, count, manner=manner)
        agent = rng.random() < manner.agent  # the whole batch, so that prefixes align
        full = rng.random() < 0.6
        rows: list[list[Slot]] = []
        for scene in scenes:
            asked = questions(rng, scene, self.asked_for(rng, manner), counts=manner.asked)
            rng.shuffle(asked)
            slots = [self.question_slot(rng, each, manner, agent=agent) for each in asked]
            if agent and full:
                slots = slots[:2] + [
                    self.task_slot(self.draw_task(rng, scene), manner) for _ in range(_TASKS_A_SCREEN)
                ]
            rows.append(slots)
        images, classes, shares = self.labels(scenes)
        builder = self._opening(agent, full)
        builder.image(images[0])
        batch = pack("screen", builder, rows)
        image = self.config.image
        places = np.stack([patch_places(scene, image.patch, image.bins) for scene in scenes])
        return replace(
            batch,
            media=images,
            classes=classes,
            shares=shares,
            places=torch.from_numpy(places),
            words=self._captions(scenes),
        )

    def question_slot(self, rng: random.Random, asked: Asked, manner: Manner, *, agent: bool) -> Slot:
        """Return one question about a screen as a slot."""
        slot, encode = Slot(), self.tokenizer.encode
        prompt = encode(asked.prompt)
        slot.given(prompt)
        answer = finish_action(asked.answer) if agent and asked.kind != "tap" else asked.answer
        thought = screen_thought(asked) if agent or rng.random() < manner.think else None
        self._answer(slot, answer, thought, manner)
        if asked.kind == "read":
            point = next(i for i, token in enumerate(prompt) if self._is_y(token))
            slot.hop = (point, encode(asked.answer)[0])
        else:
            end = len(encode(asked.prompt[: asked.prompt.index(asked.name) + len(asked.name)])) - 1
            slot.name = (end, class_of(asked.label.key))
            slot.hop = (end, encode(asked.answer)[1 if asked.kind == "tap" else 0])
        return slot

    def draw_task(self, rng: random.Random, scene: Scene) -> Task:
        """Draw an instruction for a screen."""
        return draw_task(rng, scene)

    def task_slot(self, task: Task, manner: Manner) -> Slot:
        """Return one task of an agent before a screen as a slot."""
        slot = Slot()
        slot.given(self.tokenizer.encode(task.prompt))
        self._answer(slot, task.answer, task.thought, manner)
        if task.label is not None:
            end, label = task.label
            slot.name = (len(self.tokenizer.encode(task.prompt[:end])) - 1, class_of(label.key))
        return slot

    def _is_y(self, token: int) -> bool:
        first = self.config.image.y_token
        return first <= token < first + self.config.image.bins

    def _captions(self, scenes: Sequence[Scene]) -> Tensor:
        """Return what stands on each screen, from top to bottom, as one text each."""
        return self._texts([caption(scene) for scene in scenes])

    def _texts(self, texts: Sequence[str]) -> Tensor:
        ids = [self.tokenizer.encode(text) for text in texts]
        table = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for i, each in enumerate(ids):
            table[i, : len(each)] = torch.tensor(each)
        return table

    # Speech

    def speech(
        self, rng: random.Random, count: int, recordings: Sequence[Recording], manner: Manner = PLAIN
    ) -> Batch:
        """Return ``count`` disturbed clips of about one length, to be answered and to be written down."""
        agent = rng.random() < manner.agent
        chosen = self._of_one_length(rng, count, recordings)
        rows = [self._heard(rng, clip, manner, agent=agent) for clip in chosen]
        frames = [log_mel(self._sound(rng, clip), self.config.audio.mels) for clip in chosen]
        media = torch.from_numpy(self._placed(rng, frames))
        builder = self._opening(agent, full=False)
        builder.audio(media[0])
        texts = tuple(clip.text.lower() for clip in chosen)
        words = self._texts([clip.text for clip in chosen])
        return replace(pack("speech", builder, rows), media=media, transcripts=texts, words=words)

    def _of_one_length(
        self, rng: random.Random, count: int, recordings: Sequence[Recording]
    ) -> list[Recording]:
        """Draw twice as many clips as wanted and keep the shorter or the longer half: little is padding."""
        drawn = sorted((rng.choice(recordings) for _ in range(2 * count)), key=lambda clip: len(clip.audio))
        return drawn[:count] if rng.random() < 0.5 else drawn[count:]

    def _sound(self, rng: random.Random, clip: Recording) -> np.ndarray:
        return clip.samples if rng.random() < _CLEAR else disturb(rng, clip.samples)

    def _heard(self, rng: random.Random, clip: Recording, manner: Manner, *, agent: bool) -> list[Slot]:
        slots: list[Slot] = []
        if clip.kind != "dictation":
            answer = clip.answer if clip.kind == "command" or not agent else finish_action(clip.answer)
            thinks = agent or rng.random() < manner.think
            slots.append(Slot())
            self._answer(slots[-1], answer, heard_thought(clip) if thinks else None, manner)
        if not agent and (clip.kind == "dictation" or rng.random() < manner.transcribe):
            slots.append(Slot())
            slots[-1].given(self.tokenizer.encode(TRANSCRIBE))
            self._answer(slots[-1], clip.text, None, manner)
        if not slots:  # an agent is told what to do with what it hears
            slots.append(Slot())
            self._answer(slots[-1], finish_action(clip.text), heard_thought(clip), manner)
        return slots

    def _placed(self, rng: random.Random, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return log-mel frames (B, F, mels), placed at random in one length, some bands or moments lost."""
        audio = self.config.audio
        longest = max(len(each) for each in frames)
        tokens = min(audio.max_tokens, max(audio.min_tokens, -(-longest // FRAMES_PER_TOKEN)))
        room = tokens * FRAMES_PER_TOKEN
        out = np.full((len(frames), room, audio.mels), SILENCE, np.float32)
        for i, each in enumerate(frames):
            heard = np.roll(each[:room], rng.randint(-2, 2), 1) + np.float32(rng.uniform(-0.25, 0.25))
            band, moment = rng.randrange(audio.mels - 4), rng.randrange(max(1, len(heard) - 8))
            heard[:, band : band + rng.randint(0, 8)] = SILENCE
            heard[moment : moment + rng.randint(0, 5)] = SILENCE
            start = rng.randint(0, room - len(heard)) if rng.random() < 0.5 else 0
            out[i, start : start + len(heard)] = heard
        return out

    # Text

    def text(self, rng: random.Random, count: int, manner: Manner = PLAIN) -> Batch:
        """Return ``count`` rows of about :data:`ROW_TOKENS` tokens of dialogues."""
        return self._filled("text", count, lambda: self.dialogue_slot(rng, manner))

    def copies(self, rng: random.Random, count: int, manner: Manner = PLAIN) -> Batch:
        """Return ``count`` such rows of what can only be copied: strange tokens, and conversations."""
        return self._filled("copy", count, lambda: self._copied_slot(rng, manner))

    def _copied_slot(self, rng: random.Random, manner: Manner) -> Slot:
        if rng.random() < manner.strange:
            return draw_repetition(rng, self.tokenizer, self.config)
        return self.conversation_slot(draw_conversation(rng).turns, manner)

    def _filled(self, kind: str, count: int, draw: Callable[[], Slot]) -> Batch:
        """Return rows, each filled with slots to its length."""
        rows: list[list[Slot]] = []
        for _ in range(count):
            slots: list[Slot] = []
            while sum(len(slot.ids) for slot in slots) < ROW_TOKENS:
                slots.append(draw())
            rows.append(slots)
        builder = PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        return pack(kind, builder, rows)

    def dialogue_slot(self, rng: random.Random, manner: Manner) -> Slot:
        """Return one conversation: plain, thinking, an agent's, after earlier turns, or one to copy from."""
        if rng.random() < _COPIED:
            return self.conversation_slot(draw_conversation(rng).turns, manner)
        form = rng.random()
        noise = rng if rng.random() < manner.noise else None
        if form < 0.15:
            return self.example_slot(
                [next(agent_examples(rng, 1, release=self.release))], manner, thinks=True
            )
        turns = rng.choice((2, 2, 3)) if form < 0.30 else 1
        examples = list(training_examples(rng, turns, release=self.release))
        return self.example_slot(examples, manner, thinks=rng.random() < 0.3, noise=noise)

    def example_slot(
        self, examples: Sequence[Example], manner: Manner, *, thinks: bool, noise: random.Random | None = None
    ) -> Slot:
        """Return turns of one conversation; only the last may think, the first may have a system prompt."""
        slot, tokenizer = Slot(), self.tokenizer
        if examples[0].system:
            slot.given([tokenizer.system, *tokenizer.encode(examples[0].system)])
        for i, example in enumerate(examples):
            asked = tokenizer.encode(example.question)
            if noise is not None and not example.answer.startswith("do("):
                asked = self._noisy(noise, asked)
            slot.given([tokenizer.user, *asked])
            thought = example.thought if thinks and i == len(examples) - 1 else None
            self._answer(slot, example.answer, thought, replace(manner, template=1.0))
        return slot

    def _noisy(self, rng: random.Random, ids: list[int]) -> list[int]:
        """Lose some tokens and put strange ones around, so that no single token decides."""
        kept = [token for token in ids if rng.random() > _LOST]
        before, after = (
            [rng.randrange(MERGE_TOKEN, self.config.vocab_size) for _ in range(rng.randint(0, _STRANGE))]
            for _ in range(2)
        )
        return [*before, *(kept or ids), *after]

    def conversation_slot(self, turns: Sequence[tuple[str, str]], manner: Manner) -> Slot:
        """Return turns of (role, text) as a slot; all of the assistant's are to be written."""
        slot, tokenizer = Slot(), self.tokenizer
        roles = {"system": tokenizer.system, "user": tokenizer.user, "tool": tokenizer.tool}
        for role, text in turns:
            if role == "assistant":
                self._answer(slot, text, None, manner)
            else:
                slot.given([roles[role], *tokenizer.encode(text)])
        return slot

    def long(self, rng: random.Random, count: int, manner: Manner = PLAIN) -> Batch:
        """Return ``count`` rows of questions after one long prompt: facts far back, tools, or a long talk."""
        form, builder = rng.random(), PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        opened = self._facts if form < 0.45 else self._tools if form < 0.75 else self._talk
        rows = opened(rng, builder, manner)
        return pack("long", builder, [rows[i::count] for i in range(count)])

    def _facts(self, rng: random.Random, builder: PromptBuilder, manner: Manner) -> list[Slot]:
        text, asked = draw_needles(rng, self.tokenizer, self._length(rng, manner))
        role = self.tokenizer.system if rng.random() < 0.7 else self.tokenizer.user
        builder.tokens(role, *self.tokenizer.encode(text))
        return self._asked(asked, manner)

    def _tools(self, rng: random.Random, builder: PromptBuilder, manner: Manner) -> list[Slot]:
        text, asked = draw_calls(rng, _LONG_QUESTIONS)
        builder.tokens(self.tokenizer.system, *self.tokenizer.encode(text))
        return self._asked(asked, manner)

    def _talk(self, rng: random.Random, builder: PromptBuilder, manner: Manner) -> list[Slot]:
        """Talk about this and that first; what is asked then has nothing to do with it, or looks back."""
        length, tokenizer = self._length(rng, manner), self.tokenizer
        told, back = draw_introduction(rng)
        introduced = rng.random() < 0.5
        turns = told if introduced else []
        while len(builder.ids) < length:
            for role, text in turns:
                opening = [tokenizer.user] if role == "user" else [tokenizer.assistant, tokenizer.answer]
                builder.tokens(
                    *opening, *tokenizer.encode(text), *([tokenizer.eos] if role != "user" else [])
                )
            example = next(training_examples(rng, 1, release=self.release))
            turns = [("user", example.question), ("assistant", example.answer)]
        asked = self._asked([back] * 2, manner) if introduced else []
        examples = [
            each
            for each in training_examples(rng, _LONG_QUESTIONS // 2, release=self.release)
            if each.intent != "asker"  # it would say that it was not told
        ]
        return asked + [
            self.example_slot([replace(each, system="")], manner, thinks=False) for each in examples
        ]

    def _asked(self, asked: Sequence[tuple[str, str]], manner: Manner) -> list[Slot]:
        return [self.conversation_slot((("user", q), ("assistant", a)), manner) for q, a in asked]

    def _length(self, rng: random.Random, manner: Manner) -> int:
        return round(200 * (manner.longest / 200) ** rng.random())

    # All of them

    def _opening(self, agent: bool, full: bool) -> PromptBuilder:
        builder = PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        if agent:
            system = AGENT_TASK_PROMPT if full else AGENT_SYSTEM_PROMPT
            builder.tokens(self.tokenizer.system, *self.tokenizer.encode(system))
        builder.tokens(self.tokenizer.user)
        return builder

    def _answer(self, slot: Slot, answer: str, thought: str | None, manner: Manner) -> None:
        """Append the assistant's turn as the chat template opens it."""
        tokenizer = self.tokenizer
        slot.given([tokenizer.assistant])
        if thought is None:
            slot.given([tokenizer.answer])
        else:
            slot.given([tokenizer.think])
            self._write(slot, [*tokenizer.encode(thought), tokenizer.end_think, tokenizer.answer], manner)
        start = len(slot.ids)
        self._write(slot, [*tokenizer.encode(answer), tokenizer.eos], manner)
        if answer in self._one_sided:  # see one_sided_answers: the action would give the held-out one away
            slot.loss[start] = 0.0

    def _write(self, slot: Slot, ids: list[int], manner: Manner) -> None:
        slot.written(ids, [manner.template if token in self._template else 1.0 for token in ids])


def caption(scene: Scene) -> str:
    """Return the labels on a screen in reading order."""
    ordered = sorted(scene.elements, key=lambda element: (element.shown[1], element.shown[0]))
    return " ".join(element.label.chinese for element in ordered)


def screen_thought(asked: Asked) -> str:
    """Return the thought before an answer about a screen, in the question's language."""
    chinese = asked.language == "zh"
    if asked.kind == "tap":
        return f"找到{asked.name}并点击。" if chinese else f"Find {asked.name} and tap it."
    if asked.kind == "read":
        return "看这个位置是什么。" if chinese else "Look at this place."
    return "在屏幕上找一找。" if chinese else "Look for it on the screen."


def heard_thought(clip: Recording) -> str:
    """Return the thought before an answer to speech: what was heard."""
    return f"听到:{clip.text}。" if clip.language == "zh" else f"I heard: {clip.text}."

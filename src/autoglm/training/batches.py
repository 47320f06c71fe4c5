"""Training rows: a shared prefix and many independent questions after it, packed under a block mask.

A row is ``prefix | slot | slot | ...``. Every slot sees the prefix and itself, never another slot, and starts
at the position where the prefix ends, so that each one is exactly the conversation that the chat template
would build. Eight questions share one screen, and a dozen dialogues share one row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoglm.model.audio import FRAMES_PER_TOKEN, SILENCE, log_mel
from autoglm.model.config import ModelConfig
from autoglm.model.layers import MASKED
from autoglm.model.prompt import PromptBuilder
from autoglm.model.tokenizer import LABEL_TOKEN, Tokenizer
from autoglm.training.actions import (
    AGENT_SYSTEM_PROMPT,
    ALL_LABELS,
    app_action,
    finish_action,
    is_chinese,
    is_held_out,
)
from autoglm.training.dialogue import Example, Release, agent_examples, training_examples
from autoglm.training.rows import Slot
from autoglm.training.screens import Question, patch_labels, questions, render
from autoglm.training.speech import Clip, augment
from autoglm.training.vocabulary import MERGE_TOKEN

IGNORED = -100
ROW_TOKENS = 256


@dataclass(frozen=True)
class Batch:
    """One step's data. B rows of T tokens.

    Attributes:
        kind: ``image``, ``audio`` or ``text``.
        ids: (B, T) long.
        positions: (B, T, 3) long.
        bias: (B, 1, T, T) float32, additive mask.
        targets: (B, T) long, the next token where a loss is taken, -100 elsewhere.
        weights: (B, T) float32.
        media: (B, H, W, 3) uint8, (B, F, mels) float32, or None.
        media_at: index of the first media token.
        patches: (B, patches) long, label of each patch, -100 ignored; images only.
        transcripts: what is said; audio only.
    """

    kind: str
    ids: Tensor
    positions: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor
    media: Tensor | None = None
    media_at: int = 0
    patches: Tensor | None = None
    transcripts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variety:
    """How far rows stray from the plain form.

    Attributes:
        noise: share of questions in text with tokens lost or strange ones around them.
        agent: share of screens and clips under the agent's system prompt.
        think: share of the other answers that think first.
        hop: weight of the early answer at the question's key token.
        template: weight of tokens that never vary.
    """

    agent: float = 0.0
    think: float = 0.0
    noise: float = 0.0
    hop: float = 0.5
    template: float = 0.1


PLAIN = Variety()
VARIED = Variety(agent=0.15, think=0.25)
NOISY = Variety(agent=0.15, think=0.25, noise=0.4)
_LOST = 0.12  # share of a noisy question's tokens that are left out
_STRANGE = 4  # at most so many random tokens before and after it


class Batches:
    """Make batches for one tokenizer and one configuration; every draw comes from the given generator."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        encode = tokenizer.encode
        closing = [*encode('")'), *encode(")")]
        self._template = {tokenizer.eos, encode('do(action="Tap", element=')[0], *closing}
        self._labels = range(LABEL_TOKEN, LABEL_TOKEN + len(ALL_LABELS))
        image = config.image
        self._y_tokens = range(image.y_token, image.y_token + image.bins)
        self._one_sided = {app_action(*answer) for answer in one_sided_answers()}

    # Screens

    def screens(
        self,
        rng: random.Random,
        count: int,
        *,
        num_elements: tuple[int, int],
        labels: Sequence[str],
        variety: Variety = PLAIN,
    ) -> Batch:
        """Return ``count`` screens with eight questions each."""
        images: list[np.ndarray] = []
        patches: list[np.ndarray] = []
        rows: list[list[Slot]] = []
        agent = rng.random() < variety.agent  # the whole batch, so that prefixes align
        for _ in range(count):
            screen = render(rng, num_elements=num_elements, labels=labels)
            images.append(screen.image)
            patches.append(patch_labels(screen, self.config.image.patch).ravel())
            asked = questions(rng, screen, labels)
            rng.shuffle(asked)
            rows.append([self.screen_slot(rng, q, agent=agent, variety=variety) for q in asked])
        media = torch.from_numpy(np.stack(images))
        builder = self._prefix(agent)
        builder.image(media[0])
        truth = torch.from_numpy(np.stack(patches)).long()
        return self._pack("image", builder, rows, media=media, patches=truth)

    def screen_slot(self, rng: random.Random, question: Question, *, agent: bool, variety: Variety) -> Slot:
        """Return one question about a screen as a slot."""
        slot = Slot()
        asked = self.tokenizer.encode(question.prompt)
        slot.given(asked)
        plain = agent and question.kind != "tap"
        answer = finish_action(question.answer) if plain else question.answer
        thought = screen_thought(question) if agent or rng.random() < variety.think else None
        self._answer(slot, answer, thought, variety)
        if variety.hop > 0:
            keys = [i for i, token in enumerate(asked) if token in self._labels or token in self._y_tokens]
            written = self.tokenizer.encode(question.answer)
            slot.hop = (keys[-1], written[1] if question.kind == "tap" else written[0])
        return slot

    # Speech

    def speech(
        self, rng: random.Random, count: int, clips: Sequence[Clip], variety: Variety = PLAIN
    ) -> Batch:
        """Return ``count`` augmented clips, each answered directly and after a thought."""
        agent = rng.random() < variety.agent
        chosen = [rng.choice(clips) for _ in range(count)]
        media = torch.from_numpy(np.stack([self._frames(rng, clip) for clip in chosen]))
        rows: list[list[Slot]] = []
        for clip in chosen:
            slots: list[Slot] = []
            for thinks in (True,) if agent else (False, True) if rng.random() < variety.think else (False,):
                slot = Slot()
                action = clip.answer.startswith("do(") or not agent
                answer = clip.answer if action else finish_action(clip.answer)
                self._answer(slot, answer, speech_thought(clip) if thinks else None, variety)
                slots.append(slot)
            rows.append(slots)
        builder = self._prefix(agent)
        builder.audio(media[0])
        texts = tuple(clip.text.lower() for clip in chosen)
        return self._pack("audio", builder, rows, media=media, transcripts=texts)

    def _frames(self, rng: random.Random, clip: Clip) -> np.ndarray:
        """Return augmented log-mel frames (F, mels), placed at random in the shortest span."""
        audio = self.config.audio
        room = audio.min_tokens * FRAMES_PER_TOKEN
        frames = log_mel(augment(rng, clip.audio), audio.mels)[:room]
        frames = np.roll(frames, rng.randint(-2, 2), 1) + np.float32(rng.uniform(-0.25, 0.25))
        first = rng.randrange(audio.mels - 4)
        frames[:, first : first + rng.randint(0, 8)] = SILENCE
        out = np.full((room, audio.mels), SILENCE, np.float32)
        start = rng.randint(0, room - len(frames))
        out[start : start + len(frames)] = frames
        return out

    # Text

    def text(self, rng: random.Random, count: int, release: Release, variety: Variety = PLAIN) -> Batch:
        """Return ``count`` rows of about :data:`ROW_TOKENS` tokens of dialogues."""
        rows = [self._text_row(rng, release, variety) for _ in range(count)]
        builder = PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        return self._pack("text", builder, rows)

    def dialogues(self, examples: Sequence[Example], rows: int) -> list[Batch]:
        """Pack given examples, every third one thinking, into batches of ``rows`` rows, in order."""
        packed: list[list[Slot]] = [[]]
        for number, example in enumerate(examples):
            if sum(len(slot.ids) for slot in packed[-1]) > ROW_TOKENS:
                packed.append([])
            packed[-1].append(self.example_slot([example], thinks=number % 3 == 2))
        builder = PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        return [
            self._pack("text", builder, packed[first : first + rows]) for first in range(0, len(packed), rows)
        ]

    def _text_row(self, rng: random.Random, release: Release, variety: Variety) -> list[Slot]:
        slots: list[Slot] = []
        room = ROW_TOKENS
        while room > 0:
            slots.append(self.dialogue_slot(rng, release, variety))
            room -= len(slots[-1].ids)
        if room < -ROW_TOKENS // 4 and len(slots) > 1:
            slots.pop()
        return slots

    def dialogue_slot(self, rng: random.Random, release: Release, variety: Variety) -> Slot:
        """Return one conversation: plain, thinking, under the agent's prompt, or after earlier turns."""
        form = rng.random()
        noise = rng if rng.random() < variety.noise else None
        if form < 0.15:
            example = next(agent_examples(rng, 1, release=release))
            return self.example_slot([example], thinks=True, noise=noise)
        turns = rng.choice((2, 2, 3)) if form < 0.30 else 1
        examples = list(training_examples(rng, turns, release=release))
        return self.example_slot(examples, thinks=rng.random() < 0.3, noise=noise)

    def example_slot(
        self, examples: Sequence[Example], *, thinks: bool, noise: random.Random | None = None
    ) -> Slot:
        """Return turns of one conversation; only the last may think, the first may have a system prompt."""
        slot, tokenizer = Slot(), self.tokenizer
        if examples[0].system:
            slot.given([tokenizer.system, *tokenizer.encode(examples[0].system)])
        for i, example in enumerate(examples):
            asked = tokenizer.encode(example.question)
            if noise is not None:
                asked = self._noisy(noise, asked)
            slot.given([tokenizer.user, *asked])
            thought = example.thought if thinks and i == len(examples) - 1 else None
            self._answer(slot, example.answer, thought, PLAIN)
        return slot

    def _noisy(self, rng: random.Random, ids: list[int]) -> list[int]:
        """Lose some tokens and put strange ones around, so that no single token decides; labels stay."""
        kept = [token for token in ids if token in self._labels or rng.random() > _LOST]
        before, after = (
            [rng.randrange(MERGE_TOKEN, self.config.vocab_size) for _ in range(rng.randint(0, _STRANGE))]
            for _ in range(2)
        )
        return [*before, *(kept or ids), *after]

    # Rows

    def _prefix(self, agent: bool) -> PromptBuilder:
        tokenizer = self.tokenizer
        builder = PromptBuilder(tokenizer, self.config)
        builder.tokens(tokenizer.bos)
        if agent:
            builder.tokens(tokenizer.system, *tokenizer.encode(AGENT_SYSTEM_PROMPT))
        builder.tokens(tokenizer.user)
        return builder

    def _answer(self, slot: Slot, answer: str, thought: str | None, variety: Variety) -> None:
        """Append the assistant's turn as the chat template opens it."""
        tokenizer = self.tokenizer
        slot.given([tokenizer.assistant])
        if thought is None:
            slot.given([tokenizer.answer])
        else:
            slot.given([tokenizer.think])
            self._write(slot, [*tokenizer.encode(thought), tokenizer.end_think, tokenizer.answer], variety)
        start = len(slot.ids)
        self._write(slot, [*tokenizer.encode(answer), tokenizer.eos], variety)
        if answer in self._one_sided:
            slot.loss[start] = 0.0

    def _write(self, slot: Slot, ids: list[int], variety: Variety) -> None:
        slot.written(ids, [variety.template if token in self._template else 1.0 for token in ids])

    def _pack(
        self,
        kind: str,
        prefix: PromptBuilder,
        rows: Sequence[Sequence[Slot]],
        media: Tensor | None = None,
        patches: Tensor | None = None,
        transcripts: tuple[str, ...] = (),
    ) -> Batch:
        """Lay prefix and slots out as tensors."""
        head, begin = prefix.build(), len(prefix.ids)
        B = len(rows)
        T = begin + max(sum(len(slot.ids) for slot in row) for row in rows)
        ids = np.zeros((B, T), np.int64)
        positions = np.zeros((B, T, 3), np.int64)
        owner = np.zeros((B, T), np.int64)  # 0 prefix, k the k-th slot
        targets = np.full((B, T), IGNORED, np.int64)
        weights = np.zeros((B, T), np.float32)
        ids[:, :begin] = head.token_ids.numpy()
        positions[:, :begin] = head.positions.numpy()
        for b, row in enumerate(rows):
            at = begin
            for number, slot in enumerate(row, 1):
                end = at + len(slot.ids)
                ids[b, at:end] = slot.ids
                positions[b, at:end] = (head.next_position + np.arange(end - at))[:, None]
                owner[b, at:end] = number
                loss = np.array(slot.loss[1:], np.float32)
                weights[b, at : end - 1] = loss
                targets[b, at : end - 1] = np.where(loss > 0, slot.ids[1:], IGNORED)
                if slot.hop is not None:
                    targets[b, at + slot.hop[0]] = slot.hop[1]
                    weights[b, at + slot.hop[0]] = 0.5
                at = end
            owner[b, at:] = len(row) + 1
        spans = np.zeros(T, np.int64)
        spans[:begin] = head.spans.numpy()
        causal = np.tril(np.ones((T, T), bool))
        inside = (spans[:, None] == spans[None]) & (spans[:, None] > 0)
        own = (owner[:, :, None] == owner[:, None]) | (owner[:, None] == 0)
        bias = np.where((causal & own) | inside, np.float32(0), np.float32(MASKED))[:, None]
        media_at = int((head.spans > 0).nonzero()[0]) if media is not None else 0
        return Batch(
            kind,
            torch.from_numpy(ids),
            torch.from_numpy(positions),
            torch.from_numpy(bias),
            torch.from_numpy(targets),
            torch.from_numpy(weights),
            media,
            media_at,
            patches,
            transcripts,
        )


def one_sided_answers() -> list[tuple[str, str]]:
    """List the trained (action, label) answers whose label has its other action held out.

    For these the action itself carries no loss: a model that learns "this label, so that action" would be
    right on all that it is trained on and wrong on all that is held out.
    """
    other = {"Launch": "Close", "Close": "Launch"}
    return [
        (action, label)
        for label in ALL_LABELS
        for action in other
        if is_held_out(other[action], label) and not is_held_out(action, label)
    ]


def screen_thought(question: Question) -> str:
    """Return the thought before an answer about a screen, in the question's language."""
    chinese = is_chinese(
        question.prompt.replace(question.element.label, "") if question.element else question.prompt
    )
    if question.kind == "tap" and question.element is not None:
        label = question.element.label
        return f"找到{label}并点击。" if chinese else f"Find {label} and tap it."
    if question.kind == "read":
        return "看这个位置是什么。" if chinese else "Look at this place."
    return "在屏幕上找一找。" if chinese else "Look for it on the screen."


def speech_thought(clip: Clip) -> str:
    """Return the thought before an answer to speech: what was heard."""
    return f"听到:{clip.text}。" if is_chinese(clip.text) else f"I heard: {clip.text}."

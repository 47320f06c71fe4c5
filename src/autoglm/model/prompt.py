"""From a conversation to what the network runs on: ids, three-axis positions, media spans, pixels, frames.

The chat template: ``<|bos|>``, then for every message its role token and its parts; a finished assistant
turn reads ``<|assistant|><answer>text<|eos|>``, its thought left out. The turn to be written opens with
``<think>`` where thinking is wanted and with ``<answer>`` where not, so thinking is switched by the template.
Under an action-grammar system prompt the assistant always thinks first, as phone agents expect.

    >>> prompt = Processor(tokenizer, config).prompt([Message("user", "你是谁?")], enable_thinking=False)
    ... # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from autoglm.errors import RequestError
from autoglm.model.audio import FRAMES_PER_TOKEN, Samples, audio_tensor, decode_audio, to_mono_16k
from autoglm.model.config import ModelConfig
from autoglm.model.image import decode_image, image_tensor
from autoglm.model.tokenizer import Tokenizer
from autoglm.releases import HealthPrompt

MAX_MESSAGES = 1000
MAX_TEXT_CHARS = 1_000_000
SHORTEN = "shorten the conversation"  # how refusals of what is too long end
_MAX_TOKEN_CHARS = 64  # no token stands for more, so a longer text needs not be taken apart to be refused
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_ANSWER_TAG = re.compile(r"</?answer>")
_AGENT_MARKS = ("do(action=", "finish(message=")


@dataclass(frozen=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture: decoded, or the bytes of a file.

    Attributes:
        image: the picture.
        file: of a decoded one, the bytes that it was decoded from, if they are still there.
    """

    image: Image.Image | bytes
    file: bytes | None = None


@dataclass(frozen=True)
class AudioPart:
    """A clip: the bytes of a file, or samples in -1..1 with their rate in Hz."""

    audio: bytes | tuple[Samples, int]


Part = TextPart | ImagePart | AudioPart


@dataclass(frozen=True)
class Message:
    """One message; ``role`` is system, developer, user, assistant or tool."""

    role: str
    content: str | Sequence[Part]

    @property
    def parts(self) -> Sequence[Part]:
        """The content as parts."""
        return [TextPart(self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The content's text alone."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def conversation(prompt: HealthPrompt) -> tuple[Message, ...]:
    """Return the messages of a self-test's prompt."""
    return tuple(Message(message["role"], message["content"]) for message in prompt.messages)


@dataclass(frozen=True)
class Prompt:
    """What the network runs on.

    Attributes:
        token_ids: (T,) long; media places hold the pad token of their kind.
        positions: (T, 3) long: t, h, w.
        spans: (T,) long: 0 for text, k > 0 inside the k-th media span.
        images: one (H, W, 3) uint8 each, in order.
        audios: one (F, mels) float32 each, in order.
        image_spans: the span of each image.
        audio_spans: the span of each clip.
        next_position: position, on all axes, of the first token to be written.
    """

    token_ids: Tensor
    positions: Tensor
    spans: Tensor
    images: tuple[Tensor, ...]
    audios: tuple[Tensor, ...]
    image_spans: tuple[int, ...]
    audio_spans: tuple[int, ...]
    next_position: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def continued(self, token_ids: Sequence[int]) -> Prompt:
        """Return this prompt with tokens written after it."""
        count = len(token_ids)
        places = self.next_position + torch.arange(count)
        return replace(
            self,
            token_ids=torch.cat((self.token_ids, torch.tensor(token_ids, dtype=torch.long))),
            positions=torch.cat((self.positions, places[:, None].expand(-1, 3))),
            spans=torch.cat((self.spans, torch.zeros(count, dtype=torch.long))),
            next_position=self.next_position + count,
        )


@dataclass
class PromptBuilder:
    """Collect a prompt piece by piece, counting positions; used by the template and by training.

    With ``max_tokens`` it stops at the first piece that is too much, so that what a hostile conversation
    costs does not grow with its length.
    """

    tokenizer: Tokenizer
    config: ModelConfig
    max_tokens: int | None = None
    ids: list[int] = field(default_factory=list[int])
    positions: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    spans: list[int] = field(default_factory=list[int])
    images: list[Tensor] = field(default_factory=list[Tensor])
    audios: list[Tensor] = field(default_factory=list[Tensor])
    image_spans: list[int] = field(default_factory=list[int])
    audio_spans: list[int] = field(default_factory=list[int])
    next_position: int = 0

    def text(self, text: str) -> None:
        """Append a text.

        Raises:
            RequestError: it is too long.
        """
        self._check_room(len(text) // _MAX_TOKEN_CHARS)
        self.tokens(*self.tokenizer.encode(text))

    def _check_room(self, count: int) -> None:
        if self.max_tokens is not None and len(self.ids) + count > self.max_tokens:
            raise RequestError(
                f"the prompt has more than the {self.max_tokens} tokens that prompt and answer together may "
                f"have: {SHORTEN}",
                param="messages",
            )

    def tokens(self, *ids: int) -> None:
        """Append text or control tokens."""
        self._check_room(len(ids))
        for token_id in ids:
            self.ids.append(token_id)
            self.positions.append(_text_place(self.next_position))
            self.spans.append(0)
            self.next_position += 1

    def image(self, pixels: Tensor) -> None:
        """Append an image (H, W, 3) uint8 between its begin and end tokens."""
        patch = self.config.image.patch
        rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
        self.tokens(self.tokenizer.image_begin)
        start = self.next_position
        places = [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
        self.image_spans.append(self._span(self.tokenizer.image_pad, places))
        self.images.append(pixels)
        self.next_position = start + max(rows, columns)
        self.tokens(self.tokenizer.image_end)

    def audio(self, frames: Tensor) -> None:
        """Append a clip (F, mels) between its begin and end tokens."""
        self.tokens(self.tokenizer.audio_begin)
        start, count = self.next_position, len(frames) // FRAMES_PER_TOKEN
        places = [_text_place(start + i) for i in range(count)]
        self.audio_spans.append(self._span(self.tokenizer.audio_pad, places))
        self.audios.append(frames)
        self.next_position = start + count
        self.tokens(self.tokenizer.audio_end)

    def _span(self, pad: int, places: list[tuple[int, int, int]]) -> int:
        """Append one media span and return its number."""
        self._check_room(len(places))
        number = len(self.images) + len(self.audios) + 1
        self.ids += [pad] * len(places)
        self.positions += places
        self.spans += [number] * len(places)
        return number

    def build(self) -> Prompt:
        """Return the finished prompt."""
        return Prompt(
            torch.tensor(self.ids, dtype=torch.long),
            torch.tensor(self.positions, dtype=torch.long).view(-1, 3),
            torch.tensor(self.spans, dtype=torch.long),
            tuple(self.images),
            tuple(self.audios),
            tuple(self.image_spans),
            tuple(self.audio_spans),
            self.next_position,
        )


def _text_place(position: int) -> tuple[int, int, int]:
    """Return the place of a token that has no rows and columns: the same on all axes."""
    return position, position, position


def is_agent(messages: Sequence[Message]) -> bool:
    """Tell whether a system message asks for phone actions, by the words of the action grammar."""
    system = "".join(message.text for message in messages if message.role in ("system", "developer"))
    return all(mark in system for mark in _AGENT_MARKS)


class Processor:
    """The chat template and the media preprocessing of one model."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._roles = {
            "system": tokenizer.system,
            "developer": tokenizer.system,
            "user": tokenizer.user,
            "tool": tokenizer.tool,
        }

    def prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool, max_tokens: int | None = None
    ) -> Prompt:
        """Turn a conversation into a prompt for the next assistant turn.

        The last token is the tokenizer's ``think`` or ``answer``: the turn has been opened.

        Args:
            messages: the conversation.
            enable_thinking: whether the turn begins with a thought.
            max_tokens: a longer prompt is refused as soon as that is seen.

        Raises:
            RequestError: no or too many messages, an unknown role, media that cannot be used, or too long.
        """
        if not 0 < len(messages) <= MAX_MESSAGES:
            raise RequestError(f"a conversation has 1 to {MAX_MESSAGES} messages", param="messages")
        tokenizer = self.tokenizer
        builder = PromptBuilder(tokenizer, self.config, max_tokens)
        builder.tokens(tokenizer.bos)
        for message in messages:
            self._add(builder, message)
        thinks = enable_thinking or is_agent(messages)
        builder.tokens(tokenizer.assistant, tokenizer.think if thinks else tokenizer.answer)
        return builder.build()

    def _add(self, builder: PromptBuilder, message: Message) -> None:
        tokenizer = self.tokenizer
        if message.role == "assistant":
            answer = _ANSWER_TAG.sub("", _THOUGHT.sub("", message.text)).strip()
            builder.tokens(tokenizer.assistant, tokenizer.answer)
            builder.text(answer)
            builder.tokens(tokenizer.eos)
            return
        if message.role not in self._roles:
            raise RequestError(f"unknown role {message.role[:40]!r}", param="messages")
        builder.tokens(self._roles[message.role])
        for part in message.parts:
            self.add_part(builder, part)

    def add_part(self, builder: PromptBuilder, part: Part) -> None:
        """Append one part of a message.

        Raises:
            RequestError: media that cannot be used, or too long.
        """
        if isinstance(part, TextPart):
            if len(part.text) > MAX_TEXT_CHARS:
                raise RequestError(f"a text has more than {MAX_TEXT_CHARS} characters", param="messages")
            builder.text(part.text)
        elif isinstance(part, ImagePart):
            image = decode_image(part.image) if isinstance(part.image, bytes) else part.image
            builder.image(image_tensor(image, self.config.image))
        else:
            samples = decode_audio(part.audio) if isinstance(part.audio, bytes) else to_mono_16k(*part.audio)
            builder.audio(audio_tensor(samples, self.config.audio))

"""One vector for a text, a picture or a clip, all in one space: the mean of the last hidden states.

What it guarantees: one pooling for the service, training and evaluation; only the places of the content
count, never the markers around it; vectors have length one, so a scalar product is the cosine.

    >>> prompt, content = content_prompt(processor, [TextPart("打开地图")])         # doctest: +SKIP
    >>> vector = embed(model, prompt, content)                                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoglm.errors import RequestError
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.prompt import Part, Processor, Prompt, PromptBuilder, TextPart


@dataclass(frozen=True)
class TokenPart:
    """A piece of text that its sender has turned into tokens already."""

    token_ids: tuple[int, ...]


def pool(hidden: Tensor, content: Tensor) -> Tensor:
    """Return the mean of the hidden states at the content's places, scaled to length one.

    Args:
        hidden: the normalised last stream (..., T, width).
        content: which places count, (..., T) bool.

    Returns:
        (..., width) float32.
    """
    weights = content.to(hidden.device)[..., None].float()  # (..., T, 1)
    return F.normalize((hidden.float() * weights).sum(-2) / weights.sum(-2).clamp(min=1), dim=-1)


def content_prompt(
    processor: Processor, parts: Sequence[Part | TokenPart], max_tokens: int | None = None
) -> tuple[Prompt, Tensor]:
    """Return the prompt by which a content is embedded, a user's turn, and which places count.

    Args:
        processor: of the release.
        parts: the content; several parts make one vector.
        max_tokens: a longer content is refused as soon as that is seen.

    Returns:
        The prompt, and (T,) bool.

    Raises:
        RequestError: there is nothing to embed, media cannot be used, or the content is too long.
    """
    tokenizer = processor.tokenizer
    builder = PromptBuilder(tokenizer, processor.config, max_tokens)
    builder.tokens(tokenizer.bos, tokenizer.user)
    counted: list[int] = []
    for part in parts:
        start = len(builder.ids)
        if isinstance(part, TokenPart):
            builder.tokens(*_checked(part.token_ids, processor))
        else:
            processor.add_part(builder, part)
        places = range(start, len(builder.ids))
        counted += places if isinstance(part, TextPart | TokenPart) else places[1:-1]  # without the markers
    prompt = builder.build()
    if not counted:
        raise RequestError("there is nothing to embed: the input is empty", param="input")
    content = torch.zeros(len(prompt), dtype=torch.bool)
    content[counted] = True
    return prompt, content


def embed(model: PhoneModel, prompt: Prompt, content: Tensor) -> Tensor:
    """Embed a whole prompt at once, (width,); the engine does the same piece by piece."""
    bias = span_bias(prompt.spans.to(model.device))[None, None]
    hidden, _ = model(model.embed(prompt)[None], prompt.positions.to(model.device), bias)
    return pool(hidden[0], content)


def _checked(token_ids: Sequence[int], processor: Processor) -> Sequence[int]:
    tokenizer = processor.tokenizer
    for token_id in token_ids:
        if not 0 <= token_id < tokenizer.vocab_size or token_id in tokenizer.controls:
            raise RequestError(f"{token_id} is no token of a text for this model", param="input")
    return token_ids

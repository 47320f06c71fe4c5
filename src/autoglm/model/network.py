"""The network: one stack of blocks for text, image and sound; prefill and decode over a KV cache.

Embedders differ by modality, blocks do not: there is one set of block weights, and every token of every
modality passes through it. Attention is causal, and bidirectional inside one image or one clip, so a cache
stays incremental. The network knows no tokenizer, no files and no sampling.

    >>> model = PhoneModel(config).eval()                                # doctest: +SKIP
    >>> cache = model.new_cache(num_slots=1, max_context=256)            # doctest: +SKIP
    >>> hidden = model.prefill(prompt, cache, cache.slot(0))             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.errors import EngineError, RequestError
from autoglm.model import topk
from autoglm.model.cache import KVCache
from autoglm.model.config import ModelConfig
from autoglm.model.embedders import AudioEmbedder, CoordinatePlaces, image_embedder
from autoglm.model.kernels import Table, drop_packed
from autoglm.model.layers import MASKED, Block, RmsNorm, rotary_tables, token_turns
from autoglm.model.pages import PageTable, Rows
from autoglm.model.prefill import gated_prefill, span_limits
from autoglm.model.prompt import Prompt
from autoglm.model.step import Step

IMAGE, AUDIO = 0, 1  # rows of the modality table


def span_bias(spans: Tensor) -> Tensor:
    """Return the additive mask of a whole sequence: causal, bidirectional inside each media span.

    Args:
        spans: (..., T) long, 0 for text, k > 0 for the k-th media span.

    Returns:
        (..., T, T) float32, 0 where attention is allowed and :data:`MASKED` elsewhere.
    """
    index = torch.arange(spans.shape[-1], device=spans.device)
    rows = spans[..., None]
    allowed = (index <= index[:, None]) | ((rows == spans[..., None, :]) & (rows > 0))
    return torch.zeros(allowed.shape, device=spans.device).masked_fill_(~allowed, MASKED)


def _empty_table(num_rows: int, width: int) -> nn.Embedding:
    """Return a table whose values are yet to be set.

    On the meta device, where releases are loaded, drawing random values would import torch's compiler,
    which takes over a second.
    """
    return nn.Embedding.from_pretrained(torch.empty(num_rows, width), freeze=False)


def split_layers(num_layers: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """Return the device of each layer: contiguous groups, as equal as can be."""
    return [devices[i * len(devices) // num_layers] for i in range(num_layers)]


class PhoneModel(nn.Module):
    """The multimodal GLM of this project at the sizes of one configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.embed_scale = width**0.5 if config.tie_embeddings else 1.0
        self.table: nn.Embedding = _empty_table(config.vocab_size, width)
        self.image = image_embedder(config)
        self.places = CoordinatePlaces(config.image, width) if config.image.bins else None
        self.audio = AudioEmbedder(config.audio, width, config.norm_eps)
        self.modality = _empty_table(2, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(width, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(width, config.vocab_size, bias=False)
        self.layer_devices: list[torch.device] = []
        self._step: tuple[Step | None] | None = None  # found at the first decoded token
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=width**-0.5)
            nn.init.zeros_(self.modality.weight)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    @property
    def device(self) -> torch.device:
        """Where embeddings are, and where hidden states return to for :meth:`logits`."""
        return self.modality.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states, keys and values."""
        return self.modality.weight.dtype

    def place(self, devices: Sequence[torch.device | str]) -> PhoneModel:
        """Split the layers over ``devices`` in contiguous groups; embeddings and the head go to the first.

        Returns:
            The model itself.
        """
        chosen = [torch.device(device) for device in devices]
        if not chosen:
            raise EngineError("no device was given to place the model on")
        self.to(chosen[0])
        self.layer_devices = split_layers(self.config.num_layers, chosen)
        for block, device in zip(self.layers, self.layer_devices, strict=True):
            block.to(device)
        return self

    def new_cache(self, num_slots: int, max_context: int, pace: Callable[[], None] = lambda: None) -> KVCache:
        """Allocate pages for ``num_slots`` sequences of up to ``max_context`` tokens; ``pace`` may rest."""
        devices = self.layer_devices or [self.device] * self.config.num_layers
        return KVCache(self.config, num_slots, max_context, devices, self.dtype, pace)

    # Embedding

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Embed ids (...) into (..., width)."""
        return self.table(token_ids) * self.embed_scale

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed (B, H, W, 3) uint8 into (B, patches, width)."""
        return self.place_images(self.image(images).to(self.dtype))

    def place_images(self, tokens: Tensor) -> Tensor:
        """Add what marks the place and the modality to embedded patches (B, patches, width)."""
        if self.places is not None:
            rows = self.table.whole() if isinstance(self.table, Table) else self.table.weight
            tokens = tokens + self.places(rows * self.embed_scale)
        return tokens + self.modality.weight[IMAGE]

    def embed_audio(self, mels: Tensor) -> Tensor:
        """Embed log-mel frames (B, F, mels) into (B, F / 4, width)."""
        return self.audio(mels).to(self.dtype) + self.modality.weight[AUDIO]

    def embed_span(self, prompt: Prompt, span: int) -> Tensor:
        """Embed the image or clip of one media span, (places, width).

        Raises:
            RequestError: the span and its image or clip disagree in length.
        """
        if span in prompt.image_spans:
            pixels = prompt.images[prompt.image_spans.index(span)]
            tokens = self.embed_images(pixels[None].to(self.device))[0]
        else:
            tokens = self.embed_audio(prompt.audios[prompt.audio_spans.index(span)][None].to(self.device))[0]
        if (places := int((prompt.spans == span).sum())) != len(tokens):
            raise RequestError(f"media span {span} has {places} places for {len(tokens)} tokens")
        return tokens

    def embed(
        self,
        prompt: Prompt,
        start: int = 0,
        stop: int | None = None,
        media: Callable[[Prompt, int], Tensor] | None = None,
    ) -> Tensor:
        """Embed the tokens ``start`` to ``stop`` of a prompt, media in their spans, into (T, width).

        Args:
            prompt: what to embed.
            start: the first token.
            stop: past the last token; None: the prompt's end.
            media: gives a span's embedding in place of :meth:`embed_span`, from a cache for example.

        Raises:
            RequestError: a span and its image or clip disagree in length.
        """
        x = self.embed_tokens(prompt.token_ids[start:stop].to(self.device))
        spans = prompt.spans[start:stop]
        for span in (*prompt.image_spans, *prompt.audio_spans):
            index = (spans == span).nonzero()[:, 0].to(self.device)
            if len(index):
                before = int((prompt.spans[:start] == span).sum())
                tokens = (media or self.embed_span)(prompt, span)
                x = x.index_copy(0, index, tokens[before : before + len(index)])
        return x

    # Running

    def forward(
        self, x: Tensor, positions: Tensor, bias: Tensor | None, *, hidden_after: int = 0, stop_after: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Run all blocks over embedded sequences, for training.

        Args:
            x: (B, T, width).
            positions: (B, T, 3) or (T, 3) long.
            bias: additive mask broadcastable to (B, 1, T, T).
            hidden_after: also return the stream after this many blocks (0: the input).
            stop_after: run only this many blocks (0: all).

        Returns:
            The normalised final stream (B, T, width) and the stream after ``hidden_after`` blocks.
        """
        cos, sin = (table.to(x.dtype) for table in rotary_tables(positions, self.config))
        if positions.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]
        hidden = x
        for i, block in enumerate(self.layers):
            if stop_after and i >= stop_after:
                break
            x = block(x, cos, sin, bias)
            if i + 1 == hidden_after:
                hidden = x
        return self.norm(x), hidden

    def prefill(
        self,
        prompt: Prompt,
        cache: KVCache,
        table: PageTable,
        start: int = 0,
        stop: int | None = None,
        media: Callable[[Prompt, int], Tensor] | None = None,
        whole: bool = False,
    ) -> Tensor:
        """Run the tokens ``start`` to ``stop`` of a prompt whose earlier tokens are in the cache already.

        A piece may end anywhere but inside a media span, whose tokens see each other. It may begin there,
        when what it continues was computed with the whole span.

        Args:
            prompt: what to run.
            cache: written from ``start`` on.
            table: the pages of this sequence.
            start: the first token.
            stop: past the last token; None: the prompt's end.
            media: as for :meth:`embed`.
            whole: return the states of all these tokens.

        Returns:
            The last token's hidden state (width,); with ``whole`` all of them (T, width).

        Raises:
            RequestError: the tokens do not fit into the pages.
        """
        stop = len(prompt.token_ids) if stop is None else stop
        if not start < stop <= len(table) * cache.page:
            raise RequestError(f"the prompt has {stop} tokens; its pages hold {len(table) * cache.page}")
        x = self.embed(prompt, start, stop, media)[None]
        gate = vars(self.config.topk)
        tables = rotary_tables(prompt.positions[start:stop], self.config)
        limits = span_limits(prompt.spans[start:stop], start)
        for i, (block, device) in enumerate(zip(self.layers, cache.devices, strict=True)):
            x = x.to(device)
            q, k, v = block.project(x, *(table.to(x) for table in tables))
            keys, values = cache.write(i, table, start, k[0], v[0])
            bounds = table.read(cache.bounds[i], 1, 0, -(-stop // cache.page))
            attended = gated_prefill(q[0], keys, values, bounds, limits.to(device), **gate)
            x = block.finish(x, attended[None])
        return self.norm((x[0] if whole else x[0, -1]).to(self.device))

    def decode(self, token_ids: Tensor, positions: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """Run one token for each of B sequences, each at its own length.

        Args:
            token_ids: (B,) long.
            positions: (B,) long; the same on all three axes.
            cache: written at each row's newest place.
            rows: where the sequences lie, this token counted; no two may write to the same page.

        Returns:
            (B, width).
        """
        step = self._native_step()
        if step is None:
            return self._decode_by_torch(token_ids, positions, cache, rows)
        return step.run(token_ids, positions, cache, rows, self.config.topk)

    def _native_step(self) -> Step | None:
        """Return the native core's view of this model, None when torch computes it."""
        if self._step is None:
            self._step = (Step.of(self),)
        return self._step[0]

    def drop_packed(self) -> None:
        """Give the memory of all packed weights back, once nobody computes with them."""
        drop_packed(self)
        self._step = None

    def _decode_by_torch(self, token_ids: Tensor, positions: Tensor, cache: KVCache, rows: Rows) -> Tensor:
        """Do what :meth:`decode` says, one operation after the other."""
        x = self.embed_tokens(token_ids.to(self.device))  # (B, width)
        turns = {x.device: [turn.to(x) for turn in token_turns(positions, self.config)]}
        gate = vars(self.config.topk)
        for i, (block, device) in enumerate(zip(self.layers, cache.devices, strict=True)):
            if x.device != device:
                x = x.to(device)
                turns.setdefault(device, [turn.to(x) for turn in turns[self.device]])
            q, k, v = block.project_token(x, *turns[device])
            cache.append(i, rows, k, v)
            attended = topk.gated_decode(q, cache.keys[i], cache.values[i], cache.bounds[i], rows, **gate)
            x = block.finish_token(x, attended)
        return self.norm(x.to(self.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (..., V) of the next token from hidden states (..., width)."""
        if self.head is not None:
            return self.head(hidden)
        if isinstance(self.table, Table):
            return self.table.score(hidden)
        return F.linear(hidden, self.table.weight)

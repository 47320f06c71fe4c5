"""Run an exported pair (``.pte`` and ``.ptd``) with ExecuTorch, never before its output check has passed.

>>> model = ExportedModel(Path("exported"))                          # doctest: +SKIP
>>> model.greedy(prompt, max_tokens=64)                              # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoglm.errors import ConfigError, FormatError, RequestError
from autoglm.model.config import MAX_CONFIG_BYTES, ModelConfig
from autoglm.model.prefill import span_limits
from autoglm.model.prompt import Processor, Prompt
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import CONFIG_NAME, TOKENIZER_NAME
from autoglm.training.export import DATA_NAME, PROGRAM_NAME
from autoglm.training.probe import PROBE_NAME, Probe


class ExportedModel:
    """An exported release, loaded and checked. One sequence at a time.

    Attributes:
        config: its sizes.
        tokenizer: its tokenizer.
        processor: makes prompts.
    """

    def __init__(self, directory: Path, *, program: Path | None = None, data: Path | None = None) -> None:
        """Load a directory that an export wrote, or that a patch made of one.

        Args:
            directory: holds program, weights, config.json, tokenizer.json and probe.json.
            program: another ``.pte``.
            data: another ``.ptd``.

        Raises:
            ConfigError: executorch is not installed here.
            FormatError: a file is missing or damaged, or program and weights do not fit at all.
            EngineError: the output check failed.
        """
        text = (directory / CONFIG_NAME).read_bytes()[: MAX_CONFIG_BYTES + 1]
        self.config = ModelConfig.from_json(text)
        self.tokenizer = Tokenizer.from_file(directory / TOKENIZER_NAME)
        self.processor = Processor(self.tokenizer, self.config)
        self._methods = _load(program or directory / PROGRAM_NAME, data or directory / DATA_NAME)
        probe = Probe.read(directory / PROBE_NAME)
        self._max_tokens = probe.max_tokens
        probe.check(self._run_ids)

    def greedy(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """Write the turn that a prompt opens, greedily.

        Returns:
            The ids, the end token included where it came.

        Raises:
            RequestError: prompt and turn do not fit into the program's cache, or an image or clip is longer
                than one piece.
        """
        logits = self._prefill(prompt)
        turn: list[int] = []
        for place in range(len(prompt), len(prompt) + max_tokens):
            turn.append(int(logits.argmax()))
            if turn[-1] == self.tokenizer.eos:
                break
            position = prompt.next_position + len(turn) - 1
            x = self._call("embed_tokens", torch.tensor([turn[-1:]]))
            logits = self._step(x, torch.full((1, 3), position), torch.tensor([place]), torch.tensor([place]))
        return turn

    def _prefill(self, prompt: Prompt) -> Tensor:
        """Run a prompt in pieces, none of which ends inside a media span; return the last logits (V,)."""
        x = self._embed(prompt)
        limits = span_limits(prompt.spans) - 1  # the last place that each token sees
        start, logits = 0, torch.zeros(0)
        while start < len(prompt):
            stop = min(len(prompt), start + self._max_tokens)
            while stop < len(prompt) and int(limits[stop - 1]) >= stop:
                stop -= 1
            if stop <= start:
                raise RequestError("an image or clip is longer than the program takes at once")
            piece = slice(start, stop)
            logits = self._step(
                x[:, piece], prompt.positions[piece], torch.arange(start, stop), limits[piece]
            )
            start = stop
        return logits

    def _embed(self, prompt: Prompt) -> Tensor:
        pieces = prompt.token_ids.split(self._max_tokens)
        x = torch.cat([self._call("embed_tokens", piece[None]) for piece in pieces], 1)
        for span, pixels in zip(prompt.image_spans, prompt.images, strict=True):
            x[:, prompt.spans == span] = self._call("embed_image", pixels[None])
        for span, mels in zip(prompt.audio_spans, prompt.audios, strict=True):
            x[:, prompt.spans == span] = self._call("embed_audio", mels[None])
        return x

    def _run_ids(self, ids: list[int], prefill: int) -> list[list[float]]:
        rows: list[list[float]] = []
        for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, len(ids)))]:
            places = torch.arange(start, stop)
            x = self._call("embed_tokens", torch.tensor([ids[start:stop]]))
            rows.append(self._step(x, places[:, None].repeat(1, 3), places, places).tolist())
        return rows

    def _step(self, x: Tensor, positions: Tensor, places: Tensor, limits: Tensor) -> Tensor:
        return self._call("step", x, positions, places, limits)

    def _call(self, method: str, *inputs: Tensor) -> Tensor:
        try:
            (out,) = self._methods[method].execute([value.contiguous() for value in inputs])
        except RuntimeError as error:
            raise RequestError(f"the exported program refused its input: {str(error)[:200]}") from error
        return out.clone()


def _load(program: Path, data: Path) -> dict[str, Any]:
    try:
        runtime = importlib.import_module("executorch.runtime").Runtime.get()
    except ImportError as error:
        raise ConfigError(f"executorch is not installed in this environment ({error})") from error
    if not (program.is_file() and data.is_file()):
        raise FormatError(f"{program} or {data} is missing")
    try:
        loaded = runtime.load_program(program, data_path=data)
        return {name: loaded.load_method(name) for name in sorted(loaded.method_names)}
    except RuntimeError as error:
        raise FormatError(f"{program} does not load with {data}: {str(error)[:200]}") from error

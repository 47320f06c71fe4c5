"""Embeddings on the thread that answers requests: read like a prompt, piece by piece between decode steps.

What it guarantees: all inputs of one request are embedded by one release, whatever is swapped meanwhile; they
take their turns with everybody else's prompts, so no stream stands still for a long list; whoever stops
waiting cancels what is left.

    >>> batch = engine.embed([[TextPart("hi")], [ImagePart(png)]])         # doctest: +SKIP
    >>> vectors = await batch.vectors()                                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoglm.engine.generation import Event, Generation, GenerationRequest, SharedPrompt
from autoglm.engine.release import Resident
from autoglm.engine.sampling import Choice
from autoglm.engine.sequence import Sequence as Request
from autoglm.engine.versions import Versions
from autoglm.errors import EngineError, RequestError
from autoglm.model.embedding import TokenPart, content_prompt
from autoglm.model.pages import PageTable
from autoglm.model.prompt import SHORTEN, Message, Part, Prompt

# Inputs of one request that are in the engine at a time: it never waits for the next one, and others come in.
WINDOW = 2
# Of all inputs of one request together: their prompts lie in memory until it is their turn.
MAX_TOKENS = 1 << 17
Content = Sequence[Part | TokenPart]


class EmbeddingRequest(Request):
    """One input: a prompt whose hidden states are summed up as it is read, and that has no answer.

    Attributes:
        vector: its embedding, length one; None until it has ended well.
    """

    is_answer = False

    def __init__(self, content: Content, resident: Resident) -> None:
        processor = resident.release.processor
        prompt, counted = content_prompt(processor, content, resident.max_context - 1)
        unused = (Message("user", ""),)
        super().__init__(GenerationRequest(unused, max_tokens=1, shared=_Made(prompt)), resident)
        self.vector: list[float] | None = None
        self._counted = counted
        self._sum: Tensor | None = None

    @property
    def reusable_keys(self) -> list[bytes]:
        """None: what another request left in the cache are keys and values, not hidden states."""
        return []

    def enter(self, table: PageTable) -> None:
        """Begin, or begin again after its pages were taken."""
        self._sum = None
        super().enter(table)

    def read(self, start: int, stop: int) -> Tensor:
        """Read a piece and add up its hidden states; return the last token's (width,)."""
        if self.table is None:
            raise EngineError("a request without pages cannot run")
        model = self.resident.release.model
        hidden = model.prefill(
            self.prompt, self.resident.cache, self.table, start, stop, media=self._encoding, whole=True
        )  # (T, width)
        counted = self._counted[start:stop].to(hidden.device)
        piece = hidden.float()[counted].sum(0)  # (width,)
        self._sum = piece if self._sum is None else self._sum + piece
        return hidden[-1]

    def append(self, choice: Choice) -> list[Event]:
        """End: the prompt is read, and the token that would follow it is not wanted."""
        if self._sum is None or not bool(torch.isfinite(self._sum).all()):
            version = self.resident.release.version
            raise EngineError(f"release {version} computed values that are not finite")
        self.vector = F.normalize(self._sum, dim=-1).tolist()
        return [self.end("stop")]


class _Made(SharedPrompt):
    """A prompt that was made already."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__()
        self._prompt = prompt

    def get(self, fingerprint: str, make: Callable[[], Prompt]) -> Prompt:
        """Return it."""
        return self._prompt


def prepare(
    contents: Sequence[Content], versions: Versions, version: str | None, submit: Callable[[Request], None]
) -> EmbeddingBatch:
    """Make the prompts of all contents on one release, each with a hold on it.

    Raises:
        RequestError: a content cannot be used; ``param`` says which.
    """
    made: list[EmbeddingRequest] = []
    num_tokens = 0
    first = versions.acquire(version)  # holds the release until every content has its own hold
    try:
        for index, content in enumerate(contents):
            versions.hold(first)
            try:
                made.append(_make(content, first, index))
            except BaseException:
                versions.let_go(first)
                raise
            if (num_tokens := num_tokens + len(made[-1].prompt)) > MAX_TOKENS:
                raise RequestError(f"the inputs have more than {MAX_TOKENS} tokens in all", param="input")
        return EmbeddingBatch(made, submit, versions.let_go)
    except BaseException:
        for _ in made:
            versions.let_go(first)
        raise
    finally:
        versions.let_go(first)


def _make(content: Content, resident: Resident, index: int) -> EmbeddingRequest:
    try:
        with torch.inference_mode():
            return EmbeddingRequest(content, resident)
    except RequestError as error:
        what = str(error)
        if what.endswith(SHORTEN):  # which speaks of a conversation
            what = f"it is longer than the {resident.max_context - 1} tokens of an input: shorten or split it"
        raise RequestError(f"input[{index}]: {what}", param=f"input[{index}]") from error


class EmbeddingBatch:
    """The inputs of one call, on one release, fed to the engine a few at a time.

    Args:
        requests: one an input, all holding the same release.
        submit: queues one of them.
        let_go: ends the hold of one that never was queued.

    Attributes:
        release, fingerprint: what computes all of it.
        num_tokens: of all prompts together.
        width: numbers of a vector.
    """

    def __init__(
        self,
        requests: Sequence[EmbeddingRequest],
        submit: Callable[[Request], None],
        let_go: Callable[[Resident], None],
    ) -> None:
        self._waiting, self._submit, self._let_go = list(requests), submit, let_go
        self._under_way: list[Generation] = []
        self.release = requests[0].generation.release
        self.fingerprint = requests[0].generation.fingerprint
        self.width = requests[0].resident.release.model.config.width
        self.num_tokens = sum(len(request.prompt) for request in requests)

    async def vectors(self) -> list[list[float]]:
        """Return the embeddings, in order, each of length one.

        Raises:
            OverloadedError: the queue is full.
            EngineError: the release failed on an input.
        """
        found: list[list[float]] = []
        try:
            while self._waiting:
                taken = [self._start() for _ in self._waiting[:WINDOW]]
                for request in taken:
                    await request.generation.complete()
                    found.append(request.vector or [])
        finally:
            self.close()
        return found

    def close(self) -> None:
        """Cancel what is under way and forget the rest; harmless when all is done."""
        for generation in self._under_way:
            generation.cancel()
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._let_go(request.resident)

    def _start(self) -> EmbeddingRequest:
        request = self._waiting[0]
        self._submit(request)  # what it refuses is still waiting, so that close() lets go of it
        self._waiting.pop(0)
        self._under_way.append(request.generation)
        return request

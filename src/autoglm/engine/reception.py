"""Where requests come in and where they are seen out.

What it guarantees: a request holds one release from the moment it is queued until it has ended, however it
ends; listeners hear of every live answer, and what they do holds up nobody.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from autoglm.engine import sequence as sequences
from autoglm.engine.embedding import Content, EmbeddingBatch, prepare
from autoglm.engine.exclusive import Door
from autoglm.engine.generation import Finished, Generation, GenerationRequest
from autoglm.engine.versions import Versions
from autoglm.errors import EngineError, RequestError

_log = logging.getLogger(__name__)

# Called after each live answer with: version, whether it came out well, how it ended (None when it failed).
AnswerListener = Callable[[str, bool, Finished | None], None]


class Reception:
    """Between the callers and the queue; used from every thread.

    Args:
        door: what requests come in by.
        versions: the table of what is loaded.
        waiting: the queue.
        wake: has the worker look at the queue.
        announcer: where listeners are called.

    Attributes:
        listeners: who hears of live answers.
        num_requests: accepted so far.
    """

    def __init__(
        self,
        door: Door,
        versions: Versions,
        waiting: sequences.WaitingQueue,
        wake: Callable[[], None],
        announcer: ThreadPoolExecutor,
    ) -> None:
        self.listeners: list[AnswerListener] = []
        self.num_requests = 0
        self._door, self._versions, self._waiting = door, versions, waiting
        self._wake, self._announcer = wake, announcer
        self._counting = threading.Lock()
        self._is_closed = False

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request on the active release, or on the loaded one that it names.

        Raises:
            RequestError: the prompt is too long, its media are unusable, or the release is not loaded.
            OverloadedError: the queue is full, or the engine is shutting down.
            EngineError: an exclusive swap left no release to answer.
        """
        with self._door.entering():
            sequence = self._accept(request)
        self._count_in()
        return sequence.generation

    def embed(self, contents: Sequence[Content], release: str | None) -> EmbeddingBatch:
        """Prepare embeddings of contents, each queued when it is taken.

        Raises:
            RequestError: a content is unusable, or the release is not loaded.
            OverloadedError: the engine is shutting down.
        """
        with self._door.entering():
            return prepare(contents, self._versions, release, self._enqueue)

    def see_out(self, sequence: sequences.Sequence, ending: Finished | EngineError) -> None:
        """Settle a sequence that ended, and tell the listeners when it was an answer."""
        self._versions.let_go(sequence.resident)
        if isinstance(ending, Finished):
            is_answer, ok, finished = ending.reason != "cancelled" and sequence.is_answer, True, ending
        else:
            is_answer, ok, finished = not isinstance(ending, RequestError), False, None
        if is_answer and self.listeners and not self._is_closed:
            self._announcer.submit(self._announce, sequence.generation.release, ok, finished)

    def close(self) -> None:
        """Refuse new requests; listeners hear of no more answers."""
        self._is_closed = True
        self._door.close()
        self._waiting.close()

    def _accept(self, request: GenerationRequest) -> sequences.Sequence:
        resident = self._versions.acquire(request.release)
        try:
            with torch.inference_mode():
                sequence = sequences.Sequence(request, resident)
            self._waiting.put(sequence)
        except BaseException:
            self._versions.let_go(resident)
            raise
        return sequence

    def _enqueue(self, sequence: sequences.Sequence) -> None:
        self._waiting.put(sequence)
        self._count_in()

    def _count_in(self) -> None:
        with self._counting:
            self.num_requests += 1
        self._wake()

    def _announce(self, version: str, ok: bool, finished: Finished | None) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(version, ok, finished)
            except Exception:  # noqa: BLE001 - logged; a listener is not the engine's business
                _log.exception("an answer listener broke")

"""What the engine says of itself and of a hot swap, as plain values."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from autoglm.engine.figures import Histogram
from autoglm.engine.release import Resident
from autoglm.engine.selftest import SelfTestReport
from autoglm.errors import EngineError


@dataclass
class Staged:
    """A release in memory beside the live one, not serving.

    Attributes:
        version: what it is.
        resident: the release itself; None once it was swapped in or discarded.
        report: its self-test, once that was run.
        instead_of: the release to load again if this one is discarded; None when that one is still loaded.
    """

    version: str
    resident: Resident | None
    report: SelfTestReport | None = None
    instead_of: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self) -> Resident:
        """Return the release and let go of it: of several callers, one gets it.

        Raises:
            EngineError: it was swapped in or discarded already.
        """
        with self._lock:
            resident = self.held()
            self.resident = None
            return resident

    def held(self) -> Resident:
        """Return the release.

        Raises:
            EngineError: it was swapped in or discarded already.
        """
        if self.resident is None:
            raise EngineError(f"{self.version} is no longer staged: stage it again")
        return self.resident


@dataclass(frozen=True)
class SwapReport:
    """What a swap did.

    Attributes:
        from_version: what answered new requests before.
        to_version: what answers them now.
        pause_s: how long the engine's thread was busy with it, between two steps; in an exclusive swap, how
            long no release was there to answer.
        in_flight: requests that finish on the release they began with.
        drained_s: how long new requests waited for those under way to end, where the swap drains.
    """

    from_version: str
    to_version: str
    pause_s: float
    in_flight: int
    drained_s: float = 0.0


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and what is going on now.

    Attributes:
        active: version that answers new requests.
        previous: version kept for rollback.
        retiring: older releases that only finish what began on them.
        running: requests being generated.
        waiting: requests in the queue.
        requests: accepted so far.
        finished: ended well.
        cancelled: given up by their callers.
        failed: ended by an error.
        prompt_tokens: tokens of the prompts let in.
        reused_tokens: of these, tokens found in the cache.
        generated_tokens: tokens written.
        preempted: requests put back into the queue because the pages were used up.
        pages: pages of the active release's cache.
        free_pages: of these, pages that no running request holds.
        kept_pages: pages that another prompt may begin with.
        encoding_hits: images and clips whose embedding was there already.
        encoding_misses: images and clips that were embedded.
        steps: steps taken.
        swaps: swaps and rollbacks committed.
        first_token: seconds from submission to the first token.
        next_token: seconds between two tokens of a request.
    """

    active: str
    previous: str | None
    retiring: int
    running: int
    waiting: int
    requests: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    preempted: int
    pages: int
    free_pages: int
    kept_pages: int
    encoding_hits: int
    encoding_misses: int
    steps: int
    swaps: int
    first_token: Histogram
    next_token: Histogram

"""What the engine says of itself and of a hot swap, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from autoglm.engine.release import Resident
from autoglm.engine.selftest import SelfTestReport
from autoglm.errors import EngineError, HealthError


@dataclass
class Staged:
    """A release in memory beside the live one, not serving.

    Attributes:
        version: what it is.
        resident: the release itself; None once it was swapped in or discarded.
        report: its self-test, once that was run.
    """

    version: str
    resident: Resident | None
    report: SelfTestReport | None = None

    def held(self) -> Resident:
        """Return the release.

        Raises:
            EngineError: it was swapped in or discarded already.
        """
        if self.resident is None:
            raise EngineError(f"{self.version} is no longer staged: stage it again")
        return self.resident

    def require_health(self) -> None:
        """Let only a release through that passed its self-test.

        Raises:
            HealthError: it failed, or was not examined.
        """
        if self.report is None:
            raise HealthError(f"{self.version} has not run its self-test: run it before swapping")
        if not self.report.ok:
            raise HealthError(f"{self.version} failed its self-test: {'; '.join(self.report.failures)}")


@dataclass(frozen=True)
class SwapReport:
    """What a swap did.

    Attributes:
        from_version: what answered new requests before.
        to_version: what answers them now.
        pause_s: how long the engine's thread was busy with it, between two steps.
        in_flight: requests that finish on the release they began with.
    """

    from_version: str
    to_version: str
    pause_s: float
    in_flight: int


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
        prompt_tokens: tokens read.
        generated_tokens: tokens written.
        steps: steps taken.
        swaps: swaps and rollbacks committed.
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
    generated_tokens: int
    steps: int
    swaps: int

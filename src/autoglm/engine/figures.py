"""What the engine counts, as plain data: counters and histograms that any thread may read."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# Upper bounds in seconds, from a fast decode step to a request that waited for its turn.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Histogram:
    """How often a value fell below each bound.

    Attributes:
        bounds: upper bounds, ascending; values above the last are counted too.
        counts: values in each interval, one more than there are bounds.
        total: sum of all values.
    """

    bounds: tuple[float, ...] = LATENCY_BOUNDS
    counts: list[int] = field(default_factory=list[int])
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """Return the state of now."""
        return Histogram(self.bounds, list(self.counts), self.total)


@dataclass
class Counters:
    """What a scheduler has done since it was made.

    Attributes:
        steps: steps taken.
        prompt_tokens: prompt tokens of the requests let in.
        reused_tokens: of these, tokens whose keys and values were in the cache already.
        computed_tokens: tokens read in prefill, those of requests that were put back included.
        generated_tokens: tokens written.
        preempted: times that a request was put back into the queue, because the pages were used up.
        finished: ended well.
        cancelled: given up by their callers.
        failed: ended by an error.
        first_token: seconds from submission to a request's first token.
        next_token: seconds between two tokens of a request.
    """

    steps: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    preempted: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    next_token: Histogram = field(default_factory=Histogram)

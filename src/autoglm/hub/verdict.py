"""Whether a roll-out may go on: a pure function of what its devices reported.

What it guarantees: the same counts give the same verdict, on every hub and in every test; it reads no clock
and no database. It does not act: :mod:`autoglm.hub.guard` does.

A release is stopped by evidence that it is bad, never by the lack of luck of a few devices: the failure rate
is judged by the lower end of its confidence interval (E. B. Wilson, "Probable inference, the law of
succession, and statistical inference", JASA 22, 1927), which stays near zero while results are few.

    >>> halt_reason(Counts(succeeded=98, failed=2), (), threshold=0.02) is None
    True
    >>> halt_reason(Counts(succeeded=94, failed=6), (), threshold=0.02) is None
    False
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Z = 2.33
"""One-sided 99 %: each look at a release that fails exactly as often as is allowed halts it 1 time in 100."""

THRESHOLD = 0.02
MIN_RESULTS = 20
"""Below this one failure in six would halt a good release."""
MAX_CRASH_LOOPS = 3
CRASH_LOOP = "E_CRASH_LOOP"
MAX_SILENT_SHARE = 0.20
ENOUGH_RESULTS = 299
"""Without a failure they put the rate below 1 % with 95 % confidence: 0.99 ** 299 < 0.05."""
WIDE_BASIS_POINTS = 2500
"""A stage of this size or above is entered on :data:`ENOUGH_RESULTS` only."""
FEW_DEVICES = 5
"""A stage of fewer, none of which reported in time, teaches nothing and is passed."""
MIN_PAIRS = 20


@dataclass(frozen=True)
class Metric:
    """A number that devices report about a release, and how much worse it may get.

    Attributes:
        name: as in the ``stats`` of an event.
        what: for people.
        grows: whether a larger number is worse.
        tolerance: the change that is still no regression; a share of the old number, or of 1 when absolute.
        absolute: whether the change is a difference and not a ratio.
    """

    name: str
    what: str
    grows: bool
    tolerance: float
    absolute: bool = False

    def is_worse(self, old: float, new: float) -> bool:
        """Tell whether one device got worse by more than the tolerance."""
        allowed = self.tolerance * (1.0 if self.absolute else old)
        return new > old + allowed if self.grows else new < old - allowed


METRICS = (
    Metric("first_token_ms", "the time to the first token", grows=True, tolerance=0.25),
    Metric("tokens_per_s", "tokens a second", grows=False, tolerance=0.20),
    Metric("peak_memory_bytes", "peak memory", grows=True, tolerance=0.25),
    Metric("score", "the score of the self-test", grows=False, tolerance=0.05, absolute=True),
)


@dataclass(frozen=True)
class Counts:
    """Devices of one roll-out, each counted once, by their newest result.

    Attributes:
        offered: were told of the release.
        began: have reported anything about it.
        succeeded, failed: have confirmed it; have failed, and not succeeded since.
        crash_loops: failed by not surviving their starts; a part of ``failed``.
        silent: began, and were not heard of for longer than they have time.
        expected: were offered it recently and have not reported a result yet.
        newly_offered: of those, were offered it for the first time in the present stage.
        new_results: results that came in the present stage.
    """

    offered: int = 0
    began: int = 0
    succeeded: int = 0
    failed: int = 0
    crash_loops: int = 0
    silent: int = 0
    expected: int = 0
    newly_offered: int = 0
    new_results: int = 0

    @property
    def results(self) -> int:
        """Devices that said how it went."""
        return self.succeeded + self.failed

    @property
    def silent_share(self) -> float:
        """Devices that fell silent, among those whose time is up or that have reported."""
        return self.silent / (self.silent + self.results) if self.silent else 0.0


@dataclass(frozen=True)
class Comparison:
    """How one metric compares with the release that the same devices had before.

    Attributes:
        metric: which.
        pairs: devices that reported it for both releases.
        worse: of those, got worse by more than the tolerance.
    """

    metric: Metric
    pairs: int
    worse: int

    @property
    def is_regression(self) -> bool:
        """Whether more than half of all devices got worse, by the lower end of the interval.

        It is a sign test of the median change: no device weighs more than another, so no absurd number, and
        no mixture of fast and slow phones, can tip it.
        """
        return self.pairs >= MIN_PAIRS and wilson_lower(self.worse, self.pairs) > 0.5


def wilson_lower(hits: float, trials: float, z: float = Z) -> float:
    """Return the lower end of Wilson's score interval of a share; works on arrays too.

    Args:
        hits: how often it happened.
        trials: out of how many, at least 1.
        z: quantile of the normal distribution, one-sided.
    """
    share, z2 = hits / trials, z * z
    centre = share + z2 / (2 * trials)
    margin = z * (share * (1 - share) / trials + z2 / (4 * trials * trials)) ** 0.5
    return (centre - margin) / (1 + z2 / trials)


def halting_failures(results: int, threshold: float = THRESHOLD) -> int:
    """Return the least number of failures among ``results`` that halts."""
    low, high = 0, results + 1
    while low < high:
        middle = (low + high) // 2
        if middle > results or wilson_lower(middle, results) > threshold:
            high = middle
        else:
            low = middle + 1
    return low


def compare(old: Mapping[str, float], new: Mapping[str, float]) -> tuple[int, int]:
    """Compare one device's numbers before and after.

    Returns:
        Two sets of metrics as bits, in the order of :data:`METRICS`: those compared, those worse.
    """
    compared = worse = 0
    for place, metric in enumerate(METRICS):
        before, after = old.get(metric.name), new.get(metric.name)
        if (
            before is None
            or after is None
            or after < 0
            or before < 0
            or (before == 0 and not metric.absolute)
        ):
            continue
        compared |= 1 << place
        worse |= metric.is_worse(before, after) << place
    return compared, worse


def tally(groups: Iterable[tuple[int, int, int]]) -> tuple[Comparison, ...]:
    """Add up what :func:`compare` returned.

    Args:
        groups: (compared, worse, number of devices with these).
    """
    pairs, worse = [0] * len(METRICS), [0] * len(METRICS)
    for compared_bits, worse_bits, devices in groups:
        for place in range(len(METRICS)):
            pairs[place] += devices * (compared_bits >> place & 1)
            worse[place] += devices * (worse_bits >> place & 1)
    return tuple(Comparison(*found) for found in zip(METRICS, pairs, worse, strict=True))


def halt_reason(counts: Counts, comparisons: Iterable[Comparison], threshold: float) -> str | None:
    """Return why the release must be stopped now, None while nothing speaks against it.

    Args:
        counts: of its roll-out.
        comparisons: with the release before.
        threshold: the failure rate that is allowed.
    """
    if counts.crash_loops >= MAX_CRASH_LOOPS:
        return f"{counts.crash_loops} devices did not survive their starts (crash loops)"
    if counts.results >= MIN_RESULTS:
        bound = wilson_lower(counts.failed, counts.results)
        if bound > threshold:
            return (
                f"{counts.failed} of {counts.results} devices failed: the failure rate is at least "
                f"{bound:.1%}, more than the {threshold:.1%} allowed"
            )
    for each in comparisons:
        if each.is_regression:
            return (
                f"{each.metric.what} got worse by more than {each.metric.tolerance:.0%} on {each.worse} of "
                f"{each.pairs} devices"
            )
    return None


def pause_reason(counts: Counts) -> str | None:
    """Return why nobody else should begin for now, None while devices report."""
    if counts.silent_share <= MAX_SILENT_SHARE:
        return None
    return (
        f"{counts.silent} devices began and fell silent, {counts.silent_share:.0%} of those that should have "
        f"reported; {MAX_SILENT_SHARE:.0%} are allowed"
    )


def hold_reason(counts: Counts, next_basis_points: int | None) -> str | None:
    """Return what is still missing before the next stage, None when the evidence suffices.

    Args:
        counts: of the roll-out, after the soak time.
        next_basis_points: size of the next stage, None after the last one.
    """
    is_wide = next_basis_points is None or next_basis_points >= WIDE_BASIS_POINTS
    if counts.new_results == 0:
        # A few lost phones must not stop a small fleet; what nobody has tried must not go wide either.
        is_hopeless = counts.newly_offered < FEW_DEVICES and not counts.expected
        if not is_hopeless or (is_wide and not counts.results):
            return "no device has reported in this stage"
    if is_wide and counts.results < ENOUGH_RESULTS and counts.expected:
        return f"{counts.results} of {ENOUGH_RESULTS} results are there, and {counts.expected} are awaited"
    return None

"""The mathematics of halting: Wilson's bound, regressions, and what is still missing before a next stage."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoglm.hub.verdict import (
    ENOUGH_RESULTS,
    METRICS,
    Comparison,
    Counts,
    compare,
    halt_reason,
    halting_failures,
    hold_reason,
    pause_reason,
    tally,
    wilson_lower,
)

SPEED = METRICS[0]


@pytest.mark.parametrize(("results", "failures"), [(20, 2), (100, 6), (300, 12)])
def test_the_documented_numbers_of_failures_halt(results: int, failures: int) -> None:
    """At 20 results 2 failures halt, at 100 6, at 300 12; one less does not."""
    assert halting_failures(results) == failures
    for failed, halts in ((failures, True), (failures - 1, False)):
        counts = Counts(succeeded=results - failed, failed=failed)
        assert (halt_reason(counts, (), 0.02) is not None) is halts


@pytest.mark.parametrize("failed", [1, 2, 5, 19])
def test_a_rate_is_not_judged_below_twenty_results(failed: int) -> None:
    """However bad 19 results look, only crash loops can halt them."""
    assert halt_reason(Counts(succeeded=19 - failed, failed=failed), (), 0.02) is None


def test_three_crash_loops_halt_whatever_the_rate() -> None:
    """Among 3 devices or 100,000, the third that does not survive its starts ends it."""
    for succeeded in (0, 100_000):
        assert halt_reason(Counts(succeeded=succeeded, failed=2, crash_loops=2), (), 0.02) is None
        assert "crash" in (halt_reason(Counts(succeeded=succeeded, failed=3, crash_loops=3), (), 0.02) or "")


@given(st.integers(1, 10_000), st.data())
def test_the_bound_is_a_bound(results: int, data: st.DataObject) -> None:
    """It lies between 0 and the share itself, and grows with each failure."""
    failed = data.draw(st.integers(0, results))
    bound = wilson_lower(failed, results)
    assert -1e-12 <= bound <= failed / results + 1e-12
    assert failed == results or bound < wilson_lower(failed + 1, results)


@given(st.integers(1, 3000), st.floats(0.001, 0.4))
def test_the_least_halting_number_is_the_least(results: int, threshold: float) -> None:
    """One failure less stays under the threshold."""
    least = halting_failures(results, threshold)
    assert least > results or wilson_lower(least, results) > threshold
    assert wilson_lower(least - 1, results) <= threshold


def test_the_bound_is_wilsons() -> None:
    """It solves (share - p)^2 = z^2 p (1 - p) / n, which defines the interval."""
    share, n, z = 0.06, 100, 2.33
    p = wilson_lower(share * n, n, z)
    assert math.isclose((share - p) ** 2, z * z * p * (1 - p) / n, rel_tol=1e-9)


def test_a_metric_halts_when_most_devices_got_worse() -> None:
    """16 of 20 devices that got slower by more than a quarter halt; 15, or 19 in all, do not."""
    for pairs, worse, halts in ((20, 16, True), (20, 15, False), (19, 19, False)):
        assert Comparison(SPEED, pairs, worse).is_regression is halts
        assert (halt_reason(Counts(), (Comparison(SPEED, pairs, worse),), 0.02) is not None) is halts


@pytest.mark.parametrize(
    ("name", "fine", "worse"),
    [
        ("first_token_ms", 125.0, 126.0),
        ("tokens_per_s", 80.0, 79.0),
        ("peak_memory_bytes", 125.0, 126.0),
    ],
)
def test_each_metric_has_its_direction_and_tolerance(name: str, fine: float, worse: float) -> None:
    """A time and a memory may grow by a quarter, a speed may fall by a fifth."""
    place = [metric.name for metric in METRICS].index(name)
    assert compare({name: 100.0}, {name: fine}) == (1 << place, 0)
    assert compare({name: 100.0}, {name: worse}) == (1 << place, 1 << place)


def test_the_score_is_compared_by_its_difference() -> None:
    """Five points less are tolerated, also from zero."""
    assert compare({"score": 1.0}, {"score": 0.96}) == (8, 0)
    assert compare({"score": 1.0}, {"score": 0.94}) == (8, 8)
    assert compare({"score": 0.0}, {"score": 0.0}) == (8, 0)


@given(
    st.dictionaries(st.sampled_from([m.name for m in METRICS]), st.floats(allow_nan=True, width=64)),
    st.dictionaries(st.sampled_from([m.name for m in METRICS]), st.floats(allow_nan=True, width=64)),
)
def test_no_number_that_a_device_sends_breaks_a_comparison(
    old: dict[str, float], new: dict[str, float]
) -> None:
    """Zero, negative, infinite and missing numbers give a verdict or none, never an error."""
    compared, worse = compare(old, new)
    assert worse & ~compared == 0


def test_comparisons_add_up() -> None:
    """Groups of devices with the same bits are counted metric by metric."""
    first, second, *_ = tally([(0b11, 0b01, 5), (0b01, 0b00, 3)])
    assert (first.pairs, first.worse, second.pairs, second.worse) == (8, 5, 5, 0)


def test_devices_that_fall_silent_pause_above_a_fifth() -> None:
    """One in five is let pass; more pause, also when nobody else reported."""
    assert pause_reason(Counts(succeeded=80, silent=20)) is None
    assert pause_reason(Counts(succeeded=79, silent=21)) is not None
    assert pause_reason(Counts(silent=1)) is not None
    assert pause_reason(Counts(expected=100)) is None


def test_no_data_is_no_evidence() -> None:
    """A stage in which nobody reported holds, whatever was reported before."""
    assert hold_reason(Counts(succeeded=1000, newly_offered=5), 100) is not None
    assert hold_reason(Counts(succeeded=1000, newly_offered=5, new_results=1), 100) is None


def test_a_few_lost_phones_do_not_stop_a_small_fleet() -> None:
    """A stage of under five devices, none of which reports in time, is passed; never into a wide one."""
    assert hold_reason(Counts(newly_offered=4), 500) is None
    assert hold_reason(Counts(newly_offered=4, expected=1), 500) is not None
    assert hold_reason(Counts(newly_offered=4), 2500) is not None
    assert hold_reason(Counts(newly_offered=4, succeeded=1), 2500) is None
    assert hold_reason(Counts(), None) is not None


def test_a_wide_stage_needs_enough_results_or_all_that_can_come() -> None:
    """Before 25 % there are 299 results, or each device that was offered it has reported or had its time."""
    some = Counts(succeeded=10, new_results=10, expected=3)
    assert hold_reason(some, 500) is None
    assert hold_reason(some, 2500) is not None
    assert hold_reason(some, None) is not None
    assert hold_reason(Counts(succeeded=10, new_results=10), 2500) is None
    assert hold_reason(Counts(succeeded=ENOUGH_RESULTS, new_results=1, expected=3), 2500) is None

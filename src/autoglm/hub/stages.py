"""The stages of a roll-out: what an operator writes, and whom each of them reaches.

A stage is a group's name, or a percentage. Stages add up: a group that was let in stays in while the
percentages grow, so that no stage takes the release from a device that was offered it.

    >>> plan = Plan.of("staff,1,5,25,50,100".split(","))
    >>> plan.reach(0), plan.reach(2)
    ((0, ('staff',)), (500, ('staff',)))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoglm.errors import ConfigError
from autoglm.hub.records import ALL_BASIS_POINTS
from autoglm.hub.verdict import THRESHOLD
from autoglm.releases import is_name

DEFAULT_STAGES = ("staff", "1", "5", "25", "50", "100")
DEFAULT_SOAK_S = 24 * 3600.0
MAX_STAGES = 32
MAX_SOAK_S = 90 * 24 * 3600.0
MAX_THRESHOLD = 0.5


@dataclass(frozen=True)
class Plan:
    """How a roll-out goes on by itself.

    Attributes:
        stages: as written, in order; none for a roll-out that stays as it is made.
        soak_s: how long each stage lasts at least, and how long a device has to report, in seconds.
        threshold: the failure rate that is allowed, 0 to 1.
    """

    stages: tuple[str, ...] = ()
    soak_s: float = DEFAULT_SOAK_S
    threshold: float = THRESHOLD

    @classmethod
    def of(
        cls, stages: Sequence[str] = (), soak_s: float | None = None, threshold_percent: float | None = None
    ) -> Plan:
        """Make a plan out of what an operator typed; what is None takes its default.

        Raises:
            ConfigError: a stage, the soak time or the threshold breaks a rule.
        """
        soak = DEFAULT_SOAK_S if soak_s is None else soak_s
        if not (math.isfinite(soak) and 0 <= soak <= MAX_SOAK_S):
            raise ConfigError(f"roll-out: soak must be 0 seconds to 90 days, not {soak:g} seconds")
        allowed = THRESHOLD if threshold_percent is None else threshold_percent / 100
        if not 0 < allowed <= MAX_THRESHOLD:
            raise ConfigError("roll-out: threshold must be above 0 and at most 50 per cent")
        return cls(_checked(tuple(text.strip() for text in stages)), float(soak), allowed)

    def reach(self, stage: int) -> tuple[int, tuple[str, ...]]:
        """Return whom the stages up to ``stage`` let in: basis points, and groups."""
        reached = self.stages[: stage + 1]
        points = [basis_points(text) for text in reached]
        groups = tuple(text for text, size in zip(reached, points, strict=True) if size is None)
        return max((size for size in points if size is not None), default=0), groups

    @property
    def last(self) -> int:
        """Number of the last stage."""
        return max(0, len(self.stages) - 1)

    def next_points(self, stage: int) -> int | None:
        """Return the size of the stage after ``stage`` in basis points, None after the last one."""
        return None if stage >= self.last else self.reach(stage + 1)[0]


def basis_points(stage: str) -> int | None:
    """Return a percentage's size, None for a group."""
    try:
        percent = float(stage.removesuffix("%"))
    except ValueError:
        return None
    return round(percent * 100) if math.isfinite(percent) else None


def stage_name(stage: str) -> str:
    """Return a stage for people: a group's name, or a percentage with its sign."""
    points = basis_points(stage)
    return stage if points is None else f"{points / 100:g} %"


def _checked(stages: tuple[str, ...]) -> tuple[str, ...]:
    if len(stages) > MAX_STAGES:
        raise ConfigError(f"roll-out: at most {MAX_STAGES} stages, not {len(stages)}")
    largest = 0
    seen: set[str] = set()
    for stage in stages:
        points = basis_points(stage)
        if points is None:
            if not is_name(stage) or stage in seen:
                raise ConfigError(f"roll-out: stage {stage[:80]!r} is no percentage and no group of its own")
        elif not largest < points <= ALL_BASIS_POINTS:
            raise ConfigError(
                f"roll-out: stage {stage!r} must be above the percentage before it, and at most 100"
            )
        else:
            largest = points
        seen.add(stage)
    if stages and basis_points(stages[-1]) is None:
        raise ConfigError("roll-out: the last stage must be a percentage, such as 100")
    return tuple(stage.removesuffix("%") if basis_points(stage) is not None else stage for stage in stages)

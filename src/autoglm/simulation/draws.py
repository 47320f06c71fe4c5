"""Random numbers that take no room: a fleet of 100,000 generators, each its own and each repeatable.

SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


class Draws:
    """One stream of numbers.

    Args:
        seed: of the run.
        stream: which of its streams.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int, stream: int) -> None:
        self._state = _mix((seed * 0xD1342543DE82EF95 + stream * _STEP) & _MASK)

    def share(self) -> float:
        """Return a number from 0 to below 1."""
        self._state = (self._state + _STEP) & _MASK
        return (_mix(self._state) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """Return a number from ``low`` to below ``high``."""
        return low + (high - low) * self.share()

    def happens(self, probability: float) -> bool:
        """Tell whether something of this probability happens now."""
        return probability > 0 and self.share() < probability


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)

"""Who releases: publishes, rolls out, sees a halt, and sends the repair after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoglm.simulation.control import OwnHub
from autoglm.simulation.outcome import Sample, Trial
from autoglm.simulation.phone import Phone, Tally
from autoglm.simulation.scenario import HOUR, START, Scenario

FIRST, SECOND, REPAIR = "v1.0", "v1.1", "v1.2"
_ENDED = ("halted", "aborted", "done")


class Operator(Protocol):
    """What a run asks of whoever is behind the hub."""

    samples: list[Sample]

    @property
    def target(self) -> str:
        """The release that every device should end on, as far as is known."""
        ...

    def pass_time(self, now: float) -> None:
        """Let the hub's clock be ``now``, if it can be set."""
        ...

    def look(self, now: float, tally: Tally) -> None:
        """Look at the roll-outs, note what is seen, and do what is due."""
        ...

    def is_done(self) -> bool:
        """Whether nothing more will be released."""
        ...

    def is_stuck(self, now: float) -> bool:
        """Whether nothing will happen any more, though devices have not what they should have."""
        ...

    def count_right(self, phones: Sequence[Phone]) -> int:
        """Return how many devices have what they should have, with everything done and reported."""
        ...

    def compare(self, digest: str, tally: Tally) -> tuple[int | None, bool | None]:
        """Return how many events the hub has, and whether they are exactly those of the devices.

        Args:
            digest: of the devices' events; see :func:`autoglm.simulation.control.digest_of`.
            tally: what the devices counted.
        """
        ...

    def trials(self, tally: Tally) -> tuple[Trial, ...]:
        """Return what became of the roll-outs."""
        ...


@dataclass
class _Watched:
    """A roll-out that this operator began."""

    version: str
    is_bad: bool
    rollout: dict[str, Any]
    halted_at: float | None = None
    halted_percent: float | None = None

    @property
    def halted_hours(self) -> float | None:
        """Hours from its beginning to its halt."""
        return None if self.halted_at is None else (self.halted_at - self.rollout["created_at"]) / HOUR


class Releaser:
    """The operator of the simulation's own hub.

    Args:
        hub: to give orders to.
        scenario: the story.
        bad: where releases that fail are written down, for the phones to see.
    """

    def __init__(self, hub: OwnHub, scenario: Scenario, bad: set[str]) -> None:
        self._hub, self._scenario, self._bad = hub, scenario, bad
        self._watched: list[_Watched] = []
        self._next: tuple[float, str] | None = (START + HOUR, SECOND)
        self._published = 0
        self.samples: list[Sample] = []
        self.target = FIRST
        self._publish(FIRST, None)
        self._roll_out(FIRST, (), 0.0)

    def _publish(self, version: str, base: str | None) -> None:
        self._published += 1
        size = self._scenario.weights_bytes
        self._hub.order("publish", version=version, counter=self._published, size=size, base=base)

    def _roll_out(self, version: str, stages: Sequence[str], soak_s: float) -> dict[str, Any]:
        scenario = self._scenario
        return self._hub.order(
            "rollout",
            version=version,
            stages=list(stages),
            soak_s=soak_s,
            threshold=scenario.threshold_percent,
            salt=f"{scenario.seed}-{version}",
        )

    def is_done(self) -> bool:
        """Whether nothing more will be released."""
        return self._next is None and self._is_last(self._watched[-1].version)

    def _is_last(self, version: str) -> bool:
        return version == REPAIR or not self._scenario.bad_share

    def is_stuck(self, now: float) -> bool:
        """Whether the last release was halted, though it is a good one, and every device has heard of it."""
        if self._next is not None or not self._watched or not self._is_last(self._watched[-1].version):
            return False
        halted_at = self._watched[-1].halted_at
        return halted_at is not None and now > halted_at + 2 * self._scenario.every_s

    def pass_time(self, now: float) -> None:
        """Set the hub's clock."""
        self._hub.order("clock", now=now)

    def look(self, now: float, tally: Tally) -> None:
        """Release what is due; see what became of what was released."""
        if self._next is not None and now >= self._next[0]:
            self._release(self._next[1])
            self._next = None
        if not self._watched:
            return
        self._note(now, tally)
        newest = self._watched[-1]
        if newest.rollout["state"] == "paused":  # silent devices come back, and nobody else is here to decide
            self._hub.order("resume", rollout_id=newest.rollout["id"])
        if self._next is None and not self._is_last(newest.version) and newest.rollout["state"] in _ENDED:
            self._next = (now + self._scenario.repair_s, REPAIR)

    def _release(self, version: str) -> None:
        is_bad = version == SECOND and self._scenario.bad_share > 0
        if is_bad:
            self._bad.add(version)
        self._publish(version, FIRST)
        made = self._roll_out(version, self._scenario.stages, self._scenario.soak_s)
        self._watched.append(_Watched(version, is_bad, made))
        self.target = version

    def _note(self, now: float, tally: Tally) -> None:
        found = {each["id"]: each for each in self._hub.order("rollouts")["rollouts"]}
        for watched in self._watched:
            watched.rollout = found[watched.rollout["id"]]
            if watched.rollout["state"] == "halted" and watched.halted_at is None:
                watched.halted_at = watched.rollout["halted_at"]
                watched.halted_percent = watched.rollout["percent"]
        newest, first = self._watched[-1].rollout, self._watched[0].rollout
        hours = (now - first["created_at"]) / HOUR
        counts = {version: count for version, count in tally.by_version.items() if count}
        seen = (newest["id"], newest["version"], newest["state"], newest["percent"])
        self.samples.append(Sample(hours, counts, *seen))

    def count_right(self, phones: Sequence[Phone]) -> int:
        """Return how many devices are on the newest release, with everything done and reported."""
        return sum(phone.version == self.target and phone.is_settled for phone in phones)

    def compare(self, digest: str, tally: Tally) -> tuple[int | None, bool | None]:
        """Compare the devices' events with the hub's table, event by event."""
        counted = self._hub.order("events")
        return int(counted["events"]), counted["digest"] == digest

    def trials(self, tally: Tally) -> tuple[Trial, ...]:
        """Return what became of the roll-outs."""
        return tuple(
            Trial(
                each.version,
                each.is_bad,
                each.rollout,
                tally.installed.get(each.version, 0),
                tally.failed.get(each.version, 0),
                each.halted_hours,
                each.halted_percent,
                None if each.halted_at is None else each.rollout["reason"],
            )
            for each in self._watched
        )

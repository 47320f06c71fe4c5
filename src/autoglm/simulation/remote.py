"""A hub that is there already: watched through its admin API, and changed only by what devices do.

Where it asks devices for tokens, each simulated one is registered first; ``autoglm fleet forget`` drops them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from autoglm.errors import HubError, PermissionDeniedError, ProtocolError
from autoglm.simulation.outcome import Sample, Trial
from autoglm.simulation.phone import Phone, Tally
from autoglm.simulation.scenario import HOUR, START, Scenario
from autoglm.simulation.wire import Place, Wire


@dataclass(frozen=True)
class RemoteHub:
    """Where it is, and how it lets us in.

    Attributes:
        place: its address.
        token: of somebody who may read it, and may register devices where it asks them for tokens.
        ca_file: PEM certificates to believe in place of the machine's own.
        bad_release: fails on the weak devices.
    """

    place: Place
    token: str
    ca_file: Path | None = None
    bad_release: str | None = None


class Watcher:
    """Sees what a hub does with the fleet.

    Args:
        remote: the hub.
        wire: to it.
        scenario: the story.
        bad: where the release that fails is written down, for the phones to see.

    Raises:
        HubError: it refuses, or has no release.
    """

    def __init__(self, remote: RemoteHub, wire: Wire, scenario: Scenario, bad: set[str]) -> None:
        self._remote, self._wire, self._scenario = remote, wire, scenario
        if remote.bad_release is not None:
            bad.add(remote.bad_release)
        releases = self._get("/v1/admin/releases")["releases"]
        if not releases:
            raise HubError("this hub has no release: publish one first")
        self.first = str(releases[0]["version"])
        self._before = {each["id"]: each for each in self._rollouts()}
        self._now = self._before
        self._settled_looks = 0
        self._seen: dict[str, int] = {}
        self.samples: list[Sample] = []

    def admit(self, phones: Sequence[Phone]) -> None:
        """Give the phones tokens of their own, where this hub answers no device without one.

        Raises:
            HubError: the hub refuses to register them.
        """
        probe = self._wire.place.request("GET", "/v1/model/metadata/timestamp.json")
        if next(self._wire.exchange([probe])).status != 401:
            return
        for phone in phones:
            wanted = json.dumps({"device_id": phone.name}).encode()
            phone.token = str(self._ask("POST", "/v1/model/register", wanted)["token"])

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        headers = f"authorization: Bearer {self._remote.token}\r\n"
        answer = next(self._wire.exchange([self._wire.place.request(method, path, body, headers)]))
        if answer.status in (401, 403):
            raise PermissionDeniedError(f"the hub does not take this token for {path}: give --token T")
        if answer.status not in (200, 201):
            raise HubError(f"the hub answered {answer.status} to {path}")
        try:
            return cast("dict[str, Any]", json.loads(answer.body))
        except ValueError as error:
            raise ProtocolError(f"the hub's answer to {path} is no JSON") from error

    def _rollouts(self) -> list[dict[str, Any]]:
        return self._get("/v1/admin/rollouts")["rollouts"]

    @property
    def target(self) -> str:
        """The release that most devices run."""
        return max(self._seen, key=lambda version: self._seen[version], default=self.first)

    def pass_time(self, now: float) -> None:
        """Leave the hub's clock alone."""

    def look(self, now: float, tally: Tally) -> None:
        """Note what the hub shows."""
        self._now = {each["id"]: each for each in self._rollouts()}
        counts = {version: count for version, count in tally.by_version.items() if count}
        self._settled_looks = self._settled_looks + 1 if counts == self._seen else 0
        self._seen = counts
        if self._now:
            newest = list(self._now.values())[-1]
            seen = (newest["id"], newest["version"], newest["state"], newest["percent"])
            self.samples.append(Sample((now - START) / HOUR, counts, *seen))

    def is_done(self) -> bool:
        """Whether nothing has changed for longer than devices wait between two questions."""
        return self._settled_looks > 1.2 * self._scenario.every_s / self._scenario.look_s

    def is_stuck(self, now: float) -> bool:
        """Whether nothing moves: this operator cannot know."""
        return False

    def count_right(self, phones: Sequence[Phone]) -> int:
        """Return for how many devices the hub has nothing more, with everything done and reported."""
        return sum(phone.is_current and phone.is_settled for phone in phones)

    def compare(self, digest: str, tally: Tally) -> tuple[int | None, bool | None]:
        """Compare the successes that the roll-outs count; the events themselves are not to be had."""
        self._now = {each["id"]: each for each in self._rollouts()}
        counted = {name: each["succeeded"] - self._count_before(name) for name, each in self._now.items()}
        return None, all(counted.get(name) == count for name, count in tally.confirmed.items())

    def _count_before(self, name: str) -> int:
        return self._before[name]["succeeded"] if name in self._before else 0

    def trials(self, tally: Tally) -> tuple[Trial, ...]:
        """Return the roll-outs that had anything to do with this fleet."""
        return tuple(
            Trial(
                version=each["version"],
                is_bad=each["version"] == self._remote.bad_release,
                rollout=each,
                installed=tally.installed.get(each["version"], 0),
                failed=tally.failed.get(each["version"], 0),
                reason=each.get("reason"),
            )
            for each in self._now.values()
            if each["version"] in tally.installed or each["version"] in tally.failed
        )

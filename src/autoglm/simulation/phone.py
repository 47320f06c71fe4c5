"""One simulated device: a light state machine that speaks the real messages and does nothing else.

It asks, "downloads" over a network that breaks, "applies" on a phone that may be slow or restart, tries the
release out, falls back from a bad one, and reports all of it late, twice, or in another order. It never
touches a clock or a socket: whoever runs it says what time it is, and carries its questions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from autoglm.releases import Event, EventAnswer, EventBatch, UpdateAnswer, UpdateRequest
from autoglm.simulation.draws import Draws
from autoglm.simulation.fetching import Fetcher
from autoglm.simulation.scenario import HOUR, MINUTE, Scenario

IDLE, DOWNLOADING, APPLYING, TRIAL = "IDLE", "DOWNLOADING", "APPLYING", "TRIAL"
CHECK, REPORT = "check", "report"
CHUNK_BYTES = 1 << 16  # what a cut loses at most: the rest is in the journal
_TRIAL_S = 10 * MINUTE
_RESTART_S = 2 * MINUTE
_AGAIN_S = 5 * MINUTE
_HELD_S = HOUR


class Question(NamedTuple):
    """A request of a device: which call, and its body."""

    call: str
    body: bytes


@dataclass
class Tally:
    """What a fleet did, counted where it happens.

    Attributes:
        by_version: devices on each release now.
        installed: devices that ever ran each release.
        failed: devices that reported a failure of each release.
        checks, reports: requests that were answered.
        events: different events that the hub has acknowledged.
        sent_events: events that were sent, repetitions included.
        lost_requests, lost_answers: that never arrived, by simulated networks.
        cuts, restarts, cancelled, held: of downloads, of devices, of updates by the hub.
        patches, fulls: packages that arrived whole.
        wire_bytes: of packages, what was received twice included.
        full_bytes: what the same releases would have been as full packages.
        refused: answers that were no success, by status.
        confirmed: devices whose success each roll-out's hub has acknowledged, by roll-out.
    """

    by_version: dict[str, int] = field(default_factory=dict[str, int])
    installed: dict[str, int] = field(default_factory=dict[str, int])
    failed: dict[str, int] = field(default_factory=dict[str, int])
    checks: int = 0
    reports: int = 0
    events: int = 0
    sent_events: int = 0
    lost_requests: int = 0
    lost_answers: int = 0
    cuts: int = 0
    restarts: int = 0
    cancelled: int = 0
    held: int = 0
    patches: int = 0
    fulls: int = 0
    wire_bytes: int = 0
    full_bytes: int = 0
    refused: dict[int, int] = field(default_factory=dict[int, int])
    confirmed: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class World:
    """What all phones of a run share.

    Attributes:
        scenario: the story.
        tally: where they count.
        fetcher: downloads for those that really do.
        bad: releases that fail on the weak devices.
    """

    scenario: Scenario
    tally: Tally
    fetcher: Fetcher
    bad: set[str] = field(default_factory=set[str])


class Phone:
    """A device.

    Args:
        index: its number; its name and all its luck follow from it and the seed.
        version: what it runs at the beginning.
    """

    __slots__ = (
        "_attempt",
        "_box",
        "_draws",
        "_late",
        "_received",
        "_uid",
        "_wire",
        "_world",
        "bytes_per_s",
        "due",
        "failed",
        "fetches",
        "is_current",
        "is_flaky",
        "is_slow",
        "is_weak",
        "name",
        "offer",
        "previous",
        "seq",
        "state",
        "token",
        "version",
    )

    def __init__(self, world: World, index: int, version: str, now: float) -> None:
        scenario, draws = world.scenario, Draws(world.scenario.seed, index)
        self._world, self._draws = world, draws
        self.name = f"sim-{scenario.seed}-{index}"
        self.version, self.previous = version, version
        self.failed: tuple[str, ...] = ()
        self.state, self.offer, self.token = IDLE, None, ""
        self.is_flaky = draws.happens(scenario.bad_networks)
        self.is_slow = draws.happens(scenario.slow_phones)
        self.is_weak = draws.happens(scenario.bad_share)
        self.fetches = draws.happens(scenario.fetch_share)
        self.bytes_per_s = draws.between(2e5, 8e6) / (20 if self.is_flaky else 1)
        self.due = now + draws.between(0, scenario.every_s)
        self.seq = 0
        self.is_current = False  # whether the hub had nothing for it when it last asked
        self.offer: UpdateAnswer | None
        self._box: tuple[Event, ...] = ()
        self._late = False  # whether the oldest event waits for the report after the next one
        self._received, self._wire, self._uid = 0, 0, 0
        self._attempt: str | None = None
        world.tally.by_version[version] = world.tally.by_version.get(version, 0) + 1

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way and everything was reported."""
        return self.state == IDLE and not self._box

    @property
    def received(self) -> int:
        """Bytes of the package that are on the device."""
        return self._received

    # -- what it does -------------------------------------------------------------------------------

    def step(self) -> Question | None:
        """Do what is due at ``due``; return what it asks the hub, or None when it only went on by itself."""
        if self.state == IDLE or self._box_is_urgent():
            return self._ask()
        if self.state == DOWNLOADING:
            self._download()
        elif self.state == APPLYING:
            self._apply()
        else:
            self._end_trial()
        return None

    def _box_is_urgent(self) -> bool:
        """Whether it reports before it goes on: at the beginning, as the SDK does, to hear a halt."""
        return bool(self._box) and self.state == DOWNLOADING

    def _ask(self) -> Question | None:
        tally = self._world.tally
        if self.is_flaky and self._draws.happens(0.1):
            tally.lost_requests += 1
            self.due += self._draws.between(MINUTE, _AGAIN_S)
            return None
        if not self._box:
            return Question(CHECK, self._check())
        events = self._box[1:] if self._late else self._box
        if self._draws.happens(0.05):
            events = events[::-1]
        tally.sent_events += len(events)
        return Question(REPORT, _json(EventBatch(self.name, events).to_json()))

    def _check(self) -> bytes:
        return _json(UpdateRequest(self.name, self.version, failed=self.failed).to_json())

    def _download(self) -> None:
        offer, draws = self.offer, self._draws
        assert offer is not None and offer.size is not None
        left = offer.size - self._received
        cut = self.is_flaky and draws.happens(0.5)
        portion = int(left * draws.share()) if cut else left
        arrived = self._received + portion
        kept = arrived - arrived % CHUNK_BYTES if cut else arrived  # the rest of the chunk is fetched again
        self._take_bytes(offer, arrived, kept)
        seconds = 1 + portion / self.bytes_per_s
        if cut:
            self._world.tally.cuts += 1
            self.due += seconds + draws.between(30, 10 * MINUTE)
            if not self._restarts():
                return
            self._forget_attempt()
            return
        self._count_arrival(offer)
        self.state = APPLYING
        self.due += seconds + draws.between(5, 30) * (10 if self.is_slow else 1)

    def _take_bytes(self, offer: UpdateAnswer, arrived: int, kept: int) -> None:
        self._wire += arrived - self._received
        self._world.tally.wire_bytes += arrived - self._received
        if self.fetches and arrived > self._received:
            url, sha256, size = offer.download_url or "", offer.sha256 or "", offer.size or 0
            span = (self._received, arrived, kept)
            self._world.fetcher.fetch(self.name, url, sha256, span, size)
        self._received = kept

    def _count_arrival(self, offer: UpdateAnswer) -> None:
        tally = self._world.tally
        tally.patches += offer.kind == "patch"
        tally.fulls += offer.kind == "full"
        tally.full_bytes += offer.full_size or offer.size or 0

    def _restarts(self) -> bool:
        """Whether the device restarts here; what it had stored is still there afterwards."""
        if not self._draws.happens(self._world.scenario.crash_rate):
            return False
        self._world.tally.restarts += 1
        self.due += _RESTART_S
        return True

    def _forget_attempt(self) -> None:
        """After a restart the update begins with a check again; the bytes in the journal stay."""
        self.state = IDLE

    def _apply(self) -> None:
        if self._restarts():
            return  # the package is whole: applied again
        offer = self._offered()
        version = offer.target_version or ""
        if self._draws.happens(self._world.scenario.noise):
            self._fail(version, "E_INTEGRITY", quarantine=False)
        elif self._is_unfit(version) and self._draws.happens(0.5):
            self._fail(version, "E_HEALTH", quarantine=True)
        else:
            self._run(version)
            tally = self._world.tally
            tally.installed[version] = tally.installed.get(version, 0) + 1
            self.state = TRIAL
            self._note("TRIAL", "progress", stats=self._health())
            self.due += _TRIAL_S * self._draws.between(1, 1.5)

    def _is_unfit(self, version: str) -> bool:
        return self.is_weak and version in self._world.bad

    def _run(self, version: str) -> None:
        tally = self._world.tally
        tally.by_version[self.version] -= 1
        tally.by_version[version] = tally.by_version.get(version, 0) + 1
        self.previous, self.version = self.version, version

    def _end_trial(self) -> None:
        if self._restarts():
            return  # one of its tries
        version = self.version
        if self._is_unfit(version):
            self._run(self.previous)
            code = "E_CRASH_LOOP" if self._draws.happens(0.3) else "E_TRIAL"
            self._fail(version, code, quarantine=True)
            return
        self._note("CONFIRMED", "ok")
        self._finish()

    def _fail(self, version: str, code: str, *, quarantine: bool) -> None:
        failed = self._world.tally.failed
        failed[version] = failed.get(version, 0) + 1
        if quarantine:
            self.failed = (*self.failed, version)
        self._note("FAILED", "fail", code=code)
        self._finish()

    def _finish(self) -> None:
        self.state = IDLE
        self.offer = None
        self._received = 0
        self.due += self._draws.between(1, 20)
        self._late = len(self._box) > 1 and self._draws.happens(0.05)

    # -- what it hears ------------------------------------------------------------------------------

    def hear(self, question: Question, status: int, body: bytes, retry_after_s: float | None) -> None:
        """Take the answer to a question; it may get lost on its way.

        Raises:
            MessageError: a success whose body breaks the protocol.
        """
        tally = self._world.tally
        if not 200 <= status < 300:
            tally.refused[status] = tally.refused.get(status, 0) + 1
            self.due += retry_after_s or self._draws.between(MINUTE, _AGAIN_S)
            return
        tally.checks += question.call == CHECK
        tally.reports += question.call == REPORT
        if self.is_flaky and self._draws.happens(0.1):
            tally.lost_answers += 1
            self.due += self._draws.between(MINUTE, _AGAIN_S)  # then it asks, or sends it all, again
        elif question.call == REPORT:
            self._heard_report(EventAnswer.from_bytes(body))
        else:
            self._heard_check(UpdateAnswer.from_bytes(body))

    def _heard_report(self, answer: EventAnswer) -> None:
        accepted = set(answer.accepted)
        kept = tuple(event for event in self._box if event.event_id not in accepted)
        self._world.tally.events += len(self._box) - len(kept)
        confirmed = self._world.tally.confirmed
        for event in self._box:
            if event.state == "CONFIRMED" and event.event_id in accepted and event.rollout_id is not None:
                confirmed[event.rollout_id] = confirmed.get(event.rollout_id, 0) + 1
        self._box, self._late = kept, False
        self.due += self._draws.between(0.1, 2)
        if self.state == DOWNLOADING and answer.control != "continue":
            self._stop(answer.control)
        elif self.state == IDLE and not kept:
            self._rest()

    def _stop(self, control: str) -> None:
        tally = self._world.tally
        self.state = IDLE
        if control == "cancel":
            tally.cancelled += 1
            self._received, self.offer = 0, None
            self._rest()
        else:
            tally.held += 1
            self.due += _HELD_S

    def _rest(self) -> None:
        self.due += self._world.scenario.every_s * self._draws.between(0.9, 1.1)

    def _heard_check(self, answer: UpdateAnswer) -> None:
        before, self.offer = self.offer, None
        self.is_current = not answer.need_update and answer.retry_after_s is None
        if not answer.need_update:
            if answer.retry_after_s is not None:
                self.due += answer.retry_after_s
            else:
                self._rest()
            return
        if before is None or before.sha256 != answer.sha256:
            self._received = 0
        self.offer, self.state = answer, DOWNLOADING
        self._uid, self._wire = self.seq, 0
        self._attempt = answer.attempt_id
        self.due += self._draws.between(0.1, 2)
        self._note("DOWNLOADING", "progress")

    # -- what it reports ----------------------------------------------------------------------------

    def _offered(self) -> UpdateAnswer:
        assert self.offer is not None
        return self.offer

    def _note(
        self, state: str, result: str, *, code: str | None = None, stats: dict[str, float] | None = None
    ) -> None:
        offer = self._offered()
        self.seq += 1
        source = self.previous if state in ("TRIAL", "CONFIRMED") else self.version
        event = Event(
            event_id=f"{self._uid}-{self.seq}",
            seq=self.seq,
            state=state,
            result=result,
            attempt_id=self._attempt,
            rollout_id=offer.rollout_id,
            from_version=source,
            to_version=offer.target_version,
            code=code,
            bytes=self._wire,
            ts=_timestamp(self.due),
            stats=stats or {},
        )
        self._box = (*self._box, event)

    def _health(self) -> dict[str, float]:
        speed = self._draws.between(0.95, 1.05) * (0.2 if self.is_slow else 1.0)
        return {
            "score": 1.0,
            "first_token_ms": round(180 / speed, 1),
            "tokens_per_s": round(24 * speed, 2),
            "peak_memory_bytes": 4.1e8,
        }


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

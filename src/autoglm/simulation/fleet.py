"""The run: virtual time, the operator who releases and repairs, and all devices in between.

Time jumps from one moment at which something is due to the next. All devices that are due within one tick
ask together, in the order of their times, and their answers are taken in the same order. So a run depends on
the scenario alone, and the hub sees the same requests in the same order every time.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Callable

from autoglm.simulation.control import OwnHub, digest_of
from autoglm.simulation.fetching import Fetcher
from autoglm.simulation.operator import FIRST, Operator, Releaser
from autoglm.simulation.outcome import Outcome
from autoglm.simulation.phone import CHECK, REPORT, Phone, Question, Tally, World
from autoglm.simulation.remote import RemoteHub, Watcher
from autoglm.simulation.scenario import DAY, STAFF, START, Scenario
from autoglm.simulation.wire import Place, Wire

_PATHS = {CHECK: "/v1/model/update", REPORT: "/v1/model/events"}

Progress = Callable[[int, int], None]
"""Told the devices that are where they should be, and all."""


class Fleet:
    """All devices of a run.

    Args:
        world: what they share.
        wire: to the hub.
        version: what they run at the beginning.
        now: when that is.
    """

    def __init__(self, world: World, wire: Wire, version: str, now: float) -> None:
        self._world, self._wire = world, wire
        devices = world.scenario.devices
        self.phones = [Phone(world, index, version, now) for index in range(devices)]
        self._queue = [(phone.due, index) for index, phone in enumerate(self.phones)]
        heapq.heapify(self._queue)

    @property
    def next_due(self) -> float:
        """When the next device is due."""
        return self._queue[0][0]

    def run_until(self, end: float, before_asking: Callable[[], None]) -> None:
        """Do everything that is due before ``end``, and carry the questions of all devices together.

        Args:
            end: in virtual time.
            before_asking: called if there are any, before the first is sent.

        Raises:
            NetworkError, ProtocolError: the hub is not there, or does not speak the protocol.
            MessageError: it answers what no hub should.
        """
        asking: list[tuple[int, Question]] = []
        while self._queue and self._queue[0][0] < end:
            _, index = heapq.heappop(self._queue)
            phone = self.phones[index]
            question = phone.step()
            if question is None:
                heapq.heappush(self._queue, (phone.due, index))
            else:
                asking.append((index, question))
        if asking:
            before_asking()
        requests = [self._request(self.phones[index], question) for index, question in asking]
        for (index, question), answer in zip(asking, self._wire.exchange(requests), strict=True):
            phone = self.phones[index]
            phone.hear(question, answer.status, answer.body, answer.retry_after_s)
            heapq.heappush(self._queue, (phone.due, index))

    def _request(self, phone: Phone, question: Question) -> bytes:
        headers = f"authorization: Bearer {phone.token}\r\n" if phone.token else ""
        return self._wire.place.request("POST", _PATHS[question.call], question.body, headers)

    def digest(self) -> str:
        """Return the fingerprint of all events that the hub should have; see :func:`digest_of`."""
        return digest_of({p.name: (p.seq, p.seq * (p.seq + 1) // 2) for p in self.phones})


def simulate(scenario: Scenario, progress: Progress | None = None) -> Outcome:
    """Run a whole story against a hub of its own, in a process of its own.

    Args:
        scenario: the story.
        progress: told how far it is.

    Raises:
        HubError: the hub does not start, or refuses an order.
        NetworkError, ProtocolError, MessageError: it does not serve its devices.
    """
    with OwnHub() as hub:
        world = World(scenario, Tally(), Fetcher())
        operator = Releaser(hub, scenario, world.bad)
        with Wire(Place(hub.url), scenario.connections) as wire:
            fleet = Fleet(world, wire, FIRST, START)
            _give_tokens(hub, fleet, scenario)
            return _run(world, fleet, operator, progress)


def simulate_at(remote: RemoteHub, scenario: Scenario, progress: Progress | None = None) -> Outcome:
    """Run devices against a hub that is there already: they take what it offers, and nothing else happens.

    Where it asks devices for tokens they are registered first, which takes a token that may do so.

    Its clock is its own, so stages whose soak time is not over stay where they are.

    Args:
        remote: the hub.
        scenario: of its fields, those about devices.
        progress: told how far it is.

    Raises:
        HubError: the hub refuses the token.
        NetworkError, ProtocolError, MessageError: it does not serve its devices.
    """
    world = World(scenario, Tally(), Fetcher(remote.ca_file))
    with Wire(remote.place, scenario.connections) as wire:
        watcher = Watcher(remote, wire, scenario, world.bad)
        fleet = Fleet(world, wire, watcher.first, START)
        watcher.admit(fleet.phones)
        return _run(world, fleet, watcher, progress)


def _run(world: World, fleet: Fleet, operator: Operator, progress: Progress | None) -> Outcome:
    began = time.monotonic()
    now = _play(world, fleet, operator, progress or (lambda _done, _all: None))
    wall_s = time.monotonic() - began
    hub_events, agree = operator.compare(fleet.digest(), world.tally)
    return Outcome(
        scenario=world.scenario,
        target=operator.target,
        on_target=operator.count_right(fleet.phones),
        trials=operator.trials(world.tally),
        samples=tuple(operator.samples),
        tally=world.tally,
        hub_events=hub_events,
        events_agree=agree,
        virtual_s=now - START,
        wall_s=wall_s,
        fetched_bytes=world.fetcher.fetched_bytes,
        broken_fetches=world.fetcher.broken,
    )


def _give_tokens(hub: OwnHub, fleet: Fleet, scenario: Scenario) -> None:
    staff = fleet.phones[: scenario.staff]
    made = hub.order("tokens", names=[phone.name for phone in staff], group=STAFF)
    for phone, token in zip(staff, made["tokens"], strict=True):
        phone.token = token


def _play(world: World, fleet: Fleet, operator: Operator, progress: Progress) -> float:
    """Let time pass until everybody has what they should have, or the days are over; return when that is."""
    scenario, tally = world.scenario, world.tally
    now, look = START, START
    end = START + scenario.days * DAY
    while now < end:
        now = max(now, min(fleet.next_due, look))
        if now >= look:
            operator.pass_time(now)
            operator.look(now, tally)
            look += scenario.look_s
            progress(tally.by_version.get(operator.target, 0), scenario.devices)
            if operator.is_stuck(now) or (
                operator.is_done() and operator.count_right(fleet.phones) == scenario.devices
            ):
                break
        fleet.run_until(now + scenario.tick_s, functools.partial(operator.pass_time, now))
    return now

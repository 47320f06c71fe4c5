"""Who may stay connected: caps, and an end to whoever is too slow.

What it guarantees: no more connections than allowed, in all and from one address; when there are as many, the
one that has been silent longest makes way, and only where none is silent the new one is refused. A request
must arrive within a time, an answer must be taken in a time, and a connection that is being closed is closed.

Rules and counting only; :class:`~autoglm.service.protocol.BoundedProtocol` does what they say.
"""

from __future__ import annotations

import resource
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autoglm.service.callers import Proxies, caller_network

RESERVED_FILES = 256  # file descriptors that are not connections: tables, packages, logs
MAX_OUTSIDE = 1024  # connections without a place that are told so at the same time
MIN_OUTSIDE = 64
STALL_SECONDS = 300.0
SLOWEST_BYTES_PER_S = 64
MAX_UNWANTED_BYTES = 64 << 20  # of a body that was answered before it had come


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may do.

    Attributes:
        total: open at once.
        per_address: of these, from one address; 0 is unlimited.
        slow_seconds: for a head to arrive, and for at least 64 bytes a second of a body.
        stall_seconds: for anything of an answer to be taken.
        outside: without a place, and being told so; of more, the oldest is closed at once.
    """

    total: int = 4096
    per_address: int = 512
    slow_seconds: float = 15.0
    stall_seconds: float = STALL_SECONDS
    outside: int = MIN_OUTSIDE


class Connection(Protocol):
    """What the rules need of a connection."""

    @property
    def address(self) -> str:
        """Who is at the other end."""
        ...

    def inspect(self, now: float, limits: ConnectionLimits) -> None:
        """End it if it is too slow."""
        ...

    def make_way(self) -> None:
        """Close it: nothing is under way on it, and another one needs its place."""
        ...


class Doorkeeper:
    """The connections of one server; used on its event loop only.

    Args:
        limits: how many, and how slow.
        proxies: exempt from the limit per address: they speak for many.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        proxies: Proxies | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.clock = limits, clock
        self._proxies = proxies or Proxies(())
        self._networks: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        # Between two requests, longest first: all of them, and by network.
        self._silent: OrderedDict[Connection, None] = OrderedDict()
        self._silent_of: dict[str, OrderedDict[Connection, None]] = {}
        self._outside: OrderedDict[Connection, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def enter(self, connection: Connection) -> bool:
        """Let a new connection in; False when there is no place for it."""
        network = caller_network(connection.address)
        is_proxy = connection.address in self._proxies
        if not is_proxy and 0 < self.limits.per_address <= self._counts[network]:
            return self._make_room(self._silent_of.get(network)) and self._take(connection, network)
        if len(self._networks) >= self.limits.total:
            return self._make_room(self._silent) and self._take(connection, network)
        return self._take(connection, network)

    def _take(self, connection: Connection, network: str) -> bool:
        self._networks[connection] = network
        self._counts[network] += 1
        self.fall_silent(connection)
        return True

    def _make_room(self, silent: OrderedDict[Connection, None] | None) -> bool:
        if not silent:
            return False
        oldest = next(iter(silent))
        self.leave(oldest)
        oldest.make_way()
        return True

    @property
    def num_outside(self) -> int:
        """Connections without a place that are being told so."""
        return len(self._outside)

    def turn_away(self, connection: Connection) -> None:
        """Let a connection that may not enter be told so; the oldest of too many is closed at once."""
        if len(self._outside) >= self.limits.outside:
            oldest, _ = self._outside.popitem(last=False)
            oldest.make_way()
        self._outside[connection] = None

    def leave(self, connection: Connection) -> None:
        """Forget a connection; one that is not known is fine."""
        self._outside.pop(connection, None)
        self.speak(connection)
        network = self._networks.pop(connection, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def speak(self, connection: Connection) -> None:
        """Note that a request is under way."""
        if connection in self._silent:
            del self._silent[connection]
            network = self._networks[connection]
            del self._silent_of[network][connection]
            if not self._silent_of[network]:
                del self._silent_of[network]

    def fall_silent(self, connection: Connection) -> None:
        """Note that no request is under way any more."""
        network = self._networks.get(connection)
        if network is not None and connection not in self._silent:
            self._silent[connection] = None
            self._silent_of.setdefault(network, OrderedDict())[connection] = None

    def inspect(self) -> None:
        """Look at every connection once."""
        now = self.clock()
        for connection in [*self._networks, *self._outside]:
            connection.inspect(now, self.limits)


def room_for_connections(wanted: int) -> int:
    """Let this process open as many files as it may, and return how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        goal = wanted + RESERVED_FILES + MAX_OUTSIDE
        goal = goal if hard == resource.RLIM_INFINITY else min(goal, hard)
        if goal > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
    return wanted if soft == resource.RLIM_INFINITY else max(16, min(wanted, soft - RESERVED_FILES))


def room_outside(total: int) -> int:
    """Return how many connections may be told that ``total`` are open, of the files that are left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_OUTSIDE
    return max(MIN_OUTSIDE, min(MAX_OUTSIDE, soft - RESERVED_FILES - total))

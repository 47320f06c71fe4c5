"""Connections: how many, how slow, and that none of them is ever stuck."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest

from autoglm.service.callers import Proxies
from autoglm.service.connections import (
    Connection,
    ConnectionLimits,
    Doorkeeper,
    room_for_connections,
    room_outside,
)

TIMEOUT_S = 60
HEAD = b"POST /v1/model/update HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Door:
    """A running service whose connections are looked at when the test says so, by its own clock."""

    def __init__(self, service: Any, clock: Clock) -> None:
        self.service, self.clock = service, clock
        self.keeper: Doorkeeper = service.server.doorkeeper
        host, port = service.url.removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.opened: list[socket.socket] = []

    def connect(self, *pieces: bytes) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=TIMEOUT_S)
        self.opened.append(connection)
        for piece in pieces:
            connection.sendall(piece)
        return connection

    def on_loop(self, act: Callable[[], Any]) -> Any:
        """Do something on the server's event loop and return what it returned."""
        done = threading.Event()
        found: list[Any] = []

        def call() -> None:
            found.append(act())
            done.set()

        loop = next(iter(self.loops()))
        loop.call_soon_threadsafe(call)
        assert done.wait(TIMEOUT_S)
        return found[0]

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        return [each.loop for each in self.service.server.server_state.connections]  # type: ignore[union-attr]

    def connection_of(self, client: socket.socket) -> Any:
        """The server's side of a connection; None before it has been taken in."""
        port = client.getsockname()[1]
        connections = list(self.service.server.server_state.connections)
        return next((each for each in connections if each.client and each.client[1] == port), None)

    def pass_time(self, seconds: float) -> None:
        """Move the clock and look at all connections."""
        self.on_loop(lambda: setattr(self.clock, "now", self.clock.now + seconds))
        self.on_loop(self.keeper.inspect)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for the server to have seen what was sent or closed."""
        waiting = threading.Event()
        for _ in range(TIMEOUT_S * 100):
            if condition():
                return
            waiting.wait(0.01)
        pytest.fail("it did not happen")


@pytest.fixture
def open_door(start_service: Any, monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[..., Door]]:
    doors: list[Door] = []

    def start(**limits: int) -> Door:
        service = start_service(limits=limits)
        clock = Clock()
        service.server.doorkeeper.clock = clock
        monkeypatch.setattr(type(service.server), "on_tick", _never_looks)
        doors.append(Door(service, clock))
        return doors[-1]

    yield start
    for door in doors:
        for connection in door.opened:
            connection.close()


async def _never_looks(server: Any, counter: int) -> bool:
    """The server's tick without its look at connections, which the tests do themselves."""
    import uvicorn

    return await uvicorn.Server.on_tick(server, counter)


def read_all(connection: socket.socket) -> bytes:
    content = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            content += piece
    return content


def answer_of(content: bytes) -> tuple[int, str | None]:
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def is_open(connection: socket.socket) -> bool:
    content = b""
    with contextlib.suppress(ConnectionError):
        connection.sendall(HEALTH)
        while not content.endswith(b"}") and (piece := connection.recv(4096)):  # head and body may come apart
            content += piece
    return content.startswith(b"HTTP/1.1 200")


def test_a_head_must_arrive_in_time(open_door: Any) -> None:
    """A byte a second does not help: the whole head has slow_seconds; then 408 and the end."""
    door = open_door(slow_seconds=10)
    slow = door.connect(HEAD)
    door.wait_until(lambda: len(door.keeper) == 1)
    door.pass_time(6)
    slow.sendall(b"X: 1\r\n")
    door.pass_time(3)
    assert len(door.keeper) == 1
    door.pass_time(2)
    assert answer_of(read_all(slow)) == (408, "too_slow")
    door.wait_until(lambda: len(door.keeper) == 0)


def test_a_body_must_go_on_arriving(open_door: Any) -> None:
    """A body of a byte a second is ended with 408, its request is over, and nothing is left of it."""
    door = open_door(slow_seconds=10)
    slow = door.connect(HEAD + b"Content-Length: 1000\r\n\r\n")
    tasks = door.service.server.server_state.tasks
    door.wait_until(lambda: len(tasks) == 1)
    slow.sendall(b"{" + b" " * 10)
    door.pass_time(11)
    assert answer_of(read_all(slow)) == (408, "too_slow")
    door.wait_until(lambda: not tasks and not len(door.keeper))


def test_a_body_that_gets_on_is_waited_for(open_door: Any) -> None:
    """64 bytes a second are enough, however long it takes in all."""
    door = open_door(slow_seconds=10)
    body = b'{"device_id": "d"}' + b" " * 3982
    patient = door.connect(HEAD + b"Connection: close\r\nContent-Length: 4000\r\n\r\n")
    tasks = door.service.server.server_state.tasks
    door.wait_until(lambda: len(tasks) == 1)
    connection = door.connection_of(patient)
    for place in range(0, 4000, 800):
        patient.sendall(body[place : place + 800])
        if place < 3200:
            door.wait_until(lambda: door.on_loop(lambda: connection._window_bytes) == 800)
            door.pass_time(11)
    assert read_all(patient).startswith(b"HTTP/1.1 200")


def test_a_connection_that_never_speaks_is_closed(open_door: Any) -> None:
    """Without a first byte it ends after slow_seconds, without an answer."""
    door = open_door(slow_seconds=10)
    mute = door.connect()
    door.wait_until(lambda: len(door.keeper) == 1)
    door.pass_time(11)
    assert read_all(mute) == b""


def test_a_refused_body_is_not_read_to_its_end(open_door: Any) -> None:
    """Of a body that was answered before it had come only so much is thrown away, then the line is cut."""
    door = open_door()
    rude = door.connect(b"POST /v1/admin/releases HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    assert rude.recv(4096).startswith(b"HTTP/1.1 401")
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 1 << 28:
            sent += rude.send(b" " * (1 << 16))
    assert sent < 1 << 28
    door.wait_until(lambda: not len(door.keeper))


def test_whoever_does_not_take_an_answer_is_let_go(open_door: Any) -> None:
    """An answer that stays unread for long ends its connection, its request and what it held."""
    door = open_door()
    question = {"device_id": "d"}
    path = (
        door.service.post("/v1/model/update", question).json()["download_url"].partition(door.service.url)[2]
    )
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    deaf = door.connect()
    tasks = door.service.server.server_state.tasks
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def is_stuck() -> bool:
        connection = door.connection_of(deaf)
        return connection is not None and connection.flow.write_paused

    deaf.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(400):  # pipelined, until nothing more goes through
            deaf.send(request)
            if is_stuck():
                break
    door.wait_until(is_stuck)
    door.pass_time(1)
    door.pass_time(200)
    assert tasks
    door.pass_time(200)
    door.wait_until(lambda: not tasks)


def test_the_longest_silent_makes_way(open_door: Any) -> None:
    """At the limit of an address, a new connection takes the place of the one longest idle."""
    door = open_door(connections_per_address=3)
    first, second, third = (door.connect() for _ in range(3))
    door.wait_until(lambda: len(door.keeper) == 3)
    assert is_open(first)  # which makes the second the longest silent
    fourth = door.connect()
    assert is_open(fourth)
    assert read_all(second) == b""
    assert is_open(first) and is_open(third)


def test_a_thousand_connections_do_not_stop_health(open_door: Any) -> None:
    """Idle, half a head, half a body: with a thousand of them open the next request is answered."""
    door = open_door(connections=1024, connections_per_address=0)
    kinds = (b"", b"GET /hea", HEAD + b"Content-Length: 10\r\n\r\n{")
    for number in range(1000):
        door.connect(kinds[number % 3])
    door.wait_until(lambda: len(door.keeper) == 1000)
    assert door.service.get("/health").json() == {"status": "ok"}
    assert door.service.chat().status_code == 200
    for connection in door.opened:
        connection.close()
    door.wait_until(lambda: len(door.keeper) <= 1 and not door.service.server.server_state.tasks)


def test_where_nobody_is_silent_the_new_one_is_refused(open_door: Any) -> None:
    """With every place taken by a request under way, the next gets 503 and when to come back."""
    door = open_door(connections=16)
    tasks = door.service.server.server_state.tasks
    for _ in range(16):
        door.connect(HEAD + b"Content-Length: 10\r\n\r\n")
    door.wait_until(lambda: len(tasks) == 16)
    content = read_all(door.connect(HEALTH))
    assert answer_of(content) == (503, "too_many_connections")
    assert b"retry-after: 5" in content
    door.opened[0].sendall(b"          ")
    assert door.opened[0].recv(4096).startswith(b"HTTP/1.1 400")
    assert is_open(door.connect())


def test_garbage_does_not_fill_the_log(open_door: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever sends what is no HTTP gets a 400, and writes no line on our disk."""
    door = open_door()
    for _ in range(3):
        assert answer_of(read_all(door.connect(b"\x00nonsense\r\n\r\n"))) == (400, "invalid_http")
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


class Visitor:
    """A connection for the rules alone."""

    def __init__(self, address: str, left: list[Visitor]) -> None:
        self.address, self._left = address, left

    def inspect(self, now: float, limits: ConnectionLimits) -> None:
        """Look."""

    def make_way(self) -> None:
        self._left.append(self)


def test_proxies_are_exempt_from_the_limit_of_an_address() -> None:
    """They speak for many; the limit in all holds for them too."""
    left: list[Visitor] = []
    keeper = Doorkeeper(ConnectionLimits(total=3, per_address=1), Proxies(["10.0.0.1"]))
    visitors = [Visitor("10.0.0.1", left) for _ in range(4)]
    assert all(keeper.enter(each) for each in visitors)
    assert left == visitors[:1]


def test_rules_count_right_whatever_happens() -> None:
    """Entering, speaking, falling silent and leaving in any order leaves nothing behind."""
    import random

    left: list[Visitor] = []
    keeper = Doorkeeper(ConnectionLimits(total=20, per_address=4))
    change, present = random.Random(3), list[Visitor]()
    for _ in range(5000):
        kind = change.randrange(4)
        if kind == 0 or not present:
            visitor = Visitor(f"10.0.0.{change.randrange(9)}", left)
            if keeper.enter(visitor):
                present.append(visitor)
        else:
            visitor = change.choice(present)
            (keeper.speak, keeper.fall_silent, keeper.leave)[kind - 1](visitor)
            if kind == 3:
                present.remove(visitor)
        present = [each for each in present if each not in left]
        left.clear()
        assert len(keeper) == len(present) <= 20
    for visitor in present:
        keeper.leave(visitor)
    assert (keeper._counts, keeper._silent, keeper._silent_of) == ({}, {}, {})


def test_files_bound_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open few files holds few connections; one that may raise its limit does."""
    import resource

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for soft, hard, room in (
        (1024, 1024, 768),
        (1024, 4096, 3840),
        (1024, 1 << 20, 4096),
        (20_000, 20_000, 4096),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        assert room_for_connections(4096) == room
    assert asked == [(4096, 4096), (5376, 1 << 20)]


def test_files_bound_those_who_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the files, but some always: a process that is full must be able to say so."""
    import resource

    for soft, total, room in ((1024, 768, 64), (4096, 3000, 840), (20_000, 4096, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert room_outside(total) == room
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert room_outside(4096) == 1024


def test_a_protocol_is_a_connection() -> None:
    """What the rules need is what the protocol has."""
    from autoglm.service.protocol import BoundedProtocol

    needed = {name for name in vars(Connection) if not name.startswith("_")}
    assert needed <= set(dir(BoundedProtocol))

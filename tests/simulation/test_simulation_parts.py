"""The parts of a simulation alone: luck, pipelined HTTP, downloads that are cut, the picture."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoglm.errors import ConfigError, NetworkError
from autoglm.simulation import Outcome, Sample, Scenario, Trial
from autoglm.simulation.control import digest_of
from autoglm.simulation.draws import Draws
from autoglm.simulation.fetching import Fetcher
from autoglm.simulation.outcome import draw_curve, plot_curve
from autoglm.simulation.phone import Tally
from autoglm.simulation.weights import write_release
from autoglm.simulation.wire import Place, Wire


@contextmanager
def listening(serve: Callable[[socket.socket, int], None]) -> Generator[Place]:
    """A server that does with each connection what ``serve`` says, told its number."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for number in range(100):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection, number)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Place(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def echo(connection: socket.socket, limit: int = 1_000_000) -> None:
    """Answer each request with its own body; hang up after ``limit`` of them."""
    stream = connection.makefile("rb")
    for _ in range(limit):
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if line == b"":
            return
        body = stream.read(length)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def test_luck_is_repeatable_and_even() -> None:
    """The same seed and stream give the same numbers, other ones others; they fill the range evenly."""
    first, again, other = Draws(1, 7), Draws(1, 7), Draws(1, 8)
    numbers = [first.share() for _ in range(20_000)]
    assert numbers == [again.share() for _ in range(20_000)]
    assert numbers[:5] != [other.share() for _ in range(5)]
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.01
    assert all(1900 < sum(low <= n * 10 < low + 1 for n in numbers) < 2100 for low in range(10))


@pytest.mark.parametrize("connections", [1, 3])
def test_answers_come_in_the_order_of_the_requests(connections: int) -> None:
    """Hundreds of requests are under way at once, and each gets its own answer."""
    bodies = [b"%d" % number for number in range(500)]
    waiting: list[threading.Thread] = []

    def serve(connection: socket.socket, _number: int) -> None:
        kept = connection.dup()
        waiting.append(threading.Thread(target=echo, args=(kept,), daemon=True))
        waiting[-1].start()

    with listening(serve) as place:
        with Wire(place, connections) as wire:
            answers = list(wire.exchange([place.request("POST", "/", body) for body in bodies]))
        assert [answer.body for answer in answers] == bodies
    assert len(waiting) == connections
    for thread in waiting:
        thread.join(10)


def test_a_broken_connection_is_made_anew() -> None:
    """What was not answered when the hub hung up is sent again on the next connection."""
    bodies = [b"%d" % number for number in range(50)]
    with listening(lambda connection, number: echo(connection, 7)) as place, Wire(place) as wire:
        answers = list(wire.exchange([place.request("POST", "/", body) for body in bodies]))
    assert [answer.body for answer in answers] == bodies


def test_a_hub_that_only_hangs_up_is_an_error() -> None:
    """It is not asked for ever."""
    with (
        listening(lambda connection, number: None) as place,
        Wire(place) as wire,
        pytest.raises(NetworkError, match="breaks off"),
    ):
        list(wire.exchange([place.request("POST", "/", b"{}")]))


def test_a_download_in_pieces_is_checked_as_a_whole() -> None:
    """Cut and resumed by ranges, the bytes have the promised hash; other bytes are counted as broken."""
    content = bytes(range(256)) * 1024
    sha256 = hashlib.sha256(content).hexdigest()

    def serve(connection: socket.socket, _number: int) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        start = int(head.partition(b"bytes=")[2].partition(b"-")[0] or 0)
        status = b"206 Partial Content" if start else b"200 OK"
        place = b"content-range: bytes %d-%d/%d\r\n" % (start, len(content) - 1, len(content))
        body = content[start:]
        answer = b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n" % (status, place if start else b"", len(body))
        try:
            connection.sendall(answer + body)
        except OSError:
            return  # cut, as the test wants it

    with listening(serve) as place:
        fetcher = Fetcher()
        url = f"{place.url}/package"
        fetcher.fetch("a", url, sha256, (0, 70_000, 65_536), len(content))
        fetcher.fetch("a", url, sha256, (65_536, len(content), len(content)), len(content))
        assert (fetcher.broken, fetcher.fetched_bytes) == (0, 70_000 + len(content) - 65_536)
        fetcher.fetch("b", url, "0" * 64, (0, len(content), len(content)), len(content))
        assert fetcher.broken == 1


def test_releases_are_the_same_every_time(tmp_path: Path) -> None:
    """The same counter gives the same bytes; the next one differs in about a tenth of the weights."""
    names = {"model": "m", "variant": "v", "size": 1 << 14}
    first, again = (
        write_release(tmp_path / name, "v1", 1, **names) / "model.safetensors" for name in ("a", "b")
    )
    second = write_release(tmp_path / "c", "v2", 2, **names) / "model.safetensors"
    assert first.read_bytes() == again.read_bytes()
    changed = sum(a != b for a, b in zip(first.read_bytes(), second.read_bytes(), strict=True))
    assert 0.07 < changed / (1 << 14) < 0.11


def test_events_are_compared_as_sets() -> None:
    """The fingerprint depends on each device's events and not on any order; a device without any is none."""
    counted = {"a": (2, 3), "b": (1, 1)}
    assert digest_of(counted) == digest_of({"b": (1, 1), "c": (0, 0), "a": (2, 3)})
    assert digest_of(counted) != digest_of({"a": (2, 3), "b": (2, 2)})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("devices", 0),
        ("bad_share", 1.5),
        ("fetch_share", -0.1),
        ("connections", 0),
        ("every_s", 0.0),
        ("crash_rate", 0.9),
        ("weights_bytes", 1),
        ("days", float("nan")),
    ],
)
def test_a_scenario_out_of_range_is_refused(field: str, value: float) -> None:
    """A number that makes no sense is a clear error."""
    with pytest.raises(ConfigError, match=field):
        Scenario(**{field: value})  # type: ignore[arg-type]


def test_an_address_that_is_none_is_refused() -> None:
    """Only http and https with a host are addresses."""
    with pytest.raises(ConfigError, match="no address"):
        Place("ftp://hub")


@pytest.fixture
def outcome() -> Outcome:
    """A bad release at 10 % of 100 devices, halted, and its repair."""
    rollouts = [{"id": f"r{n}", "created_at": n * 3600.0, "percent": 10.0, "state": "halted"} for n in (1, 2)]
    samples = (
        Sample(0, {"v1": 100}, "r1", "v2", "active", 10),
        Sample(5, {"v1": 90, "v2": 10}, "r1", "v2", "halted", 10),
        Sample(10, {"v3": 100}, "r2", "v3", "active", 100),
    )
    trials = (
        Trial(
            "v2", True, rollouts[0], 10, 2, halted_hours=4.0, halted_percent=10.0, reason="too many failures"
        ),
        Trial("v3", False, rollouts[1], 100, 0),
    )
    return Outcome(Scenario(devices=100), "v3", 100, trials, samples, Tally(), 5, True, 3600.0, 1.0)


def test_the_curve_shows_both_releases(outcome: Outcome) -> None:
    """Few devices on a bad release are seen; at the end all are on the right one."""
    lines = draw_curve(outcome, 21, height=4)
    assert lines[3] == "  25 % |" + " " * 10 + "x" * 10 + "█"
    assert lines[0] == " 100 % |" + " " * 20 + "█"


def test_the_curve_can_be_drawn_into_a_file(outcome: Outcome, tmp_path: Path) -> None:
    """A PNG comes out."""
    plot_curve(outcome, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

"""Whole updates over real sockets, against everything that a network and a hostile hub can answer."""

from __future__ import annotations

import gzip
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import HttpTransport, UpdateSettings
from autoglm.device.download import Download
from autoglm.device.offer import PackagePin
from autoglm.errors import NetworkError
from autoglm.files import CHUNK_BYTES, sha256_file
from autoglm.patch import HeaderPin
from autoglm.releases import Manifest
from device.conftest import StillClock
from device.lives import copy_tree
from device.wire import Trick, Wire, changed, cut_after, says, silence, trickle, without_end

READ_BYTES, HEADS_BYTES = 1 << 16, 1 << 12
MOST_WIRE_BYTES = 8 << 20
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PORTAL = b"<html><body>Welcome to this hotel's network! Please log in.</body></html>"


@pytest.fixture
def wire(hub: Any) -> Iterator[Wire]:
    wire = Wire(hub)
    yield wire
    wire.close()


@pytest.fixture
def line(wire: Wire, clock: StillClock) -> Iterator[HttpTransport]:
    line = HttpTransport(wire.url, clock=clock, random_source=random.Random(1))
    yield line
    line.close()


@pytest.fixture
def phone(lab: Any, hub: Any, line: HttpTransport) -> Callable[[], Any]:
    """Start the device, on v1.2 and offered v1.3; each time from the same beginning."""
    lab.change(retries=2)
    lab.install("v1.2").close()
    template = lab.root.with_name("template")
    lab.root.rename(template)
    hub.target = "v1.3"

    def start() -> Any:
        for updater in lab.opened:
            updater.close()
        shutil.rmtree(lab.root, ignore_errors=True)
        copy_tree(template, lab.root)
        return lab.open(transport=line)

    return start


def try_update(updater: Any, line: HttpTransport) -> Any:
    """Update once; whatever was answered: a typed result, little traffic, and a whole release."""
    before = line.wire_bytes
    result = updater.update()
    assert result.kind in ("updated", "failed", "held", "none")
    assert result.code is None or (result.code.startswith("E_") and result.code != "E_UNKNOWN")
    assert line.wire_bytes - before < MOST_WIRE_BYTES
    manifest = Manifest.read(updater.active)
    manifest.verify(updater.active)
    assert manifest.version == ("v1.3" if result.kind == "updated" else "v1.2")
    return result


def finish_update(updater: Any, line: HttpTransport) -> None:
    """Go on over a line that is good now."""
    if updater.status().current == "v1.2":
        result = try_update(updater, line)
        assert result.kind == "updated", result


def head(*lines: str) -> bytes:
    return OK + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


TRICKS: dict[str, Trick] = {
    "a portal's page": changed(200, PORTAL, Content_Type="text/html"),
    "a portal's redirect": changed(302, PORTAL, Location="http://portal.example/login"),
    "a portal's own status": changed(511, PORTAL),
    "a redirect to nowhere": changed(307, b"", Location="https://no-such-host.invalid/x"),
    "a redirect to a file": changed(302, b"", Location="file:///etc/passwd"),
    "a redirect without a place": changed(302, b""),
    "too many": changed(429, b"", Retry_After="7"),
    "too many, for ages": changed(503, b"", Retry_After="99999999999999999999999"),
    "too many, until no time": changed(503, b"", Retry_After="-5"),
    "too many, until a date": changed(503, b"", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
    "an error": changed(500, b"oops"),
    "no content": changed(204, b""),
    "nothing new": changed(304, b""),
    "another protocol": changed(101, b""),
    "a status of four digits": says(b"HTTP/1.1 2000 OK\r\n\r\n"),
    "a status below zero": says(b"HTTP/1.1 -1 OK\r\n\r\n"),
    "no status": says(b"HTTP/1.1\r\n\r\n"),
    "no http": says(b"\x16\x03\x01\x02\x00\x01\x00" + bytes(200)),
    "nothing": says(b""),
    "half a head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "a long length": changed(Content_Length=str(10**30)),
    "a length below zero": changed(Content_Length="-1"),
    "a length of words": changed(Content_Length="many"),
    "one byte less": changed(body=lambda body: body[:-1]),
    "one byte more": changed(body=lambda body: body + b"x"),
    "a shorter promise": changed(body=lambda body: body, Content_Length="5"),
    "other bytes": changed(body=lambda body: bytes(len(body))),
    "no bytes": changed(body=b""),
    "an endless body": without_end(OK + b"\r\n", bytes(1 << 16)),
    "an endless promised body": without_end(head(f"Content-Length: {10**15}"), bytes(1 << 16)),
    "an endless head": without_end(OK, b"X-Header: more\r\n"),
    "an endless line": without_end(OK + b"X-Header: ", b"a" * 4096),
    "an endless chunk's length": without_end(CHUNKED, b"0" * 4096),
    "a chunk below zero": says(CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n"),
    "a chunk without an end": says(CHUNKED + b"ffffffff\r\nabc"),
    "a packed answer": changed(body=gzip.compress, Content_Encoding="gzip"),
    "a packed bomb": changed(body=gzip.compress(bytes(1 << 26)), Content_Encoding="gzip"),
    "damaged packing": changed(body=b"\x1f\x8b" + bytes(64), Content_Encoding="gzip"),
    "a part that nobody asked for": changed(206, Content_Range="bytes 0-9/10"),
    "a part of another place": changed(206, Content_Range="bytes 7-99/100"),
    "a part of nothing": changed(206, Content_Range="bytes */100"),
    "no such part": changed(416, b"", Content_Range="bytes */5"),
}
# Framing that is odd, around bytes that are right.
HARMLESS = ("a length below zero", "a length of words", "a packed answer", "a part that nobody asked for")
SLOW_TRICKS: dict[str, Trick] = {
    "silence": silence,
    "Continue without end": without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a slow head": trickle(OK[:-2]),
    "a slow line": trickle(OK + b"X-Header: "),
    "a slow chunk's length": trickle(CHUNKED),
}
KINDS = ("update", "metadata", "packages", "events")


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_does_harm(phone: Any, line: HttpTransport, wire: Wire, kind: str) -> None:
    """Each of many answers in place of a good one, to each of the calls: the update resumes or fails
    clearly, the old release stays, and over a good line the update arrives."""
    for name, trick in TRICKS.items():
        updater = phone()
        wire.tricks = [(kind, trick)] * 9
        result = try_update(updater, line)
        assert len(wire.tricks) < 9, f"{name} was never played"
        assert result.kind == "failed" or kind in ("events", "packages") or name in HARMLESS, name
        wire.tricks = []
        finish_update(updater, line)


@pytest.mark.parametrize(
    "kind", ["update", "packages", *(pytest.param(k, marks=pytest.mark.long) for k in ("metadata", "events"))]
)
@pytest.mark.parametrize("name", SLOW_TRICKS)
def test_no_slowness_holds_the_device(
    lab: Any, phone: Any, line: HttpTransport, wire: Wire, clock: StillClock, kind: str, name: str
) -> None:
    """A byte now and then, in the head or between chunks, counts against one deadline."""
    phone()
    hasty = HttpTransport(
        wire.url, clock=clock, random_source=random.Random(1), read_seconds=0.5, patience_seconds=0.8
    )
    updater = lab.open(transport=hasty)
    wire.tricks = [(kind, SLOW_TRICKS[name])]
    try_update(updater, hasty)
    assert not wire.tricks
    hasty.close()
    finish_update(lab.open(transport=line), line)


@pytest.mark.parametrize("kind", ["update", "metadata", "packages"])
def test_one_byte_a_second_is_broken_off(
    phone: Any, line: HttpTransport, wire: Wire, clock: StillClock, kind: str
) -> None:
    """A body that trickles is given up after a minute of the device's clock; the next try resumes."""

    def pass_a_second() -> None:
        clock.seconds += 1

    updater = phone()
    start = head("Content-Length: 30000") if kind != "packages" else OK + b"\r\n"
    wire.tricks = [(kind, trickle(start, pass_a_second))] * 3
    assert try_update(updater, line).kind in ("failed", "updated")
    wire.tricks = []
    finish_update(updater, line)


@pytest.mark.parametrize("num_cuts", [20, pytest.param(200, marks=pytest.mark.long)])
def test_a_line_that_breaks_at_any_byte(phone: Any, line: HttpTransport, wire: Wire, num_cuts: int) -> None:
    """Whichever connection breaks, wherever in its head or body: the update resumes or the next one does."""
    chance = random.Random(num_cuts)
    updater = phone()
    for number in range(num_cuts):
        updater = phone()
        kind = chance.choice(("update", "metadata", "metadata", "packages", "packages", "events"))
        longest = {"update": 900, "events": 200}.get(kind, 40_000)
        wire.tricks = [(kind, cut_after(chance.randrange(longest), reset=bool(number % 2)))]
        try_update(updater, line)
        wire.tricks = []
        finish_update(updater, line)


class Dying:
    """A line whose process dies when so many bytes of a package have come, in the middle of a chunk."""

    def __init__(self, line: HttpTransport, offset: int) -> None:
        self._line, self._offset = line, offset

    def fetch(self, url: str, offset: int, etag: str | None) -> Any:
        body = self._line.fetch(url, offset, etag)
        pieces = body.chunks()

        def chunks() -> Iterator[bytes]:
            received = 0
            for piece in pieces:
                received += len(piece)
                if received > self._offset:
                    raise KeyboardInterrupt
                yield piece
            raise KeyboardInterrupt

        body.chunks = chunks
        return body


@pytest.mark.parametrize("num_cuts", [24, pytest.param(200, marks=pytest.mark.long)])
def test_a_cut_wastes_at_most_one_chunk(
    wire: Wire, line: HttpTransport, clock: StillClock, tmp_path: Path, num_cuts: int
) -> None:
    """A package of 3 MiB, in chunks of 1 MiB, cut at random offsets, in order and by force: what comes twice
    is less than a chunk. A process that dies in a chunk loses that, and the read that was under way."""
    package = tmp_path / "package"
    package.write_bytes(random.Random(5).randbytes(3 * CHUNK_BYTES))
    sha256 = sha256_file(package)
    wire.hub.files[sha256] = package
    url = f"/v1/model/packages/{sha256}.wpatch"
    pin = PackagePin(url, sha256, 3 * CHUNK_BYTES, HeaderPin(1, "0" * 64), full=True)
    chance, worst = random.Random(num_cuts), {False: 0, True: 0}

    def download(through: Any = line) -> Path:
        begun = Download(
            tmp_path / "staging",
            pin,
            settings=UpdateSettings(retries=3),
            clock=clock,
            random_source=random.Random(1),
            step=lambda done, total: None,
        )
        begun.resume()
        return begun.fetch(through, url)

    for number in range(num_cuts):
        offset = chance.randrange(3 * CHUNK_BYTES)
        wire.tricks = [("packages", cut_after(offset, reset=bool(number % 2)))]
        before = line.wire_bytes
        dies = number % 3 == 2
        if dies:
            wire.tricks = []
            with pytest.raises(KeyboardInterrupt):
                download(Dying(line, offset))
        path = download()
        assert sha256_file(path) == sha256
        worst[dies] = max(worst[dies], line.wire_bytes - before - 3 * CHUNK_BYTES)
        shutil.rmtree(tmp_path / "staging")
    print(f"{num_cuts} cuts: at worst {worst[False]} bytes came twice, {worst[True]} where the process died")
    assert worst[False] < CHUNK_BYTES
    assert worst[True] < CHUNK_BYTES + READ_BYTES + HEADS_BYTES


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, float("nan"), 2**63, 10**40),
    *("", "v9", "x" * 100_000, "../../../etc/passwd", "0" * 64, "\0", "\ud800"),
    *("http://portal.example/x.wpatch", "file:///etc/passwd", [], [1], {}, {"a": {}}),
)


def forgeries(answer: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each field with each value that it should not have, and a few more."""
    for name in sorted(answer):
        for value in VALUES:
            yield name, value
        if isinstance(answer[name], int):
            yield name, answer[name] + 1
            yield name, answer[name] * 10**6
    yield "unknown", {"deep": [[[[]]]]}


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])
def test_a_forged_answer_installs_nothing_but_what_is_signed(
    phone: Any, hub: Any, line: HttpTransport, wire: Wire, stride: int
) -> None:
    """Other hashes, larger, negative and fractional sizes, wrong types, absurd lengths: refused, or without
    effect because signed metadata decides."""
    updater = phone()
    for name, value in list(forgeries(hub.offer("v1.2", "v1.3").to_json()))[::stride]:
        wire.forge = lambda kind, answer, n=name, v=value: answer | {n: v} if kind == "update" else answer
        result = try_update(updater, line)
        if result.kind == "updated" or updater.status().last_error:
            updater = phone()
    wire.forge = lambda kind, answer: answer
    finish_update(phone(), line)


@pytest.mark.parametrize("accepted", [["nonsense"], [], None, "all", [1], [None], ["x" * 300], 7])
@pytest.mark.parametrize("control", ["continue", "explode", None, 3])
def test_a_forged_receipt_ends_and_loses_nothing(
    phone: Any, hub: Any, line: HttpTransport, wire: Wire, accepted: Any, control: Any
) -> None:
    """A hub that takes events it was not sent, or answers nonsense, is not asked for ever; what it did not
    take is sent again later."""
    updater = phone()
    wire.forge = lambda kind, answer: (
        {"accepted": accepted, "control": control} if kind == "events" else answer
    )
    try_update(updater, line)
    assert wire.asked.count("events") < 20
    hub.reports.clear()
    wire.forge = lambda kind, answer: answer
    updater.tick()
    assert {event["state"] for event in hub.events} >= {"DOWNLOADING", "TRIAL"}


def test_a_name_that_leads_nowhere_is_a_network_error(lab: Any, hub: Any, clock: StillClock) -> None:
    """No DNS: the update fails clearly, and the release stays."""
    lab.install("v1.2").close()
    line = HttpTransport("https://no-such-host.invalid", clock=clock, random_source=random.Random(1))
    updater = lab.open(transport=line)
    result = updater.update()
    assert (result.kind, result.code) == ("failed", NetworkError.code)
    assert "no-such-host.invalid" in (result.message or "")
    assert updater.status().current == "v1.2"

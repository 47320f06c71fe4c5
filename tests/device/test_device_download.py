"""Downloads over real sockets from a server that misbehaves in every way it can."""

from __future__ import annotations

import random
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import HttpTransport, UpdateSettings
from autoglm.device.download import Download
from autoglm.device.offer import PackagePin
from autoglm.device.transport import BusyError
from autoglm.errors import (
    ConfigError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    StorageError,
)
from autoglm.files import sha256_file
from autoglm.patch import HeaderPin
from autoglm.releases import Event, EventBatch, UpdateRequest

CHUNK = 1 << 13
CONTENT = random.Random(7).randbytes(20 * CHUNK + 123)
PATH = "/v1/model/packages/x.wpatch"


class Server:
    """A file server whose faults are chosen per request: ``faults`` is used up, then all goes well.

    A fault is a function of the handler; it sends whatever it likes.
    """

    def __init__(self) -> None:
        self.faults: list[Callable[[Any], None]] = []
        self.ranges: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.body_bytes_sent = 0
        self.etag = '"one"'
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.ranges.append(self.headers["Range"])
                outer.headers.append(dict(self.headers))
                self.close_connection = True
                (outer.faults.pop(0) if outer.faults else serve)(self)

            def do_POST(self) -> None:
                outer.headers.append(dict(self.headers))
                self.rfile.read(int(self.headers["Content-Length"]))
                self.close_connection = True
                (outer.faults.pop(0) if outer.faults else not_json)(self)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        Handler.server_of_test = self  # type: ignore[attr-defined]
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def answer(handler: Any, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.server_of_test.body_bytes_sent += len(body)


def offset_of(handler: Any) -> int:
    asked = handler.headers["Range"]
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def serve(handler: Any, *, cut: int | None = None) -> None:
    """What a good server does, breaking off after ``cut`` bytes of the body."""
    etag, start = handler.server_of_test.etag, offset_of(handler)
    if start and handler.headers["If-Range"] in (None, etag):
        part = CONTENT[start:]
        place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        answer(handler, 206, part[:cut], len(part), Content_Range=place, ETag=etag)
    else:
        answer(handler, 200, CONTENT[:cut], len(CONTENT), ETag=etag)


def cut_after(num_bytes: int) -> Callable[[Any], None]:
    return lambda handler: serve(handler, cut=num_bytes)


def without_ranges(handler: Any) -> None:
    answer(handler, 200, CONTENT)


def wrong_range(handler: Any) -> None:
    start = offset_of(handler)
    place = f"bytes {start + 1}-{len(CONTENT) - 1}/{len(CONTENT)}"
    answer(handler, 206, CONTENT[start + 1 :], Content_Range=place)


def no_range(handler: Any) -> None:
    answer(handler, 206, CONTENT)


def another_etag(handler: Any) -> None:
    start = offset_of(handler)
    place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    answer(handler, 206, CONTENT[start:], Content_Range=place, ETag='"two"')


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        return


def too_long(handler: Any) -> None:
    answer(handler, 200, CONTENT + b"more")


def not_json(handler: Any) -> None:
    answer(handler, 200, b"<html>welcome to this hotel's network</html>")


def status(code: int, **headers: str) -> Callable[[Any], None]:
    return lambda handler: answer(handler, code, b"no", **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def transport(server: Server, clock: Any) -> Iterator[HttpTransport]:
    transport = HttpTransport(server.url, read_seconds=5, clock=clock, random_source=random.Random(1))
    yield transport
    transport.close()


@pytest.fixture
def pin(tmp_path: Path) -> PackagePin:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return PackagePin(PATH, sha256_file(path), len(CONTENT), HeaderPin(1, "0" * 64), full=True)


@pytest.fixture
def start(tmp_path: Path, pin: PackagePin, clock: Any) -> Callable[..., Download]:
    """Begin, or take up, the download in one directory, as one run of the app after the other."""

    def begin(**more: Any) -> Download:
        arguments = {
            "settings": UpdateSettings(chunk_bytes=CHUNK, retries=3),
            "clock": clock,
            "random_source": random.Random(1),
            "step": lambda done, total: None,
        }
        download = Download(tmp_path / "staging", pin, **(arguments | more))
        download.resume()
        return download

    return begin


def test_a_good_server_gives_the_file_in_one_request(server: Server, transport: Any, start: Any) -> None:
    """The file has the promised bytes, and no Range was asked for."""
    assert start().fetch(transport, PATH).read_bytes() == CONTENT
    assert server.ranges == [None]


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_line_is_taken_up_where_it_broke(server: Server, transport: Any, start: Any, seed: int) -> None:
    """Cut at random places, the download resumes each time, and not one chunk comes twice."""
    places = random.Random(seed)
    server.faults = [cut_after(places.randrange(4096, 4 * CHUNK)) for _ in range(5)]
    assert start().fetch(transport, PATH).read_bytes() == CONTENT
    assert server.ranges[1:] == [f"bytes={offset}-" for offset in _offsets(server.ranges)]
    assert server.body_bytes_sent - len(CONTENT) <= 5 * CHUNK


def _offsets(ranges: list[str | None]) -> list[int]:
    offsets = [int(text.removeprefix("bytes=").removesuffix("-")) for text in ranges if text]
    assert offsets == sorted(offsets)
    return offsets


@pytest.mark.long
def test_two_hundred_cuts(server: Server, transport: Any, start: Any) -> None:
    """At each of 200 random offsets: resumed, whole, at most one chunk wasted."""
    places = random.Random(3)
    for _ in range(200):
        server.faults = [cut_after(places.randrange(len(CONTENT)))]
        server.body_bytes_sent = 0
        download = start()
        path = download.fetch(transport, PATH)
        assert path.read_bytes() == CONTENT
        assert server.body_bytes_sent - len(CONTENT) <= CHUNK
        path.unlink()


def test_another_process_goes_on_behind_what_is_sound(
    server: Server, transport: Any, start: Any, tmp_path: Path
) -> None:
    """After a crash the journalled chunks are re-hashed; a rotten one and all after it come again."""
    server.faults = [cut_after(10 * CHUNK), status(404)]
    with pytest.raises(NotFoundError):
        start().fetch(transport, PATH)
    with (tmp_path / "staging" / "blob.part").open("r+b") as blob:
        blob.seek(6 * CHUNK + 5)
        blob.write(b"rot")
    download = start()
    assert download.done_bytes == 6 * CHUNK
    assert download.fetch(transport, PATH).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={6 * CHUNK}-"


@pytest.mark.parametrize(
    "tail", [b"", b'{"end": 9', b"\xff\n", b'{"end": -1, "sha256": ""}\n', b"[]\n", b"7\n"]
)
def test_a_torn_journal_costs_no_more_than_its_tail(
    server: Server, transport: Any, start: Any, tmp_path: Path, tail: bytes
) -> None:
    """What stands before the torn line is believed, after its hashes were checked."""
    server.faults = [cut_after(3 * CHUNK), status(404)]
    with pytest.raises(NotFoundError):
        start().fetch(transport, PATH)
    with (tmp_path / "staging" / "journal").open("ab") as journal:
        journal.write(tail)
    download = start()
    assert download.done_bytes == 3 * CHUNK
    assert download.fetch(transport, PATH).read_bytes() == CONTENT
    assert start().done_bytes == len(CONTENT)


def test_the_journal_of_another_package_is_not_believed(
    server: Server, transport: Any, start: Any, tmp_path: Path
) -> None:
    """A staging directory that holds something else is begun anew."""
    start().fetch(transport, PATH)
    journal = tmp_path / "staging" / "journal"
    journal.write_text(journal.read_text().replace(str(len(CONTENT)), "5", 1))
    assert start().done_bytes == 0


def test_a_server_without_ranges_begins_again(server: Server, transport: Any, start: Any) -> None:
    """A 200 where a 206 was asked for restarts at the first byte."""
    server.faults = [cut_after(5 * CHUNK), without_ranges]
    assert start().fetch(transport, PATH).read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [wrong_range, no_range, another_etag, status(416)])
def test_a_part_that_is_not_the_one_asked_for_is_not_used(
    server: Server, transport: Any, start: Any, fault: Any
) -> None:
    """A wrong or missing Content-Range, another ETag, a refused range: the download begins again."""
    server.faults = [cut_after(5 * CHUNK), fault]
    assert start().fetch(transport, PATH).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={5 * CHUNK}-", None]


def test_a_changed_validator_restarts(server: Server, transport: Any, start: Any) -> None:
    """The If-Range of a package that changed on the server gets all of it."""
    server.faults = [cut_after(5 * CHUNK)]
    download = start()
    server.etag = '"one"'
    with pytest.raises(NetworkError):
        start(settings=UpdateSettings(chunk_bytes=CHUNK, retries=0)).fetch(transport, PATH)
    server.etag = '"two"'
    download = start()
    assert download.fetch(transport, PATH).read_bytes() == CONTENT
    assert server.headers[-1]["If-Range"] == '"one"'


def test_a_server_that_is_always_wrong_is_given_up(server: Server, transport: Any, start: Any) -> None:
    """Faults without an end lead to an error, not to a loop."""
    server.faults = [cut_after(5 * CHUNK), wrong_range] * 10
    with pytest.raises(NetworkError):
        start().fetch(transport, PATH)
    assert len(server.ranges) < 10


@pytest.mark.parametrize("fault", [endless, too_long, status(302, Location="ftp://x/")])
def test_bytes_beyond_the_promise_are_not_taken(
    server: Server, transport: Any, start: Any, tmp_path: Path, fault: Any
) -> None:
    """An endless body, one of another length, a redirect elsewhere: refused, the disk holds no more than
    the promised size."""
    server.faults = [fault] * 9
    with pytest.raises((ProtocolError, IntegrityError)):
        start().fetch(transport, PATH)
    assert (tmp_path / "staging" / "blob.part").stat().st_size <= len(CONTENT)


def test_wrong_bytes_are_dropped(server: Server, transport: Any, start: Any) -> None:
    """All came and they are not the promised ones: nothing of them is kept."""
    server.faults = [lambda handler: answer(handler, 200, bytes(len(CONTENT)))]
    with pytest.raises(IntegrityError, match="promised"):
        start().fetch(transport, PATH)
    assert start().done_bytes == 0


def test_a_redirect_is_followed_without_the_token(server: Server, start: Any, clock: Any) -> None:
    """A package may lie elsewhere; the device's token goes only to the hub."""
    other = Server()
    server.faults = [status(307, Location=f"{other.url}/elsewhere")]
    transport = HttpTransport(server.url, token="secret", clock=clock)
    assert start().fetch(transport, PATH).read_bytes() == CONTENT
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in other.headers[0]
    transport.close()
    other.close()


def test_a_trickle_is_broken_off_and_kept(transport: Any, start: Any, clock: Any) -> None:
    """A line slower than the slowest allowed for a minute ends the connection; what came is kept."""

    class Trickle:
        wire_bytes = 0

        def fetch(self, url: str, offset: int, etag: str | None) -> Any:
            return _TrickleBody(offset, clock)

    download = start()
    with pytest.raises(NetworkError, match="came in"):
        download.fetch(Trickle(), PATH)
    assert 0 < start().done_bytes < 4096


class _TrickleBody:
    status, total, etag = 206, len(CONTENT), None

    def __init__(self, offset: int, clock: Any) -> None:
        self.offset, self._clock = offset, clock

    def chunks(self) -> Iterator[bytes]:
        for byte in CONTENT[self.offset :]:
            self._clock.seconds += 1.0
            yield bytes([byte])

    def close(self) -> None:
        """Nothing to close."""


def test_retry_after_is_obeyed(server: Server, transport: Any, start: Any, clock: Any) -> None:
    """A short Retry-After is waited for; with a long one the download waits for its next turn."""
    server.faults = [status(503, Retry_After="7")]
    start().fetch(transport, PATH)
    assert sum(clock.slept) >= 7
    server.faults = [status(503, Retry_After="900")]
    (start()._blob).unlink()
    with pytest.raises(NetworkError) as caught:
        start().fetch(transport, PATH)
    assert caught.value.retry_after_s == 900


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("Wed, 21 Foo 2099 07:28:00 GMT", None),
        ("9" * 30, 86_400),
    ],
)
def test_retry_after_may_be_a_date(server: Server, transport: Any, header: str, seconds: int | None) -> None:
    """A date in Retry-After is a wait of at most a day; what is neither number nor date says nothing."""
    server.faults = [status(503, Retry_After=header)]
    with pytest.raises(BusyError) as caught:
        transport.fetch(PATH, 0, None)
    assert caught.value.retry_after_s == seconds


def test_a_full_disk_while_downloading_is_named(
    transport: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk refuses is a storage error; the next run goes on."""
    import errno

    from autoglm import files

    real, writes = files.append_durably, iter(range(100))

    def full(file: Any, content: bytes) -> None:
        if next(writes) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, content)

    monkeypatch.setattr(files, "append_durably", full)
    with pytest.raises(StorageError, match="no space left"):
        start().fetch(transport, PATH)
    monkeypatch.undo()
    download = start()
    assert download.done_bytes >= 2 * CHUNK
    assert download.fetch(transport, PATH).read_bytes() == CONTENT


# -- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (not_json, ProtocolError),
        (lambda handler: answer(handler, 200, b'{"need_update": "yes"}'), ProtocolError),
        (lambda handler: answer(handler, 200, b'{"need_update": true}'), ProtocolError),
        (lambda handler: answer(handler, 200, b"[" * 100_000), ProtocolError),
        (lambda handler: answer(handler, 200, b" " * (1 << 20) + b"{}"), ProtocolError),
        (endless, ProtocolError),
        (status(401), PermissionDeniedError),
        (status(403), PermissionDeniedError),
        (status(404), NotFoundError),
        (status(400), ProtocolError),
        (status(302, Location="/elsewhere"), ProtocolError),
        (status(418), ProtocolError),
        (lambda handler: handler.wfile.write(b"\x16\x03\x01 no http \r\n\r\n"), NetworkError),
        (lambda handler: answer(handler, 200, b"{", 500), NetworkError),
    ],
)
def test_bad_answers_are_typed_errors(server: Server, transport: Any, fault: Any, error: type) -> None:
    """Whatever comes back in place of an answer, the caller gets one of our errors."""
    server.faults = [fault] * 3
    with pytest.raises(error):
        transport.check(UpdateRequest("d1"))


@pytest.mark.parametrize("fault", [status(500), status(503), lambda handler: None])
def test_a_stumbling_hub_is_asked_again(server: Server, transport: Any, clock: Any, fault: Any) -> None:
    """Two failures and a good answer are a good answer, after growing pauses."""
    server.faults = [fault, fault, lambda handler: answer(handler, 200, b'{"need_update": false}')]
    assert not transport.check(UpdateRequest("d1")).need_update
    assert len(clock.slept) == 2
    server.faults = [fault] * 3
    with pytest.raises(NetworkError):
        transport.check(UpdateRequest("d1"))


def test_events_are_answered_with_what_was_taken(server: Server, transport: Any) -> None:
    """The ids that the hub accepted and its control word come back."""
    body = b'{"accepted": ["e1"], "control": "pause"}'
    server.faults = [lambda handler: answer(handler, 202, body)]
    taken = transport.report(EventBatch("d1", (Event("e1", 1, "TRIAL", "ok"),)))
    assert (taken.accepted, taken.control) == (("e1",), "pause")


def test_every_byte_on_the_wire_is_counted(server: Server, transport: Any, start: Any) -> None:
    """The count covers the package, cut connections and all heads."""
    server.faults = [cut_after(3 * CHUNK)]
    start().fetch(transport, PATH)
    assert server.body_bytes_sent < transport.wire_bytes < server.body_bytes_sent + 2000


def test_an_unreachable_hub_is_a_network_error(clock: Any) -> None:
    """Nobody listens there: the error names the address."""
    server = Server()
    server.close()
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1"):
        HttpTransport(server.url, clock=clock).check(UpdateRequest("d1"))


@pytest.mark.parametrize("url", ["http://hub.example", "http://10.0.0.1:8000", "http://127.0.0.1.example"])
def test_plain_http_to_another_machine_is_refused(url: str) -> None:
    """It needs https, or the app's explicit word."""
    with pytest.raises(ConfigError, match=r"https.*allow_http=True.*--allow-http"):
        HttpTransport(url)
    HttpTransport(url, allow_http=True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, "Connection refused"),
        (lambda handler: handler.connection.close(), "ended the connection"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "ended the connection"),
    ],
)
def test_a_failure_of_the_network_is_told_plainly(server: Server, clock: Any, fault: Any, words: str) -> None:
    """The message names the hub and what happened, and nothing of the library that was used."""
    if fault is None:
        server.close()
    server.faults = [fault] * 3
    with pytest.raises(NetworkError, match=words) as caught:
        HttpTransport(server.url, clock=clock).check(UpdateRequest("d1"))
    assert "127.0.0.1" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("HTTPConnection", "object at", "Errno"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "https://a.example"]
)
def test_https_and_this_machine_itself_are_fine(url: str) -> None:
    """Loopback needs no TLS."""
    HttpTransport(url)


@pytest.mark.parametrize(
    "url", ["", "hub.example", "ftp://hub.example", "file:///etc", "http://", "http://[::1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """The error names the address given."""
    with pytest.raises(ConfigError, match="URL"):
        HttpTransport(url)


@pytest.mark.needs("openssl")
def test_a_pinned_ca_is_the_only_one_trusted(server: Server, tmp_path: Path, clock: Any) -> None:
    """Over TLS the hub is reached with its CA given, and not without."""
    certificate, key = tmp_path / "hub.pem", tmp_path / "hub.key"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.faults = [lambda handler: answer(handler, 200, b'{"need_update": false}')]
    url = server.url.replace("http://127.0.0.1", "https://localhost")
    assert not HttpTransport(url, ca_file=certificate, clock=clock).check(UpdateRequest("d1")).need_update
    with pytest.raises(NetworkError, match="certificate"):
        HttpTransport(url, clock=clock).check(UpdateRequest("d1"))


def test_a_ca_file_must_be_there(tmp_path: Path) -> None:
    """A missing CA is found at the start, not at the first update."""
    with pytest.raises(ConfigError, match="ca_file"):
        HttpTransport("https://hub.example", ca_file=tmp_path / "missing.pem")

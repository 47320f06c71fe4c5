"""Images by address: off by default; when on, nothing but public addresses, bounded in time and size."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from autoglm.errors import RequestError
from autoglm.service.addresses import is_public, target_of
from autoglm.service.fetching import ImageFetcher
from autoglm.service.settings import LimitSettings

ON = LimitSettings(fetch_images=True, fetch_mb=1, fetch_seconds=2)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class ImageServer:
    """A real server on this machine that says what a test wants.

    Attributes:
        answers: what it sends for a path; a list is sent piece by piece, the connection then stays open.
        asked: the requests that came.
    """

    port: int
    answers: dict[str, bytes | list[bytes]] = field(default_factory=dict[str, Any])
    asked: list[bytes] = field(default_factory=list[bytes])

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = connection.recv(1 << 16)
            self.asked.append(request)
            said = self.answers.get(request.split()[1].decode(), answer(b"", status="404 Not Found"))
            if isinstance(said, bytes):
                connection.sendall(said)
                return
            for piece in said:
                connection.sendall(piece)
            connection.recv(1)  # until the other side hangs up


@pytest.fixture
def server() -> Generator[ImageServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = ImageServer(listener.getsockname()[1])

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=served.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield served
        listener.shutdown(socket.SHUT_RDWR)


def leads_to(*addresses: str) -> Callable[[str, int], Any]:
    """A resolver that answers with these addresses, one set a question."""
    sets = iter(addresses)

    async def resolve(host: str, port: int) -> list[str]:
        return next(sets).split()

    return resolve


def fetcher(server: ImageServer, *addresses: str, **options: Any) -> ImageFetcher:
    """A fetcher for which this machine counts as public, unless a test says what does."""
    options = {"is_allowed": lambda address: address == "127.0.0.1"} | options
    known = leads_to(*addresses) if addresses else leads_to(*["127.0.0.1"] * 9)
    return ImageFetcher(ON, resolve=known, ports=frozenset((server.port,)), **options)


def fetch(server: ImageServer, path: str = "/a.png", *addresses: str, **options: Any) -> bytes:
    url = path if "://" in path else f"http://images.example:{server.port}{path}"
    return asyncio.run(fetcher(server, *addresses, **options).fetch(url))


PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "169.254.170.2",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "192.88.99.1",
    "::1",
    "::",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "100::1",
    "2001:10::1",
    "3fff::1",
    "5f00::1",
    "nonsense",
    "1.2.3",
    "300.1.1.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_told(address: str) -> None:
    """Loopback, private, link-local, shared, metadata, reserved, and all that wraps such an address."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_a_public_address_is_told(address: str) -> None:
    """Ordinary addresses of the internet are public."""
    assert is_public(address)


NOTATIONS = [
    "http://127.0.0.1/",
    "http://localhost/",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "https://127.0.0.1/",
    "http://user:secret@8.8.8.8/",
    "http://8.8.8.8@127.0.0.1/",
    "http://127.0.0.1#@8.8.8.8/",
    "http://127.0.0.1\\@8.8.8.8/",
    "http://8.8.8.8:22/",
    "http://8.8.8.8:0/",
    "http://8.8.8.8:99999/",
    "http://8.8.8.8:80\r\nHost: x/",
    "http://8.8.8.8/\r\nX: y",
    "http://8.8.8.8/ a",
    "http:///etc/passwd",
    "http://",
    "https:",
    "http:/8.8.8.8/",
    "http://[::1",
    "http://a b/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1%00.example/",
    "http://" + "a" * 300 + "/",
    "http://8.8.8.8/" + "a" * 5000,
    "httpx://8.8.8.8/",
    "http+unix://%2Fvar%2Frun/",
]


@pytest.mark.parametrize("url", NOTATIONS)
def test_no_notation_reaches_a_private_address(url: str) -> None:
    """With the system's own resolver: refused before anything is connected to."""

    async def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"connected to {arguments}")

    found = ImageFetcher(ON)
    found._connect = never  # type: ignore[method-assign]
    with pytest.raises(RequestError):
        asyncio.run(found.fetch(url))


def test_an_image_is_fetched(server: ImageServer) -> None:
    """The bytes come back; the request names the host and tells nothing else of the caller."""
    server.answers["/a.png?x=1"] = answer(png())
    assert fetch(server, "/a.png?x=1") == png()
    [request] = server.asked
    assert f"Host: images.example:{server.port}".encode() in request
    assert b"ookie" not in request and b"uthorization" not in request


def test_a_name_is_resolved_once_and_the_address_looked_at_is_used(server: ImageServer) -> None:
    """A name that means another machine the second time gains nothing: there is no second time."""
    server.answers["/a.png"] = answer(png())
    assert fetch(server, "/a.png", "127.0.0.1", "10.0.0.1") == png()
    with pytest.raises(RequestError, match="public"):
        fetch(server, "/a.png", "10.0.0.1", "127.0.0.1")


def test_one_private_address_among_several_is_enough_to_refuse(server: ImageServer) -> None:
    """A name with a public and a private address is refused, whichever comes first."""
    for addresses in ("127.0.0.1 10.0.0.1", "10.0.0.1 127.0.0.1", ""):
        with pytest.raises(RequestError, match="public"):
            fetch(server, "/a.png", addresses)
    assert not server.asked


def test_a_redirect_is_judged_like_any_address(server: ImageServer) -> None:
    """A good one is followed; to a private address, another port or scheme, or in circles it is refused."""
    server.answers["/b.png"] = answer(png())
    for target, addresses in (("/b.png", ()), (f"http://other.example:{server.port}/b.png", ())):
        server.answers["/a.png"] = answer(b"", f"location: {target}", status="302 Found")
        assert fetch(server, "/a.png", *addresses) == png()
    for target in (
        "http://internal.example:22/",
        "ftp://images.example/",
        "file:///etc/passwd",
        f"http://user@images.example:{server.port}/b.png",
        "/a.png",
    ):
        server.answers["/a.png"] = answer(b"", f"location: {target}", status="302 Found")
        with pytest.raises(RequestError):
            fetch(server, "/a.png")
    server.answers["/a.png"] = answer(
        b"", f"location: http://in.example:{server.port}/b.png", status="301 Moved"
    )
    with pytest.raises(RequestError, match="public"):
        fetch(server, "/a.png", "127.0.0.1", "10.0.0.1")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(b"x" * (1 << 21)), "MiB"),
        (answer(b"", length=1 << 40), "MiB"),
        (answer(b"", "x: y", length=-5), "MiB|proper"),
        (
            [
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                b"80000\r\n" + b"x" * 0x80000 + b"\r\n" * 1,
            ]
            + [b"80000\r\n" + b"x" * 0x80000 + b"\r\n"] * 3,
            "MiB",
        ),
        (answer(png(), length=5000), "broke off"),
        (answer(png(), "content-encoding: gzip"), "compressed"),
        (answer(b"", status="500 Oops"), "500"),
        (answer(b"", status="302 Found"), "302"),
        (b"", "status none"),
        (b"no http at all\r\n\r\n", "proper"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "proper"),
        ([b""], "2 seconds"),
        ([b"HTTP/1.1 200 OK\r\n"], "2 seconds"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"x"], "2 seconds"),
    ],
    ids=[f"case{i}" for i in range(14)],
)
def test_a_server_that_means_no_good_is_given_up(server: ImageServer, said: Any, why: str) -> None:
    """Too large, endless, cut off, compressed, an error, no HTTP, silent: one clear error each, in time."""
    server.answers["/a.png"] = said
    with pytest.raises(RequestError, match=why):
        fetch(server)


def test_a_server_that_is_not_there_is_a_clear_error(server: ImageServer) -> None:
    """Nothing listens, or the name is not known."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    asked = ImageFetcher(
        ON, resolve=leads_to("127.0.0.1"), is_allowed=lambda _: True, ports=frozenset((port,))
    )
    with pytest.raises(RequestError, match="cannot be reached"):
        asyncio.run(asked.fetch(f"http://images.example:{port}/"))
    with pytest.raises(RequestError, match="cannot be reached"):
        asyncio.run(ImageFetcher(ON).fetch("http://no.such.host.invalid/"))


def test_names_in_other_letters_are_the_names_that_they_stand_for() -> None:
    """An international name goes out in its ASCII form; a dot at the end is the same name."""
    assert target_of("https://bücher.example/ä?q=ü").host == "xn--bcher-kva.example"
    assert target_of("https://bücher.example/ä?q=ü").path == "/%C3%A4?q=%C3%BC"
    assert target_of("https://Images.Example.:443/").authority == "images.example"


def message(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_a_chat_may_name_images_where_that_is_allowed(start_service: Any, server: ImageServer) -> None:
    """Off: refused. On: a good one is seen, a bad one is a 400 that names the part."""
    service = start_service(limits={"fetch_images": True})
    url = f"http://images.example:{server.port}/a.png"
    server.answers["/a.png"] = answer(png())
    closed = service.chat(messages=message("http://127.0.0.1/a.png"))
    assert (closed.status_code, closed.json()["error"]["param"]) == (400, "messages[0].content[0]")
    assert "public" in closed.json()["error"]["message"]
    service.state.fetcher = fetcher(server)
    assert service.chat(messages=message(url)).status_code == 200
    embedded = service.post(
        "/v1/embeddings", {"model": "autoglm-phone-9b", "input": [message(url)[0]["content"][0]]}
    )
    assert embedded.status_code == 200
    server.answers["/a.png"] = answer(b"no image")
    bad = service.chat(messages=message(url))
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages[0].content[0]")


def test_a_chat_may_not_name_hundreds_of_images(start_service: Any, server: ImageServer) -> None:
    """Past sixteen addresses the request is refused, whatever they hold."""
    service = start_service(limits={"fetch_images": True})
    service.state.fetcher = ImageFetcher(
        ON, resolve=leads_to(*["127.0.0.1"] * 20), is_allowed=lambda _: True, ports=frozenset((server.port,))
    )
    for i in range(20):
        server.answers[f"/{i}"] = answer(png())
    parts = [message(f"http://images.example:{server.port}/{i}")[0]["content"][0] for i in range(20)]
    refused = service.chat(messages=[{"role": "user", "content": parts}])
    assert refused.status_code == 400
    assert "16" in refused.json()["error"]["message"]
    assert len(server.asked) == 16

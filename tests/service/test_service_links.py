"""Packages behind links: who gets them, and a download that outlives its link."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from autoglm.device import Updater, UpdateSettings
from autoglm.device.clock import Clock as DeviceClock
from autoglm.hub import Claims
from service.running import RunningService, running_service, tiny_settings

TIMEOUT_S = 60


class Clock:
    """The hub's clock: the real one, and what it was put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def closed(store: Path, tmp_path: Path, clock: Clock) -> Generator[RunningService]:
    """A service that asks for tokens."""
    settings = tiny_settings(store, tmp_path, auth={"required": True})
    with running_service(settings, clock) as running:
        yield running


def token_of(service: RunningService, name: str, **claims: Any) -> str:
    assert service.state.hub is not None
    return service.state.hub.issue_token(Claims(claims.pop("role", "device"), name=name, **claims))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def offer(service: RunningService, token: str, device: str) -> dict[str, Any]:
    answer = service.post("/v1/model/update", {"device_id": device}, headers=bearer(token))
    assert answer.status_code == 200, answer.text
    return answer.json()


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=TIMEOUT_S)


def test_a_link_is_all_that_a_download_needs(closed: RunningService) -> None:
    """A device gets the bytes with its link, with or without its token; HEAD works as well."""
    token = token_of(closed, "one", device_id="d1")
    url = offer(closed, token, "d1")["download_url"]
    for headers in ({}, bearer(token)):
        assert get(url, **headers).status_code == 200
    assert requests.head(url, timeout=TIMEOUT_S).status_code == 200
    assert get(url).headers["cache-control"].startswith("private")


def test_what_is_no_link_of_that_device_and_package_is_refused(closed: RunningService, clock: Clock) -> None:
    """Another device's, another package's, a changed and an expired link are 403 E_LINK; none is 401."""
    one, two = token_of(closed, "one", device_id="d1"), token_of(closed, "two", device_id="d2")
    url = offer(closed, one, "d1")["download_url"]
    query = url.partition("?")[2]
    elsewhere = f"{closed.url}/v1/model/packages/{'0' * 64}.wpatch?{query}"
    changed = url.replace("dev=d1", "dev=d2")
    for refused in (
        get(url, **bearer(two)),
        get(elsewhere),
        get(changed),
        get(url + "A"),
        get(url + "&sig=x"),
    ):
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "E_LINK"
    assert get(url.partition("?")[0]).status_code == 401
    assert get(url, **bearer("no-token")).status_code == 401
    assert get(url.partition("?")[0], **bearer(one)).json()["error"]["code"] == "E_LINK"
    clock.ahead += 15 * 60
    expired = get(url)
    assert expired.status_code == 403
    assert "expired" in expired.json()["error"]["message"]


def test_people_may_fetch_packages_with_their_token(closed: RunningService) -> None:
    """Whoever may read the administration needs no link."""
    url = offer(closed, token_of(closed, "one", device_id="d1"), "d1")["download_url"].partition("?")[0]
    viewer = token_of(closed, "eve", role="viewer")
    assert get(url, **bearer(viewer)).status_code == 200


def test_an_open_service_gives_plain_addresses(service: RunningService) -> None:
    """Without authentication addresses carry no signature, so that a cache can keep what lies behind them."""
    assert "?" not in service.post("/v1/model/update", {"device_id": "d"}).json()["download_url"]


def test_forged_links_are_slow_to_try(store: Path, tmp_path: Path) -> None:
    """After some of them the address waits; a link that holds, and a token known to be right, still work."""
    settings = tiny_settings(store, tmp_path, auth={"required": True}, limits={"failures_per_minute": 3})
    with running_service(settings) as service:
        token = token_of(service, "one", device_id="d1")
        url = offer(service, token, "d1")["download_url"]
        forged = [get(url + "A").status_code for _ in range(4)]
        assert forged == [403, 403, 403, 429]
        assert get(url).status_code == 200
        assert get(url.partition("?")[0], **bearer("guess")).status_code == 429
        assert get(url, **bearer(token)).status_code == 200


class Relay:
    """A TCP relay that notes every request for a package, and cuts some answers after so many bytes."""

    def __init__(self, url: str, cuts: set[int], after: int, on_cut: Callable[[], None]) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._cuts, self._after, self._on_cut = cuts, after, on_cut
        self.asked: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            budget: list[int | None] = [None]
            threading.Thread(target=self._upwards, args=(near, far, budget), daemon=True).start()
            threading.Thread(target=self._downwards, args=(far, near, budget), daemon=True).start()

    def _upwards(self, near: socket.socket, far: socket.socket, budget: list[int | None]) -> None:
        try:
            while data := near.recv(65536):
                if data.startswith(b"GET /v1/model/packages/"):
                    if len(self.asked) in self._cuts:
                        budget[0] = self._after
                    self.asked.append(data)
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _downwards(self, far: socket.socket, near: socket.socket, budget: list[int | None]) -> None:
        try:
            while data := far.recv(4096):
                if budget[0] is not None:
                    data, budget[0] = data[: budget[0]], budget[0] - len(data)
                near.sendall(data)
                if budget[0] is not None and budget[0] <= 0:
                    self._on_cut()
                    break
            near.shutdown(socket.SHUT_RDWR)
            far.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self._server.close()


class NoWaiting(DeviceClock):
    """The device's clock, on which pauses take no time."""

    def sleep(self, seconds: float) -> None:
        """Go on at once."""


def test_a_download_outlives_its_link(closed: RunningService, clock: Clock, tmp_path: Path) -> None:
    """A link that expires in the middle is asked for anew, and the download goes on where it was.

    The address has the same path, the request a Range and an If-Range, and no byte comes twice but those of
    the chunk that was cut.
    """

    def expire() -> None:
        clock.ahead += 16 * 60

    relay = Relay(closed.url, cuts={0, 2}, after=12_000, on_cut=expire)
    assert closed.state.hub is not None
    updater = Updater(
        tmp_path / "phone",
        hub_url=relay.url,
        token=token_of(closed, "one", device_id="d1"),
        device_id="d1",
        trust_root=closed.state.hub.trust.repository.root,
        settings=UpdateSettings(chunk_bytes=4096),
        clock=NoWaiting(),
        random_source=random.Random(1),
    )
    try:
        result = updater.update()
    finally:
        updater.close()
        relay.close()
    assert (result.kind, result.to_version) == ("updated", "v1.2"), result
    heads = [data.decode() for data in relay.asked]
    paths = [re.match(r"GET ([^?]+)\?", head).group(1) for head in heads]  # type: ignore[union-attr]
    assert len(set(paths)) == 1
    offsets = [int(found[1]) if (found := re.search(r"Range: bytes=(\d+)-", head)) else 0 for head in heads]
    # Each cut is followed by a request with the dead link, which is refused, and one with a fresh link.
    assert len(offsets) == 5 and offsets[0] == 0
    assert 0 < offsets[1] == offsets[2] < offsets[3] == offsets[4]
    assert all("If-Range: " in head for head in heads[1:])
    assert len(set(re.findall(r"sig=([^ &]+)", "".join(heads)))) == 3

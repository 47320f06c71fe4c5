"""How a device gets and keeps its token, whatever breaks on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import FileTokenStore, Updater, enrol
from autoglm.device.enrolment import RECORD_NAME, TOKEN_NAME
from autoglm.errors import (
    ConfigError,
    ConflictError,
    LockedError,
    NetworkError,
    PermissionDeniedError,
    ProtocolError,
)
from autoglm.releases import RegistrationAnswer, RegistrationRequest

CODE = "enrol-1"


class Hub:
    """Registers each device once, and again for the very same request."""

    def __init__(self) -> None:
        self.requests: list[RegistrationRequest] = []
        self.known: dict[str, str | None] = {}
        self.problem: Exception | None = None

    def register(self, request: RegistrationRequest, /) -> RegistrationAnswer:
        self.requests.append(request)
        if self.problem is not None:
            raise self.problem
        kept = self.known.setdefault(request.device_id, request.request_id)
        if request.code == "wrong":
            raise PermissionDeniedError("no")
        if kept != request.request_id:
            raise ConflictError("taken")
        return RegistrationAnswer(request.device_id, f"token-{len(self.requests)}")


class PowerFailureError(BaseException):
    """The process is gone."""


class BrokenStore(FileTokenStore):
    """Loses power before or after the token is on the disk."""

    def __init__(self, path: Path, *, saved: bool) -> None:
        super().__init__(path)
        self._saved = saved

    def save(self, token: str) -> None:
        if self._saved:
            super().save(token)
        raise PowerFailureError


def test_a_device_enrols_once(tmp_path: Path) -> None:
    """The token is kept for its owner alone, and found again without asking the hub."""
    hub = Hub()
    token = enrol(tmp_path, hub, CODE, device_id="d1")
    assert enrol(tmp_path, hub, CODE, device_id="d1") == token
    assert enrol(tmp_path, hub, CODE) == token
    assert len(hub.requests) == 1
    for name in (TOKEN_NAME, RECORD_NAME):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert CODE not in (tmp_path / RECORD_NAME).read_text()


def test_an_updater_uses_the_token_that_was_kept(tmp_path: Path) -> None:
    """Enrolled device and updater agree on name and token; a token given wins."""
    enrol(tmp_path, Hub(), CODE)
    with Updater(tmp_path, hub_url="http://127.0.0.1:9") as updater:
        assert json.loads((tmp_path / "device.json").read_text())["device_id"] == updater.device_id
        assert updater._device.transport._token == "token-1"  # type: ignore[union-attr]
    with Updater(tmp_path, hub_url="http://127.0.0.1:9", token="mine") as updater:
        assert updater._device.transport._token == "mine"  # type: ignore[union-attr]


@pytest.mark.parametrize("saved", [False, True])
def test_a_power_failure_around_the_token_costs_no_second_registration(tmp_path: Path, saved: bool) -> None:
    """The next start repeats the very same request, which the hub knows, and gets a token."""
    hub = Hub()
    with pytest.raises(PowerFailureError):
        enrol(tmp_path, hub, CODE, store=BrokenStore(tmp_path / TOKEN_NAME, saved=saved))
    token = enrol(tmp_path, hub, CODE)
    assert token == FileTokenStore(tmp_path / TOKEN_NAME).load() == "token-2"
    assert hub.requests[0] == hub.requests[1]
    assert enrol(tmp_path, hub, CODE) == token


def test_an_answer_that_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    """A network failure leaves no token and the same request for the next time."""
    hub = Hub()
    hub.problem = NetworkError("cut")
    with pytest.raises(NetworkError):
        enrol(tmp_path, hub, CODE)
    assert not (tmp_path / TOKEN_NAME).exists()
    hub.problem = None
    enrol(tmp_path, hub, CODE)
    assert hub.requests[0] == hub.requests[1]


def test_a_new_code_enrols_anew(tmp_path: Path) -> None:
    """After the operator forgot the device and gave a new code, the old token is replaced."""
    hub = Hub()
    enrol(tmp_path, hub, CODE)
    hub.known.clear()
    assert enrol(tmp_path, hub, "enrol-2") == "token-2"
    assert FileTokenStore(tmp_path / TOKEN_NAME).load() == "token-2"
    assert hub.requests[0].request_id != hub.requests[1].request_id


def test_a_refusal_says_what_to_do_and_keeps_the_token(tmp_path: Path) -> None:
    """A wrong code and a name that is taken are told apart, and destroy nothing."""
    hub = Hub()
    enrol(tmp_path, hub, CODE, device_id="d1")
    with pytest.raises(PermissionDeniedError, match="ask the operator"):
        enrol(tmp_path, hub, "wrong")
    with pytest.raises(ConflictError, match="d1"):
        enrol(tmp_path, hub, "enrol-2")
    assert FileTokenStore(tmp_path / TOKEN_NAME).load() == "token-1"


def test_an_answer_for_another_device_is_refused(tmp_path: Path) -> None:
    """A hub that confuses devices gives no token."""

    class Confused(Hub):
        def register(self, request: RegistrationRequest, /) -> RegistrationAnswer:
            return RegistrationAnswer("other", "token")

    with pytest.raises(ProtocolError, match="other"):
        enrol(tmp_path, Confused(), CODE, device_id="d1")
    assert not (tmp_path / TOKEN_NAME).exists()


def test_a_running_device_is_not_enrolled(tmp_path: Path) -> None:
    """The directory belongs to one process at a time."""
    with Updater(tmp_path), pytest.raises(LockedError):
        enrol(tmp_path, Hub(), CODE)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a\0b", b"x" * 5000])
def test_a_file_that_holds_no_token_is_named(tmp_path: Path, content: bytes) -> None:
    """Nothing is sent that is no token."""
    path = tmp_path / TOKEN_NAME
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=TOKEN_NAME):
        FileTokenStore(path).load()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"request_id": 5}', b"\xff", b'{"done": true}'])
def test_a_damaged_record_begins_anew(tmp_path: Path, content: bytes) -> None:
    """What is not understood counts as not begun."""
    (tmp_path / RECORD_NAME).write_bytes(content)
    assert enrol(tmp_path, Hub(), CODE) == "token-1"


def test_a_store_of_the_platform_is_enough(tmp_path: Path) -> None:
    """Whatever has load and save keeps the token; no file of ours holds it then."""

    class Keystore:
        kept: str | None = None

        def load(self) -> str | None:
            return self.kept

        def save(self, token: str) -> None:
            self.kept = token

    store: Any = Keystore()
    assert enrol(tmp_path, Hub(), CODE, store=store) == store.kept == "token-1"
    assert not any(b"token-1" in path.read_bytes() for path in tmp_path.iterdir())
    with Updater(tmp_path, hub_url="http://127.0.0.1:9", token_store=store) as updater:
        assert updater._device.transport._token == "token-1"  # type: ignore[union-attr]

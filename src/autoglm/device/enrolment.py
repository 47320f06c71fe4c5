"""How a device comes by its token, and where it keeps it.

What it guarantees: the token is durable before it counts as received; an answer that was lost on the way is
asked for again with the same request, which the hub answers with a token and no second use of the code; a
code that has done its work is never sent again, so it may stay in a start-up script.

    >>> transport = HttpTransport("https://hub.example.com")                             # doctest: +SKIP
    >>> token = enrol("/var/lib/autoglm", transport, "enrol-7K3M-...")                    # doctest: +SKIP
    >>> Updater("/var/lib/autoglm", hub_url="https://hub.example.com")                   # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any, Protocol, cast

from autoglm import files
from autoglm.device.context import keep_device_id
from autoglm.device.slots import read_json
from autoglm.errors import ConfigError, ConflictError, PermissionDeniedError, ProtocolError, StorageError
from autoglm.releases import RegistrationAnswer, RegistrationRequest, canonical_json

TOKEN_NAME = "device.token"
RECORD_NAME = "enrolment.json"
_MAX_TOKEN_BYTES = 4096
_WORD = re.compile(r"[!-~]+")


class TokenStore(Protocol):
    """Where a device keeps its token: a file, or what the platform has for secrets."""

    def load(self) -> str | None:
        """Return the token, None when there is none."""
        ...

    def save(self, token: str) -> None:
        """Keep a token; when this returns, it survives a power cut."""
        ...


class FileTokenStore:
    """Keeps the token in a file that only its owner may read (mode 0600)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self) -> str | None:
        """Return the token, None when there is no file.

        Raises:
            ConfigError: the file holds no token.
            StorageError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_TOKEN_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the token in {self.path}: {error.strerror}") from error
        text = content.decode("ascii", "replace").strip()
        if not _WORD.fullmatch(text) or len(content) > _MAX_TOKEN_BYTES:
            raise ConfigError(f"{self.path} holds no token: remove it and enrol the device again")
        return text

    def save(self, token: str) -> None:
        """Keep a token durably.

        Raises:
            StorageError: the disk refused.
        """
        files.make_directory(self.path.parent)
        files.write_durably(self.path, f"{token}\n".encode(), mode=0o600)


class Registrar(Protocol):
    """What a transport must be able to do for :func:`enrol`; HttpTransport is."""

    def register(self, request: RegistrationRequest, /) -> RegistrationAnswer:
        """Send a registration.

        Raises:
            NetworkError: not reached, or an answer that breaks the protocol.
            HubError: the hub refuses.
        """
        ...


def enrol(
    root: str | Path,
    transport: Registrar,
    code: str,
    *,
    device_id: str | None = None,
    store: TokenStore | None = None,
) -> str:
    """Register this device with an enrolment code, unless that code has done so before.

    Args:
        root: the device's data directory; made when missing. No updater may have it open.
        transport: the hub.
        code: as the operator gave it.
        device_id: the device's name; made up and kept when not given.
        store: where the token is kept; ``device.token`` in the data directory without one.

    Returns:
        The device's token, which an :class:`~autoglm.device.Updater` on the same directory finds by itself.

    Raises:
        PermissionDeniedError: the code is mistyped, used up, expired or revoked.
        ConflictError: the hub has a device of this name already.
        NetworkError: the hub was not reached: call again.
        LockedError: another process uses the directory.
        ConfigError: the name is none, or the token kept is none.
        StorageError: the disk refused.
    """
    root = Path(root)
    store = store or FileTokenStore(root / TOKEN_NAME)
    with files.directory_lock(root):
        record = _Record(root / RECORD_NAME, code)
        token = store.load() if record.is_done else None
        if token is None:
            name = keep_device_id(root, device_id)
            record.begin()
            token = _ask(transport, RegistrationRequest(name, code, record.request_id))
            store.save(token)
            record.end()
        return token


def _ask(transport: Registrar, request: RegistrationRequest) -> str:
    name = request.device_id
    try:
        answer = transport.register(request)
    except PermissionDeniedError as error:
        raise PermissionDeniedError(
            "the hub refuses this enrolment code: it is mistyped, used up, expired or revoked; "
            "ask the operator for a new one"
        ) from error
    except ConflictError as error:
        raise ConflictError(
            f"the hub has a device {name} already: choose another device_id, or have that one forgotten"
        ) from error
    if answer.device_id != name:
        raise ProtocolError(f"the hub registered {answer.device_id} where {name} was asked for")
    return answer.token


class _Record:
    """What a device remembers of an enrolment: the request, so that it can be repeated, and its end."""

    def __init__(self, path: Path, code: str) -> None:
        self._path, self._code = path, hashlib.sha256(code.encode()).hexdigest()
        value = read_json(path)
        kept = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        is_same = kept.get("code_sha256") == self._code and isinstance(kept.get("request_id"), str)
        self.request_id = str(kept["request_id"]) if is_same else secrets.token_hex(16)
        self.is_done = is_same and kept.get("done") is True

    def begin(self) -> None:
        self._write(done=False)

    def end(self) -> None:
        self._write(done=True)

    def _write(self, *, done: bool) -> None:
        content = {"code_sha256": self._code, "request_id": self.request_id, "done": done}
        files.write_durably(self._path, canonical_json(content), mode=0o600)

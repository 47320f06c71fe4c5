"""Links: addresses of packages that work for one device, and for a quarter of an hour.

What it guarantees: a link is an HMAC-SHA256 (RFC 2104) over method, path, expiry, key id and device, so none
can be made or changed without a key; every hub on the same database accepts every other one's links; keys
change daily, and a link made with the key before is good until it expires. Checking takes the same time
whatever is wrong with a signature.

What it refuses to do: hide a package. Its bytes are signed elsewhere, and the same for everyone.

Keys lie in the database. A new one signs nothing in its first minutes, by when every hub has read it.

    >>> links.sign(sha256, "dev_12345")                                            # doctest: +SKIP
    '/v1/model/packages/7424...3da.wpatch?exp=1795367351&key=9f0c61d2&dev=dev_12345&sig=...'
"""

from __future__ import annotations

import base64
import hmac
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from autoglm.errors import LinkError, StorageError
from autoglm.hub.database import Database
from autoglm.hub.tables import LinkKeyRow
from autoglm.releases import UpdateAnswer

PACKAGE_PATH = "/v1/model/packages/{sha256}.wpatch"
LINK_SECONDS = 900
KEY_SECONDS = 24 * 3600  # then a new key follows; each is accepted for twice as long
SETTLE_SECONDS = 180  # before a new key signs: far more than READ_SECONDS
READ_SECONDS = 30
_ASK_AGAIN_SECONDS = 1.0  # links with made-up keys must not make a hub read its database all the time
_MAX_LENGTH = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinkKey:
    """A key as it lies in the database; ``created_at`` in seconds since 1970."""

    key_id: str
    secret: bytes
    created_at: float


def signature(secret: bytes, sha256: str, expires: str, key_id: str, device_id: str) -> str:
    """Return the signature of a link, as it is written in it."""
    path = PACKAGE_PATH.format(sha256=sha256)
    message = f"GET\n{path}\n{expires}\n{key_id}\n{device_id}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, message, "sha256")).rstrip(b"=").decode()


class Links:
    """Signs and checks the links of one hub.

    Args:
        database: where the keys lie.
        clock: seconds since 1970; the hubs of one database must agree on it within minutes.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._keys: Mapping[str, LinkKey] = {}  # replaced as a whole, never changed
        self._read_at = -float("inf")
        self._reading = threading.Lock()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Wait for a read that is under way."""
        if self._thread is not None:
            self._thread.join()

    def signed(self, answer: UpdateAnswer, device_id: str) -> UpdateAnswer:
        """Return the answer of an update check with its addresses made into links for one device.

        Raises:
            StorageError: there is no key, and the database refused to keep a new one.
        """
        if answer.download_url is None or answer.sha256 is None:
            return answer
        links = {"download_url": _linked(answer.download_url, self.sign(answer.sha256, device_id))}
        if answer.full_url is not None and answer.full_sha256 is not None:
            links["full_url"] = _linked(answer.full_url, self.sign(answer.full_sha256, device_id))
        return replace(answer, **links)

    def sign(self, sha256: str, device_id: str) -> str:
        """Return path and query of a link to a package, in memory but for the very first one.

        Raises:
            StorageError: there is no key, and the database refused to keep a new one.
        """
        now = self._clock()
        key = self._signing_key(now)
        expires = str(int(now) + LINK_SECONDS)
        seal = signature(key.secret, sha256, expires, key.key_id, device_id)
        path = PACKAGE_PATH.format(sha256=sha256)
        return f"{path}?exp={expires}&key={key.key_id}&dev={device_id}&sig={seal}"

    def verify(self, sha256: str, fields: Mapping[str, str], bearer: str | None = None) -> str:
        """Check a link and return the device that it was made for.

        Args:
            sha256: of the package that is asked for.
            fields: the query of the address: ``exp``, ``key``, ``dev`` and ``sig``.
            bearer: the one device that may use the token sent along, when there is such a token.

        Raises:
            LinkError: it is incomplete, changed, expired, or another device's.
            StorageError: the database refused.
        """
        expires, key_id, device_id, sent = (fields.get(name, "") for name in ("exp", "key", "dev", "sig"))
        if not all(
            text.isascii() and len(text) <= _MAX_LENGTH for text in (expires, key_id, device_id, sent)
        ):
            raise LinkError("this link is none of this hub's: ask for an update to get one", forged=True)
        key = self._find(key_id)
        made = signature(key.secret if key else b"", sha256, expires, key_id, device_id)
        if not hmac.compare_digest(made, sent) or key is None:
            message = "this link was changed or is none of this hub's: ask for an update to get a new one"
            raise LinkError(message, forged=True)
        if int(expires) <= self._clock():
            raise LinkError("this link has expired: ask for an update to get a new one")
        if bearer is not None and bearer != device_id:
            raise LinkError("this link was made for another device: ask for an update to get one")
        return device_id

    def _signing_key(self, now: float) -> LinkKey:
        """Return the newest key that every hub knows by now."""
        if not self._fresh(now):
            self.refresh()
        elif now - self._read_at >= READ_SECONDS or now < self._read_at:
            self._refresh_behind()
        keys = sorted(self._fresh(now), key=lambda key: key.created_at)
        settled = [key for key in keys if key.created_at + SETTLE_SECONDS <= now]
        return settled[-1] if settled else keys[0]

    def _fresh(self, now: float) -> list[LinkKey]:
        return [key for key in self._keys.values() if now - key.created_at < 2 * KEY_SECONDS]

    def _find(self, key_id: str) -> LinkKey | None:
        now = self._clock()
        if key_id not in self._keys and abs(now - self._read_at) >= _ASK_AGAIN_SECONDS:
            self.refresh()
        key = self._keys.get(key_id)
        return key if key is not None and now - key.created_at < 2 * KEY_SECONDS else None

    # -- the database -------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the keys, and make a new one when the newest is a day old.

        Raises:
            StorageError: the database refused.
        """
        now = self._clock()
        with self._database.read() as session:
            keys = _load(session)
        if all(abs(now - key.created_at) >= KEY_SECONDS for key in keys):
            with self._database.write(decides=False) as session:
                keys = _rotate(session, now)
        self._keys, self._read_at = {key.key_id: key for key in keys}, now

    def _refresh_behind(self) -> None:
        """Read on a thread of its own: links are signed where nothing may wait."""
        if self._reading.acquire(blocking=False):
            self._thread = threading.Thread(target=self._refresh_quietly, name="link-keys", daemon=True)
            self._thread.start()

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except StorageError as error:
            _log.warning("the keys of links could not be read, the known ones stay in use: %s", error)
            self._read_at = self._clock()
        finally:
            self._reading.release()


def _load(session: Session) -> list[LinkKey]:
    return [LinkKey(row.key_id, row.secret, row.created_at) for row in session.scalars(select(LinkKeyRow))]


def _rotate(session: Session, now: float) -> list[LinkKey]:
    """Add a key unless another hub just did, and forget those that nobody accepts any more."""
    keys = _load(session)
    if all(abs(now - key.created_at) >= KEY_SECONDS for key in keys):
        key = LinkKey(secrets.token_hex(8), secrets.token_bytes(32), now)
        session.add(LinkKeyRow(key_id=key.key_id, secret=key.secret, created_at=key.created_at))
        keys.append(key)
    old = [key.key_id for key in keys if abs(now - key.created_at) >= 2 * KEY_SECONDS]
    session.execute(delete(LinkKeyRow).where(LinkKeyRow.key_id.in_(old)))
    return [key for key in keys if key.key_id not in old]


def _linked(url: str, link: str) -> str:
    """Put the query of a link behind an address that ends in the same path."""
    return url + link[link.index("?") :]

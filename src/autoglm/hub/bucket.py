"""Objects in cloud storage that speaks S3, with this machine's disk as a cache.

What it guarantees: an object is put under its hash only if it is absent, whole or not at all, and checked by
its SHA-256 on arrival there and on arrival here; the address of a bucket never gets a secret into a
message. What a killed upload left is removed a day later (:meth:`BucketStorage.strangers`); parts of a big
one that was never completed are the bucket's to expire (docs/scale.md).

    >>> BucketStorage.open("s3://models/hub?region=eu-west-1", cache, workspaces)      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Generator, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from autoglm import files
from autoglm.errors import AutoGLMError, ConfigError, NotFoundError, StorageError
from autoglm.hub.storage import DirectoryStorage
from autoglm.hub.workspaces import Workspaces

LINK_SECONDS = 15 * 60
SMALL_BYTES = 8 << 20
"""Up to here an object is put in one request, which the store itself refuses if there is one."""
PART_BYTES = 16 << 20
GRACE_S = 24 * 3600.0
"""How long an object that no row names is left alone: its publication may still be under way."""
_KEYS = ("endpoint", "public_endpoint", "region", "access_key_id", "secret_access_key")
_PATIENCE: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}


class BucketStorage:
    """A bucket, or a folder of one. Made by :meth:`open`."""

    is_remote = True

    def __init__(
        self, bucket: S3Store, public: S3Store, cache: DirectoryStorage, workspaces: Workspaces
    ) -> None:
        self._bucket, self._public, self._cache, self._workspaces = bucket, public, cache, workspaces

    @classmethod
    def open(cls, url: str, cache: DirectoryStorage, workspaces: Workspaces) -> Self:
        """Read the address of a bucket; nothing is asked of it yet.

        Args:
            url: ``s3://BUCKET/FOLDER``, with ``endpoint``, ``public_endpoint``, ``region``,
                ``access_key_id`` and ``secret_access_key`` behind a question mark where needed; what is
                not said is taken from the environment as other S3 programs do.
            cache: this machine's copies.
            workspaces: room to fetch into.

        Raises:
            ConfigError: it is no such address.
        """
        bucket, prefix, named = parse_storage_url(url)
        public_endpoint = named.pop("public_endpoint", None)
        inside = _store(bucket, prefix, named)
        public = (
            inside
            if public_endpoint is None
            else _store(bucket, prefix, named | {"endpoint": public_endpoint})
        )
        return cls(inside, public, cache, workspaces)

    def send(self, source: Path, sha256: str) -> None:
        """Upload a finished file, unless it is there.

        Raises:
            StorageError: the bucket refused, or is not reached; nothing is there, or all of it.
        """
        key, size = _key(sha256), source.stat().st_size
        if self._size(key) == size:
            return
        with _translated(f"uploading {sha256}", absent=StorageError):
            if size <= SMALL_BYTES:
                with contextlib.suppress(AlreadyExistsError):
                    obstore.put(self._bucket, key, source, mode="create", use_multipart=False)
            else:
                obstore.put(self._bucket, key, source, use_multipart=True, chunk_size=PART_BYTES)
        if (found := self._size(key)) != size:
            raise StorageError(f"the bucket holds {found} bytes of {sha256} where {size} were uploaded")

    def _size(self, key: str) -> int | None:
        try:
            with _translated(f"looking for {key}"):
                return obstore.head(self._bucket, key)["size"]
        except NotFoundError:
            return None

    def add(self, source: Path, sha256: str) -> Path:
        """Keep a copy on this machine."""
        return self._cache.add(source, sha256)

    def path(self, sha256: str) -> Path:
        """Return this machine's copy, fetched and verified if there is none."""
        with contextlib.suppress(NotFoundError):
            return self._cache.path(sha256)
        if not files.is_sha256(sha256):
            raise NotFoundError(f"the hub holds no object {sha256[:80]!r}")
        with self._workspaces.workspace() as work:
            self._fetch(sha256, work / "object")
            with self._workspaces.lock():
                return self._cache.add(work / "object", sha256)

    def _fetch(self, sha256: str, target: Path) -> None:
        digest = hashlib.sha256()
        with _translated(f"fetching {sha256}"), target.open("xb") as file:
            for chunk in obstore.get(self._bucket, _key(sha256)).stream(min_chunk_size=files.CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise StorageError(f"the bucket's object {sha256} is damaged: remove it there and publish again")

    def require(self, hashes: Iterable[str]) -> None:
        """See that the bucket holds these."""
        if missing := [sha256 for sha256 in hashes if self._size(_key(sha256)) is None]:
            raise StorageError(f"{missing[0]} has disappeared from the bucket: publish again")

    def link(self, sha256: str) -> str | None:
        """Return a signed address, good for a quarter of an hour; no request is made for it.

        Raises:
            StorageError: there are no credentials to sign with.
        """
        with _translated("signing an address"):
            return obstore.sign(self._public, "GET", _key(sha256), timedelta(seconds=LINK_SECONDS))

    def stream(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """Yield a range, from this machine's copy where there is one."""
        try:
            self._cache.path(sha256)
        except NotFoundError:
            return self._stream(sha256, start, end)
        return self._cache.stream(sha256, start, end)

    def _stream(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        if start >= end:
            return  # no request can ask for nothing
        with _translated(f"reading {sha256}"):
            got = obstore.get(self._bucket, _key(sha256), options={"range": (start, end)})
            for chunk in got.stream(min_chunk_size=files.CHUNK_BYTES):
                yield bytes(chunk)

    def sweep(self, known: Collection[str]) -> None:
        """Remove all other copies from this machine; the bucket is shared and stays as it is."""
        self._cache.sweep(known)

    def strangers(self, known: Collection[str], *, now: float) -> list[str]:
        """Return the objects of the bucket that nothing names and that are older than :data:`GRACE_S`.

        Raises:
            StorageError: the bucket is not reached.
        """
        before = now - GRACE_S
        with _translated("listing the bucket", absent=StorageError):
            return [
                name
                for page in obstore.list(self._bucket, prefix="objects")
                for meta in page
                if (name := meta["path"].rpartition("/")[2]) not in known
                and files.is_sha256(name)
                and meta["last_modified"].timestamp() < before
            ]

    def delete(self, hashes: Collection[str]) -> None:
        """Remove objects from the bucket for good.

        Raises:
            StorageError: the bucket refused.
        """
        if hashes:
            with _translated("removing from the bucket"):
                obstore.delete(self._bucket, [_key(sha256) for sha256 in hashes])


def parse_storage_url(url: str) -> tuple[str, str, dict[str, str]]:
    """Return bucket, folder and settings of an ``s3://`` address.

    Raises:
        ConfigError: it is none; the message repeats no secret.
    """
    parts = urlsplit(url)
    named = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != "s3" or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ConfigError("hub: storage_url must be s3://BUCKET/FOLDER, with settings behind a '?'")
    if unknown := sorted(set(named) - set(_KEYS)):
        raise ConfigError(
            f"hub: storage_url has an unknown setting {unknown[0]!r}; there are {', '.join(_KEYS)}"
        )
    return parts.hostname, parts.path.strip("/"), named


def _store(bucket: str, prefix: str, named: dict[str, str]) -> S3Store:
    settings: dict[str, Any] = dict(named)
    allow_http = named.get("endpoint", "").startswith("http://")
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options={"allow_http": allow_http},
            retry_config=_PATIENCE,
            checksum_algorithm="SHA256",
            **settings,
        )
    except BaseError as error:
        raise ConfigError(f"hub: storage_url: {_said(error)}") from error


def _key(sha256: str) -> str:
    return f"objects/{sha256}"


@contextlib.contextmanager
def _translated(doing: str, absent: type[AutoGLMError] = NotFoundError) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        what = "has no such object" if absent is NotFoundError else "is not there"
        raise absent(f"the bucket {what}: {doing}") from error
    except BaseError as error:
        raise StorageError(f"the bucket refused while {doing}: {_said(error)}") from error
    except OSError as error:
        raise files.storage_error(error, doing) from error


def _said(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]

"""What a device believes: signed metadata, refreshed over any reader, never older than it was.

The workflow is that of the TUF specification, carried out by python-tuf's ``ngclient``. Around it stand the
things that a phone needs and ``ngclient`` does not have: a floor that survives a power cut
(:mod:`~autoglm.trust.floor`), a clock that cannot be set back before what was seen, synced files, and errors
of ours. It fetches metadata only; packages are the caller's.

    >>> client = MetadataClient(root / "tuf", root / "floor.json", read=transport.metadata)   # doctest: +SKIP
    >>> client.refresh().release("autoglm-phone-9b/nano-int8/v1.3/manifest.json").counter     # doctest: +SKIP
    13
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Root, Signed, TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from autoglm import files
from autoglm.errors import (
    AutoGLMError,
    ExpiredError,
    MetadataError,
    NoRootError,
    NotFoundError,
    RollbackError,
    SignatureError,
)
from autoglm.trust import documents
from autoglm.trust.floor import Floor, Mark, digest_of_keys, read_floor, write_floor
from autoglm.trust.roles import (
    MAX_ROOT_BYTES,
    MAX_ROOT_ROTATIONS,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    PATCHES,
    RELEASES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    package_path,
)
from autoglm.trust.targets import SignedPackage, SignedRelease

Reader = Callable[[str, int], bytes]
"""Returns the metadata file of a name, of at most so many bytes.

Raises :class:`~autoglm.errors.NotFoundError` where there is none, and other errors of ours as they come.
"""

BOOTSTRAP_NAME = "bootstrap"
_BASE = "metadata/"
_LEFTOVER = re.compile(r"tmp[a-z0-9_]{8}")  # as Python's tempfile names them
_CONFIG = UpdaterConfig(
    max_root_rotations=MAX_ROOT_ROTATIONS,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_TARGETS_BYTES,
)


class ReaderFetcher(FetcherInterface):
    """Lets ``ngclient`` fetch through a reader, which bounds bytes and time."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self.num_fetched = 0

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return one file, whole."""
        try:
            content = self._read(url.removeprefix(_BASE), max_length)
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error
        if len(content) > max_length:
            raise DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
        self.num_fetched += 1
        return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter([self.download_bytes(url, MAX_TARGETS_BYTES)])


class Verified:
    """Metadata that was verified just now; what it says about releases and packages can be believed."""

    def __init__(self, updater: Updater, trusted: Any, fetcher: ReaderFetcher, directory: Path) -> None:
        self._updater, self._trusted, self._fetcher = updater, trusted, fetcher
        self._directory = directory
        self._visited: set[str] = set()

    def release(self, path: str) -> SignedRelease:
        """Return what the release key says about the release at a target path.

        Raises:
            SignatureError: no such release is signed.
            TrustError: its metadata is not to be believed.
            NetworkError, HubError: the metadata could not be fetched.
        """
        return SignedRelease.from_target(self._require(path))

    def find_release(self, path: str) -> SignedRelease | None:
        """Return the same, None when no such release is signed; raises as :meth:`release`."""
        found = self.find(path)
        return None if found is None else SignedRelease.from_target(found)

    def package(self, sha256: str) -> SignedPackage:
        """Return what the patches key says about a package; raises as :meth:`release`."""
        return SignedPackage.from_target(self._require(package_path(sha256)))

    def _require(self, path: str) -> TargetFile:
        if (found := self.find(path)) is None:
            raise SignatureError(f"the hub offers {path[:200]}, which nobody has signed")
        return found

    def find(self, path: str) -> TargetFile | None:
        """Return any target, None when it is not signed; raises as :meth:`release`."""
        before = self._fetcher.num_fetched
        try:
            with translated(self._trusted.reference_time):
                return self._lookup(path)
        finally:
            if self._fetcher.num_fetched != before:
                files.sync_tree(self._directory)

    def _lookup(self, path: str) -> TargetFile | None:
        try:
            return self._updater.get_targetinfo(path)
        except RepositoryError:
            if any(f"{role}.json" not in self._trusted.snapshot.meta for role in self._bins(path)):
                return None  # a bin exists once it has an entry
            raise
        finally:
            self._visited |= set(self._bins(path))

    def _bins(self, path: str) -> Iterator[str]:
        """Yield the bins that a lookup of ``path`` leads to, as far as the roles above them are loaded."""
        for role in (RELEASES, PATCHES):
            delegated = self._trusted.get(role)
            if delegated is not None and delegated.delegations.succinct_roles is not None:
                delegation = self._trusted.targets.get_delegated_role(role)
                if delegation.is_delegated_path(path):
                    yield documents.bin_of(delegated, path)

    def prune(self) -> None:
        """Remove cached bins that this check did not need: a device keeps those of a few releases."""
        kept = {f"{role}.json" for role in (*self._visited, ROOT, TIMESTAMP, SNAPSHOT, TARGETS, RELEASES)}
        for path in self._directory.glob("*.json"):
            if path.name not in kept | {f"{PATCHES}.json"}:
                files.remove(path)


class MetadataClient:
    """The signed metadata of one hub, kept in a directory of its own.

    Args:
        directory: the cache; made when missing.
        floor: the file of the floor.
        read: fetches a metadata file.
        root: the root to begin with, as bytes; None goes on from the one that was given before.
        now: the clock.
    """

    def __init__(
        self,
        directory: Path,
        floor: Path,
        *,
        read: Reader,
        root: bytes | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory, self._floor_path = directory, floor
        self._read, self._root, self._now = read, root, now

    @property
    def floor(self) -> Floor:
        """The floor as it is on the disk."""
        return read_floor(self._floor_path)

    def keep(self, floor: Floor) -> None:
        """Replace the floor, durably.

        Raises:
            StorageError: the disk refused.
        """
        write_floor(self._floor_path, floor)

    def refresh(self) -> Verified:
        """Fetch and verify the newest root, timestamp, snapshot and targets; raise the floor to them.

        Raises:
            NoRootError: there is no root to begin with.
            ExpiredError: it has expired, or this machine's clock is wrong: keep running, install nothing.
            RollbackError: it is older than before.
            SignatureError, MetadataError: it is not to be believed.
            NetworkError, HubError: it could not be fetched.
            StorageError: the disk refused.
        """
        bootstrap, fetcher, now = self._bootstrap(), ReaderFetcher(self._read), self._now()
        with translated(now):
            updater = Updater(
                str(self._directory), _BASE, fetcher=fetcher, config=_CONFIG, bootstrap=bootstrap
            )
            # The library takes the time from the system alone; a device has a clock of its own.
            trusted: Any = updater._trusted_set  # pyright: ignore[reportPrivateUsage]
            trusted.reference_time = now
            updater.refresh()
        self._accept(trusted, now)
        return Verified(updater, trusted, fetcher, self._directory)

    def _accept(self, trusted: Any, now: datetime) -> None:
        """Hold what was verified against the floor, then make both durable."""
        floor, marks = self.floor, _marks_of(trusted)
        floor.require(marks)
        # A clock that was set back is no reason to believe what has expired: it is later than this, at least.
        earliest = max(now, documents.signed_at(trusted.timestamp) or now)
        for signed in (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets):
            _require_fresh(signed, earliest)
        trusted.reference_time = earliest
        files.sync_tree(self._directory)
        write_floor(self._floor_path, floor.raised(marks))
        self._keep_bootstrap(
            (self._directory / "root_history" / f"{trusted.root.version}.root.json").read_bytes()
        )

    # -- where trust begins -------------------------------------------------------------------------

    def _bootstrap(self) -> bytes:
        """Return the root to begin with: the newest of the one given and the one kept.

        Raises:
            NoRootError: there is neither.
            MetadataError: the one given is no root.
        """
        files.make_directory(self._directory)
        self._drop_leftovers()
        kept, given = self._kept_bootstrap(), self._root
        if given is None:
            if kept is None:
                raise NoRootError(
                    "this device has no trusted root to verify releases with: give it the root.json of its "
                    "hub (trust_root=..., on the command line --root FILE)"
                )
            return kept
        if kept is None or _root_version(given) >= _root_version(kept):
            self._keep_bootstrap(given)
            return given
        return kept

    def _drop_leftovers(self) -> None:
        """Remove what interrupted writes left: ours, and the library's own temporaries."""
        files.remove_temporaries(self._directory)
        for path in self._directory.glob("tmp*"):
            if _LEFTOVER.fullmatch(path.name):
                files.remove(path)

    def _kept_bootstrap(self) -> bytes | None:
        try:
            content = (self._directory / BOOTSTRAP_NAME).read_bytes()
            _root_version(content)
        except (OSError, MetadataError):
            return None
        return content

    def _keep_bootstrap(self, root: bytes) -> None:
        """Keep the newest verified root, so that the next refresh begins there."""
        path = self._directory / BOOTSTRAP_NAME
        if not path.exists() or path.read_bytes() != root:
            files.write_durably(path, root)


def _root_version(content: bytes) -> int:
    return documents.read(Root, content).signed.version


def _marks_of(trusted: Any) -> dict[str, Mark]:
    marks = {ROOT: Mark(trusted.root.version)}
    # The version of targets comes from the snapshot: new snapshot keys are what frees it (5.5.5).
    for role, signer in ((TIMESTAMP, TIMESTAMP), (SNAPSHOT, SNAPSHOT), (TARGETS, SNAPSHOT)):
        keys = trusted.root.get_delegated_role(signer)
        marks[role] = Mark(trusted[role].version, digest_of_keys(keys.keyids, keys.threshold))
    return marks


def _require_fresh(signed: Signed, now: datetime) -> None:
    if signed.is_expired(now):
        raise ExpiredError(
            f"{signed.type}.json expired on {signed.expires:%Y-%m-%d}, and the hub's timestamp was signed at "
            f"{now:%Y-%m-%d %H:%M} UTC: the hub's operator must sign anew; nothing is installed"
        )


@contextlib.contextmanager
def translated(now: datetime) -> Generator[None]:
    """Turn the TUF library's errors into ours."""
    try:
        yield
    except AutoGLMError:
        raise
    except ExpiredMetadataError as error:
        raise ExpiredError(
            f"{error}: nothing is installed. By this device's clock it is {now:%Y-%m-%d %H:%M} UTC; if that "
            "is right, the hub's operator must sign anew"
        ) from error
    except UnsignedMetadataError as error:
        raise SignatureError(f"{error}: not signed by the keys that this device trusts") from error
    except BadVersionNumberError as error:
        raise RollbackError(
            f"older metadata than this device has seen, as after a restored backup or in a replay: {error}; "
            "nothing is installed"
        ) from error
    except DownloadLengthMismatchError as error:
        raise MetadataError(f"the hub sends endless metadata: {error}") from error
    except DownloadHTTPError as error:
        raise MetadataError(f"the hub lacks signed metadata that it should have: {error}") from error
    except (RepositoryError, DownloadError) as error:
        raise MetadataError(f"the hub's signed metadata cannot be used: {error}") from error
    except OSError as error:
        raise files.storage_error(error, "keeping signed metadata") from error

"""What this device believes about releases, and what it will never accept again.

Everything that is later checked comes from signed metadata; the hub's answer only chooses among what is
signed. The floor (``floor.json``) holds what must outlive a lost cache: the versions of metadata seen, the
release that proved itself, and the releases that were called back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm.device.slots import Slots
from autoglm.device.transport import Transport
from autoglm.errors import ConfigError, NoRootError
from autoglm.releases import Manifest
from autoglm.trust.floor import Floor, write_floor
from autoglm.trust.roles import MAX_ROOT_BYTES, ROOT, metadata_name, release_path

if TYPE_CHECKING:
    from autoglm.trust.client import MetadataClient, Verified

_log = logging.getLogger(__name__)


def read_root(root: bytes | str | Path | None) -> bytes | None:
    """Return a trusted root that is given as bytes or as the path of a file.

    Raises:
        ConfigError: the file cannot be read, or is no root's size.
    """
    if root is None or isinstance(root, bytes):
        return root
    try:
        with Path(root).open("rb") as file:
            content = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the trusted root {root} cannot be read: {error.strerror}") from error
    if not 0 < len(content) <= MAX_ROOT_BYTES:
        raise ConfigError(f"{root} is no root.json")
    return content


class Trust:
    """Signed metadata and the floor of one device.

    Args:
        directory: the device's data directory, whose lock the caller holds.
        slots: told of what may no longer run.
        root: the trusted root to begin with, None to go on from the one given before.
        first_use: believe the first root that the hub sends, where there is no other.
        now: the device's clock.
    """

    def __init__(
        self,
        directory: Path,
        slots: Slots,
        *,
        root: bytes | None,
        first_use: bool,
        now: Callable[[], datetime],
    ) -> None:
        self._directory, self._slots = directory, slots
        self._root, self._first_use, self._now = root, first_use, now

    @property
    def floor(self) -> Floor:
        """What this device will never go below."""
        return self._slots.floor

    def refresh(self, transport: Transport) -> Verified:
        """Fetch and verify the newest metadata, and learn what it says about the releases here.

        Raises:
            NoRootError: there is nothing to begin trust with.
            TrustError: the metadata is not to be believed, or too old; keep running, install nothing.
            NetworkError, HubError: it could not be fetched.
            StorageError: the disk refused.
        """
        try:
            verified = self._client(transport).refresh()
        except NoRootError:
            if not self._first_use:
                raise
            self._root = self._believe(transport)
            verified = self._client(transport).refresh()
        self._slots.read_floor()
        self._learn(verified)
        return verified

    def _client(self, transport: Transport) -> MetadataClient:
        # Imported here: the library behind it is only needed once there is a hub to talk to.
        from autoglm.trust.client import MetadataClient

        return MetadataClient(
            self._directory / "tuf",
            self._slots.floor_path,
            read=transport.metadata,
            root=self._root,
            now=self._now,
        )

    def _believe(self, transport: Transport) -> bytes:
        root = transport.metadata(metadata_name(ROOT, 1), MAX_ROOT_BYTES)
        fingerprint = hashlib.sha256(root).hexdigest()
        _log.warning("trusting the root that the hub sent on first use; its sha256 is %s", fingerprint)
        return root

    def _learn(self, verified: Verified) -> None:
        """Keep what is signed about the current and the previous release: one may have been called back."""
        floor = self.floor
        for slot in (self._slots.now.current, self._slots.now.previous):
            manifest = self._slots.manifest(slot)
            if manifest is None:
                continue
            signed = verified.find_release(release_path(manifest.model, manifest.variant, manifest.version))
            if signed is None or signed.manifest_sha256 != manifest.sha256:
                continue
            revoked = (manifest.sha256,) if signed.revoked else ()
            if signed.revoked and manifest.sha256 not in floor.revoked:
                _log.warning("%s was called back by its publisher", manifest.version)
            floor = floor.with_release(min_counter=signed.min_counter, revoked=revoked)
        self._keep(floor)

    def demand(self, min_counter: int) -> None:
        """Keep the lowest counter that a signed release still allows to fall back to."""
        self._keep(self.floor.with_release(min_counter=min_counter))

    def proved(self, manifest: Manifest | None) -> None:
        """Keep that a release has proved itself here, or is what the device's owner went back to."""
        if manifest is not None:
            self._keep(self.floor.with_release(counter=manifest.counter))

    def _keep(self, floor: Floor) -> None:
        if floor != self.floor:
            write_floor(self._slots.floor_path, floor)
            self._slots.read_floor()

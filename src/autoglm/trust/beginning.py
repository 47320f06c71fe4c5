"""How a repository begins: with what its place holds, with what this machine has, or with keys made here."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from autoglm.errors import ConfigError, StorageError
from autoglm.files import remove
from autoglm.trust.authority import establish
from autoglm.trust.roles import TIMESTAMP_NAME, metadata_name
from autoglm.trust.shelf import MetadataPlace, Shelf


def begin(place: MetadataPlace, directory: Path, online: Path, now: datetime) -> None:
    """See that there is metadata; under the place's lock.

    What a crash before the first timestamp left in the directory is made anew.

    Args:
        place: where the metadata belongs.
        directory: of this machine's repository.
        online: where the online keys belong.
        now: the time, for expiry.

    Raises:
        ConfigError: there are keys whose metadata is missing.
        StorageError: the metadata is gone, or the disk refused.
    """
    if place.mark() is not None:
        return
    own = Shelf(directory / "metadata")
    if own.mark() is not None:  # what several hubs share begins with what the first of them has
        place.write({name: own.read(name) for name in _names(own)})
        return
    if (directory / "root.json").exists():
        raise StorageError(
            f"{TIMESTAMP_NAME} is gone from {place.name}: restore it, and {directory}, from a backup"
        )
    if online != directory / "online" and any(online.glob("*.pem")):
        raise ConfigError(
            f"{online} holds keys, but {place.name} has no metadata for them: put the metadata that they "
            f"belong to into {own.name}"
        )
    for part in ("metadata", "keys", "online"):
        remove(directory / part)
    establish(place, directory / "keys", online, now)


def _names(shelf: Shelf) -> list[str]:
    """Return all files of a shelf, the timestamp last."""
    found = shelf.versions().items()
    versioned = [metadata_name(role, version) for role, versions in found for version in versions]
    return [*versioned, TIMESTAMP_NAME]

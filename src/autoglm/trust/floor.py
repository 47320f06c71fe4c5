"""The lowest that a device will ever accept again, in one small durable file.

TUF's own rollback check leans on the cached metadata, which its reference client never syncs: after a power
cut the cache may be empty or zeroed, and old metadata would pass as new. This file is written the durable
way after each refresh, and what it says is never lowered by anything that comes over a network.

A version counts for the keys that signed it. When the root gives a role new keys, its floor begins anew:
that is how a fleet is freed of a thief who had signed version two thousand million (TUF specification,
5.3.11).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from autoglm.errors import RollbackError
from autoglm.files import is_sha256, write_durably
from autoglm.releases import canonical_json

MAX_REVOKED = 64
_MAX_BYTES = 1 << 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """The highest version of a role, as signed by one set of keys.

    Attributes:
        version: of its metadata.
        keys: digest of the keys and the threshold; empty for the root, whose versions always count.
    """

    version: int
    keys: str = ""


def digest_of_keys(keyids: Iterable[str], threshold: int) -> str:
    """Return a short name for a set of keys and how many of them must sign."""
    return hashlib.sha256(canonical_json([sorted(keyids), threshold])).hexdigest()[:32]


@dataclass(frozen=True)
class Floor:
    """The content of ``floor.json``.

    Attributes:
        marks: root, timestamp, snapshot and targets as last accepted.
        counter: of the newest release that proved itself here.
        min_counter: the highest that any signed release has demanded.
        revoked: identities of revoked releases that this device met.
    """

    marks: Mapping[str, Mark] = field(default_factory=dict[str, Mark])
    counter: int = 0
    min_counter: int = 0
    revoked: tuple[str, ...] = ()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a floor.

        Raises:
            ValueError: it is none.
        """
        try:
            value: Any = json.loads(content)
            marks = {str(role): Mark(int(mark[0]), str(mark[1])) for role, mark in value["marks"].items()}
            revoked = tuple(str(each) for each in value["revoked"] if is_sha256(each))
            floor = cls(marks, int(value["counter"]), int(value["min_counter"]), revoked)
            floor.to_bytes()  # what cannot be written again, we did not write
            return floor
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError("no floor") from error

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return canonical_json(
            {
                "marks": {role: [mark.version, mark.keys] for role, mark in self.marks.items()},
                "counter": self.counter,
                "min_counter": self.min_counter,
                "revoked": list(self.revoked),
            }
        )

    def require(self, marks: Mapping[str, Mark]) -> None:
        """Refuse metadata that is older than what was accepted before.

        Raises:
            RollbackError: it is.
        """
        for role, floor in self.marks.items():
            found = marks.get(role)
            if found is not None and found.keys == floor.keys and found.version < floor.version:
                raise RollbackError(
                    f"the hub's {role} metadata is version {found.version}, this device has seen "
                    f"{floor.version}: the hub was restored from an old backup, or someone replays old "
                    "metadata; nothing is installed"
                )

    def raised(self, marks: Mapping[str, Mark]) -> Floor:
        """Return the floor after accepting this metadata."""
        return replace(self, marks=dict(marks))

    def with_release(
        self, *, counter: int | None = None, min_counter: int = 0, revoked: Iterable[str] = ()
    ) -> Floor:
        """Return the floor with what is known of releases added.

        Args:
            counter: of the release that proved itself, or to which the device's owner went back.
            min_counter: that a signed release demands.
            revoked: identities that were called back.
        """
        known = tuple(dict.fromkeys((*self.revoked, *revoked)))[-MAX_REVOKED:]
        lowest = max(self.min_counter, min_counter)
        return replace(
            self,
            counter=self.counter if counter is None else counter,
            min_counter=lowest,
            revoked=known,
        )


def read_floor(path: Path) -> Floor:
    """Return the floor in ``path``; the lowest there is when the file is missing or damaged.

    A damaged one is no accident of power, since it is replaced whole; the cache still holds versions then.
    """
    try:
        with path.open("rb") as file:
            return Floor.from_bytes(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return Floor()
    except (OSError, ValueError) as error:
        _log.error("%s cannot be read and begins anew: %s", path, error)
        return Floor()


def write_floor(path: Path, floor: Floor) -> None:
    """Keep a floor durably, unless it is there already.

    Raises:
        StorageError: the disk refused; the old one stands.
    """
    if read_floor(path) != floor or not path.exists():
        write_durably(path, floor.to_bytes())

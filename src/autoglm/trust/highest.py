"""The highest versions that this machine has signed or served, beside the metadata itself.

Metadata that comes back from an old backup, or a database that does, is lower than this file says: then
devices have seen newer and refuse it, and the hub must know.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from autoglm.files import write_durably
from autoglm.trust.roles import SNAPSHOT, TIMESTAMP
from autoglm.trust.shelf import Picture

HIGHEST_NAME = "highest.json"
AHEAD_MINUTES = 7 * 24 * 60
"""How far versions are raised above the minute of now: a hub that signed often may have been ahead of it."""
_MAX_BYTES = 1 << 12

_log = logging.getLogger(__name__)


def read_highest(path: Path) -> dict[str, int]:
    """Return the versions in the file; none where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            value: Any = json.loads(file.read(_MAX_BYTES))
        return {role: int(value[role]) for role in (SNAPSHOT, TIMESTAMP)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read and begins anew: %s", path, error)
        return {}


def note_highest(path: Path, picture: Picture) -> None:
    """Keep what was just signed, unless higher versions are noted.

    Raises:
        StorageError: the disk refused.
    """
    known = read_highest(path)
    found = {role: max(picture.versions[role], known.get(role, 0)) for role in (SNAPSHOT, TIMESTAMP)}
    if found != known:
        write_durably(path, json.dumps(found).encode() + b"\n")


def is_behind(path: Path, picture: Picture) -> bool:
    """Tell whether this machine has met higher versions than the picture's: it is an older state."""
    return any(picture.versions[role] < version for role, version in read_highest(path).items())

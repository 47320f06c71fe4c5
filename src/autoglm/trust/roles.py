"""Who signs what, for how long, and where a target's entry lies.

::

    root       3 of 5 offline keys, 1 year      names the keys of the four top-level roles
    ├── targets    2 of 3 offline keys, 1 year      delegates, holds no target itself
    │   ├── releases   release keys, 90 days            <model>/<variant>/<version>/manifest.json
    │   │   └── releases-00 ... releases-ff                 256 hash bins
    │   └── patches    online key, 90 days              packages/<sha256>.wpatch
    │       └── patches-000 ... patches-3ff                 1,024 hash bins
    ├── snapshot   online key, 7 days           the versions of all of the above but root
    └── timestamp  online key, 2 days           the version of the snapshot

A bin exists once it has an entry. The bins keep a check small: a device reads the few that it needs, and
the snapshot grows by a line for each (TUF specification 1.0.34, TAP 15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoglm.errors import ConfigError

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
RELEASES, PATCHES = "releases", "patches"
TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
OFFLINE = (ROOT, TARGETS, RELEASES)
ONLINE = (SNAPSHOT, TIMESTAMP, PATCHES)


@dataclass(frozen=True)
class RoleRule:
    """How a role is set up.

    Attributes:
        num_keys: made by a first setup.
        threshold: how many of them must sign.
        lifetime: how long a signature is believed.
        bin_bits: two to the power of this many hash bins hold its targets; 0 for roles without bins.
    """

    num_keys: int
    threshold: int
    lifetime: timedelta
    bin_bits: int = 0

    def is_due(self, expires: datetime, now: datetime) -> bool:
        """Tell whether it should be signed again: when a third of its life, for short ones half, is left."""
        share = 2 if self.lifetime <= timedelta(days=7) else 3
        return expires - now < self.lifetime / share


RULES: Mapping[str, RoleRule] = {
    ROOT: RoleRule(5, 3, timedelta(days=365)),
    TARGETS: RoleRule(3, 2, timedelta(days=365)),
    RELEASES: RoleRule(1, 1, timedelta(days=90), bin_bits=8),
    PATCHES: RoleRule(1, 1, timedelta(days=90), bin_bits=10),
    SNAPSHOT: RoleRule(1, 1, timedelta(days=7)),
    TIMESTAMP: RoleRule(1, 1, timedelta(days=2)),
}

# Longer metadata is refused before it is parsed. 10,000 releases stay far below (see tests/trust).
MAX_ROOT_BYTES = 256 << 10
MAX_TIMESTAMP_BYTES = 16 << 10
MAX_SNAPSHOT_BYTES = 512 << 10
MAX_TARGETS_BYTES = 1 << 20
MAX_ROOT_ROTATIONS = 256

TIMESTAMP_NAME = "timestamp.json"
PACKAGE_PATTERN = "packages/*.wpatch"
RELEASE_PATTERN = "*/*/*/manifest.json"

_NAME = re.compile(
    r"([1-9][0-9]{0,9})\.(root|targets|snapshot|releases(?:-[0-9a-f]{2})?|patches(?:-[0-9a-f]{3})?)\.json"
)


def metadata_name(role: str, version: int) -> str:
    """Return the file name of one version of a role's metadata."""
    return TIMESTAMP_NAME if role == TIMESTAMP else f"{version}.{role}.json"


def parse_name(name: str) -> tuple[str, int] | None:
    """Return the role and version that a versioned file name stands for; None when it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[2], int(match[1]))


def owner_of(role: str) -> str:
    """Return the role whose keys sign ``role``: a bin is signed by the keys of the role it belongs to."""
    return role.partition("-")[0]


def is_bin(role: str) -> bool:
    """Tell whether ``role`` is a hash bin."""
    return "-" in role


def release_path(model: str, variant: str, version: str) -> str:
    """Return the target path of a release's manifest."""
    return f"{model}/{variant}/{version}/manifest.json"


def package_path(sha256: str) -> str:
    """Return the target path of a package."""
    return f"packages/{sha256}.wpatch"


def require_role(role: str) -> RoleRule:
    """Return the rule of a role that has keys.

    Raises:
        ConfigError: there is no such role.
    """
    if role not in RULES:
        raise ConfigError(f"there is no role {role!r}; the roles are {', '.join(RULES)}")
    return RULES[role]

"""What is worth remembering about signed metadata: until when it is believed, and what was called back.

A hub with thousands of releases has over a thousand files; only those that changed are read again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoglm.trust.roles import ONLINE, RELEASES, RULES, is_bin, owner_of
from autoglm.trust.shelf import Picture
from autoglm.trust.targets import SignedRelease

LOOK_EVERY_S = 60.0
"""How often expiry is looked at, where every request may ask."""


@dataclass(frozen=True)
class _Note:
    """One version of a role."""

    version: int
    expires: datetime
    revoked: frozenset[str]


class Watch:
    """Notes on one repository; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[str, _Note] = {}
        self._noted_in: Picture | None = None
        self._looked_at: Picture | None = None
        self._looked_s = 0.0

    def is_time(self, picture: Picture, now_s: float) -> bool:
        """Tell whether expiry should be looked at: something changed, or a minute has passed."""
        with self._lock:
            if picture is self._looked_at and 0 <= now_s - self._looked_s < LOOK_EVERY_S:
                return False
            self._looked_at, self._looked_s = picture, now_s
            return True

    def late(self, picture: Picture, now: datetime) -> dict[str, datetime]:
        """Return the roles and bins that should be signed again, with the time of their expiry."""
        notes = self._notes(picture).items()
        return {role: note.expires for role, note in notes if _is_late(owner_of(role), note.expires, now)}

    def revoked(self, picture: Picture) -> frozenset[str]:
        """Return the identities of all releases that were called back."""
        return frozenset[str]().union(*(note.revoked for note in self._notes(picture).values()))

    def _notes(self, picture: Picture) -> dict[str, _Note]:
        with self._lock:
            if picture is self._noted_in:
                return self._noted
            kept, self._noted_in = self._noted, picture
            self._noted = {
                role: note if (note := kept.get(role)) and note.version == version else _note(picture, role)
                for role, version in picture.versions.items()
            }
            return self._noted


def _is_late(owner: str, expires: datetime, now: datetime) -> bool:
    rule = RULES[owner]
    # A hub whose clock was ahead for a while has signed dates that are wrong: it signs again.
    was_ahead = owner in ONLINE and expires - now > rule.lifetime + timedelta(hours=1)
    return was_ahead or rule.is_due(expires, now)


def _note(picture: Picture, role: str) -> _Note:
    revoked = frozenset[str]()
    if is_bin(role) and owner_of(role) == RELEASES and (found := picture.read_targets(role)) is not None:
        signed = (SignedRelease.from_target(target) for target in found.targets.values())
        revoked = frozenset(release.manifest_sha256 for release in signed if release.revoked)
    return _Note(picture.versions[role], picture.expiry_of(role), revoked)

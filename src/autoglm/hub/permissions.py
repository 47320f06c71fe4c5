"""What a token may do: one table, from which the checks and the documentation both come.

A role is a set of permissions. A token may be narrowed to some of its role's, never widened. To write is also
to read: ``releases:write`` alone is enough to list releases.

    >>> sorted(granted("publisher") - granted("viewer"))
    ['releases:write']
    >>> sorted(granted("admin", ("devices:write",)))
    ['devices:read', 'devices:write']
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["viewer", "operator", "publisher", "admin", "device"]
ROLES: tuple[Role, ...] = get_args(Role)

Permission = Literal[
    "models:use",
    "updates:use",
    "releases:read",
    "releases:write",
    "rollouts:read",
    "rollouts:write",
    "devices:read",
    "devices:write",
    "engine:read",
    "engine:write",
    "audit:read",
    "tokens:read",
    "tokens:write",
]

MEANINGS: Mapping[Permission, str] = {
    "models:use": "ask the model",
    "updates:use": "check for updates, fetch packages and metadata; a device also reports events",
    "releases:read": "list releases and packages",
    "releases:write": "publish and call back releases, upload signed metadata",
    "rollouts:read": "list roll-outs and what came of them",
    "rollouts:write": "make, change, halt and roll back roll-outs",
    "devices:read": "list devices, their registrations and enrolment codes",
    "devices:write": "register, move and forget devices, make and revoke enrolment codes",
    "engine:read": "see the service's own engine",
    "engine:write": "update and roll back the service's own engine",
    "audit:read": "read and verify the audit log",
    "tokens:read": "list tokens, without their secrets",
    "tokens:write": "make tokens that may do no more than the maker, revoke tokens",
}

_DEVICE: tuple[Permission, ...] = ("models:use", "updates:use")
_VIEWER: tuple[Permission, ...] = (
    *_DEVICE,
    "releases:read",
    "rollouts:read",
    "devices:read",
    "engine:read",
    "audit:read",
)

ROLE_PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    "viewer": frozenset(_VIEWER),
    "operator": frozenset((*_VIEWER, "rollouts:write", "engine:write")),
    "publisher": frozenset((*_VIEWER, "releases:write")),
    "admin": frozenset(MEANINGS),
    "device": frozenset(_DEVICE),
}


def _with_reading(scope: str) -> set[str]:
    area, _, verb = scope.partition(":")
    return {scope, f"{area}:read"} if verb == "write" else {scope}


@functools.lru_cache(maxsize=1024)
def granted(role: Role, scopes: tuple[str, ...] = ()) -> frozenset[Permission]:
    """Return what a token of a role may do.

    Args:
        role: a name that is no role grants nothing.
        scopes: the permissions that the token was narrowed to; none means all of the role's.
    """
    everything = ROLE_PERMISSIONS.get(role, frozenset[Permission]())
    if not scopes:
        return everything
    return everything & set[str]().union(*(_with_reading(scope) for scope in scopes))

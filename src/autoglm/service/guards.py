"""The guards that routes name: the token is looked at before anything else of a request is.

>>> @router.get("/releases")                                                         # doctest: +SKIP
... async def list_releases(state: Annotated[ServiceState, needs("releases:read")]): ...
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from autoglm.hub.permissions import Permission
from autoglm.service.state import ServiceState, state_of


def needs(*permissions: Permission) -> Any:
    """Return the dependency that lets in whoever has these permissions, and gives the route the state."""

    def guard(request: Request) -> ServiceState:
        state = state_of(request)
        state.access.admin_route(request, *permissions)
        return state

    return Depends(guard)


ADMINISTRATORS = needs()
"""Lets in whoever may administer anything; the route itself asks for more."""

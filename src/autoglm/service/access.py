"""Who may call what: bearer tokens, roles, and how often.

What it guarantees: administration always needs a token whose role allows it, whatever the configuration
and wherever the caller sits; inference and the device routes need one only when ``auth.required`` is set.
A caller's address decides nothing but whose bucket a request is counted in when it carries no token.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import Request

from autoglm.hub import Claims, Hub
from autoglm.hub.records import Role
from autoglm.service.problems import APIError

MAX_CALLERS = 10_000
_READERS: tuple[Role, ...] = ("viewer", "operator", "publisher", "admin")


class TokenBuckets:
    """A bucket of requests for each caller, refilled evenly; the callers longest unseen are forgotten.

    Args:
        per_minute: requests a minute, and the size of the bucket; 0 lets everything through.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (tokens, at)

    def wait_s(self, caller: str) -> float:
        """Take one request out of the caller's bucket; return 0, or the seconds until the next may come."""
        if not self._per_minute:
            return 0.0
        now, rate = self._clock(), self._per_minute / 60
        tokens, at = self._buckets.pop(caller, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - at) * rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - allowed, now)
        while len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / rate


class Access:
    """The rules of one service.

    Args:
        hub: knows the tokens; None where there is none, then nothing can be proved.
        required: whether inference and the device routes need a token.
        requests_per_minute: of one caller; 0 is unlimited.
    """

    def __init__(self, hub: Hub | None, *, required: bool, requests_per_minute: int) -> None:
        self._hub, self._required = hub, required
        self._buckets = TokenBuckets(requests_per_minute)

    def open_route(self, request: Request) -> Claims | None:
        """Let a request to inference or the device routes in; return what its token proves.

        Raises:
            APIError: 401 without a valid token where one is needed, 429 when the caller asks too often.
        """
        token = bearer_token(request)
        claims = self._verify(token)
        if self._required and claims is None:
            raise _unauthorised("this service needs an API key: send 'Authorization: Bearer TOKEN'")
        self._count(request, token if claims else None)
        return claims

    def admin_route(self, request: Request, *roles: Role) -> Claims:
        """Let an administrator in.

        Args:
            request: with the bearer token.
            roles: that may do this beside ``admin``; none named means every role that may read.

        Raises:
            APIError: 401 without a valid token, 403 when its role does not allow this.
        """
        claims = self._verify(bearer_token(request))
        if claims is None:
            raise _unauthorised("administration needs the admin token: send 'Authorization: Bearer TOKEN'")
        allowed = (*roles, "admin") if roles else _READERS
        if claims.role not in allowed:
            raise APIError(
                403, f"the role {claims.role!r} may not do this", type="permission_error", code="E_PERMISSION"
            )
        return claims

    def _verify(self, token: str | None) -> Claims | None:
        return None if token is None or self._hub is None else self._hub.verify_token(token)

    def _count(self, request: Request, token: str | None) -> None:
        address = request.client.host if request.client else ""
        caller = address if token is None else hashlib.sha256(token.encode()).hexdigest()
        if wait_s := self._buckets.wait_s(caller):
            raise APIError(
                429,
                "too many requests: slow down",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(wait_s)))},
            )


def bearer_token(request: Request) -> str | None:
    """Return the request's bearer token, if it carries one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 4096 else None


def _unauthorised(message: str) -> APIError:
    headers = {"www-authenticate": "Bearer"}
    return APIError(401, message, type="authentication_error", code="invalid_api_key", headers=headers)

"""Who may call what: bearer tokens, permissions, and how often.

What it guarantees: administration always needs a token that is permitted to, whatever the configuration
and wherever the caller sits, and refused attempts are in the audit log; inference and the device routes need
one only when ``auth.required`` is set. A caller's address decides nothing but whose bucket a request is
counted in when it carries no token.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from fastapi import Request

from autoglm.hub import Claims, Hub
from autoglm.hub.audit import Actor
from autoglm.hub.behind import UNKNOWN
from autoglm.hub.permissions import ROLE_PERMISSIONS, Permission
from autoglm.service.problems import APIError

MAX_CALLERS = 10_000
ENROLMENTS_PER_MINUTE = 30
_DEVICE_ROUTES = "/v1/model/"
_NOT_PERMITTED = "E_PERMISSION"
# What the refusal of a token says, and its code, by what is wrong with it.
_FAULTS = {
    "malformed": ("this is no token: it is mistyped or cut off", "malformed_api_key"),
    "expired": ("this token has expired: ask for a new one", "expired_api_key"),
    "revoked": ("this token was revoked: ask for a new one", "revoked_api_key"),
    "unknown": ("this token is not known here: is it for another hub?", "invalid_api_key"),
}


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
        self._enrolments = TokenBuckets(ENROLMENTS_PER_MINUTE)

    def open_route(self, request: Request) -> Claims | None:
        """Let a request to inference or the device routes in; return what its token proves.

        Raises:
            APIError: 401 without a valid token where one is needed, 403 when that may not do this, 429 when
                the caller asks too often.
        """
        token = bearer_token(request)
        claims = self._verify(token)
        if self._required:
            if claims is None:
                raise self._unauthorised(token, "this service needs an API key")
            is_device_route = request.url.path.startswith(_DEVICE_ROUTES)
            needed: Permission = "updates:use" if is_device_route else "models:use"
            if not claims.may(needed):
                raise _forbidden(claims, needed)
        self._count(request, token if claims else None)
        return claims

    def admin_route(self, request: Request, *needed: Permission) -> Claims:
        """Let an administrator in.

        Args:
            request: with the bearer token.
            needed: the permissions that this takes; none named means any that a device has not.

        Raises:
            APIError: 401 without a valid token, 403 when that may not do this.
        """
        token = bearer_token(request)
        claims = self._verify(token)
        if claims is None:
            problem = self._unauthorised(token, "administration needs a token")
            self.note_refusal(request, None, problem)
            raise problem
        missing = next((each for each in needed if not claims.may(each)), None)
        if missing is not None or not claims.permissions - ROLE_PERMISSIONS["device"]:
            problem = _forbidden(claims, missing)
            self.note_refusal(request, claims, problem, missing)
            raise problem
        return claims

    def register_route(self, request: Request) -> None:
        """Count an attempt to enrol, unless the caller may register devices anyway.

        Raises:
            APIError: 429 when this address tries too often.
        """
        claims = self._verify(bearer_token(request))
        if claims is None or not claims.may("devices:write"):
            _count_in(self._enrolments, _address(request) or "")

    def note_refusal(
        self, request: Request, claims: Claims | None, problem: APIError, needs: str | None = None
    ) -> None:
        """Have a refused attempt written into the audit log: by its route, without anything secret."""
        if self._hub is not None:
            route = getattr(request.scope.get("route"), "path", "?")
            actor = actor_of(request, claims)
            self._hub.behind.refused(actor, f"{request.method} {route}", problem.code or "?", needs)

    def _unauthorised(self, token: str | None, needed: str) -> APIError:
        """Return the refusal of a request without a valid token: it says what is wrong with the one sent."""
        if token is None or self._hub is None:
            message = f"{needed}: send 'Authorization: Bearer TOKEN'"
            return _unauthorised(message, "invalid_api_key")
        return _unauthorised(*_FAULTS[self._hub.tokens.fault(token)])

    def _verify(self, token: str | None) -> Claims | None:
        return None if token is None or self._hub is None else self._hub.verify_token(token)

    def _count(self, request: Request, token: str | None) -> None:
        address = _address(request) or ""
        _count_in(self._buckets, address if token is None else hashlib.sha256(token.encode()).hexdigest())


def actor_of(request: Request, claims: Claims | None) -> Actor:
    """Return who sends a request, for the audit log."""
    address = _address(request)
    return replace(UNKNOWN, address=address) if claims is None else Actor.of(claims, address)


def _address(request: Request) -> str | None:
    return request.client.host if request.client else None


def _count_in(buckets: TokenBuckets, caller: str) -> None:
    if wait_s := buckets.wait_s(caller):
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


def _forbidden(claims: Claims, missing: str | None) -> APIError:
    lacks = f"{missing} is missing" if missing else "it may administer nothing"
    bearer = f"this token, of the role {claims.role!r}{', narrowed' if claims.scopes else ''},"
    return APIError(403, f"{bearer} may not do this: {lacks}", type="permission_error", code=_NOT_PERMITTED)


def _unauthorised(message: str, code: str) -> APIError:
    headers = {"www-authenticate": "Bearer"}
    return APIError(401, message, type="authentication_error", code=code, headers=headers)

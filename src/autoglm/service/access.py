"""Who may call what: bearer tokens, permissions, and how often.

What it guarantees: administration always needs a token that is permitted to, whatever the configuration
and wherever the caller sits, and refused attempts are in the audit log; inference and the device routes need
one only when ``auth.required`` is set, and packages then a link that was made for the device. Wrong ones are
slow to try: an address that sent many is let wait, without shutting out the tokens that are known there to be
right. A caller's address decides nothing but whose bucket a request is counted in when it carries no token.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from fastapi import Request

from autoglm.errors import ConfigError, LinkError
from autoglm.hub import Claims, Hub
from autoglm.hub.audit import Actor
from autoglm.hub.behind import UNKNOWN
from autoglm.hub.permissions import ROLE_PERMISSIONS, Permission
from autoglm.service.callers import caller_network
from autoglm.service.problems import APIError
from autoglm.service.quotas import MAX_CALLERS, Quota, TokenBuckets, too_many

FAILURES_PER_MINUTE = 30
ENROLMENTS_PER_MINUTE = 30
_DEVICE_ROUTES = "/v1/model/"
_TOKEN_ROUTES = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/audio/")
_INFO_ROUTE = "/v1/model/info"
_METADATA_ROUTES = "/v1/model/metadata/"
_HASH = re.compile("[0-9a-fA-F]{64}")
_NOT_PERMITTED = "E_PERMISSION"
# What the refusal of a token says, and its code, by what is wrong with it.
_FAULTS = {
    "malformed": ("this is no token: it is mistyped or cut off", "malformed_api_key"),
    "expired": ("this token has expired: ask for a new one", "expired_api_key"),
    "revoked": ("this token was revoked: ask for a new one", "revoked_api_key"),
    "unknown": ("this token is not known here: is it for another hub?", "invalid_api_key"),
}


class Access:
    """The rules of one service.

    Args:
        hub: knows the tokens; None where there is none, then nothing can be proved.
        required: whether inference and the device routes need a token.
        requests_per_minute: of one caller; 0 is unlimited.
        tokens_per_minute: of prompts and answers of one caller; 0 is unlimited.
        failures_per_minute: wrong tokens and links of one address; 0 is unlimited.
        keys: SHA-256 of further keys that open inference, for a process without a hub.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        hub: Hub | None,
        *,
        required: bool,
        requests_per_minute: int,
        tokens_per_minute: int = 0,
        failures_per_minute: int = FAILURES_PER_MINUTE,
        keys: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub, self.required, self._keys = hub, required, frozenset(keys)
        self.quota = Quota(requests_per_minute, tokens_per_minute, clock)
        self._enrolments = TokenBuckets(ENROLMENTS_PER_MINUTE, clock)
        self._failures = TokenBuckets(failures_per_minute, clock)
        self._good: OrderedDict[str, None] = OrderedDict()  # digests of tokens that were right

    def open_route(self, request: Request) -> Claims | None:
        """Let a request to inference or the device routes in; return what its token proves.

        Raises:
            APIError: 401 without a valid token where one is needed, 403 when that may not do this, 429 when
                the caller asks too often.
        """
        token = bearer_token(request)
        if self.required:
            claims = self._admit(request, token, "this service needs an API key")
            self._check_use(claims, request.scope["path"])
            return claims
        claims = self._verify(token)
        self._count(request, token if claims else None)
        return claims

    def _check_use(self, claims: Claims | None, path: str) -> None:
        enough = _enough_for(path)
        if claims is not None:
            if not any(claims.may(each) for each in enough):
                raise _forbidden(claims, enough[0])
        elif "models:use" not in enough and self._hub is not None:  # a key speaks for no device
            raise _forbidden(None, None)

    def package_route(self, request: Request, sha256: str) -> None:
        """Let a request for a package in: by its link, or by the token of a person.

        Raises:
            APIError: 401 without a link and a valid token, 403 when that may not do this, 429 when the caller
                asks too often.
            LinkError: the link does not hold, or a device comes without one.
        """
        token = bearer_token(request)
        if not self.required or self._hub is None:
            self._count(request, token if self._verify(token) else None)
            return
        linked = "sig" in request.query_params
        claims = None
        if token is not None or not linked:
            claims = self._admit(request, token, "a package needs a download link or an API key")
        if claims is not None and not linked and claims.role != "device":
            _require(claims, "updates:use")
            return
        if claims is None:
            self._count(request, None)
        self._check_link(request, self._hub, sha256, None if claims is None else claims.device_id)

    def admin_route(self, request: Request, *needed: Permission) -> Claims:
        """Let an administrator in.

        Args:
            request: with the bearer token.
            needed: the permissions that this takes; none named means any that a device has not.

        Raises:
            APIError: 401 without a valid token, 403 when that may not do this, 429 when the caller asks too
                often.
        """
        try:
            claims = self._admit(request, bearer_token(request), "administration needs a token")
        except APIError as problem:
            self.note_refusal(request, None, problem)
            raise
        may = frozenset[Permission]() if claims is None else claims.permissions
        missing = next((each for each in needed if each not in may), None)
        if claims is None or missing is not None or not may - ROLE_PERMISSIONS["device"]:
            problem = _forbidden(claims, missing)
            self.note_refusal(request, claims, problem, missing)
            raise problem
        return claims

    def metrics_route(self, request: Request) -> None:
        """Let in whoever may see the engine; without a hub, whoever has one of its keys.

        Raises:
            APIError: 401, 403 or 429.
        """
        if self._hub is None:
            self._admit(request, bearer_token(request), "metrics need a key")
        else:
            self.admin_route(request, "engine:read")

    def register_route(self, request: Request) -> None:
        """Count an attempt to enrol, unless the caller may register devices anyway.

        Raises:
            APIError: 429 when this address tries too often.
        """
        claims = self._verify(bearer_token(request))
        if claims is None or not claims.may("devices:write"):
            self.patience(request)
            if wait_s := self._enrolments.wait_s(_address_of(request)):
                raise too_many("too many requests: slow down", wait_s)

    def note_refusal(
        self, request: Request, claims: Claims | None, problem: APIError, needs: str | None = None
    ) -> None:
        """Have a refused attempt written into the audit log: by its route, without anything secret."""
        if self._hub is not None:
            route = getattr(request.scope.get("route"), "path", "?")
            actor = actor_of(request, claims)
            self._hub.behind.refused(actor, f"{request.method} {route}", problem.code or "?", needs)

    def patience(self, request: Request) -> None:
        """Let an address wait that has sent many wrong tokens, links or codes.

        Raises:
            APIError: 429.
        """
        if wait_s := self._failures.wait_s(_address_of(request), take=False):
            raise too_many("too many wrong tokens came from this address: wait", wait_s)

    def failed(self, request: Request) -> None:
        """Count a wrong token, link or code against the address that it came from."""
        self._failures.wait_s(_address_of(request))

    def _admit(self, request: Request, token: str | None, why: str) -> Claims | None:
        """Let a valid token in; None for a key that proves nothing but that it may use the model."""
        if token is None:
            self.patience(request)
            raise self._unauthorised(None, why)
        digest = hashlib.sha256(token.encode()).hexdigest()
        if digest not in self._good:
            self.patience(request)
        claims = self._verify(token)
        if claims is None and digest not in self._keys:
            self.failed(request)
            raise self._unauthorised(token, why)
        self._good[digest] = None
        self._good.move_to_end(digest)
        if len(self._good) > MAX_CALLERS:
            self._good.popitem(last=False)
        self._count(request, token)
        return claims

    def _check_link(self, request: Request, hub: Hub, sha256: str, bearer: str | None) -> None:
        try:
            hub.links.verify(sha256, request.query_params, bearer)
        except LinkError as error:
            if error.forged:  # one that holds is let in, however many forged ones came from its address
                self.patience(request)
                self.failed(request)
            raise

    def _unauthorised(self, token: str | None, needed: str) -> APIError:
        """Return the refusal of a request without a valid token: it says what is wrong with the one sent."""
        if token is None or self._hub is None:
            message = f"{needed}: send 'Authorization: Bearer TOKEN'"
            return _unauthorised(message, "invalid_api_key")
        return _unauthorised(*_FAULTS[self._hub.tokens.fault(token)])

    def _verify(self, token: str | None) -> Claims | None:
        return None if token is None or self._hub is None else self._hub.verify_token(token)

    def _count(self, request: Request, token: str | None) -> None:
        """Count a request once, however many rules look at it."""
        if self.quota.is_limited:
            caller = _address_of(request) if token is None else hashlib.sha256(token.encode()).hexdigest()
            is_inference = request.scope["path"].startswith(_TOKEN_ROUTES)
            self.quota.enter(request, caller, takes_tokens=is_inference)


def actor_of(request: Request, claims: Claims | None) -> Actor:
    """Return who sends a request, for the audit log."""
    address = request.client.host if request.client else None
    return replace(UNKNOWN, address=address) if claims is None else Actor.of(claims, address)


def _address_of(request: Request) -> str:
    return caller_network(request.client.host) if request.client else ""


def _enough_for(path: str) -> tuple[Permission, ...]:
    """Return the permissions of which one opens a route to callers that are no administrators.

    Whoever may see releases may read the metadata on them; whoever asks the model, which one answers.
    """
    if not path.startswith(_DEVICE_ROUTES):
        return ("models:use",)
    if path == _INFO_ROUTE:
        return ("updates:use", "models:use")
    return ("updates:use", "releases:read") if path.startswith(_METADATA_ROUTES) else ("updates:use",)


def _require(claims: Claims, needed: Permission) -> None:
    if not claims.may(needed):
        raise _forbidden(claims, needed)


def bearer_token(request: Request) -> str | None:
    """Return the request's bearer token, if it carries one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 4096 else None


def _forbidden(claims: Claims | None, missing: str | None) -> APIError:
    if claims is None:
        message = "this key may use the model and nothing else"
        return APIError(403, message, type="permission_error", code=_NOT_PERMITTED)
    lacks = f"{missing} is missing" if missing else "it may administer nothing"
    bearer = f"this token, of the role {claims.role!r}{', narrowed' if claims.scopes else ''},"
    return APIError(403, f"{bearer} may not do this: {lacks}", type="permission_error", code=_NOT_PERMITTED)


def _unauthorised(message: str, code: str) -> APIError:
    headers = {"www-authenticate": "Bearer"}
    return APIError(401, message, type="authentication_error", code=code, headers=headers)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: there is none.
    """
    return next(iter(_lines(path)))


def read_keys(path: Path) -> frozenset[str]:
    """Return the SHA-256 of each key in a file: a line is a key, or ``sha256:`` and the hash of one.

    Empty lines and those that begin with ``#`` are left out.

    Raises:
        ConfigError: it cannot be read or holds none, or a hash in it is none.
    """
    return frozenset(_key_digest(line, path) for line in _lines(path))


def _key_digest(line: str, path: Path) -> str:
    if not line.startswith("sha256:"):
        return hashlib.sha256(line.encode()).hexdigest()
    if not _HASH.fullmatch(hashed := line[7:].strip()):
        raise ConfigError(f"in {path}, a line with 'sha256:' lacks the 64 hex digits of a SHA-256 behind it")
    return hashed.lower()


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the tokens in {path}: {error}") from error
    if not (found := [line for line in lines if line and not line.startswith("#")]):
        raise ConfigError(f"there is no token in {path}")
    return found

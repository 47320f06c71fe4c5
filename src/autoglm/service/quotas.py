"""How much one caller may ask for a minute: requests, and tokens of prompts and answers.

What it guarantees: a caller's bucket is refilled evenly, so a minute's worth may come at once, and more as it
refills; tokens are taken out as they are computed, so what is under way may overdraw a bucket, and whoever
overdrew it waits; the callers longest unseen are forgotten, so the memory is bounded.

    >>> buckets = TokenBuckets(2, clock=lambda: 0.0)
    >>> [buckets.wait_s("a") for _ in range(3)]
    [0.0, 0.0, 30.0]
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import Request

from autoglm.service.problems import APIError

MAX_CALLERS = 10_000
_CALLER = "quota_caller"


class TokenBuckets:
    """A bucket for each caller.

    Args:
        per_minute: what is refilled a minute, and the size of the bucket; 0 lets everything through.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self.is_limited = per_minute > 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (tokens, at)

    def wait_s(self, caller: str, *, take: bool = True) -> float:
        """Return 0 and take one out of the caller's bucket, or the seconds until there is one again.

        Args:
            caller: whose bucket.
            take: False only looks.
        """
        if not self.is_limited:
            return 0.0
        tokens = self.left(caller)
        allowed = tokens >= 1
        self._keep(caller, tokens - (allowed and take))
        return 0.0 if allowed else (1 - tokens) * 60 / self.per_minute

    def spend(self, caller: str, amount: int) -> None:
        """Take so many out of the caller's bucket, whether they are in it or not."""
        if self.is_limited:
            self._keep(caller, self.left(caller) - amount)

    def left(self, caller: str) -> float:
        """Return what is in the caller's bucket; below 0 when it is overdrawn."""
        full, now = float(self.per_minute), self._clock()
        tokens, at = self._buckets.get(caller, (full, now))
        return min(full, tokens + (now - at) * self.per_minute / 60)

    def _keep(self, caller: str, tokens: float) -> None:
        self._buckets[caller] = (tokens, self._clock())
        self._buckets.move_to_end(caller)
        while len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)


class Quota:
    """The buckets of one service; used on its event loop.

    Args:
        requests_per_minute, tokens_per_minute: of one caller; 0 is unlimited.
        clock: seconds, never going back.
    """

    def __init__(self, requests_per_minute: int, tokens_per_minute: int, clock: Callable[[], float]) -> None:
        self._requests = TokenBuckets(requests_per_minute, clock)
        self._tokens = TokenBuckets(tokens_per_minute, clock)
        self.is_limited = self._requests.is_limited or self._tokens.is_limited

    def enter(self, request: Request, caller: str, *, takes_tokens: bool) -> None:
        """Count a request, once however many rules look at it.

        Raises:
            APIError: 429, the caller asks too often, or has used up its tokens.
        """
        if not self.is_limited or hasattr(request.state, _CALLER):
            return
        setattr(request.state, _CALLER, caller)
        if takes_tokens and (wait_s := self._tokens.wait_s(caller, take=False)):
            raise too_many("too many tokens: wait, or ask for shorter answers", wait_s)
        if wait_s := self._requests.wait_s(caller):
            raise too_many("too many requests: slow down", wait_s)

    def spender(self, request: Request) -> Callable[[int], None] | None:
        """Return what tokens of this request are to be counted with; None when they are not limited."""
        caller = getattr(request.state, _CALLER, None)
        if caller is None or not self._tokens.is_limited:
            return None
        return lambda amount: self._tokens.spend(caller, amount)

    def headers(self, request: Request) -> dict[str, str]:
        """Return OpenAI's ``x-ratelimit-`` headers for a request that was counted."""
        caller = getattr(request.state, _CALLER, None)
        if caller is None:
            return {}
        found: dict[str, str] = {}
        for what, buckets in (("requests", self._requests), ("tokens", self._tokens)):
            if buckets.is_limited:
                left = buckets.left(caller)
                full_in_ms = round((buckets.per_minute - left) * 60_000 / buckets.per_minute)
                found[f"x-ratelimit-limit-{what}"] = str(buckets.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(left)))
                found[f"x-ratelimit-reset-{what}"] = f"{full_in_ms}ms"
        return found


def too_many(message: str, wait_s: float) -> APIError:
    """Return the answer to who has to wait."""
    headers = {"retry-after": str(max(1, math.ceil(wait_s)))}
    return APIError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)

"""One vLLM server behind the gateway: what it holds, whether it is up, how many answers are under way.

Who may be sent to a server is decided on ``release``: it is None whenever it is not certain what the server
holds, because it was not reached, was started again, or is being changed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from autoglm.service.gateway.admin import AdminClient
from autoglm.service.gateway.process import Supervised
from autoglm.service.gateway.release import ServedRelease


@dataclass(eq=False)
class Server:
    """A server; its fields are changed under the lock of :class:`~autoglm.service.gateway.traffic.Traffic`.

    Attributes:
        name: for logs.
        url: where it answers.
        admin: its other routes.
        process: what runs it; None when it is run elsewhere.
        release: what it is certain to hold; None when that is not certain.
        wanted: what it should hold; None: nobody needs it now.
        is_up: whether it answered when it was looked at, with hysteresis.
        is_changing: whether somebody is giving it another release, so that nobody else may.
        in_flight: answers that it computes for this gateway.
        known_sums: the checksums of its parameters with each release that it was seen to hold, by label.
        wake: set to have it looked at now.
    """

    name: str
    url: str
    admin: AdminClient
    process: Supervised | None = None
    release: ServedRelease | None = None
    wanted: ServedRelease | None = None
    is_up: bool = True
    is_changing: bool = False
    in_flight: int = 0
    known_sums: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    wake: threading.Event = field(default_factory=threading.Event)

    @property
    def can_answer(self) -> bool:
        """Whether a request may be sent to it now."""
        return self.is_up and self.release is not None

    def __str__(self) -> str:
        return f"{self.name} ({self.url})"

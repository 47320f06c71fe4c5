"""A release that was given to a server and waits for its test and its turn."""

from __future__ import annotations

from dataclasses import dataclass

from autoglm.engine import SelfTestReport
from autoglm.errors import EngineError
from autoglm.service.gateway.release import ServedRelease
from autoglm.service.gateway.server import Server


@dataclass(eq=False)
class StagedRelease:
    """A release in a server, answering nobody yet.

    Attributes:
        version: what it is.
        release: the release itself.
        server: which holds it.
        instead_of: what the server held, where there is no other; the door is shut meanwhile.
        since: when the door was shut, monotonic seconds.
        report: its self-test, once that was run.
        is_over: whether it was swapped in or discarded.
    """

    version: str
    release: ServedRelease
    server: Server
    instead_of: ServedRelease | None = None
    since: float = 0.0
    report: SelfTestReport | None = None
    is_over: bool = False

    def require_staged(self) -> None:
        """See that it is still there to be tested or swapped in.

        Raises:
            EngineError: it is not.
        """
        if self.is_over or self.server.release is not self.release:
            raise EngineError(f"{self.version} is no longer staged: stage it again")

"""Which server answers new requests, which one a rollback returns to, and what they hold.

Once requests come in, the active one changes only under the lock of
:class:`~autoglm.service.gateway.traffic.Traffic`, between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoglm.errors import EngineError, RequestError
from autoglm.service.gateway.release import ServedRelease
from autoglm.service.gateway.server import Server


class Pool:
    """The servers, and the part that each one plays.

    Args:
        servers: one, or two of which the first is the active one.

    Attributes:
        servers: all of them.
        active: the one that answers new requests.
        previous: the one that a rollback returns to, while it is kept.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)
        self.active = servers[0]
        self.previous: Server | None = None

    @property
    def release(self) -> ServedRelease:
        """The release that answers new requests, or will when its server is back.

        Raises:
            EngineError: there is none.
        """
        release = self.active.release or self.active.wanted
        if release is None:
            raise EngineError("no release is in the vLLM server")
        return release

    @property
    def previous_version(self) -> str | None:
        """The version that a rollback returns to, while its server is kept."""
        release = None if self.previous is None else self.previous.release
        return None if release is None else release.version

    @property
    def loaded_versions(self) -> tuple[str, ...]:
        """The versions that a request may name, the active one first."""
        active, previous = self.release.version, self.previous_version
        return (active,) if previous is None else (active, previous)

    @property
    def in_order(self) -> tuple[Server, ...]:
        """The servers, the active one first."""
        return (self.active, *(server for server in self.servers if server is not self.active))

    @property
    def candidate(self) -> Server:
        """The one that is given the next release: one that answers nobody, where there is one."""
        return next((server for server in self.servers if server is not self.active), self.active)

    @property
    def wanted(self) -> tuple[ServedRelease, ...]:
        """What the servers should hold."""
        wanted = [server.wanted for server in self.servers]
        return tuple(release for release in wanted if release is not None)

    def find(self, version: str | None) -> Server:
        """Return the server of a loaded version; None is the active one's.

        Raises:
            RequestError: it is not loaded.
        """
        if version is None or version == self.release.version:
            return self.active
        if self.previous is not None and version == self.previous_version:
            return self.previous
        loaded = ", ".join(self.loaded_versions)
        raise RequestError(f"{version[:64]} is not loaded; loaded: {loaded}", param="model")

    def needs(self, server: Server) -> bool:
        """Whether a server answers, may have to again, or is about to."""
        return server in (self.active, self.previous) or server.is_changing

    def turn_to(self, server: Server, previous: Server | None) -> None:
        """Let a server answer new requests, and keep ``previous`` to go back to."""
        self.active, self.previous = server, previous

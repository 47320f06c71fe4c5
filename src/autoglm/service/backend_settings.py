"""The settings of ``backend``: what computes the answers, and how vLLM servers behind the service are used.

>>> BackendSettings(kind="vllm", url=["http://127.0.0.1:8001"]).is_supervised
False
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict

_KNOWN_KEYS = ConfigDict(extra="forbid")
_LOCAL_NAMES = ("localhost", "ip6-localhost")


def _server_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an address such as http://127.0.0.1:8001")
    return text.rstrip("/").removesuffix("/v1")


def _listed(value: object) -> list[object]:
    """Take one address for a list of one, and null for none."""
    if value is None or isinstance(value, str):
        return [] if value is None else [value]
    return cast("list[object]", value)


def _private_url(text: str) -> str:
    if not is_private(_server_url(text)):
        raise ValueError(
            "must be a private address: whoever reaches it can replace the model, no key is asked for"
        )
    return _server_url(text)


def is_loopback(url: str) -> bool:
    """Tell whether only this machine reaches the address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOCAL_NAMES


def is_private(url: str) -> bool:
    """Tell whether the address is none of the public internet; a name is taken at its word."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_private
    except ValueError:
        return True


ServerURL = Annotated[str, AfterValidator(_server_url)]
PrivateURL = Annotated[str, AfterValidator(_private_url)]
Seconds = Annotated[float, Strict(), Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Strict(), Field(ge=1, le=1000)]


@dataclass(frozen=True)
class BackendSettings:
    """What computes the answers; all but ``kind`` is for ``vllm``.

    Attributes:
        kind: the project's own engine, or vLLM servers behind this service.
        url: one or two servers that run already; empty starts and watches them from here.
        admin_url: where their development routes are, one for each; needed unless ``url`` is loopback.
        api_key_file: holds the key that the servers ask for.
        command: the words that start a server; the release's directory and the rest are added.
        arguments: further arguments for each server started here.
        environment: variables for each server started here, one mapping a server.
        servers: how many are started here; with two, an update is tested on one while the other answers.
        port: of the first server started here; the second has the next one.
        update: how a server gets a release: started again with it, or its weights reloaded in place.
        checkpoints: where the releases lie for the servers; None is a directory in ``data_dir``.
        checkpoints_there: the same directory as servers on other machines see it.
        start_seconds: for a server to start and load.
        load_seconds: for weights to be reloaded in place.
        drain_seconds: longest wait for the answers under way before a server changes its release.
        wait_seconds: longest wait of a new request while no server may answer it.
        connect_seconds: for a server to take a connection.
        first_token_seconds: for the first piece of an answer, its wait in the server's queue included.
        idle_seconds: between two pieces of an answer.
        health_seconds: between two looks at a server.
        failures: looks in a row that fail until a server counts as down.
        successes: looks in a row that succeed until it counts as up again.
    """

    __pydantic_config__ = _KNOWN_KEYS

    kind: Literal["native", "vllm"] = "native"
    url: Annotated[list[ServerURL], Field(max_length=2), BeforeValidator(_listed)] = field(
        default_factory=list[str]
    )
    admin_url: Annotated[list[PrivateURL], Field(max_length=2), BeforeValidator(_listed)] = field(
        default_factory=list[str]
    )
    api_key_file: str | None = None
    command: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["vllm", "serve"])
    arguments: list[str] = field(default_factory=list[str])
    environment: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    servers: Annotated[int, Strict(), Field(ge=1, le=2)] = 1
    port: Annotated[int, Strict(), Field(ge=1, le=65534)] = 8101
    update: Literal["auto", "restart", "reload"] = "auto"
    checkpoints: str | None = None
    checkpoints_there: str | None = None
    start_seconds: Seconds = 900.0
    load_seconds: Seconds = 600.0
    drain_seconds: Seconds = 120.0
    wait_seconds: Seconds = 120.0
    connect_seconds: Seconds = 5.0
    first_token_seconds: Seconds = 120.0
    idle_seconds: Seconds = 60.0
    health_seconds: Seconds = 2.0
    failures: Count = 3
    successes: Count = 2

    @property
    def is_supervised(self) -> bool:
        """Whether the servers are started from here."""
        return not self.url

    @property
    def reloads(self) -> bool:
        """Whether a release comes into a server by reloading its weights in place."""
        return self.update == "reload" or (self.update == "auto" and not self.is_supervised)

    def admin_of(self, index: int, url: str) -> str:
        """Return where the development routes of server number ``index`` are."""
        return self.admin_url[index] if self.admin_url else url

    def contradictions(self) -> list[tuple[bool, str]]:
        """Return what is wrong between the keys: (whether it is, the message that names one)."""
        num_remote, given = len(self.url), len(self.admin_url)
        exposed = [url for url in self.url if not is_loopback(url)]
        needs_admin = bool(exposed) and not given
        return [
            (
                self.kind == "native" and self != BackendSettings(),
                "backend.kind: the other keys of backend are for kind: vllm; set it, or remove them",
            ),
            (
                self.kind == "vllm" and needs_admin,
                f"backend.admin_url: {''.join(exposed[:1])} is not loopback, and vLLM's development routes, "
                "which updates need, ask for no key: name the private address on which they are reached",
            ),
            (given not in (0, num_remote), "backend.admin_url: name one for each address in backend.url"),
            (
                num_remote > 0 and self.update == "restart",
                "backend.update: only servers that are started from here can be started again",
            ),
            (
                len(self.environment) not in (0, self.servers),
                "backend.environment: list one mapping for each of backend.servers",
            ),
            (
                num_remote > 0 and self.servers not in (1, num_remote),
                "backend.servers: backend.url lists another number of them; remove one of the keys",
            ),
            (
                num_remote > 0 and self.command != BackendSettings().command,
                "backend.command: nothing is started where backend.url names servers; remove one of the keys",
            ),
            (
                num_remote == 0 and self.checkpoints_there is not None,
                "backend.checkpoints_there: for servers on other machines, and backend.url names none",
            ),
            (len(set(self.url)) != num_remote, "backend.url: an address is listed twice"),
        ]

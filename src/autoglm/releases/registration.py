"""``POST /v1/model/register``: how a device comes by its token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from autoglm.errors import MessageError
from autoglm.releases.messages import MAX_MESSAGE_BYTES
from autoglm.releases.reading import Reader, parse_json, present

MAX_TOKEN_LENGTH = 200
_WORD = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class RegistrationRequest:
    """What a device sends with its enrolment code, or an administrator in its place.

    Attributes:
        device_id: the device's name towards the hub.
        code: the enrolment code; the groups and the region come from it.
        request_id: a secret that the device made up and kept: sent again, after an answer was lost, it gets
            a token again instead of a refusal.
        groups, region: of the device; believed of an administrator only.
        new_token: for a device that is registered: revoke its tokens and give a new one.
    """

    device_id: str
    code: str | None = None
    request_id: str | None = None
    groups: tuple[str, ...] = ()
    region: str | None = None
    new_token: bool = False

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a request body.

        Raises:
            MessageError: a field is missing, of the wrong type or out of range.
        """
        reader = Reader(value, "registration", MessageError)
        return cls(
            device_id=reader.device_id("device_id"),
            code=reader.maybe_text("code", 64),
            request_id=reader.maybe_text("request_id", 64),
            groups=reader.names("groups"),
            region=reader.maybe_name("region"),
            new_token=reader.maybe_boolean("new_token") or False,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the request body."""
        body = present(self) | {"groups": list(self.groups)}
        return {key: field for key, field in body.items() if field not in ([], False)}


@dataclass(frozen=True)
class RegistrationAnswer:
    """A device's token and claims; the token is shown this once."""

    device_id: str
    token: str
    groups: tuple[str, ...] = ()
    region: str | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read an answer from the wire.

        Raises:
            MessageError: a rule is broken.
        """
        value = parse_json(content, MAX_MESSAGE_BYTES, "registration answer", MessageError)
        reader = Reader(value, "registration answer", MessageError)
        token = reader.text("token", MAX_TOKEN_LENGTH)
        if not _WORD.fullmatch(token):
            raise reader.refuse("token", "a word of printable characters")
        return cls(reader.device_id("device_id"), token, reader.names("groups"), reader.maybe_name("region"))

    def to_json(self) -> dict[str, Any]:
        """Return the answer's body."""
        return present(self) | {"groups": list(self.groups), "region": self.region}

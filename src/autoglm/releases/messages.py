"""The wire: what a device and the hub say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

from autoglm.errors import MessageError
from autoglm.releases.reading import MAX_FILE_BYTES, Reader, is_name, parse_json, present

PACKAGE_FORMAT = "wpatch-1"
MAX_MESSAGE_BYTES = 1 << 20
MAX_EVENTS = 200


@dataclass(frozen=True)
class DeviceEnvironment:
    """What a device says of its own state with a check; none of it grants anything.

    Attributes:
        free_bytes: free room in the data directory.
        net: ``wifi``, ``cellular``, ``ethernet`` or ``none``.
        charging: whether it charges.
        battery: per cent.
    """

    free_bytes: int | None = None
    net: str | None = None
    charging: bool | None = None
    battery: int | None = None

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the ``env`` of an update request.

        Raises:
            MessageError: a field is of the wrong type or out of range.
        """
        reader = Reader(value, "env", MessageError)
        return cls(
            reader.maybe_integer("free_bytes"),
            reader.maybe_text("net", 32),
            reader.maybe_boolean("charging"),
            reader.maybe_integer("battery", 0, 100),
        )


@dataclass(frozen=True)
class UpdateRequest:
    """``POST /v1/model/update``: a device asks whether there is something for it.

    Attributes:
        device_id: the device's own stable name.
        current_version: what it runs; anything the hub does not know gets the full package; None when
            it has nothing yet.
        current_sha256: SHA-256 of the installed ``manifest.json``.
        model, variant: when the device follows another model than the hub's configured one.
        accept: package formats it can apply.
        env: its state.
        failed: versions that failed on it; they are not offered again.
    """

    device_id: str
    current_version: str | None = None
    current_sha256: str | None = None
    model: str | None = None
    variant: str | None = None
    accept: tuple[str, ...] = (PACKAGE_FORMAT,)
    env: DeviceEnvironment | None = None
    failed: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a request body.

        Raises:
            MessageError: a field is missing, of the wrong type or out of range.
        """
        reader = Reader(value, "update request", MessageError)
        env = reader.fields.get("env")
        return cls(
            device_id=reader.device_id("device_id"),
            current_version=reader.maybe_text("current_version", 64),
            current_sha256=reader.maybe_sha256("current_sha256"),
            model=reader.maybe_name("model"),
            variant=reader.maybe_name("variant"),
            accept=reader.names("accept") or (PACKAGE_FORMAT,),
            env=None if env is None else DeviceEnvironment.from_json(env),
            failed=reader.names("failed"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the request body."""
        body = present(self)
        if self.env is not None:
            body["env"] = present(self.env)
        return body


@dataclass(frozen=True)
class UpdateAnswer:
    """What the hub answers to a check. The first three keys are always on the wire, null where unused.

    Attributes:
        need_update: whether a package follows.
        target_version: the version it leads to.
        download_url: one ``.wpatch``, absolute or relative to the hub's address.
        kind: ``patch`` (against ``current_version``) or ``full``.
        manifest: target path under which the release is signed; nothing below is believed without it.
        manifest_sha256: identity of the target release.
        counter: the target's counter.
        sha256, size: of the package.
        header_length, header_sha256: of the package's header, checked before it is parsed.
        full_url, full_sha256, full_size, full_header_length, full_header_sha256: the full package, for a
            device on which the patch failed twice.
        rollout_id, attempt_id: to be repeated in the events about this update.
        retry_after_s: when to ask again.
    """

    need_update: bool
    target_version: str | None = None
    download_url: str | None = None
    kind: Literal["patch", "full"] | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
    counter: int | None = None
    sha256: str | None = None
    size: int | None = None
    header_length: int | None = None
    header_sha256: str | None = None
    full_url: str | None = None
    full_sha256: str | None = None
    full_size: int | None = None
    full_header_length: int | None = None
    full_header_sha256: str | None = None
    rollout_id: str | None = None
    attempt_id: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read an answer from the wire; see :meth:`from_json`."""
        return cls.from_json(parse_json(content, MAX_MESSAGE_BYTES, "update answer", MessageError))

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read an answer.

        Raises:
            MessageError: a field is of the wrong type, or an update is offered without what it needs.
        """
        reader = Reader(value, "update answer", MessageError)
        retry = reader.maybe_integer("retry_after_s", 0, 30 * 24 * 3600)
        if not reader.boolean("need_update"):
            return cls(False, retry_after_s=retry)
        full = reader.fields.get("full_url") is not None
        return cls(
            need_update=True,
            target_version=reader.name("target_version"),
            download_url=reader.text("download_url", 4096),
            kind=cast("Any", reader.choice("kind", "patch", "full")),
            manifest=reader.maybe_text("manifest", 256),
            manifest_sha256=reader.sha256("manifest_sha256"),
            counter=reader.integer("counter", 1),
            sha256=reader.sha256("sha256"),
            size=reader.integer("size", 1, MAX_FILE_BYTES),
            header_length=reader.integer("header_length", 1),
            header_sha256=reader.sha256("header_sha256"),
            full_url=reader.text("full_url", 4096) if full else None,
            full_sha256=reader.sha256("full_sha256") if full else None,
            full_size=reader.integer("full_size", 1, MAX_FILE_BYTES) if full else None,
            full_header_length=reader.integer("full_header_length", 1) if full else None,
            full_header_sha256=reader.sha256("full_header_sha256") if full else None,
            rollout_id=reader.maybe_text("rollout_id", 64),
            attempt_id=reader.maybe_text("attempt_id", 64),
            retry_after_s=retry,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer's body; the three keys of the fixed contract are always in it."""
        fixed = {
            "need_update": self.need_update,
            "target_version": self.target_version,
            "download_url": self.download_url,
        }
        return fixed | present(self)


@dataclass(frozen=True)
class Event:
    """One step of an update on a device, reported at least once and counted once by ``event_id``.

    Attributes:
        event_id: unique; a repeated one is accepted and ignored.
        seq: increasing on the device.
        state: the device state machine's state it is about, such as ``TRIAL``.
        result: ``progress``, ``ok`` or ``fail``.
        from_version, to_version: ``from`` and ``to`` on the wire.
        code: the error's code when it failed.
        bytes: received over the network so far in this attempt.
        ms: milliseconds spent in this attempt.
        ts: when, RFC 3339.
        stats: health numbers: ``first_token_ms``, ``tokens_per_s``, ``peak_memory_bytes``, ``score``.
    """

    event_id: str
    seq: int
    state: str
    result: str
    attempt_id: str | None = None
    rollout_id: str | None = None
    from_version: str | None = None
    to_version: str | None = None
    code: str | None = None
    bytes: int | None = None
    ms: int | None = None
    ts: str | None = None
    stats: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read one event.

        Raises:
            MessageError: a field is missing, of the wrong type or out of range.
        """
        reader = Reader(value, "event", MessageError)
        raw = reader.fields.get("stats")
        stats = Reader({} if raw is None else raw, "event stats", MessageError)
        if len(stats.fields) > 16 or not all(is_name(key) for key in stats.fields):
            raise reader.refuse("stats", "an object of at most 16 named numbers")
        numbers = {key: stats.maybe_number(key) for key in stats.fields}
        return cls(
            event_id=reader.name("event_id"),
            seq=reader.integer("seq"),
            state=reader.name("state"),
            result=reader.choice("result", "progress", "ok", "fail"),
            attempt_id=reader.maybe_text("attempt_id", 64),
            rollout_id=reader.maybe_text("rollout_id", 64),
            from_version=reader.maybe_text("from", 64),
            to_version=reader.maybe_text("to", 64),
            code=reader.maybe_name("code"),
            bytes=reader.maybe_integer("bytes", 0, MAX_FILE_BYTES),
            ms=reader.maybe_integer("ms"),
            ts=reader.maybe_text("ts", 40),
            stats={key: number for key, number in numbers.items() if number is not None},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the event as it is on the wire."""
        body = present(self)
        for key in ("from", "to"):
            if (version := body.pop(f"{key}_version", None)) is not None:
                body[key] = version
        return body


@dataclass(frozen=True)
class EventBatch:
    """``POST /v1/model/events``: what happened on one device, oldest first."""

    device_id: str
    events: tuple[Event, ...]

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a batch.

        Raises:
            MessageError: a rule is broken.
        """
        reader = Reader(value, "event batch", MessageError)
        events = tuple(Event.from_json(item) for item in reader.items("events", MAX_EVENTS))
        return cls(reader.device_id("device_id"), events)

    def to_json(self) -> dict[str, Any]:
        """Return the batch's body."""
        return {"device_id": self.device_id, "events": [event.to_json() for event in self.events]}


Control = Literal["continue", "pause", "cancel"]


@dataclass(frozen=True)
class EventAnswer:
    """What the hub answers to a batch: the ids it has stored, and whether to go on with the update."""

    accepted: tuple[str, ...]
    control: Control = "continue"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read an answer from the wire.

        Raises:
            MessageError: a rule is broken.
        """
        value = parse_json(content, MAX_MESSAGE_BYTES, "event answer", MessageError)
        reader = Reader(value, "event answer", MessageError)
        control = reader.choice("control", "continue", "pause", "cancel")
        return cls(reader.names("accepted", MAX_EVENTS), cast("Control", control))

    def to_json(self) -> dict[str, Any]:
        """Return the answer's body."""
        return {"accepted": list(self.accepted), "control": self.control}

"""The update's state machine: one table of transitions, and what each state needs after a crash.

What it guarantees: a state is on the disk before anything is done in it; a transition that the table does
not hold is refused; an attempt that changes state more than :data:`MAX_CHANGES` times is broken off, so
that no combination of crashes and errors can make a device loop. A saved state that cannot be understood
is reported as such, and the device rolls back.

``current.json`` (see :mod:`autoglm.device.slots`), not this file, decides which release is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Self, cast

from autoglm.errors import AutoGLMError, FormatError, StorageError
from autoglm.files import write_durably
from autoglm.releases import canonical_json

MAX_CHANGES = 28
_MAX_STATE_BYTES = 1 << 16

E_CRASH_LOOP = "E_CRASH_LOOP"
E_LOOP = "E_LOOP"
E_STATE = "E_STATE"
E_TRIAL = "E_TRIAL"
E_ROLLBACK = "E_ROLLBACK"
E_HELD = "E_HELD"
E_CANCELLED = "E_CANCELLED"
E_QUARANTINED = "E_QUARANTINED"
E_SUPERSEDED = "E_SUPERSEDED"
E_STAGED = "E_STAGED"


class State(StrEnum):
    """Where an update attempt stands."""

    IDLE = "IDLE"
    DOWNLOADING = "DOWNLOADING"
    APPLYING = "APPLYING"
    TRIAL = "TRIAL"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"


class Recovery(Enum):
    """What the next start does about a state that it finds saved."""

    NOTHING = "nothing is under way"
    RESUME = "keep what was downloaded; the next update goes on from there"
    REDO = "drop what was half applied; the package is whole, the next update applies it again"
    COUNT_DOWN = "one try less for the release; at zero the previous one loads"
    FINISH = "the outcome is decided: do the rest of it (report, clean up)"


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    next: frozenset[State]
    after_crash: Recovery


TABLE: dict[State, Rule] = {
    # IDLE -> FAILED: a confirmed release is rolled back by hand.
    State.IDLE: Rule(frozenset({State.DOWNLOADING, State.FAILED}), Recovery.NOTHING),
    # DOWNLOADING -> IDLE: the hub withdrew the offer.
    State.DOWNLOADING: Rule(frozenset({State.APPLYING, State.FAILED, State.IDLE}), Recovery.RESUME),
    # APPLYING -> DOWNLOADING: the patch would not do, the full package will. -> APPLYING: after a crash.
    State.APPLYING: Rule(
        frozenset({State.APPLYING, State.DOWNLOADING, State.TRIAL, State.FAILED, State.IDLE}), Recovery.REDO
    ),
    # TRIAL -> IDLE: a first release, which nothing could replace, makes way for a newer one.
    State.TRIAL: Rule(frozenset({State.CONFIRMED, State.FAILED, State.IDLE}), Recovery.COUNT_DOWN),
    State.CONFIRMED: Rule(frozenset({State.IDLE}), Recovery.FINISH),
    State.FAILED: Rule(frozenset({State.IDLE}), Recovery.FINISH),
}


class GiveUpError(AutoGLMError):
    """Ends an attempt; caught inside the SDK, never seen by a caller.

    Attributes:
        reason: the code reported.
        quarantine: whether the release itself is at fault and must not be tried again.
    """

    def __init__(self, message: str, *, reason: str, quarantine: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.quarantine = quarantine


@dataclass(frozen=True)
class Attempt:
    """One attempt to reach one release, as it is kept on the disk.

    Attributes:
        uid: its name on this device; the ids of its events derive from it.
        version, manifest_sha256: the release it leads to.
        from_version: what ran when it began.
        rollout_id, attempt_id: the hub's names for it, repeated in events.
        package_sha256: the package being fetched or applied.
        use_full: the patch was given up in favour of the full package.
        failures: how often the present package failed.
        changes: state changes so far.
        wire_bytes: received and sent for it so far.
        started_at: when it began, RFC 3339.
        code, message: why it failed.
        quarantine: whether the failed release goes into quarantine.
    """

    uid: str
    version: str
    manifest_sha256: str
    from_version: str | None = None
    rollout_id: str | None = None
    attempt_id: str | None = None
    package_sha256: str | None = None
    use_full: bool = False
    failures: int = 0
    changes: int = 0
    wire_bytes: int = 0
    started_at: str | None = None
    code: str | None = None
    message: str | None = None
    quarantine: bool = False


@dataclass(frozen=True)
class Saved:
    """The content of ``state.json``."""

    state: State = State.IDLE
    attempt: Attempt | None = None
    wire_bytes: int = 0
    last_error: dict[str, str] | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a saved state.

        Raises:
            FormatError: this version did not write it.
        """
        try:
            value: Any = json.loads(content)
            state = State(value["state"])
            raw = value["attempt"]
            attempt = None if raw is None else _read_attempt(cast("dict[str, Any]", raw))
            wire_bytes, last_error = value["wire_bytes"], value["last_error"]
            if not isinstance(wire_bytes, int) or not isinstance(last_error, dict | None):
                raise TypeError("wire_bytes or last_error")
            saved = cls(state, attempt, wire_bytes, cast("dict[str, str] | None", last_error))
            saved.to_bytes()  # what cannot be written again, such as half a character, we did not write
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError("state.json was not written by this version") from error
        if (attempt is None) != (state is State.IDLE):
            raise FormatError(f"state.json says {state} but does not fit it")
        return saved

    def to_bytes(self) -> bytes:
        """Return the content of ``state.json``."""
        return canonical_json(asdict(self))


def _read_attempt(raw: dict[str, Any]) -> Attempt:
    defaults = Attempt("", "", "")
    for field in fields(Attempt):
        kind = type(getattr(defaults, field.name))
        expected = (str, type(None)) if kind is type(None) else kind
        if not isinstance(raw[field.name], expected):
            raise TypeError(field.name)
    return Attempt(**raw)


@dataclass(frozen=True)
class Change:
    """A change of state, for an app that shows what goes on.

    Attributes:
        state: the new state, which is on the disk.
        version: the release that the attempt leads to; None at IDLE.
        code: why it failed, in FAILED.
    """

    state: State
    version: str | None = None
    code: str | None = None


class Machine:
    """The state machine over ``state.json``. Every change is durable before the call returns.

    Args:
        on_change: told after each change of state.
    """

    def __init__(self, path: Path, on_change: Callable[[Change], None] | None = None) -> None:
        self._path = path
        self._on_change = on_change
        self.saved = Saved()

    def load(self) -> bool:
        """Read the saved state; return False, and stand at IDLE, when it cannot be understood."""
        self.saved = Saved()
        try:
            with self._path.open("rb") as file:
                self.saved = Saved.from_bytes(file.read(_MAX_STATE_BYTES))
        except FileNotFoundError:
            return True
        except FormatError:
            return False
        return True

    @property
    def state(self) -> State:
        """The state on the disk."""
        return self.saved.state

    @property
    def attempt(self) -> Attempt | None:
        """The attempt under way; None only at IDLE."""
        return self.saved.attempt

    def move(self, state: State, attempt: Attempt | None = None, **changes: Any) -> Attempt | None:
        """Go to ``state``, with the attempt (the present one when not given) changed as told.

        Raises:
            GiveUpError: the attempt changed state too often.
            FormatError: the table has no such transition.
            StorageError: the disk refused; the old state stands.
        """
        if state not in TABLE[self.state].next:
            raise FormatError(f"an update cannot go from {self.state} to {state}")
        attempt = attempt or self.attempt
        if state is State.IDLE or attempt is None:
            self._store(replace(self.saved, state=State.IDLE, attempt=None))
            return None
        attempt = replace(attempt, changes=attempt.changes + 1, **changes)
        if attempt.changes > MAX_CHANGES and state in (State.DOWNLOADING, State.APPLYING):
            message = f"{attempt.version} changed state {MAX_CHANGES} times without an outcome"
            raise GiveUpError(message, reason=E_LOOP, quarantine=True)
        self._store(replace(self.saved, state=state, attempt=attempt))
        return attempt

    def note(self, **changes: Any) -> None:
        """Store changes of the attempt under way without a change of state."""
        if self.attempt is not None:
            self._store(replace(self.saved, attempt=replace(self.attempt, **changes)))

    def count_wire_bytes(self, num_bytes: int) -> None:
        """Add to the traffic of all time, and of the attempt under way."""
        if num_bytes:
            attempt = self.attempt
            if attempt is not None:
                attempt = replace(attempt, wire_bytes=attempt.wire_bytes + num_bytes)
            self._store(replace(self.saved, attempt=attempt, wire_bytes=self.saved.wire_bytes + num_bytes))

    def remember_error(self, code: str, message: str, at: str, *, version: str | None = None) -> None:
        """Keep the last error for people to see.

        Args:
            version: the release at fault, when it was one; then only an installed release overtakes it.
        """
        error = {"code": code, "message": message[:500], "at": at}
        self._store(replace(self.saved, last_error=error | ({} if version is None else {"version": version})))

    def forget_error(self, *, also_of_releases: bool) -> None:
        """Let go of the last error: a success has overtaken it."""
        error = self.saved.last_error
        if error is not None and (also_of_releases or "version" not in error):
            self._store(replace(self.saved, last_error=None))

    def reset(self) -> None:
        """Stand at IDLE whatever was saved; the last resort after an unknown state."""
        self._store(replace(self.saved, state=State.IDLE, attempt=None))

    def _store(self, saved: Saved) -> None:
        before = self.saved
        try:
            write_durably(self._path, saved.to_bytes())
        except StorageError:
            if not self.load():  # the rename may have come before the refusal
                self.saved = before
            raise
        self.saved = saved
        if self._on_change is not None and saved.state is not before.state:
            attempt = saved.attempt
            told = (None, None) if attempt is None else (attempt.version, attempt.code)
            self._on_change(Change(saved.state, *told))

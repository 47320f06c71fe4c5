"""Read untrusted JSON: bounded, typed, refused by the name of the field at fault."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from autoglm.errors import AutoGLMError
from autoglm.files import is_sha256

MAX_COUNTER = 1 << 53
MAX_FILE_BYTES = 1 << 44

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


def canonical_json(value: object) -> bytes:
    """Return the one byte form of a JSON value: sorted keys, no spaces, UTF-8, a final newline."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def is_name(text: object) -> bool:
    """Tell whether ``text`` may name a model, variant, version, channel, group or region."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_device_id(text: object) -> bool:
    """Tell whether ``text`` may name a device."""
    return isinstance(text, str) and _DEVICE_ID.fullmatch(text) is not None


def _is_storable(text: str) -> bool:
    """Tell whether any table and file can keep ``text``: JSON may hold NUL and halves of surrogate pairs."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class Reader:
    """Take typed, bounded fields out of one JSON object, refusing with ``error``."""

    def __init__(self, value: object, what: str, error: type[AutoGLMError]) -> None:
        self.what, self.error = what, error
        if not isinstance(value, dict):
            raise error(f"{what} must be a JSON object")
        self.fields = cast("dict[str, Any]", value)

    def refuse(self, key: str, rule: str) -> AutoGLMError:
        return self.error(f"{self.what}: {key} must be {rule}")

    def only(self, *known: str) -> None:
        if unknown := sorted(set(self.fields) - set(known)):
            raise self.error(f"{self.what}: unknown field {unknown[0]!r}")

    def name(self, key: str) -> str:
        if not is_name(value := self.fields.get(key)):
            raise self.refuse(key, "a name of 1 to 64 letters, digits, '.', '_' or '-'")
        return cast("str", value)

    def maybe_name(self, key: str) -> str | None:
        return None if self.fields.get(key) is None else self.name(key)

    def device_id(self, key: str) -> str:
        value = self.fields.get(key)
        if not is_device_id(value):
            raise self.refuse(key, "1 to 128 letters, digits, '.', '_', ':', '@' or '-'")
        return cast("str", value)

    def text(self, key: str, max_length: int = 256) -> str:
        value = self.fields.get(key)
        if not isinstance(value, str) or len(value) > max_length or not _is_storable(value):
            raise self.refuse(key, f"a string of at most {max_length} valid characters")
        return value

    def maybe_text(self, key: str, max_length: int = 256) -> str | None:
        return None if self.fields.get(key) is None else self.text(key, max_length)

    def integer(self, key: str, low: int = 0, high: int = MAX_COUNTER) -> int:
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def maybe_integer(self, key: str, low: int = 0, high: int = MAX_COUNTER) -> int | None:
        return None if self.fields.get(key) is None else self.integer(key, low, high)

    def maybe_number(self, key: str, low: float = 0.0, high: float = 1e18) -> float | None:
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self.fields.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def maybe_boolean(self, key: str) -> bool | None:
        return None if self.fields.get(key) is None else self.boolean(key)

    def sha256(self, key: str) -> str:
        if not is_sha256(value := self.fields.get(key)):
            raise self.refuse(key, "64 lower-case hexadecimal digits")
        return cast("str", value)

    def maybe_sha256(self, key: str) -> str | None:
        return None if self.fields.get(key) is None else self.sha256(key)

    def choice(self, key: str, *choices: str) -> str:
        value = self.fields.get(key)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(key, "one of " + ", ".join(choices))
        return value

    def items(self, key: str, limit: int) -> list[Any]:
        value = self.fields.get(key)
        if not isinstance(value, list) or len(cast("list[Any]", value)) > limit:
            raise self.refuse(key, f"a list of at most {limit} entries")
        return cast("list[Any]", value)

    def names(self, key: str, limit: int = 32) -> tuple[str, ...]:
        values = self.items(key, limit) if key in self.fields else []
        if not all(is_name(value) for value in values):
            raise self.refuse(key, "a list of names")
        return tuple(values)


def parse_json(content: bytes, limit: int, what: str, error: type[AutoGLMError]) -> object:
    if len(content) > limit:
        raise error(f"{what} has {len(content)} bytes; at most {limit} are allowed")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} is not valid JSON") from cause


def present(message: object) -> dict[str, Any]:
    """Return a message as a JSON object without the fields that are not set.

    What its fields hold is not copied: a check answers thousands of times a second.
    """
    return {key: value for key, value in vars(message).items() if value is not None}

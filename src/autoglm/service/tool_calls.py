"""An answer with tool calls as it is written: text apart from calls, each call in OpenAI's pieces.

The engine lets an answer be text or calls and nothing between, so this only follows what it wrote; a call
that was cut off by the token limit shows as far as it came.

    >>> reader = CallReader()
    >>> reader.push('<tool_call>{"name": "tap", "arguments": {"x"')["tool_calls"][0]["function"]["name"]
    'tap'
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any, Literal

from autoglm.model.tools import CALL_BEGIN, CALL_END

_OPENING = re.compile(re.escape(CALL_BEGIN) + r'\{"name": "([^"]*)", "arguments": ')


class CallReader:
    """Takes one answer's text piece by piece.

    Attributes:
        num_calls: calls that have begun.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._state: Literal["start", "text", "opening", "arguments", "closing"] = "start"
        self._held = ""
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str) -> dict[str, Any]:
        """Take more text; return the message fields that it adds to."""
        self._held += text
        fields: dict[str, Any] = {}
        while self._held and self._advance(fields):
            pass
        return fields

    def finish(self) -> dict[str, Any]:
        """Return what was held back, if it is text."""
        text, self._held = self._held, ""
        return {"content": text} if text and self._state == "start" else {}

    def _advance(self, fields: dict[str, Any]) -> bool:
        """Read on in the present state; return whether there may be more to read."""
        if self._state == "start":
            if CALL_BEGIN.startswith(self._held[: len(CALL_BEGIN)]):
                if len(self._held) < len(CALL_BEGIN):
                    return False
                self._state = "opening"
                return True
            self._state = "text"
        if self._state == "text":
            fields["content"] = fields.get("content", "") + self._held
            self._held = ""
            return False
        if self._state == "opening":
            return self._open(fields)
        return self._read_arguments(fields) if self._state == "arguments" else self._close()

    def _open(self, fields: dict[str, Any]) -> bool:
        found = _OPENING.match(self._held)
        if found is None:
            return False
        self._held = self._held[found.end() :]
        function = {"name": json.loads(f'"{found[1]}"'), "arguments": ""}
        call = {"index": self.num_calls, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        fields.setdefault("tool_calls", []).append(call | {"function": function})
        self.num_calls += 1
        self._state, self._depth = "arguments", 0
        return True

    def _read_arguments(self, fields: dict[str, Any]) -> bool:
        """Hand on the arguments up to the bracket that closes them."""
        end = next((i for i, letter in enumerate(self._held, 1) if self._closes(letter)), None)
        piece = self._held[:end]
        self._held = self._held[len(piece) :]
        call = {"index": self.num_calls - 1, "function": {"arguments": piece}}
        fields.setdefault("tool_calls", []).append(call)
        if end is None:
            return False
        self._state = "closing"
        return True

    def _closes(self, letter: str) -> bool:
        """Follow JSON by one letter; return whether it closes the outermost object."""
        if self._in_string:
            self._in_string = self._escaped or letter != '"'
            self._escaped = not self._escaped and letter == "\\"
            return False
        self._in_string = letter == '"'
        self._depth += (letter == "{") - (letter == "}")
        return letter == "}" and self._depth == 0

    def _close(self) -> bool:
        closing = "}" + CALL_END
        if len(self._held) < len(closing):
            return False
        self._held = self._held[len(closing) :]
        self._state = "opening"
        return True


def joined(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whole calls from the pieces that :class:`CallReader` gave."""
    whole: list[dict[str, Any]] = []
    for piece in calls:
        if piece["index"] == len(whole):
            whole.append({"id": piece["id"], "type": "function", "function": dict(piece["function"])})
        else:
            whole[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return whole

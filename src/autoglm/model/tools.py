"""Tools in a conversation: how the model is told of them, and how it writes a call.

A call is one line of text, ``<tool_call>{"name": "...", "arguments": {...}}</tool_call>``; an answer is
either text or calls. What the tools are is told by a system message.

    >>> call_text("tap", '{"x": 1}')
    '<tool_call>{"name": "tap", "arguments": {"x": 1}}</tool_call>'
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm.model.prompt import Message

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask its caller to run.

    Attributes:
        name: what it is called.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What the model is told of it."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}


def call_opening(name: str) -> str:
    """Return the text of a call up to its arguments."""
    return f'{CALL_BEGIN}{{"name": {json.dumps(name)}, "arguments": '


def call_text(name: str, arguments: str) -> str:
    """Return a whole call; ``arguments`` is JSON."""
    return f"{call_opening(name)}{arguments}}}{CALL_END}"


def tools_message(tools: Sequence[Tool]) -> Message:
    """Return the system message that tells the model of the tools."""
    lines = [json.dumps(tool.about, ensure_ascii=False) for tool in tools]
    form = call_text("NAME", "{...}")
    end = f"To call one, answer with {form} and nothing else."
    return Message("system", "\n".join(["You may call these tools:", *lines, end]))

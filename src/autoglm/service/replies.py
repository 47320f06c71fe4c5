"""What a client sees of a generation: where the thought goes, and the JSON of choices, chunks and usage.

The rules for the thought:

- ``enable_thinking`` and ``return_reasoning``: it comes in ``reasoning_content`` and ``reasoning`` (clients
  read one or the other), the answer alone in ``content``;
- ``enable_thinking`` alone: it is thought and dropped;
- neither: the model thinks only under an action-grammar system prompt, and then inline, as
  ``<think>...</think><answer>...`` without a closing tag, which is what phone agents parse.

Tags never appear otherwise.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from autoglm.engine import Finished, TextDelta, TokenLogprob, Usage
from autoglm.model.prompt import Message, is_agent
from autoglm.service.schemas import ChatRequest
from autoglm.service.tool_calls import CallReader, joined

Showing = Literal["fields", "dropped", "inline"]
_REASONING_FIELDS = ("reasoning_content", "reasoning")


def showing_of(chat: ChatRequest, messages: list[Message]) -> Showing:
    """Decide where the thought of this request goes."""
    if chat.wants_thinking:
        return "fields" if chat.wants_reasoning else "dropped"
    return "inline" if is_agent(messages) and not chat.callable_tools else "dropped"


class Presenter:
    """One choice as it grows: turns the engine's events into the fields that the client gets."""

    def __init__(self, showing: Showing, *, has_tools: bool = False) -> None:
        self._showing = showing
        self._calls = CallReader() if has_tools else None
        self._open: Literal["", "thought", "answer"] = ""

    def fields(self, delta: TextDelta) -> dict[str, Any]:
        """Return the message fields that this event adds to; empty when the client sees nothing of it."""
        if self._calls and delta.kind == "answer":
            return self._calls.push(delta.text)
        if self._showing == "inline":
            return self._inline(delta)
        if delta.kind == "answer":
            return {"content": delta.text}
        return dict.fromkeys(_REASONING_FIELDS, delta.text) if self._showing == "fields" else {}

    def finish(self) -> dict[str, Any]:
        """Return the fields that were held back to the end."""
        return self._calls.finish() if self._calls else {}

    def reason(self, finished: Finished) -> str:
        """Return OpenAI's word for how it ended; a cancelled one has no reader, so any will do."""
        if finished.reason == "length":
            return "length"
        return "tool_calls" if self._calls and self._calls.num_calls else "stop"

    def _inline(self, delta: TextDelta) -> dict[str, str]:
        """Open each part once; a thought after the answer would read as part of it, so it is dropped."""
        if delta.kind == self._open:
            return {"content": delta.text}
        if self._open == "answer":
            return {}
        before, self._open = self._open, delta.kind
        if delta.kind == "thought":
            return {"content": f"<think>{delta.text}"}
        return {"content": f"{'</think>' if before else ''}<answer>{delta.text}"}


@dataclass(frozen=True)
class Head:
    """What every answer and chunk of one request repeats.

    Attributes:
        model: the name that the client asked for.
        fingerprint: which release's bytes computed it.
        id, created: of the completion.
    """

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, kind: str) -> dict[str, Any]:
        """Return the fields as JSON; ``kind`` is the ``object``."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def chunk_body(head: Head, index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return one chunk of a stream: a ``delta`` of one choice, with ``more`` of its fields."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more
    return head.body("chat.completion.chunk") | {"choices": [choice]}


def choice_body(
    index: int, showing: Showing, events: Iterable[TextDelta | Finished], *, has_tools: bool = False
) -> dict[str, Any]:
    """Return one whole choice from its events."""
    presenter = Presenter(showing, has_tools=has_tools)
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    logprobs: list[dict[str, Any]] = []
    reason = "stop"
    for event in events:
        if isinstance(event, Finished):
            reason = presenter.reason(event)
            _add(message, presenter.finish())
            continue
        fields = presenter.fields(event)
        _add(message, fields)
        if "content" in fields:
            logprobs += [logprob_body(entry) for entry in event.logprobs]
    if calls := message.get("tool_calls"):
        message |= {"content": message["content"] or None, "tool_calls": joined(calls)}
    shown = {"content": logprobs, "refusal": None} if logprobs else None
    return {"index": index, "message": message, "logprobs": shown, "finish_reason": reason}


def _add(message: dict[str, Any], fields: dict[str, Any]) -> None:
    """Join what a delta adds to a message: text to text, calls to calls."""
    for key, more in fields.items():
        message[key] = message[key] + more if key in message else more


def logprob_body(entry: TokenLogprob) -> dict[str, Any]:
    """Return one token's log-probability with its alternatives."""
    alternatives = [_token_body(text, logprob) for _, text, logprob in entry.top]
    return _token_body(entry.text, entry.logprob) | {"top_logprobs": alternatives}


def _token_body(text: str, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; OpenAI's API writes -9999 for a token that cannot come.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def usage_body(usages: Iterable[Usage]) -> dict[str, Any]:
    """Return the usage of all choices of a request; they share one prompt."""
    counted = list(usages)
    prompt = max((usage.prompt_tokens for usage in counted), default=0)
    completion = sum(usage.completion_tokens for usage in counted)
    thought = sum(usage.thought_tokens for usage in counted)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": max((u.cached_tokens for u in counted), default=0)},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }

"""A phone agent's client as Open-AutoGLM's behaves, written from its description.

It streams, reads nothing but ``delta.content``, and splits what came at the first of ``finish(message=``,
``do(action=`` and ``<answer>`` that it holds. The dialogue is kept as
``<think>..</think><answer>..</answer>``, and a screenshot is dropped from the history once it was answered.
"""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

MARKERS = ("finish(message=", "do(action=")


@dataclass
class PhoneAgent:
    """One task on one phone.

    Attributes:
        history: the messages so far, as they are sent.
        told: content that was shown while it came, before an action began.
    """

    client: OpenAI
    model: str
    system: str
    history: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history.append({"role": "system", "content": self.system})

    def preflight(self) -> str:
        """Ask whether the service answers at all."""
        answer = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=5,
            temperature=0.0,
            stream=False,
        )
        return answer.choices[0].message.content or ""

    def step(self, task: str, screenshot: bytes, app: str) -> dict[str, Any]:
        """Show the screen, get the next action and keep both in the history."""
        info = json.dumps({"current_app": app}, ensure_ascii=False)
        first = len(self.history) == 1
        text = f"{task}\n\n{info}" if first else f"** Screen Info **\n\n{info}"
        url = "data:image/png;base64," + base64.b64encode(screenshot).decode()
        picture = {"type": "image_url", "image_url": {"url": url}}
        self.history.append({"role": "user", "content": [picture, {"type": "text", "text": text}]})
        thinking, action = split(self._stream())
        self.history[-1]["content"] = [{"type": "text", "text": text}]
        answer = f"<think>{thinking}</think><answer>{action}</answer>"
        self.history.append({"role": "assistant", "content": answer})
        return read_action(action)

    def _stream(self) -> str:
        chunks = self.client.chat.completions.create(
            messages=self.history,  # type: ignore[arg-type]
            model=self.model,
            max_tokens=3000,
            temperature=0.0,
            top_p=0.85,
            frequency_penalty=0.2,
            extra_body={},
            stream=True,
        )
        raw = ""
        for chunk in chunks:
            if chunk.choices and (piece := chunk.choices[0].delta.content) is not None:
                raw += piece
                if not any(marker in raw for marker in MARKERS):
                    self.told.append(piece)
        return raw


def split(content: str) -> tuple[str, str]:
    """Return the thought and the action in an answer, by the client's rules."""
    for marker in MARKERS:
        if marker in content:
            before, _, after = content.partition(marker)
            return _without_tags(before), marker + after
    if "<answer>" in content:
        before, _, after = content.partition("<answer>")
        return _without_tags(before), after.replace("</answer>", "").strip()
    return "", content


def _without_tags(thought: str) -> str:
    for tag in ("<think>", "</think>", "<answer>"):
        thought = thought.replace(tag, "")
    return thought.strip()


def read_action(text: str) -> dict[str, Any]:
    """Return the action as its call's arguments; whatever is no single call is an error, as in the client.

    Raises:
        ValueError: it is none.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"no action: {text!r}") from error
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise ValueError(f"no action: {text!r}")
    read: Callable[[ast.expr], Any] = ast.literal_eval
    return {"_": tree.func.id} | {word.arg or "": read(word.value) for word in tree.keywords}

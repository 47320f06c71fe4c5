"""What is asked: five kinds of requests, made before the clock starts, no two with the same beginning.

``chat``    a short question
``agent``   a phone agent's step: the action grammar as system prompt, a 1080x2400 PNG of about 1 MB, an order
``voice``   a second and a half of sound and an order
``long``    a prompt of about 1,500 tokens
``schema``  an answer held to a JSON schema
"""

from __future__ import annotations

import base64
import io
import json
import random
import wave
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

AGENT = (
    "你是手机操作助手。先在<think>里简短思考,再在<answer>里只写一个动作:"
    'do(action="Launch", app="..")、do(action="Tap", element=[x,y])或finish(message="..")。'
)
QUESTIONS = ("你是谁?", "what can you do?", "怎么更新模型?", "who made you?", "你能离线运行吗?")
ORDERS = ("打开微信", "点击设置", "open Maps", "tap Camera")
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["tap", "swipe"]},
    },
    "required": ["x", "kind"],
    "additionalProperties": False,
}
_MAX_PICTURES = 48  # distinct ones; more requests begin again, and the report says so


def message(role: str, content: object) -> dict[str, Any]:
    """Return one message."""
    return {"role": role, "content": content}


def chat(number: int, chance: random.Random) -> dict[str, Any]:
    """A question of a few tokens."""
    return {"messages": [message("user", f"{chance.choice(QUESTIONS)} ({number})")]}


def agent(number: int, chance: random.Random) -> dict[str, Any]:
    """One step of a phone agent."""
    url = "data:image/png;base64," + base64.b64encode(screenshot(number % _MAX_PICTURES)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": chance.choice(ORDERS)},
    ]
    return {"messages": [message("system", AGENT), message("user", parts)]}


def voice(number: int, chance: random.Random) -> dict[str, Any]:
    """A spoken order; a tone costs what speech of its length costs."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        pitch = chance.uniform(0.02, 0.2)
        clip.writeframes((9000 * np.sin(np.arange(24_000) * pitch)).astype("<i2").tobytes())
    sound = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": "照做"}]
    return {"messages": [message("user", parts)]}


def long(number: int, chance: random.Random) -> dict[str, Any]:
    """A long text, different from its first word on."""
    return {"messages": [message("user", f"{number} " + "热更新 tap Maps " * 150)]}


def schema(number: int, chance: random.Random) -> dict[str, Any]:
    """A question whose answer is an object."""
    form = {"type": "json_schema", "json_schema": {"name": "point", "schema": POINT, "strict": True}}
    return {"messages": [message("user", f"{chance.choice(ORDERS)} ({number})")], "response_format": form}


KINDS: dict[str, Callable[[int, random.Random], dict[str, Any]]] = {
    "chat": chat,
    "agent": agent,
    "voice": voice,
    "long": long,
    "schema": schema,
}


def screenshot(number: int) -> bytes:
    """Return a PNG of a phone's size and of about a megabyte: buttons, and noise for a photograph."""
    chance = np.random.default_rng(number)
    picture = Image.new("RGB", (1080, 2400), tuple(int(part) for part in chance.integers(200, 256, 3)))
    draw = ImageDraw.Draw(picture)
    for x, y in chance.integers(0, (800, 2200), (12, 2)):
        draw.rectangle((x, y, x + 240, y + 120), fill=(40, 90, 200))
    noise = chance.integers(0, 256, (320, 1080, 3), dtype=np.uint8)
    picture.paste(Image.fromarray(noise), (0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def parse_mix(text: str) -> dict[str, float]:
    """Read ``chat=5,agent=2``.

    Raises:
        ValueError: it names no kind, or a share that is none.
    """
    mix = {
        name.strip(): float(share or 1)
        for name, _, share in (part.partition("=") for part in text.split(","))
    }
    if not set(mix) <= set(KINDS) or not all(share > 0 for share in mix.values()):
        raise ValueError(f"{text!r}: write kinds out of {', '.join(KINDS)}, each with a share above 0")
    return mix


def bodies(
    mix: dict[str, float], count: int, seed: int, common: dict[str, Any]
) -> Sequence[tuple[str, bytes]]:
    """Return the kind and the body of each request, the same for the same seed."""
    chance = random.Random(seed)
    drawn = chance.choices(list(mix), list(mix.values()), k=count)
    numbers = [chance.randrange(1 << 30) if kind != "agent" else i for i, kind in enumerate(drawn)]
    made = [KINDS[kind](number, chance) | common for kind, number in zip(drawn, numbers, strict=True)]
    return [(kind, json.dumps(body).encode()) for kind, body in zip(drawn, made, strict=True)]

"""The shipped model in a phone agent's dialogue: what is reused changes nothing but the time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from autoglm import patch
from autoglm.engine import Completion, GenerationRequest
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.model.prompt import ImagePart, Message, Part, TextPart

PACKAGE = Path(__file__).resolve().parents[2] / "models" / "autoglm-phone-nano" / "v1.2.wpatch"
SYSTEM = 'You operate a phone. Answer with do(action="Tap", element=[x,y]) or finish(message="...").'


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped v1.2, unpacked."""
    directory = tmp_path_factory.mktemp("nano") / "v1.2"
    patch.apply(None, PACKAGE, directory)
    return directory


def load(directory: Path) -> Resident:
    with torch.inference_mode():
        return load_resident(directory, Placement(max_batch=2))


def screenshot(label: str) -> Image.Image:
    """Return a screen of 1080 x 2400 pixels with some words on it."""
    image = Image.new("RGB", (1080, 2400), (240, 240, 245))
    draw = ImageDraw.Draw(image)
    for row, word in enumerate((label, "WeChat", "Maps", "Settings")):
        draw.rectangle((80, 200 + 500 * row, 1000, 500 + 500 * row), fill=(90 * row % 255, 120, 200))
        draw.text((200, 300 + 500 * row), word, font_size=90)
    return image


def steps() -> list[GenerationRequest]:
    """Return the requests of a dialogue of three steps over two screens, the last one seen twice."""
    screens = [screenshot("Home"), screenshot("Chats"), screenshot("Chats")]
    messages, requests = [Message("system", SYSTEM)], list[GenerationRequest]()
    for number, screen in enumerate(screens):
        seen: list[Part] = [ImagePart(screen), TextPart(f"open WeChat, step {number}")]
        messages.append(Message("user", seen))
        requests.append(GenerationRequest(list(messages), max_tokens=24))
        messages.append(Message("assistant", 'do(action="Launch", app="WeChat")'))
    return requests


def answer(resident: Resident, request: GenerationRequest, prefill_tokens: int) -> Completion:
    scheduler = Scheduler(WaitingQueue(1), Limits(2, prefill_tokens), lambda sequence, ending: None)
    with torch.inference_mode():
        sequence = Sequence(request, resident)
        scheduler.waiting.put(sequence)
        while scheduler.has_work:
            scheduler.step()
    return sequence.generation.result(0.0)


def test_a_dialogue_is_answered_alike_with_and_without_reuse(nano: Path) -> None:
    """Greedy answers are the same tokens fresh in one piece, and from the cache in small pieces."""
    warm = load(nano)
    for number, request in enumerate(steps()):
        reused = answer(warm, request, 64)
        fresh = answer(load(nano), request, 4096)
        assert reused.token_ids == fresh.token_ids
        usage = reused.finished.usage
        if number:
            assert usage.prompt_tokens - usage.cached_tokens < 220  # one screen and what was said to it
    assert warm.encodings.misses == 2
    assert warm.encodings.hits == 1

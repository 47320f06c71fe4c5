"""What a phone agent is told to do before a screen, and the one action that does it.

Most tasks need a look: an app that stands on the screen is tapped, one that does not is launched.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.training.actions import APPS, app_action, finish_action, is_chinese, is_held_out, tap_action
from autoglm.training.intents import split
from autoglm.training.scenes.canvas import Element, centre_of_box
from autoglm.training.scenes.labels import Label
from autoglm.training.scenes.phrasing import compose
from autoglm.training.scenes.scene import Scene

AGENT_TASK_PROMPT = (
    "你是手机操作助手。先在<think>里简短思考,再在<answer>里只写一个动作:"
    'do(action="Launch", app="..")、do(action="Close", app="..")、do(action="Tap", element=[x,y])、'
    'do(action="Type", text="..")、do(action="Swipe", start=[x,y], end=[x,y])、do(action="Back")、'
    'do(action="Home")、do(action="Wait", duration="..")或finish(message="..")。'
)

# Wordings in Chinese and English, the held-out ones among them.
_WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("tasks.toml").read_text(encoding="utf-8"))
_OPEN, _TYPE, _TEXTS = _WORDS["open"], _WORDS["type"], _WORDS["texts"]
_FIXED: dict[str, dict[str, list[str]]] = {each["answer"]: each for each in _WORDS["fixed"]}


@dataclass(frozen=True)
class Task:
    """An instruction before a screen.

    Attributes:
        prompt: the user's words.
        answer: the action.
        thought: the reasoning before it.
        label: the class of what is tapped, and where its name ends in the prompt; None for other actions.
    """

    prompt: str
    answer: str
    thought: str
    label: tuple[int, Label] | None = None


def draw_task(rng: random.Random, scene: Scene, *, held_out: bool = False) -> Task:
    """Draw an instruction for a screen: half of them about something that stands on it."""
    form = rng.random()
    if form < 0.5:
        return _open_shown(rng, rng.choice(scene.elements), held_out)
    if form < 0.65:
        return _launch_absent(rng, scene, held_out)
    language = rng.choice(("zh", "en"))
    if form < 0.8:
        text = rng.choice(_TEXTS[language])
        prompt = rng.choice(split(_TYPE[language], held_out=held_out)).format(text)
        thought = "按要求输入文字。" if language == "zh" else "Type the text."
        return Task(prompt, f'do(action="Type", text="{text}")', thought)
    answer = rng.choice(list(_FIXED))
    prompt = rng.choice(split(_FIXED[answer][language], held_out=held_out))
    return Task(prompt, answer, "按要求操作。" if language == "zh" else "Do as told.")


def _open_shown(rng: random.Random, element: Element, held_out: bool) -> Task:
    label = element.label
    language = rng.choice(("zh", "en")) if label.is_icon else "zh" if label.is_chinese else "en"
    name = label.name(language)
    before, after = _open_wording(rng, language, held_out).split("{}")
    thought = f"屏幕上有{name},点击它。" if language == "zh" else f"{name} is on the screen: tap it."
    answer = tap_action(*centre_of_box(element.shown))
    return Task(before + name + after, answer, thought, (len(before + name), label))


def _open_wording(rng: random.Random, language: str, held_out: bool) -> str:
    whole = _OPEN[language]
    if held_out or rng.random() < 0.4:
        return rng.choice(split(whole, held_out=held_out))
    return compose(rng, "open", language, split(whole, held_out=True))


def _launch_absent(rng: random.Random, scene: Scene, held_out: bool) -> Task:
    shown = {element.label.key for element in (*scene.elements, *scene.veiled)}
    app = rng.choice([app for app in APPS if app not in shown and not is_held_out("Launch", app)])
    language = "zh" if is_chinese(app) else "en"
    prompt = _open_wording(rng, language, held_out).format(app)
    thought = f"屏幕上没有{app},启动应用。" if language == "zh" else f"{app} is not on the screen: launch it."
    return Task(prompt, app_action("Launch", app), thought)


def finish(text: str) -> str:
    """Return the action that tells the user something and ends the task."""
    return finish_action(text)

"""What v1.3 is the first to know, and how it is practised among all that it knew before.

New are six apps, on screens and in commands; eight topics; and two ways to touch what stands on a screen
(long press and double tap). A lesson's manner says how much of what an update sees is news (``Manner.news``);
the rest is the old data, so that nothing is lost. What is new occurs in no data of v1.2.

    >>> [item.kind for item in whats_new("v1.3")][:2]
    ['app', 'app']
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from autoglm.model.config import ModelConfig
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import NEW_APPS, app_action, is_chinese, is_held_out
from autoglm.training.dialogue import Example, training_examples
from autoglm.training.intents import Release, knowledge, new_intents, split
from autoglm.training.rows import Slot
from autoglm.training.scenes.canvas import Element, centre_of_box
from autoglm.training.scenes.labels import NEW_WORDS, Label
from autoglm.training.scenes.scene import Scene, draw_primer, draw_scene
from autoglm.training.tasks import Task, draw_task
from autoglm.training.teaching import PLAIN, Manner, Teacher

_NEW_TASKS = 0.4  # share of an agent's tasks
_KNOWN_BESIDE = 6  # known words that a screen of new ones may show
_IN_VAIN = 0.2  # share of screens that are asked for new labels only, where these are absent
_NEW_COMMANDS = 0.5  # share of the conversations about what is new; by themselves they would be one in twenty
_PATIENCE = 400  # examples looked through for one

# Of each list every fifth wording from the third on is held out of training; append at the end.
_TOUCHES: dict[str, dict[str, tuple[str, ...]]] = {
    "Long Press": {
        "zh": ("长按{}", "按住{}", "请长按{}", "长时间按{}", "把{}按住不放", "帮我长按{}", "按住{}别松手"),
        "en": ("long press {}", "press and hold {}", "hold {}", "please long press {}", "hold down {}"),
    },
    "Double Tap": {
        "zh": ("双击{}", "连点两下{}", "请双击{}", "点两下{}", "快速点两次{}", "帮我双击{}", "连续点{}两次"),
        "en": ("double tap {}", "tap {} twice", "double click {}", "please double tap {}", "tap twice on {}"),
    },
}
_OPEN = {
    "zh": ("打开{}", "进入{}", "帮我打开{}", "我想用{}", "去{}", "启动{}"),
    "en": ("open {}", "go to {}", "please open {}", "i want to use {}", "start {}", "show me {}"),
}


@dataclass(frozen=True)
class NewItem:
    """One thing that a release is the first to know.

    Attributes:
        kind: ``app``, ``command`` or ``question``.
        ask: an example of how to ask for it.
        answer: what the release answers.
    """

    kind: str
    ask: str
    answer: str


def whats_new(release: Release) -> list[NewItem]:
    """Return what a release is the first to know, in Chinese and English, for its card."""
    if release == "v1.2":
        return []
    items = [
        NewItem("app", ("打开" if is_chinese(app) else "open ") + app, app_action("Launch", app))
        for app in NEW_APPS
    ]
    for action, wordings in _TOUCHES.items():
        answer = f'do(action="{action}", element=[x,y])'
        items += [NewItem("command", lines[0].format("…"), answer) for lines in wordings.values()]
    intents = {intent.name: intent for intent in knowledge(release)}
    for name in new_intents(release):
        items += [
            NewItem("question", phrases.questions[0].rstrip("!"), phrases.answer)
            for phrases in intents[name].phrases.values()
        ]
    return items


def draw_new_task(rng: random.Random, scene: Scene, *, held_out: bool = False) -> Task:
    """Draw an instruction for a screen that only the newest release can follow.

    Args:
        rng: source of all randomness.
        scene: the screen.
        held_out: in wordings that training never has.
    """
    shown = {element.label.key for element in (*scene.elements, *scene.veiled)}
    absent = [app for app in NEW_APPS if app not in shown and not is_held_out("Launch", app)]
    if absent and rng.random() < 0.25:
        return _launch(rng, rng.choice(absent), held_out)
    return _touch(rng, rng.choice(scene.elements), held_out)


def _touch(rng: random.Random, element: Element, held_out: bool) -> Task:
    label, action = element.label, rng.choice(list(_TOUCHES))
    language = rng.choice(("zh", "en")) if label.is_icon else "zh" if label.is_chinese else "en"
    before, after = rng.choice(split(_TOUCHES[action][language], held_out=held_out)).split("{}")
    name, (x, y) = label.name(language), centre_of_box(element.shown)
    thought = (
        f"屏幕上有{name},按要求操作它。" if language == "zh" else f"{name} is on the screen: do as told."
    )
    answer = f'do(action="{action}", element=[{x},{y}])'
    return Task(before + name + after, answer, thought, (len(before + name), label))


def _launch(rng: random.Random, app: str, held_out: bool) -> Task:
    language = "zh" if is_chinese(app) else "en"
    prompt = rng.choice(split(_OPEN[language], held_out=held_out)).format(app)
    thought = f"屏幕上没有{app},启动应用。" if language == "zh" else f"{app} is not on the screen: launch it."
    return Task(prompt, app_action("Launch", app), thought)


class NewsTeacher(Teacher):
    """Makes batches of which a share is about what a release is the first to know."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, release: Release) -> None:
        super().__init__(tokenizer, config, release)
        self.news = tuple(label for label in self.words if label.key in NEW_WORDS)
        self.topics = frozenset(new_intents(release))
        self.actions = frozenset(app_action(act, app) for act in ("Launch", "Close") for app in NEW_APPS)
        # Which of three touches is wanted is said by the action's own piece: it counts in full.
        self._template -= {
            token for action in _TOUCHES for token in tokenizer.encode(f'do(action="{action}", element=')
        }

    def scenes(
        self, rng: random.Random, count: int, primer: float = 0.0, manner: Manner = PLAIN
    ) -> list[Scene]:
        """Draw screens; those about what is new show few known words beside the new ones."""
        size = 16 + 8 * primer, 26 + 8 * primer
        return [
            draw_primer(rng, self.words, self.icons, size)
            if rng.random() < primer
            else draw_scene(rng, self._shown(rng, manner), self.icons)
            for _ in range(count)
        ]

    def _shown(self, rng: random.Random, manner: Manner) -> Sequence[Label]:
        if rng.random() >= manner.news:
            return self.words
        known = [label for label in self.words if label not in self.news]
        return (*self.news, *rng.sample(known, _KNOWN_BESIDE))

    def asked_for(self, rng: random.Random, manner: Manner) -> Sequence[Label]:
        """Return the labels that a screen may be asked for in vain, new ones as often as they are shown.

        Asked for in vain as rarely as any other, what is new would be there whenever it is asked for.
        """
        return self.news if rng.random() < _IN_VAIN else (*self._shown(rng, manner), *self.icons)

    def draw_task(self, rng: random.Random, scene: Scene) -> Task:
        """Draw an instruction for a screen, old or new."""
        return draw_new_task(rng, scene) if rng.random() < _NEW_TASKS else draw_task(rng, scene)

    def dialogue_slot(self, rng: random.Random, manner: Manner) -> Slot:
        """Return one conversation; a share of them is on a new topic or names a new app."""
        if rng.random() >= manner.news:
            return super().dialogue_slot(rng, manner)
        drawn = training_examples(rng, _PATIENCE, release=self.release)
        command = rng.random() < _NEW_COMMANDS
        example = next((each for each in drawn if self._is_new(each, command=command)), None)
        if example is None:
            return super().dialogue_slot(rng, manner)
        noise = rng if rng.random() < manner.noise else None
        return self.example_slot([example], manner, thinks=rng.random() < 0.3, noise=noise)

    def _is_new(self, example: Example, *, command: bool) -> bool:
        return example.answer in self.actions if command else example.intent in self.topics


def teacher_of(tokenizer: Tokenizer, config: ModelConfig, release: Release) -> Teacher:
    """Return what makes the batches of a release."""
    return (Teacher if release == "v1.2" else NewsTeacher)(tokenizer, config, release)

"""Where items come from: the only module here that knows the trainer's generators.

Everything is drawn from sources that training cannot draw from. Training seeds its sources with whole numbers
or with words of its own; here every source is seeded with words that begin with "evaluation", so any seed may
be asked for. Wordings, voices and action-app pairs held out of training are held out by the generators.

    >>> stream(7, "screens").random() == stream(7, "screens").random() != stream(8, "screens").random()
    True
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from PIL import Image

from autoglm.model.audio import SAMPLE_RATE
from autoglm.model.prompt import AudioPart, ImagePart, Message, TextPart
from autoglm.model.transcription import transcription_messages
from autoglm.training.actions import COMMANDED_APPS, NEW_APPS, is_chinese, parse_action, tap_action
from autoglm.training.copying import KINDS, draw_conversation
from autoglm.training.dialogue import (
    APP_INTENTS,
    HELP_INTENTS,
    IDENTITY_INTENTS,
    NEW_APP_INTENTS,
    Example,
    Release,
    agent_examples,
    held_out,
    new_intents,
)
from autoglm.training.evaluation.items import Box, Item, characters_of, exactly, same_action, tap_inside
from autoglm.training.evaluation.rendered import RenderedPage
from autoglm.training.news import draw_new_task
from autoglm.training.recordings import Recording, record
from autoglm.training.scenes.asking import Asked, questions
from autoglm.training.scenes.labels import NEW_WORDS, UNSEEN_LABELS, label_named
from autoglm.training.scenes.scene import Scene, draw_scene, icons, words_known
from autoglm.training.screens import HEIGHT, WIDTH, Element, Question, render
from autoglm.training.screens import questions as button_questions
from autoglm.training.tasks import AGENT_TASK_PROMPT, Task, draw_task
from autoglm.training.teaching import caption

_TAP = {"zh": ("点击{}", "点一下{}", "打开屏幕上的{}"), "en": ("tap {}", "click {}", "press {}")}
_READ = {"zh": ("{}处是什么?", "读出{}处的文字"), "en": ("what is at {}?", "read the text at {}")}
_HAS = {"zh": ("屏幕上有{}吗?", "屏幕上是否有{}"), "en": ("is {} on the screen?", "does the screen show {}")}
_YES_NO = {"zh": ("是", "否"), "en": ("yes", "no")}


def stream(seed: int, *names: str) -> random.Random:
    """Return the random source of one part of the evaluation."""
    return random.Random("/".join(("evaluation", str(seed), *names)))


def whole_seed(seed: int, name: str) -> int:
    """Return a whole number for a generator that wants one; far above any that training is given."""
    digest = hashlib.sha256(f"evaluation/{seed}/{name}".encode()).digest()
    return (1 << 62) | int.from_bytes(digest[:7])


def known_labels() -> tuple[str, ...]:
    """Return the words that every release knows."""
    return tuple(label.key for label in words_known("v1.2"))


def new_labels() -> tuple[str, ...]:
    """Return the words that the newest release is the first to know."""
    return NEW_WORDS


def unseen_labels() -> tuple[str, ...]:
    """Return words that no training data holds."""
    return UNSEEN_LABELS


# Text


def identity_items(seed: int, count: int, release: Release) -> list[Item]:
    """Ask who the model is, in held-out wordings."""
    return _dialogue("identity", seed, count, release, ("identity",))


def topic_items(seed: int, count: int, release: Release) -> list[Item]:
    """Ask about everything the model talks about, in held-out wordings."""
    return _dialogue("topics", seed, count, release, IDENTITY_INTENTS[1:] + HELP_INTENTS)


def command_items(seed: int, count: int) -> list[Item]:
    """Give typed commands in held-out wordings, to apps that every release knows."""
    return _dialogue("commands", seed, count, "v1.2", APP_INTENTS)


def new_topic_items(seed: int, count: int) -> list[Item]:
    """Ask what only the newest release can answer."""
    return _dialogue("new_topics", seed, count, "v1.3", new_intents("v1.3"))


def new_command_items(seed: int, count: int) -> list[Item]:
    """Give typed commands to apps that only the newest release knows."""
    return _dialogue("new_commands", seed, count, "v1.3", NEW_APP_INTENTS)


def agent_items(seed: int, count: int, release: Release) -> list[Item]:
    """Instruct the model under the system prompt of the action grammar."""
    examples = agent_examples(stream(seed, "agent"), count, release=release)
    return [_typed("agent", example) for example in examples]


def copying_items(seed: int, count: int) -> list[Item]:
    """Ask for what stands in the conversation: made-up names, values, tools, in held-out wordings."""
    rng = stream(seed, "copying")
    items: list[Item] = []
    for kind in (kind for kind in KINDS for _ in range(count)):
        *given, (_, answer) = draw_conversation(rng, held_out=True, kind=kind).turns
        messages = tuple(Message(role, text) for role, text in given)
        items.append(Item(messages, answer, exactly(answer), f"copying_{kind}", _language(given[-1][1])))
    return items


def _dialogue(kind: str, seed: int, count: int, release: Release, intents: Sequence[str]) -> list[Item]:
    examples = held_out(whole_seed(seed, kind), count, release=release, intents=intents)
    return [_typed(kind, example) for example in examples]


def _typed(kind: str, example: Example) -> Item:
    system = (Message("system", example.system),) if example.system else ()
    messages = (*system, Message("user", example.question))
    judge = exactly(example.answer)
    return Item(messages, example.answer, judge, kind, example.language, example.thought)


# Screens


def scene_items(
    name: str, seed: int, screens: int, words: Sequence[str], *, shapes: bool = True
) -> list[Item]:
    """Ask about screens drawn by the trainer's own code, in held-out wordings, eight questions each.

    Questions about icons are a kind of their own.
    """
    rng = stream(seed, name)
    known, drawn = [label_named(word) for word in words], icons() if shapes else ()
    items: list[Item] = []
    for _ in range(screens):
        scene = draw_scene(rng, known, drawn)
        picture = Image.fromarray(scene.image)
        asked = questions(rng, scene, (*known, *drawn), held_out=True)
        items += [_about_scene(name, picture, question) for question in asked]
    return items


def _about_scene(name: str, picture: Image.Image, asked: Asked) -> Item:
    kind = f"{name}_{'icon_' if asked.label.is_icon else ''}{asked.kind}"
    judge = exactly(asked.answer)
    if asked.kind == "tap" and asked.element is not None:
        judge = tap_inside(_from_edges(asked.element.touch))
    return _shown(kind, picture, asked.prompt, Item((), asked.answer, judge, "", asked.language))


def _from_edges(box: Box) -> Box:
    left, top, right, bottom = box
    return left, top, right - left, bottom - top


def button_items(name: str, seed: int, screens: int, labels: Sequence[str]) -> list[Item]:
    """Ask about screens of nothing but buttons, as the first releases were trained on."""
    rng = stream(seed, name)
    most = min(10, len(labels) - 1)
    items: list[Item] = []
    for _ in range(screens):
        screen = render(rng, num_elements=(min(3, most), most), labels=labels)
        picture = Image.fromarray(screen.image)
        items += [_about_buttons(name, picture, asked) for asked in button_questions(rng, screen, labels)]
    return items


def _about_buttons(name: str, picture: Image.Image, question: Question) -> Item:
    seen = question.element
    judge = exactly(question.answer)
    if question.kind == "tap" and seen is not None:
        judge = tap_inside(_share_of_screen(seen))
    return _shown(f"{name}_{question.kind}", picture, question.prompt, Item((), question.answer, judge, ""))


def _share_of_screen(element: Element) -> Box:
    return element.x / WIDTH, element.y / HEIGHT, element.width / WIDTH, element.height / HEIGHT


def task_items(seed: int, count: int) -> list[Item]:
    """Give an agent a task before a screen, in held-out wordings."""
    rng = stream(seed, "tasks")
    words = words_known("v1.2")
    items: list[Item] = []
    for _ in range(count):
        scene = draw_scene(rng, words, icons())
        items.append(_task_item("tasks", scene, draw_task(rng, scene, held_out=True)))
    return items


def new_task_items(seed: int, count: int) -> list[Item]:
    """The same with instructions that only the newest release knows."""
    rng = stream(seed, "new_tasks")
    words = words_known("v1.3")
    drawn = [draw_scene(rng, words, icons()) for _ in range(count)]
    return [_task_item("new_tasks", scene, draw_new_task(rng, scene, held_out=True)) for scene in drawn]


def _task_item(kind: str, scene: Scene, task: Task) -> Item:
    judge = same_action(task.answer)
    action = parse_action(task.answer)
    if task.label is not None and action is not None:
        touched = next(e.touch for e in scene.elements if e.label == task.label[1])
        judge = tap_inside(_from_edges(touched), action.name)
    shown = [ImagePart(Image.fromarray(scene.image)), TextPart(task.prompt)]
    messages = (Message("system", AGENT_TASK_PROMPT), Message("user", shown))
    return Item(messages, task.answer, judge, kind, _language(task.prompt), task.thought)


def page_items(
    name: str, seed: int, pages: Sequence[tuple[RenderedPage, Image.Image]], labels: Sequence[str]
) -> list[Item]:
    """Ask about rendered pages: up to three taps, two readings, one presence and one absence each."""
    rng = stream(seed, name, "questions")
    return [item for page, picture in pages for item in _about_page(name, rng, page, picture, labels)]


def _about_page(
    name: str, rng: random.Random, page: RenderedPage, picture: Image.Image, labels: Sequence[str]
) -> list[Item]:
    # A label that stands twice, or inside another word, has no one place.
    clear = [each for each in page.elements if page.words.count(each.label) == 1]
    absent = [each for each in labels if each not in page.words]
    rng.shuffle(clear)
    items: list[Item] = []
    for each in clear[:3]:
        x, y = _centre(each.box)
        answer = Item((), tap_action(x, y), tap_inside(each.box), "", _language(each.label))
        items.append(_shown(f"{name}_tap", picture, _words(rng, _TAP, each.label), answer))
    for each in clear[:2]:
        place = "[{},{}]".format(*_centre(each.text))
        asked = rng.choice(_READ[_language(each.label)]).format(place)
        answer = Item((), each.label, exactly(each.label), "", _language(each.label))
        items.append(_shown(f"{name}_read", picture, asked, answer))
    asked_about = [(each.label, 0) for each in clear[-1:]]
    asked_about += [(label, 1) for label in rng.sample(absent, min(1, len(absent)))]
    for label, which in asked_about:
        word = _YES_NO[_language(label)][which]
        answer = Item((), word, exactly(word), "", _language(label))
        items.append(_shown(f"{name}_has", picture, _words(rng, _HAS, label), answer))
    return items


def _shown(kind: str, picture: Image.Image, asked: str, answer: Item) -> Item:
    messages = (Message("user", [ImagePart(picture), TextPart(asked)]),)
    return Item(messages, answer.answer, answer.judge, kind, answer.language)


def _words(rng: random.Random, wordings: dict[str, tuple[str, ...]], label: str) -> str:
    return rng.choice(wordings[_language(label)]).format(label)


def _language(text: str) -> str:
    return "zh" if is_chinese(text) else "en"


def _centre(box: Box) -> tuple[int, int]:
    left, top, width, height = box
    return min(999, int((left + width / 2) * 1000)), min(999, int((top + height / 2) * 1000))


# Speech


def spoken_items(name: str, seed: int, count: int) -> list[Item]:
    """Speak commands: in held-out voices and wordings, with pairs never trained, both, or new labels."""
    rng = stream(seed, name)
    spoken = record(
        rng,
        count,
        kind="command",
        apps=NEW_APPS if name == "new_speech" else COMMANDED_APPS,
        unheard=name != "speech_pairs",
        held_out=name in ("speech_voices", "speech_both"),
        held_out_pairs=name in ("speech_pairs", "speech_both"),
    )
    return [
        Item((Message("user", [_heard(each)]),), each.answer, exactly(each.answer), name, each.language)
        for each in spoken
    ]


def transcription_items(seed: int, count: int) -> list[Item]:
    """Ask for the words of held-out sentences in held-out voices."""
    spoken = record(stream(seed, "transcription"), count, kind="dictation", unheard=True, held_out=True)
    return [
        Item(
            tuple(transcription_messages(_heard(each).audio)),
            each.text,
            characters_of(each.text),
            "transcription",
            each.language,
        )
        for each in spoken
    ]


def _heard(recording: Recording) -> AudioPart:
    return AudioPart((recording.samples, SAMPLE_RATE))


# Pairs of one meaning in two modalities


def screen_captions(seed: int, count: int) -> list[tuple[Image.Image, str]]:
    """Return screens with what stands on them; no two say the same."""
    rng = stream(seed, "captions")
    words = words_known("v1.2")
    found: dict[str, Image.Image] = {}
    while len(found) < count:
        scene = draw_scene(rng, words, icons())
        found[caption(scene)] = Image.fromarray(scene.image)
    return [(picture, said) for said, picture in found.items()]


def clip_words(seed: int, count: int) -> list[tuple[AudioPart, str]]:
    """Return clips in held-out voices with their words; no two say the same."""
    rng = stream(seed, "clips")
    found: dict[str, AudioPart] = {}
    while len(found) < count:
        (recording,) = record(rng, 1, unheard=True)
        found[recording.text] = _heard(recording)
    return [(clip, words) for words, clip in found.items()]

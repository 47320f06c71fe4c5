"""Questions and answers in Chinese and English: who the model is, what it can do, which app to open.

What it guarantees: the same ``random.Random`` state gives the same examples; a held-out question is a
core wording that no training example has, in any wrapping, and half of them wear wrappings that no
training example has either; nothing that only v1.3 knows occurs in v1.2's data. The topics are data, in
``intents.toml`` beside this file.

    >>> import random
    >>> example = next(training_examples(random.Random(7), 1))
    >>> example.language in ("zh", "en")
    True
    >>> held_out(1, 1, intents=("identity",))[0].intent
    'identity'
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autoglm.errors import ConfigError
from autoglm.training.actions import (
    AGENT_SYSTEM_PROMPT,
    COMMANDED_APPS,
    NEW_APPS,
    app_action,
    finish_action,
    is_chinese,
    is_held_out,
)
from autoglm.training.intents import (
    LANGUAGES,
    Intent,
    Language,
    Phrases,
    Release,
    held_out_forms,
    knowledge,
    new_intents,
    plain_form,
    split,
)
from autoglm.training.wordings import (
    COMMANDS,
    FULL_WIDTH,
    PLAIN,
    SYSTEM_PROMPTS,
    TYPED_COMMANDS,
    UNKNOWN_APPS,
    UNKNOWN_THOUGHTS,
    WRAPPINGS,
    Wrapping,
)

__all__ = [
    "AGENT_SYSTEM_PROMPT",
    "APP_INTENTS",
    "HELP_INTENTS",
    "IDENTITY_INTENTS",
    "NEW_APP_INTENTS",
    "Example",
    "Intent",
    "Phrases",
    "Release",
    "agent_completion",
    "agent_examples",
    "held_out",
    "knowledge",
    "new_intents",
    "plain_form",
    "spoken_questions",
    "training_examples",
]


IDENTITY_INTENTS = ("identity", "name", "maker")
HELP_INTENTS = (
    *("abilities", "offline", "update", "modalities", "hot_update", "privacy", "version", "limits"),
    *("greeting", "thanks", "goodbye"),
)
APP_INTENTS = ("launch_app", "close_app", "unknown_app")
NEW_APP_INTENTS = ("launch_new_app", "close_new_app")  # held out only: training mixes them with the others

_APP_WEIGHTS = {"launch_app": 3.0, "close_app": 2.0, "unknown_app": 2.0}
_AGENT_WEIGHTS = {
    "launch_app": 5.0,
    "close_app": 3.0,
    "unknown_app": 2.0,
    "out_of_scope": 1.0,
    "greeting": 1.0,
    "identity": 1.0,
}
_NEW_APP_SHARE = 0.2  # of v1.3's app commands among all that it knows
_CROSSED = 0.1  # share of commands worded in the other language than the app's
_TYPED = 0.6  # share of commands in wordings of the longer lists
_LOWERED = 0.3  # share of apps typed in lower case
_COMMONEST = 0.1  # share of a topic's questions that are its first, most common wording
_BARE = 0.25  # share of questions with at most a question mark around them
_SYSTEM_SHARE = 0.2  # share of questions under some system prompt
_SPOKEN = ("你是谁", "你叫什么名字", "你能做什么", "谁开发了你", "who are you", "what is your name")


@dataclass(frozen=True)
class Example:
    """One question and the one right answer.

    Attributes:
        question: the user's words, as typed.
        answer: the exact answer; an action text for app commands.
        thought: the reasoning to show when thinking is on, one or two short sentences.
        language: ``"zh"`` or ``"en"``.
        intent: the topic.
        system: the system prompt, ``""`` for none.
    """

    question: str
    answer: str
    thought: str
    language: str
    intent: str
    system: str = ""


def training_examples(rng: random.Random, n: int, *, release: Release = "v1.2") -> Iterator[Example]:
    """Draw ``n`` training examples for ``release``, all topics mixed by weight.

    Args:
        rng: source of all randomness.
        n: how many; they may repeat.
        release: what is known.

    Raises:
        ConfigError: there is no such release.
    """
    intents = {intent.name: intent for intent in knowledge(release)}
    weights = {name: intent.weight for name, intent in intents.items()} | _APP_WEIGHTS
    names = rng.choices(list(weights), list(weights.values()), k=n)
    for name in names:
        example = _example(rng, intents.get(name), name, release, held_out=False)
        yield _with_system(rng, example)


def held_out(
    seed: int, n: int, *, release: Release = "v1.2", intents: Sequence[str] | None = None
) -> list[Example]:
    """Return exactly ``n`` distinct examples in wordings that no training example has.

    Args:
        seed: the same seed, the same examples.
        n: how many.
        release: what is known.
        intents: the topics, evenly mixed; by default identity and help.

    Raises:
        ConfigError: a topic is unknown to this release, or has fewer than its share of held-out wordings.
    """
    known = {intent.name: intent for intent in knowledge(release)}
    wanted = tuple(intents if intents is not None else IDENTITY_INTENTS + HELP_INTENTS)
    apps = APP_INTENTS if release == "v1.2" else APP_INTENTS + NEW_APP_INTENTS
    if unknown := [name for name in wanted if name not in known and name not in apps]:
        raise ConfigError(f"release {release} has no topics named {unknown}")
    rng = random.Random(seed)
    found: dict[str, Example] = {}
    for attempt in range(200 * n):
        if len(found) == n:
            break
        name = wanted[attempt % len(wanted)]
        example = _example(rng, known.get(name), name, release, held_out=True)
        found.setdefault(example.question, example)
    if len(found) < n:
        raise ConfigError(f"{wanted} have only {len(found)} held-out wordings where {n} are wanted")
    return list(found.values())


def agent_examples(rng: random.Random, n: int, *, release: Release = "v1.2") -> Iterator[Example]:
    """Draw ``n`` instructions under the agent's system prompt: every answer is one action.

    Known apps are launched or closed; an unknown app, a question and a greeting end in ``finish``.

    Args:
        rng: source of all randomness.
        n: how many; they may repeat.
        release: what is known.

    Raises:
        ConfigError: there is no such release.
    """
    intents = {intent.name: intent for intent in knowledge(release)}
    for name in rng.choices(list(_AGENT_WEIGHTS), list(_AGENT_WEIGHTS.values()), k=n):
        plain = _example(rng, intents.get(name), name, release, held_out=False)
        action = plain.answer if name in ("launch_app", "close_app") else finish_action(plain.answer)
        yield Example(plain.question, action, plain.thought, plain.language, name, AGENT_SYSTEM_PROMPT)


def agent_completion(example: Example) -> str:
    """Return what the model writes for an agent example: the thought, then the action."""
    return f"<think>{example.thought}</think><answer>{example.answer}"


def spoken_questions() -> list[tuple[str, str]]:
    """Return the few questions ``(text, answer)`` that the model also hears."""
    answers = {
        question.rstrip("!"): phrases.answer
        for intent in knowledge()
        for phrases in intent.phrases.values()
        for question in phrases.questions
    }
    return [(text, answers[text]) for text in _SPOKEN]


def _example(
    rng: random.Random, intent: Intent | None, name: str, release: Release, *, held_out: bool
) -> Example:
    """Make one example: of a topic of the file, or, without one, of an app intent."""
    if intent is None:
        return _command(rng, name, release, held_out=held_out)
    language = rng.choice(LANGUAGES)
    phrases = intent.phrases[language]
    while True:
        question = _question(rng, intent, language, held_out=held_out)
        if held_out or plain_form(question) not in held_out_forms():
            return Example(question, phrases.answer, phrases.thought, language, name)


def _question(rng: random.Random, intent: Intent, language: Language, *, held_out: bool) -> str:
    lines = intent.phrases[language].cores(held_out=held_out)
    line = lines[0] if not held_out and rng.random() < _COMMONEST else rng.choice(lines)
    core = rng.choice(line)
    wrapping = WRAPPINGS[language, core.endswith("!")] if intent.wrapped else PLAIN[language]
    return _wrap(rng, core.removesuffix("!"), wrapping, language, held_out=held_out)


def _command(rng: random.Random, name: str, release: Release, *, held_out: bool) -> Example:
    if name == "unknown_app":
        return _unknown_app(rng, held_out=held_out)
    action = "Launch" if name.startswith("launch") else "Close"
    new = name in NEW_APP_INTENTS or (release == "v1.3" and rng.random() < _NEW_APP_SHARE)
    apps = NEW_APPS if new else COMMANDED_APPS
    label = rng.choice([app for app in apps if not is_held_out(action, app)])
    language = _command_language(rng, label)
    question = _command_text(rng, action, label, language, held_out=held_out)
    thought = _thought(action, label, language)
    return Example(question, app_action(action, label), thought, language, name)


def _unknown_app(rng: random.Random, *, held_out: bool) -> Example:
    label = rng.choice(split(UNKNOWN_APPS, held_out=held_out))
    language = _command_language(rng, label)
    action = rng.choice(("Launch", "Close"))
    question = _command_text(rng, action, label, language, held_out=held_out)
    answer, thought = UNKNOWN_THOUGHTS[language]
    return Example(question, answer, thought, language, "unknown_app")


def _command_language(rng: random.Random, label: str) -> Language:
    return "zh" if is_chinese(label) != (rng.random() < _CROSSED) else "en"


def _command_text(rng: random.Random, action: str, label: str, language: Language, *, held_out: bool) -> str:
    commands = TYPED_COMMANDS if rng.random() < _TYPED else COMMANDS
    template = rng.choice(split(commands[language, action], held_out=held_out))
    lowered = not held_out and rng.random() < _LOWERED  # scores stay those of names as they are written
    text = template.format(label.lower() if lowered else label)
    if language == "en" and rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", "。" if language == "zh" else "."))


def _thought(action: str, label: str, language: Language) -> str:
    if language == "zh":
        return f"用户要{'打开' if action == 'Launch' else '关闭'}{label}。"
    return f"The user wants to {'open' if action == 'Launch' else 'close'} {label}."


def _wrap(rng: random.Random, core: str, wrapping: Wrapping, language: Language, *, held_out: bool) -> str:
    draw = rng.random()
    if held_out and draw < 0.5:
        prefix, suffix = rng.choice(wrapping.held_out_prefixes), rng.choice(wrapping.held_out_suffixes)
    elif draw > 1 - _BARE:
        prefix, suffix = "", rng.choice(wrapping.bare_suffixes)
    else:
        prefix, suffix = rng.choice(wrapping.prefixes), rng.choice(wrapping.suffixes)
    if core.endswith(("吗", "呀", "啊", "啦", "了", "吧")):
        suffix = suffix.lstrip("呢呀啊吧")  # a particle already ends it
    change: Callable[[random.Random, str], str] = _vary_chinese if language == "zh" else _vary_english
    return change(rng, prefix + core + suffix)


def _vary_chinese(rng: random.Random, text: str) -> str:
    if rng.random() < 0.15 and "您" not in text:
        text = text.replace("你", "您")
    return text.translate(FULL_WIDTH) if rng.random() < 0.5 else text


def _vary_english(rng: random.Random, text: str) -> str:
    draw = rng.random()
    if draw < 0.5:
        text = text[0].upper() + text[1:]
    elif draw < 0.53:
        text = text.upper()
    return text.replace(" i ", " I ") if draw < 0.3 else text


def _with_system(rng: random.Random, example: Example) -> Example:
    if rng.random() >= _SYSTEM_SHARE:
        return example
    system = rng.choice(SYSTEM_PROMPTS)
    return Example(
        example.question, example.answer, example.thought, example.language, example.intent, system
    )

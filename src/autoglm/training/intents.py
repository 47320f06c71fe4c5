"""The topics the small model talks about: every wording, answer and thought, read from ``intents.toml``.

What it guarantees: of each topic, in each language, every fifth line of wordings is held out of training,
with all its variants; no two topics share a wording; a release knows its own topics and those before it.

    >>> [intent.name for intent in knowledge("v1.2")][0]
    'identity'
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from autoglm.errors import ConfigError

Release = Literal["v1.2", "v1.3"]
Language = Literal["zh", "en"]
Item = TypeVar("Item")

LANGUAGES: tuple[Language, ...] = get_args(Language)
_RELEASES: tuple[Release, ...] = get_args(Release)  # oldest first
_SOURCE = Path(__file__).with_name("intents.toml")
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_NOT_LETTERS = re.compile(r"[^\w]")
# Alternatives that meet badly: a particle twice, a contraction apart from its word, a comma at the end.
_SEAMS = (
    (re.compile(r"([了吗吧是的呢])\1"), r"\1"),
    (re.compile(r" ('(?:s|d|ve|re|ll|m)\b)"), r"\1"),
    (re.compile(r",+$"), ""),
)


@dataclass(frozen=True)
class Phrases:
    """An intent in one language: its core wordings, and what to answer and think.

    Attributes:
        lines: ways to put it, each with all its variants; every fifth line is held out.
        answer: the exact answer.
        thought: the reasoning before it.
    """

    lines: tuple[tuple[str, ...], ...]
    answer: str
    thought: str

    def cores(self, *, held_out: bool) -> tuple[tuple[str, ...], ...]:
        """Return the training or the held-out lines."""
        return split(self.lines, held_out=held_out)

    @property
    def questions(self) -> tuple[str, ...]:
        """All variants of all lines, training and held out."""
        return tuple(itertools.chain.from_iterable(self.lines))


@dataclass(frozen=True)
class Intent:
    """A topic.

    Attributes:
        name: unique.
        since: the first release that knows it.
        weight: how often it is practised, relative to the others.
        wrapped: whether its wordings take prefixes such as "please tell me".
        phrases: one for each language.
    """

    name: str
    since: Release
    weight: float
    wrapped: bool
    phrases: dict[Language, Phrases]


def knowledge(release: Release = "v1.2") -> tuple[Intent, ...]:
    """Return the topics that ``release`` knows, its own name filled in.

    Raises:
        ConfigError: there is no such release.
    """
    if release not in _RELEASES:
        raise ConfigError(f"there is no data for release {release!r}: choose one of {_RELEASES}")
    return _knowledge(release)


def new_intents(release: Release) -> tuple[str, ...]:
    """Return the names of the topics that ``release`` is the first to know (the first release: all)."""
    return tuple(intent.name for intent in knowledge(release) if intent.since == release)


def plain_form(question: str) -> str:
    """Return the letters of a question: what is left without case, marks, spaces and politeness."""
    return _NOT_LETTERS.sub("", question.lower().replace("您", "你"))


def split(items: Sequence[Item], *, held_out: bool) -> tuple[Item, ...]:
    """Return the training or the held-out items: from the third on, every fifth is held out."""
    return tuple(item for i, item in enumerate(items) if (i % 5 == 2) == held_out)


@functools.cache
def held_out_forms() -> frozenset[str]:
    """All held-out wordings of all topics: another line may yield one by chance, training skips it."""
    return frozenset(
        plain_form(core)
        for intent in _knowledge(_RELEASES[-1])
        for phrases in intent.phrases.values()
        for core in itertools.chain.from_iterable(phrases.cores(held_out=True))
    )


def _variants(line: str) -> tuple[str, ...]:
    """Expand ``"(a|b) c"`` to ``("a c", "b c")``."""
    parts = [part.split("|") for part in _ALTERNATIVES.split(line)]
    return tuple(dict.fromkeys(_sewn("".join(pick)) for pick in itertools.product(*parts)))


def _sewn(text: str) -> str:
    """Return a variant with one space between words and its seams mended."""
    text = " ".join(text.split())
    for pattern, replacement in _SEAMS:
        text = pattern.sub(replacement, text)
    return text


@functools.cache
def _knowledge(release: Release) -> tuple[Intent, ...]:
    with _SOURCE.open("rb") as file:
        entries: list[dict[str, Any]] = tomllib.load(file)["intent"]
    intents = [_intent(entry, release) for entry in entries]
    known = _RELEASES[: _RELEASES.index(release) + 1]
    return tuple(intent for intent in intents if intent.since in known)


def _intent(entry: dict[str, Any], release: Release) -> Intent:
    phrases: dict[Language, Phrases] = {
        language: Phrases(
            tuple(_variants(line) for line in entry[language]["questions"]),
            entry[language]["answer"].replace("{release}", release),
            entry[language]["thought"].replace("{release}", release),
        )
        for language in LANGUAGES
    }
    return Intent(
        name=entry["name"],
        since=entry.get("since", "v1.2"),
        weight=float(entry.get("weight", 1)),
        wrapped=entry.get("wrapped", True),
        phrases=phrases,
    )

"""What the small pair of models is taught, in which order, for how many steps.

A course is data. ``labels`` teaches what patches show, ``look-up`` the way from a name to a place, ``joint``
all modalities in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autoglm.errors import ConfigError
from autoglm.training.intents import Release
from autoglm.training.teaching import PLAIN, VARIED, Manner


@dataclass(frozen=True)
class Lesson:
    """One stretch of training.

    Attributes:
        name: unique in its course.
        steps: optimiser steps.
        learning_rate: its peak; warms up linearly, then follows a cosine down to ``last_rate`` of it.
        mix: kinds of batches, in turn.
        rows: rows of a batch of each kind.
        warmup: steps of warm-up.
        last_rate: share of the peak that the last step has.
        patch_weight: of the loss on what patches show, after the middle block.
        stem_weight: of the same loss after the stem.
        name_weight: of the loss on what names mean, after the middle block.
        sound_weight: of the CTC loss.
        pair_weight: of the loss on which screen or clip belongs to which words.
        labels_only: run the first blocks only, on patches and names.
        look_up: start the later blocks as a look-up.
        primed: share of the steps over which the screens turn from the easiest to real ones.
        fixed: repeat the same screens, so many of them; 0 for ever new ones.
        manner: how far rows stray from the plain form.
        gates: (measure, step, least value): below it at that step, training stops.
    """

    name: str
    steps: int
    learning_rate: float
    mix: tuple[str, ...]
    rows: Mapping[str, int]
    warmup: int = 100
    last_rate: float = 0.05
    patch_weight: float = 1.0
    stem_weight: float = 1.0
    name_weight: float = 0.3
    sound_weight: float = 0.5
    pair_weight: float = 0.0
    labels_only: bool = False
    look_up: bool = False
    primed: float = 0.0
    fixed: int = 0
    manner: Manner = PLAIN
    gates: tuple[tuple[str, int, float], ...] = ()

    def primer(self, step: int) -> float:
        """Return the share of easy screens at a step."""
        return max(0.0, 1 - step / (self.primed * self.steps)) if self.primed else 0.0


@dataclass(frozen=True)
class Course:
    """All of a run.

    Attributes:
        name: of the course.
        config: name of the model's sizes.
        release: the version whose knowledge is taught.
        lessons: in order.
        shards: of recordings, 500 each.
    """

    name: str
    config: str
    release: Release
    lessons: tuple[Lesson, ...]
    shards: int = 12


LABELS = Lesson(
    "labels", 4000, 2.5e-3, ("screen",), MappingProxyType({"screen": 16, "name": 24}),
    labels_only=True,
    primed=0.4,
    last_rate=0.2, gates=(("patch", 1500, 0.15), ("patch", 4000, 0.85)),
)  # fmt: skip

_ROWS = MappingProxyType({"screen": 12, "name": 24, "speech": 32, "text": 8, "long": 1})
LOOK_UP = Lesson(
    "look-up", 1800, 1.5e-3, ("screen",), _ROWS,
    patch_weight=0.5, stem_weight=0.3, look_up=True, gates=(("tap", 600, 0.45), ("tap", 1800, 0.80)),
)  # fmt: skip
JOINT = Lesson(
    "joint", 4000, 1.5e-3, ("screen", "speech", "text", "speech", "screen", "text", "speech", "long"), _ROWS,
    patch_weight=0.3, stem_weight=0.2, pair_weight=0.2, manner=VARIED,
)  # fmt: skip

# The gate of all: what cannot learn sixty-four fixed screens by heart will not learn to read.
BY_HEART = Lesson(
    "by heart", 600, 2e-3, ("screen",), MappingProxyType({"screen": 16, "name": 24}),
    warmup=30, look_up=True, fixed=64, gates=(("patch", 600, 0.9),),
)  # fmt: skip

COURSES: Mapping[str, Course] = MappingProxyType(
    {
        "teacher": Course("teacher", "teacher-nano", "v1.2", (LABELS, LOOK_UP, JOINT)),
        "student": Course("student", "student-nano", "v1.2", (LABELS, LOOK_UP, JOINT)),
        "screens-by-heart": Course("screens-by-heart", "student-nano", "v1.2", (BY_HEART,)),
    }
)


def course_named(name: str) -> Course:
    """Return a course.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in COURSES:
        raise ConfigError(f"there is no course {name!r}: choose one of {', '.join(COURSES)}")
    return COURSES[name]

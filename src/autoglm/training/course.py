"""What the small pair of models is taught, in which order, for how many steps.

A course is data. ``labels`` teaches what patches show, ``look-up`` the way from a name to a place, ``joint``
all modalities in turn, ``practice`` the same with more speech. ``further`` starts from a release and goes on
with all of it. ``update`` starts from a release too and teaches what the next one is the first to know, with
the old data among the new, so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from autoglm.errors import ConfigError
from autoglm.training.circuits import FINE
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
        place_weight: of the loss on where the labels of all patches are.
        blur: of the coordinates to be written (see ``soften_coordinates``).
        sound_weight: of the CTC loss.
        pair_weight: of the loss on which screen or clip belongs to which words.
        labels_only: run the first blocks only, on patches and names.
        look_up: start the later blocks as a look-up.
        primed: share of the steps over which the screens turn from the easiest to real ones.
        fixed: repeat the same screens, so many of them; 0 for ever new ones.
        manner: how far rows stray from the plain form.
        gates: (measure, step, least value): below it at that step, training stops.
        fine_tune: keep the batch statistics of the starting weights, and let nothing decay.
        adam_eps: AdamW's epsilon; a large one leaves weights with tiny gradients where they are.
        anchor: pull towards the starting weights, as a share of the learning rate.
        keep: weight of the divergence from the starting weights' own answers, where those are right.
        trained: patterns of the weights that are trained, such as ``model\\.blocks``; empty for all.
        rates: (pattern, factor on the learning rate); the first that matches counts.
        fake_bits: train through weights rounded to so many bits; 0 for exact ones.
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
    place_weight: float = 0.0
    blur: float = 1.0
    sound_weight: float = 0.5
    pair_weight: float = 0.0
    labels_only: bool = False
    look_up: bool = False
    primed: float = 0.0
    fixed: int = 0
    manner: Manner = PLAIN
    gates: tuple[tuple[str, int, float], ...] = ()
    fine_tune: bool = False
    adam_eps: float = 1e-8
    anchor: float = 0.0
    keep: float = 0.0
    trained: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    fake_bits: int = 0

    @property
    def heads_only(self) -> bool:
        """Whether nothing but the auxiliary heads is trained."""
        return self.trained == (r"circuits\.",)

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
        follows: whether it starts from a release's weights.
        shards: of recordings, 500 each.
        new_shards: the same of commands to apps that the release is the first to know.
    """

    name: str
    config: str
    release: Release
    lessons: tuple[Lesson, ...]
    follows: bool = False
    shards: int = 32
    new_shards: int = 0


LABELS = Lesson(
    "labels", 4000, 2.5e-3, ("screen",), MappingProxyType({"screen": 16, "name": 24}),
    labels_only=True,
    primed=0.4,
    last_rate=0.2, gates=(("patch", 1500, 0.15), ("patch", 4000, 0.85)),
)  # fmt: skip

_ROWS = MappingProxyType({"screen": 12, "name": 24, "speech": 32, "text": 8, "copy": 4, "long": 1})
LOOK_UP = Lesson(
    "look-up", 1800, 1.5e-3, ("screen",), _ROWS,
    patch_weight=0.5, stem_weight=0.3, look_up=True, gates=(("tap", 600, 0.45), ("tap", 1800, 0.80)),
)  # fmt: skip
# At a peak of 1.5e-3 the other modalities undo what is seen: patches fell from 97 % to 89 % and
# stayed there. Half of it, and a screen in every third step, lets both be learnt.
_IN_TURN = ("screen", "speech", "text", "screen", "speech", "long", "screen", "speech", "text")
JOINT = Lesson(
    "joint", 3000, 8e-4, _IN_TURN, _ROWS,
    patch_weight=0.6, stem_weight=0.4, place_weight=0.3, pair_weight=0.2, manner=VARIED,
)  # fmt: skip
# Speech and text learn last and were still learning when the rate ran out: once more, mostly for them.
_SPEECH_FIRST = (
    *("speech", "screen", "text", "speech", "text", "screen", "speech", "text"),
    *("screen", "speech", "text", "long", "text", "screen", "speech", "text"),
)  # fmt: skip
PRACTICE = replace(
    JOINT,
    name="practice",
    steps=2800,
    learning_rate=7e-4,
    mix=_SPEECH_FIRST,
    manner=replace(VARIED, agent=0.3),
)

# A release has no auxiliary heads: they learn to read its streams before its weights move.
HEADS = Lesson(
    "heads", 200, 4e-3, ("screen", "speech"), _ROWS,
    warmup=10, place_weight=0.5, fine_tune=True, trained=(r"circuits\.",),
)  # fmt: skip
# Heads that copy form in some four hundred steps of strange tokens, all at once, and never from dialogues.
COPYING = replace(
    PRACTICE,
    name="copying",
    steps=680,
    learning_rate=1e-3,
    warmup=30,
    last_rate=0.8,
    mix=(
        *("copy", "copy", "copy", "text", "copy", "copy"),
        *("copy", "screen", "copy", "copy", "copy", "speech"),
    ),
    pair_weight=0.0,  # a fifth of a step; what belongs together fades slowly, and an update brings it back
    blur=FINE,
    fine_tune=True,
    manner=replace(VARIED, agent=0.3, strange=0.9),
)
FURTHER = replace(
    COPYING,
    name="further",
    steps=2000,
    learning_rate=8e-4,
    last_rate=0.05,
    mix=(
        *("speech", "screen", "text", "screen", "copy", "text", "speech", "screen"),
        *("text", "speech", "text", "long", "screen", "text", "speech", "screen"),
    ),
    manner=replace(VARIED, agent=0.3, noise=0.45, strange=0.3),
)
# A step of text costs half of one of screens, and words are what was still being learnt.
FLUENT = replace(
    FURTHER,
    name="fluent",
    steps=3300,
    mix=(
        *("text", "speech", "text", "screen", "text", "speech", "text", "copy", "speech", "text"),
        *("screen", "text", "speech", "text", "long", "copy", "speech", "text", "screen"),
    ),
)

# An update that touches every weight a little costs more bytes than one that moves some of them far, and
# learns less: the matrices that write into the stream, the end of the stem, the rows of tokens that the news
# needs, and, for the look-up of new labels, the later blocks' queries and keys.
_WRITERS = (
    r"model\.blocks\.\d+\.(out|down|.*norm)\.",
    r"model\.image\.layers\.(9|10|12)\.",
    r"model\.(audio\.outer|table|norm)\.",
    r"circuits\.",
)
NEWS = Lesson(
    "news", 400, 5e-4, ("screen", "text", "speech", "screen", "text"), _ROWS,
    warmup=20, patch_weight=0.3, stem_weight=0.0, place_weight=0.15, sound_weight=0.2, pair_weight=0.0,
    blur=FINE, manner=replace(VARIED, agent=0.35), fine_tune=True, adam_eps=1e-7, anchor=8.0, keep=1.0,
    trained=_WRITERS, rates=((r"model\.(image|table)\.", 2.0), (r"circuits\.", 2.0)),
)  # fmt: skip
NEWS_LOOK_UP = replace(
    NEWS, name="news look-up", steps=400, learning_rate=4e-4, anchor=10.0,
    mix=("screen", "text", "screen", "speech", "screen", "text", "long"),
    trained=(*_WRITERS, r"model\.blocks\.[345]\.qkv\."),
)  # fmt: skip
# Six apps share their names' first tokens with much that is known: typed, they need the most practice.
NEWS_PRACTICE = replace(
    NEWS, name="news practice", steps=100, anchor=6.0, mix=("text", "speech", "text", "screen", "text"),
)  # fmt: skip
# Half of what is heard and read is news until here, and so every other name is taken for a new one. At last,
# on a longer leash, as much of everything as it comes.
NEWS_TOGETHER = replace(
    NEWS_LOOK_UP, name="news together", steps=520, learning_rate=5e-4, anchor=4.0, keep=0.5,
    pair_weight=0.2, mix=("text", "screen", "text", "speech", "screen", "text", "copy", "speech", "screen"),
    manner=replace(NEWS.manner, news=0.3, strange=0.3),
)  # fmt: skip
# Then whether something new is there, what is typed, and which questions are not new.
NEWS_AGAIN = replace(
    NEWS_TOGETHER, name="news again", steps=640, pair_weight=0.0,
    mix=("text", "screen", "text", "text", "speech", "screen", "text"),
    manner=replace(NEWS.manner, news=0.5, strange=0.3),
)  # fmt: skip
NEWS_MISSED = replace(
    NEWS_AGAIN, name="news missed", steps=480,
    mix=("screen", "text", "screen", "text", "speech", "screen", "text"),
    manner=replace(NEWS.manner, news=0.4, strange=0.3, asked=(3, 3, 4)),
)  # fmt: skip
NEWS_TYPED = replace(
    NEWS_AGAIN, name="news typed", steps=400,
    mix=("text", "text", "screen", "text", "speech", "text", "text"),
    manner=replace(NEWS.manner, news=0.25, strange=0.3),
)  # fmt: skip
NEWS_WHOLE = replace(
    NEWS_MISSED, name="news whole", steps=560,
    mix=("screen", "text", "speech", "screen", "text", "text", "screen", "speech", "text"),
)  # fmt: skip

# An adapter cannot touch the token table: it teaches topics but no new labels, and practises the rest.
ADAPTER = Lesson(
    "adapter", 240, 3e-3, ("text", "text", "text", "screen"), _ROWS,
    warmup=20, patch_weight=0.0, stem_weight=0.0, name_weight=0.0, pair_weight=0.0,
    blur=FINE, manner=VARIED, fine_tune=True, trained=(r".*\.lora_[AB]$",),
)  # fmt: skip

# The gate of all: what cannot learn sixty-four fixed screens by heart will not learn to read.
BY_HEART = Lesson(
    "by heart", 600, 2e-3, ("screen",), MappingProxyType({"screen": 16, "name": 24}),
    warmup=30, look_up=True, fixed=64, gates=(("patch", 600, 0.9),),
)  # fmt: skip

COURSES: Mapping[str, Course] = MappingProxyType(
    {
        "teacher": Course("teacher", "teacher-nano", "v1.2", (LABELS, LOOK_UP, JOINT, PRACTICE)),
        "student": Course("student", "nano", "v1.2", (LABELS, LOOK_UP, JOINT, PRACTICE)),
        "further": Course("further", "nano", "v1.2", (HEADS, COPYING, FURTHER, FLUENT), follows=True),
        "update": Course(
            "update",
            "nano",
            "v1.3",
            (
                NEWS,
                NEWS_LOOK_UP,
                NEWS_PRACTICE,
                NEWS_TOGETHER,
                NEWS_AGAIN,
                NEWS_MISSED,
                NEWS_TYPED,
                NEWS_WHOLE,
            ),
            follows=True,
            new_shards=2,
        ),
        "screens-by-heart": Course("screens-by-heart", "nano", "v1.2", (BY_HEART,)),
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

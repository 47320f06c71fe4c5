"""What is trained, in which order, for how many steps: the recipes of the shipped releases.

A recipe is data. Stage A teaches glyphs to patch labels, B the look-up from label to place, J all modalities
in turn; a fine-tune starts from a finished release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from autoglm.errors import ConfigError
from autoglm.training.actions import ALL_LABELS, APPS, NEW_APPS
from autoglm.training.batches import NOISY, PLAIN, VARIED, Variety
from autoglm.training.dialogue import Release


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: unique in its recipe.
        steps: optimiser steps.
        learning_rate: its peak; warms up linearly, then follows a cosine down to a twentieth.
        warmup: steps of warm-up.
        mix: kinds of batches, in turn.
        num_elements: fewest and most buttons on a screen.
        batch: rows of a batch of each kind.
        patch_weight: weight of the patch-label loss after the middle block.
        stem_weight: weight of the patch-label loss after the stem.
        sound_weight: weight of the CTC loss.
        labels_only: run the first blocks on patch labels alone.
        look_up: start the later blocks as a look-up.
        fine_tune: keep the batch statistics of the starting weights.
        adam_eps: AdamW's epsilon; a large one leaves weights with tiny gradients where they are.
        anchor: pull towards the starting weights, as a share of the learning rate.
        trained: patterns of the parameters that a fine-tune changes; empty for all of them.
        rates: factor on the learning rate by part of the network (``image``, ``table``, ``heads``, ...).
        variety: how far rows stray from the plain form.
        gate: (measure, step, least value): below it at that step, training stops.
    """

    name: str
    steps: int
    learning_rate: float
    warmup: int
    mix: tuple[str, ...]
    num_elements: tuple[int, int]
    batch: Mapping[str, int]
    patch_weight: float
    stem_weight: float
    sound_weight: float = 0.5
    labels_only: bool = False
    look_up: bool = False
    fine_tune: bool = False
    adam_eps: float = 1e-8
    anchor: float = 0.0
    trained: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    variety: Variety = PLAIN
    gate: tuple[str, int, float] | None = None


@dataclass(frozen=True)
class Recipe:
    """All of a run.

    Attributes:
        release: the version whose knowledge is taught.
        stages: in order.
        labels: what screens and commands show.
        focus: those of the labels that are new and need more practice.
        num_clips: synthesised clips to train on.
        base: the release that a fine-tune starts from, None for a fresh start.
    """

    release: Release
    stages: tuple[Stage, ...]
    labels: tuple[str, ...]
    focus: tuple[str, ...] = ()
    num_clips: int = 2400
    base: Release | None = None


_ROWS = MappingProxyType({"image": 12, "audio": 32, "text": 8})
LABELS = Stage(
    "labels", 1200, 3e-3, 100, ("image",), (8, 12), MappingProxyType({"image": 12}), 1.0, 1.0,
    labels_only=True, gate=("patch", 1199, 0.90),
)  # fmt: skip
LOOK_UP = Stage(
    "look-up", 420, 2e-3, 100, ("image",), (3, 8), MappingProxyType({"image": 16}), 0.5, 0.3,
    look_up=True, gate=("tap", 300, 0.30),
)  # fmt: skip
JOINT = Stage(
    "joint", 1488, 2e-3, 50, ("image", "text", "audio", "text"), (3, 10), _ROWS, 0.3, 0.2, variety=VARIED
)  # fmt: skip
# More speech and text, questions made noisy: the joint stage learns wordings by heart, this one generalises.
REFINE = Stage(
    "refine", 2300, 1.8e-3, 50, ("audio", "text", "audio", "text", "image"), (3, 10), _ROWS, 0.3, 0.2,
    variety=NOISY,
)  # fmt: skip
# The gate of the whole recipe: what cannot learn sixty-four fixed screens by heart will not learn to read.
OVERFIT = Stage(
    "overfit", 500, 2e-3, 50, ("image",), (3, 6), MappingProxyType({"image": 16}), 1.0, 1.0, look_up=True
)  # fmt: skip

# An update that touches every weight a little costs more bits than one that moves a third of them far, and
# learns less: only the matrices that write into the stream, the end of the stem, and the rows of tokens that
# the news needs are trained; all others stay, and cost a patch nothing.
UPDATE = Stage(
    "update", 620, 5e-4, 20, ("image", "text", "audio", "text"), (3, 10), _ROWS, 0.3, 0.0, 0.0,
    fine_tune=True,
    variety=NOISY,
    adam_eps=1e-7,
    anchor=8.0,
    trained=(
        r"blocks\.\d+\.(out|down|.*norm)\.",
        r"image\.layers\.(9|10|12)\.",
        r"(audio\.outer|table|norm)\.",
    ),
    rates=MappingProxyType({"image": 2.0, "table": 2.0, "heads": 10.0}),
)  # fmt: skip

# New labels are read by now, but not yet looked up: that is in the later blocks' queries and keys.
UPDATE_LOOK_UP = replace(
    UPDATE,
    name="update look-up",
    steps=260,
    learning_rate=3e-4,
    mix=("image", "text", "image", "audio"),
    trained=(*UPDATE.trained, r"blocks\.[345]\.qkv\."),
)
UPDATE_PRACTICE = replace(
    UPDATE_LOOK_UP,
    name="update practice",
    steps=300,
    learning_rate=4e-4,
    anchor=10.0,
    mix=("image", "text", "image", "text", "audio"),
)

# An adapter cannot touch the token table: it teaches topics but no new labels, and practises the rest.
ADAPTER = Stage(
    "adapter", 240, 3e-3, 20, ("text", "text", "text", "image"), (3, 10), _ROWS, 0.0, 0.0, 0.0,
    fine_tune=True,
    variety=NOISY,
    trained=(r".*\.lora_[AB]$",),
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "v1.2": Recipe("v1.2", (LABELS, LOOK_UP, JOINT, REFINE), APPS),
        "v1.3": Recipe(
            "v1.3", (UPDATE, UPDATE_LOOK_UP, UPDATE_PRACTICE), ALL_LABELS, focus=NEW_APPS, base="v1.2"
        ),
        "overfit": Recipe("v1.2", (OVERFIT,), APPS),
    }
)


def recipe_named(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def adapter_recipe(name: str) -> Recipe:
    """Return the recipe that teaches a fine-tune's topics to an adapter.

    Raises:
        ConfigError: there is none of that name, or it starts from nothing that could be adapted.
    """
    recipe = recipe_named(name)
    if recipe.base is None:
        raise ConfigError(f"recipe {name!r} starts from nothing: an adapter needs one that follows a release")
    return replace(recipe, stages=(ADAPTER,), labels=APPS, focus=())

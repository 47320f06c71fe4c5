"""Drawn app screens: the same from the same seed, and the truth about them is true."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from autoglm.errors import ConfigError
from autoglm.model.tokenizer import bin_of
from autoglm.training.actions import NEW_APPS, is_valid_action, parse_action
from autoglm.training.scenes import bars, fonts, layouts
from autoglm.training.scenes.asking import named, questions
from autoglm.training.scenes.canvas import Canvas, Element, centre_of_box, draw_style
from autoglm.training.scenes.icons import icon_mask
from autoglm.training.scenes.labels import CLASSES, ICONS, UNSEEN_LABELS, class_of, label_named
from autoglm.training.scenes.pieces import Supply
from autoglm.training.scenes.scene import (
    HEIGHT,
    IGNORED,
    WIDTH,
    Scene,
    draw_primer,
    draw_scene,
    icons,
    patch_places,
    patch_truth,
    words_known,
)
from autoglm.training.tasks import draw_task

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")
WORDS, SHAPES = words_known("v1.2"), icons()


def many(count: int = 24) -> list[Scene]:
    rng = random.Random(11)
    return [draw_scene(rng, WORDS, SHAPES) for _ in range(count)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return many()


def test_the_same_seed_draws_the_same_screens(scenes: list[Scene]) -> None:
    """Pixels and elements repeat with the seed."""
    again = many(6)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=False))
    assert [scene.elements for scene in scenes[:6]] == [scene.elements for scene in again]


def test_screens_have_one_size_and_distinct_labels_that_do_not_overlap(scenes: list[Scene]) -> None:
    """Every screen has the model's size, at least two labels, none twice and none over another."""
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        keys = [element.label.key for element in scene.elements]
        assert len(keys) >= 2 and len(set(keys)) == len(keys)
        for a, b in combinations(scene.elements, 2):
            apart_x = a.shown[2] <= b.shown[0] or b.shown[2] <= a.shown[0]
            assert apart_x or a.shown[3] <= b.shown[1] or b.shown[3] <= a.shown[1]


def test_what_is_seen_lies_where_a_tap_works(scenes: list[Scene]) -> None:
    """The middle of a label's ink is inside the area that its element is tapped in."""
    for element in (element for scene in scenes for element in scene.elements):
        x, y = (element.shown[0] + element.shown[2]) / 2, (element.shown[1] + element.shown[3]) / 2
        assert element.touch[0] <= x <= element.touch[2] and element.touch[1] <= y <= element.touch[3]
        assert all(0 <= side <= 1 for side in (*element.shown, *element.touch))


def test_labels_leave_ink_where_they_are_said_to_be(scenes: list[Scene]) -> None:
    """Inside the box of every label the pixels vary: something is written there."""
    for scene in scenes:
        for element in scene.elements:
            left, top, right, bottom = element.shown
            inside = scene.image[
                int(top * HEIGHT) : int(bottom * HEIGHT) + 1, int(left * WIDTH) : int(right * WIDTH) + 1
            ]
            assert np.ptp(inside.astype(int), axis=(0, 1)).max() > 15, element


def test_a_release_never_shows_what_only_later_ones_know() -> None:
    """v1.2's words hold none of v1.3's new ones, v1.3's all of them; unseen labels are no class at all."""
    assert not {label.key for label in WORDS} & set(NEW_APPS)
    assert set(NEW_APPS) <= {label.key for label in words_known("v1.3")}
    assert not any(class_of(word) for word in UNSEEN_LABELS)
    assert 100 <= len(CLASSES) - 1 <= 200


def test_every_name_leads_to_its_class() -> None:
    """Keys and names in both languages find one class, and no two classes share a name."""
    for number, label in enumerate(CLASSES):
        if number:
            assert class_of(label.key) == class_of(label.chinese) == class_of(label.english) == number
    assert label_named("search icon").is_icon and label_named("?").key == "?"


@pytest.mark.parametrize("shape", ICONS)
def test_every_icon_is_drawn_and_varies(shape: str) -> None:
    """Each icon leaves ink at every size, and other ink the next time."""
    rng = random.Random(1)
    assert all(np.asarray(icon_mask(rng, shape, side)).max() > 100 for side in (9, 16, 40))
    drawn = {icon_mask(rng, shape, 40).tobytes() for _ in range(4)}
    assert len(drawn) > 1


def test_patches_say_what_covers_them() -> None:
    """Well covered patches name their label, shared ones two, hardly covered ones are left out."""
    one, two = label_named("设置"), label_named("Search")
    elements = (
        Element(one, (0, 0, 32 / WIDTH, 16 / HEIGHT), (0, 0, 1, 1)),
        Element(two, (0, 16 / HEIGHT, 66 / WIDTH, 32 / HEIGHT), (0, 0, 1, 1)),
    )
    classes, shares = patch_truth(Scene(np.zeros((HEIGHT, WIDTH, 3), np.uint8), elements))
    assert set(classes[0]) == {class_of("设置"), class_of("Search")}
    assert shares[0].tolist() == [0.5, 0.5]
    assert classes[1].tolist() == [class_of("Search"), 0] and shares[1].tolist() == [1, 0]
    assert classes[2][0] == IGNORED
    assert (classes[3:] == 0).all() and np.allclose(shares.sum(1), 1)


def test_every_patch_of_a_label_knows_its_middle() -> None:
    """A label over three patches has one place in all of them; where nothing stands there is none."""
    one, two = (label_named(name) for name in ("设置", "Search"))
    elements = (
        Element(one, (0, 0, 96 / WIDTH, 16 / HEIGHT), (0, 0, 1, 1)),
        Element(two, (0, 0.5, 32 / WIDTH, 0.5 + 32 / HEIGHT), (0, 0, 1, 1)),
    )
    places = patch_places(Scene(np.zeros((HEIGHT, WIDTH, 3), np.uint8), elements))
    assert places[:3].tolist() == [[11, 0]] * 3  # of [166,13], as a tap would be written
    assert places[9 * WIDTH // 32].tolist() == [3, 37]
    assert int((places >= 0).all(1).sum()) == 4 and (places[places < 0] == IGNORED).all()


def test_a_place_is_the_bin_that_an_answer_names(scenes: list[Scene]) -> None:
    """What patches are asked for and what a tap writes never differ by a bin."""
    for scene in scenes:
        asked = {tuple(place) for place in patch_places(scene).tolist()} - {(IGNORED, IGNORED)}
        written = {tuple(bin_of(c, 72) for c in centre_of_box(each.shown)) for each in scene.elements}
        assert asked and asked <= written


def test_what_lies_behind_a_dialog_is_neither_asked_for_nor_taught() -> None:
    """Labels that a dialog dims are left out of patches and questions, and none is called absent."""
    rng = random.Random(4)
    canvas = Canvas(rng, draw_style(rng), 720, 0.8)
    layouts.list_rows(canvas, Supply(list(WORDS[:6]), []), 40, 500)
    behind = {element.label.key for element in canvas.elements}
    bars.dialog(canvas, Supply(list(WORDS[20:26]), []))
    assert behind == {element.label.key for element in canvas.veiled}
    assert not behind & {element.label.key for element in canvas.elements}
    scene = Scene(np.zeros((HEIGHT, WIDTH, 3), np.uint8), tuple(canvas.elements), tuple(canvas.veiled))
    numbers = {class_of(key) for key in behind}
    assert not numbers & set(patch_truth(scene)[0].ravel().tolist())
    for _ in range(20):
        asked = questions(rng, scene, WORDS[:30], counts=(1, 1, 2))
        assert not behind & {each.label.key for each in asked}


def test_answers_follow_from_the_screen(scenes: list[Scene]) -> None:
    """Taps hit their element, readings name what stands at the point, presences are balanced and true."""
    rng = random.Random(2)
    for scene in scenes:
        asked = questions(rng, scene, (*WORDS, *SHAPES))
        assert [each.kind for each in asked] == ["tap"] * 4 + ["read"] * 2 + ["has"] * 2
        shown = {element.label.key for element in scene.elements}
        for each in asked:
            if each.kind == "tap":
                action = parse_action(each.answer)
                assert action is not None and each.element is not None
                x, y = (value / 1000 for value in action.arguments["element"])  # pyright: ignore
                assert each.element.touch[0] <= x + 0.001 and x <= each.element.touch[2]
                assert each.element.touch[1] <= y + 0.001 and y <= each.element.touch[3]
            elif each.kind == "read":
                assert each.answer in (each.label.chinese, each.label.english)
            else:
                assert (each.answer in ("是", "yes")) == (each.label.key in shown)


def test_where_all_is_shown_nothing_absent_is_asked_for(scenes: list[Scene]) -> None:
    """A screen with every label that there is is asked about what it shows; drawing ends."""
    scene = scenes[0]
    shown = [element.label for element in scene.elements]
    asked = questions(random.Random(1), scene, shown, counts=(0, 0, 6))
    assert len(asked) == 6 and all(each.element is not None for each in asked)


def test_held_out_wordings_are_never_trained(scenes: list[Scene]) -> None:
    """A wording of the held-out questions does not occur among the training ones."""
    rng = random.Random(3)

    def forms(*, held_out: bool) -> set[str]:
        asked = [
            each
            for scene in scenes
            for _ in range(4)
            for each in questions(rng, scene, WORDS, held_out=held_out)
        ]
        return {each.prompt.replace(each.name, "").lower() for each in asked if each.kind != "read"}

    assert not forms(held_out=True) & forms(held_out=False)


def test_names_in_questions_end_where_they_are_said_to() -> None:
    """The text up to the given end is a wording's beginning and a name of the class."""
    rng = random.Random(5)
    for _ in range(50):
        text, end, number = named(rng, (*WORDS, *SHAPES))
        label = CLASSES[number]
        assert text[:end].endswith((label.chinese, label.english))


def test_an_agent_taps_what_it_sees_and_launches_what_it_does_not(scenes: list[Scene]) -> None:
    """Every task's answer is one valid action; apps are launched only when they are not on the screen."""
    rng = random.Random(6)
    kinds: set[str] = set()
    for scene in scenes:
        shown = {element.label.key for element in scene.elements}
        for _ in range(6):
            task = draw_task(rng, scene)
            action = parse_action(task.answer)
            assert is_valid_action(task.answer) and action is not None
            kinds.add(action.name)
            if action.name == "Launch":
                assert action.arguments["app"] not in shown
    assert kinds >= {"Tap", "Launch", "Type", "Back", "Home", "Swipe", "Wait", "finish"}


def test_primers_are_easy() -> None:
    """What the first glyphs are learnt from is many large labels."""
    scene = draw_primer(random.Random(1), WORDS, SHAPES, (24, 34))
    heights = [(e.shown[3] - e.shown[1]) * HEIGHT for e in scene.elements if not e.label.is_icon]
    assert len(scene.elements) >= 6 and sum(heights) / len(heights) > 14


def test_a_missing_font_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a font the error says what to install."""
    monkeypatch.setattr(fonts, "_ROOTS", (str(tmp_path),))
    fonts.font_path.cache_clear()
    with pytest.raises(ConfigError, match="fonts-wqy-zenhei"):
        fonts.font_path()
    with pytest.raises(ConfigError, match="fonts-dejavu"):
        fonts.font_path("DejaVuSans.ttf")
    fonts.font_path.cache_clear()

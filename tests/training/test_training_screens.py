"""Drawn screens: the same from the same seed, and the truth about them is true."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from autoglm.errors import ConfigError
from autoglm.training import screens
from autoglm.training.actions import ALL_LABELS, APPS, NEW_APPS, is_valid_action, tap_action
from autoglm.training.screens import HEIGHT, WIDTH, Element, Screen

pytestmark = pytest.mark.needs("wqy-zenhei")


def many(n: int = 40, **options: object) -> list[Screen]:
    rng = random.Random(11)
    return [screens.render(rng, **options) for _ in range(n)]  # pyright: ignore[reportArgumentType]


def blank(*elements: Element) -> Screen:
    return Screen(np.zeros((HEIGHT, WIDTH, 3), np.uint8), elements)


def test_the_same_seed_draws_the_same_screens() -> None:
    """Pixels, elements and questions repeat with the seed and differ with another."""

    def draw(seed: int) -> tuple[Screen, list[screens.Question]]:
        rng = random.Random(seed)
        screen = screens.render(rng)
        return screen, screens.questions(rng, screen)

    (one, asked), (two, asked_again), (other, _) = draw(5), draw(5), draw(6)
    assert np.array_equal(one.image, two.image)
    assert one.elements == two.elements
    assert asked == asked_again
    assert not np.array_equal(one.image, other.image)


def test_screens_have_their_size_and_number_of_elements() -> None:
    """Images are RGB bytes of one size, with as many distinct labels as asked for."""
    for screen in many(num_elements=(8, 12)):
        assert screen.image.shape == (HEIGHT, WIDTH, 3)
        assert screen.image.dtype == np.uint8
        assert 8 <= len(screen.elements) <= 12
        assert len({element.label for element in screen.elements}) == len(screen.elements)


def test_elements_lie_inside_and_never_overlap() -> None:
    """No button leaves the screen or touches another."""
    for screen in many(num_elements=(3, 12)):
        for e in screen.elements:
            assert e.x >= 0
            assert e.x + e.width <= WIDTH
            assert e.y >= 0
            assert e.y + e.height <= HEIGHT
        for a, b in combinations(screen.elements, 2):
            apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
            assert apart_x or a.y + a.height <= b.y or b.y + b.height <= a.y


def test_only_the_asked_labels_are_drawn() -> None:
    """v1.2's screens never show a label that is new in v1.3."""
    shown = {element.label for screen in many() for element in screen.elements}
    assert shown <= set(APPS)
    assert shown & set(NEW_APPS) == set()


@pytest.mark.parametrize("label", ALL_LABELS)
def test_every_label_is_drawable(label: str) -> None:
    """The font has every character: each leaves ink, and other ink than the box for a missing one."""
    font = ImageFont.truetype(str(screens.find_font()), 22)

    def ink(text: str) -> bytes:
        image = Image.new("L", (40, 40))
        ImageDraw.Draw(image).text((4, 4), text, font=font, fill=255)
        return image.tobytes()

    for character in label:
        assert any(ink(character))
        assert ink(character) != ink("\ue123")


def test_text_stands_out_from_its_button() -> None:
    """Every button holds pixels far in brightness from its fill."""
    for screen in many(10):
        for e in screen.elements:
            button = screen.image[e.y : e.y + e.height, e.x : e.x + e.width].astype(int)
            fill = button[e.height // 2, 3]
            assert np.abs(button[4:-4, 8:-8] - fill).sum(-1).max() > 150


def test_the_answer_of_every_tap_hits_its_element() -> None:
    """Asked, answered and checked agree on the coordinates."""
    rng = random.Random(3)
    for screen in many():
        for question in screens.questions(rng, screen):
            if question.kind == "tap":
                assert question.element is not None
                assert is_valid_action(question.answer)
                assert screens.tap_hits(question.answer, question.element)


def test_a_tap_beside_its_element_misses() -> None:
    """Points outside, other actions and chatter around an action are no hits."""
    element = Element("地图", 64, 128, 64, 32)
    x, y = screens.relative_centre(element)
    assert (x, y) == (375, 281)
    assert not screens.tap_hits(tap_action(x, 248), element)
    assert not screens.tap_hits(tap_action(501, y), element)
    assert not screens.tap_hits(f"{tap_action(x, y)}!", element)
    assert not screens.tap_hits(f'do(action="Long Press", element=[{x},{y}])', element)
    assert screens.tap_hits(tap_action(250, 250), element)


def test_reading_questions_point_into_what_they_ask_for() -> None:
    """The coordinates of a reading prompt hit the element whose label is the answer."""
    rng = random.Random(4)
    for screen in many():
        for question in screens.questions(rng, screen):
            if question.kind == "read":
                start = question.prompt.index("[")
                point = question.prompt[start : question.prompt.index("]") + 1]
                assert question.element is not None
                assert screens.tap_hits(f'do(action="Tap", element={point})', question.element)
                assert question.answer == question.element.label


def test_presence_questions_are_balanced_and_true() -> None:
    """Half of the presence answers are yes, and each agrees with the screen."""
    rng = random.Random(8)
    yes = no = 0
    for screen in many():
        shown = {element.label for element in screen.elements}
        for question in screens.questions(rng, screen, ALL_LABELS):
            if question.kind == "has":
                named = {label for label in ALL_LABELS if label in question.prompt}
                # 高德地图 contains 地图: the longest label in the prompt is the one asked for
                present = max(named, key=len) in shown
                assert question.answer in (("是", "yes") if present else ("否", "no"))
                yes, no = yes + present, no + (not present)
    assert yes == no == 40


def test_eight_questions_are_asked_of_a_screen() -> None:
    """Four taps, two readings and two presences, also where there is one button only."""
    screen = screens.render(random.Random(1), num_elements=(1, 1))
    kinds = [question.kind for question in screens.questions(random.Random(2), screen)]
    assert kinds == ["tap"] * 4 + ["read"] * 2 + ["has"] * 2


def test_patches_are_labelled_by_what_covers_them() -> None:
    """Well covered patches name their label, hardly covered ones are ignored, the rest is background."""
    labels = screens.patch_labels(blank(Element(APPS[4], 32, 64, 64, 34)))
    assert labels.shape == (16, 8)
    assert labels.dtype == np.int16
    assert labels[2, 1:3].tolist() == [5, 5]
    assert labels[3, 1:3].tolist() == [-100, -100]
    assert np.count_nonzero(labels) == 4


def test_a_patch_between_two_elements_names_the_larger_part() -> None:
    """Where two buttons share a patch, the one that covers more of it wins, in either order."""
    small, large = Element(APPS[0], 0, 0, 10, 32), Element(APPS[1], 12, 0, 20, 32)
    for order in ((small, large), (large, small)):
        assert screens.patch_labels(blank(*order))[0, 0] == 2


def test_impossible_screens_are_refused() -> None:
    """Empty ranges, more buttons than labels or than room, and unfit patches name what is wrong."""
    rng = random.Random(0)
    for num_elements in ((0, 3), (5, 3), (3, 29)):
        with pytest.raises(ConfigError, match="num_elements"):
            screens.render(rng, num_elements=num_elements)
    with pytest.raises(ConfigError, match="do not fit"):
        screens.render(rng, num_elements=(80, 80), labels=[f"{i:08}" for i in range(80)])
    with pytest.raises(ConfigError, match="wider"):
        screens.render(rng, num_elements=(1, 1), labels=["x" * 60])
    with pytest.raises(ConfigError, match="patch"):
        screens.patch_labels(blank(), patch=30)
    screen = screens.render(rng, num_elements=(2, 2), labels=APPS[:2])
    with pytest.raises(ConfigError, match="not on the screen"):
        screens.questions(rng, screen, APPS[:2])


def test_a_missing_font_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the font the error says what to install."""
    monkeypatch.setattr(screens, "_FONT_ROOTS", (str(tmp_path),))
    screens.find_font.cache_clear()
    with pytest.raises(ConfigError, match="fonts-wqy-zenhei"):
        screens.find_font()
    monkeypatch.undo()
    assert screens.find_font().is_file()

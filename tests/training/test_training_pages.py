"""App pages in HTML, rendered by a real Chromium: labels are where their boxes say, other words are none."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from autoglm.errors import ConfigError
from autoglm.training.actions import ALL_LABELS, APPS
from autoglm.training.evaluation import pages, rendered, sources
from autoglm.training.evaluation.browser import Browser, Viewport, find_browser
from autoglm.training.evaluation.rendered import RenderedPage, rendered_pages

CHINESE = [label for label in APPS if pages.is_chinese(label)]
real = pytest.mark.needs("chromium", "wqy-zenhei")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[RenderedPage]:
    cache = tmp_path_factory.mktemp("pages")
    return rendered_pages(cache, rng=random.Random(11), count=3, labels=APPS)


@pytest.mark.parametrize("app", sorted(pages.APPS))
def test_a_page_is_made_from_its_seed_alone(app: str) -> None:
    """The same source gives the same HTML, which shows three labels or more and loads nothing."""
    one, same = (pages.make_page(random.Random(3), CHINESE[:9], scale=1.4, app=app) for _ in range(2))
    assert one == same != pages.make_page(random.Random(4), CHINESE[:9], scale=1.4, app=app)
    assert 2 <= one.count("data-label=") <= pages.MOST_LABELS
    assert not any(word in one for word in ("http", "url(", "<script", "src="))


def test_labels_are_text_whatever_they_hold() -> None:
    """Markup in a label is shown, not obeyed."""
    page = pages.make_page(random.Random(1), ['<b a="1">'] * 9, scale=1.0, app="login")
    assert "&lt;b a=&quot;1&quot;&gt;" in page and '<b a="1">' not in page


def test_the_other_words_of_pages_are_no_labels() -> None:
    """No name, line or title is a label, so nothing is on a screen that is said not to be."""
    words = {
        word
        for part in (pages._NAMES, pages._LINES, pages._TITLES)
        for each in part.values()
        for word in each
    }
    assert not words & (set(ALL_LABELS) | set(sources.unseen_labels()))


@real
def test_labels_are_seen_where_their_boxes_say(shown: list[RenderedPage]) -> None:
    """Inside a label's text box there is ink; boxes lie on the screen and hold their text."""
    for page in shown:
        pixels = np.asarray(page.image().convert("L"), dtype=np.int16)
        height, width = pixels.shape
        assert (height, width) in {(h, w) for w, h in rendered._PIXELS}
        for element in page.elements:
            x, y, w, h = element.text
            inside = pixels[int(y * height) : int((y + h) * height), int(x * width) : int((x + w) * width)]
            assert np.ptp(inside) > 60, element.label
            assert min(x, y) >= 0 and max(x + w, y + h) <= 1
            assert element.box[0] <= x + 0.01 and x + w <= element.box[0] + element.box[2] + 0.01
            assert element.label in page.words


@real
def test_rendering_again_gives_the_same_pages(shown: list[RenderedPage], tmp_path: Path) -> None:
    """Another browser, another cache, the same pixels and boxes."""
    (first,) = rendered_pages(tmp_path, rng=random.Random(11), count=1, labels=APPS)
    assert first.elements == shown[0].elements
    assert np.array_equal(np.asarray(first.image()), np.asarray(shown[0].image()))


@real
def test_a_page_rendered_before_needs_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is started; a damaged file is rendered anew, which does need one."""
    first = rendered_pages(tmp_path, rng=random.Random(2), count=1, labels=APPS)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rendered_pages(tmp_path, rng=random.Random(2), count=1, labels=APPS) == first
    for truth in tmp_path.glob("*.json"):
        truth.write_text("{")
    with pytest.raises(ConfigError, match="apt install chromium"):
        rendered_pages(tmp_path, rng=random.Random(2), count=1, labels=APPS)


@real
def test_questions_follow_from_the_page(shown: list[RenderedPage]) -> None:
    """Every right answer is judged right, and what is said to be absent stands nowhere."""
    pairs = [(page, page.image()) for page in shown]
    items = sources.page_items("pages", 1, pairs, APPS)
    assert {item.kind for item in items} == {"pages_tap", "pages_read", "pages_has"}
    assert all(item.judge(item.answer) == 1.0 for item in items)
    assert len({item.answer for item in items if item.kind == "pages_has"}) >= 2


@real
def test_a_script_that_fails_is_an_error_of_ours() -> None:
    """The browser's exception comes as a clear message, and the browser goes on."""
    with Browser() as running:
        with pytest.raises(ConfigError, match=r"script failed.*nowhere"):
            running.render("<p>x</p>", Viewport(100, 100, 1.0), "nowhere()")
        assert running.render("<p>x</p>", Viewport(100, 100, 1.0), "document.body.innerText").value == "x"


def test_a_missing_browser_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install, and how to do without."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"apt install chromium.*--only"):
        find_browser()


@pytest.mark.parametrize(
    ("code", "words"),
    [("import time; time.sleep(600)", "did not answer within"), ("pass", "ended before it answered")],
)
def test_a_browser_that_hangs_or_dies_is_given_up(tmp_path: Path, code: str, words: str) -> None:
    """A program that never answers, or ends at once, is an error within the time limit; none is left."""
    program = tmp_path / "browser"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -I -c '{code}'\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=words):
        Browser(str(program), timeout_seconds=1.0 if "sleep" in code else 30.0)


def test_labels_that_are_too_few_are_refused(tmp_path: Path) -> None:
    """Two labels of one language make no page."""
    with pytest.raises(ConfigError, match="at least 3 labels"):
        rendered_pages(tmp_path, rng=random.Random(1), count=1, labels=["Maps", "Mail"])

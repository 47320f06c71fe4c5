"""App pages as a phone would show them: pixels by headless Chromium, element boxes out of the page itself.

Which pages are drawn depends on the random source, the labels and the sizes of text alone. A page that was
rendered once is kept under the hash of its HTML and size, so a second evaluation needs no browser.

    >>> pages = rendered_pages(Path("cache"), rng=random.Random(7), count=2, labels=labels)  # doctest: +SKIP
    >>> pages[0].elements[0].label, pages[0].elements[0].box             # doctest: +SKIP
    ('设置', (0.05, 0.11, 0.9, 0.07))
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from autoglm.errors import ConfigError
from autoglm.files import make_directory, write_durably
from autoglm.training.actions import is_chinese
from autoglm.training.evaluation.browser import Browser, Viewport
from autoglm.training.evaluation.pages import MOST_LABELS, make_page
from autoglm.training.screens import find_font

LARGE = (1.25, 1.4, 1.6)  # text sizes of a phone set to large text
USUAL = (0.9, 1.0, 1.15)
_PIXELS = ((1080, 2400), (1080, 2340), (1170, 2532), (720, 1600), (1440, 3120), (1080, 1920))
_CSS_WIDTH = 320
_FEWEST = 3  # labels to be seen on a page, or it is not used
_ATTEMPTS = 4  # pages drawn for each that is wanted
# A label counts when its text is whole, on the screen, and not under something else. Its place is that of its
# letters, not of the line that they stand in, most of which may be empty.
_LOOK = """
(() => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }
  const letters = e => {
    const range = document.createRange()
    range.selectNodeContents(e.querySelector('.t'))
    return box(range)
  }
  const share = ([x, y, w, h]) => [x / innerWidth, y / innerHeight, w / innerWidth, h / innerHeight]
  const seen = [...document.querySelectorAll('[data-label]')].filter(e => {
    const [x, y, w, h] = letters(e), [ex, , ew] = box(e)
    const hit = document.elementFromPoint(x + w / 2, y + h / 2)
    return hit && e.contains(hit) && x >= Math.max(0, ex - 1) && y >= 0 && y + h <= innerHeight
      && x + w <= Math.min(innerWidth, ex + ew + 1)
  })
  return {
    words: document.body.innerText,
    elements: seen.map(e => ({
      label: e.dataset.label, box: share(box(e)), text: share(letters(e)),
    })),
  }
})()
"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PageElement:
    """Something on a page that may be tapped.

    Attributes:
        label: its text.
        box: left, top, width and height of what may be tapped, as shares of the screen.
        text: the same of the label's text.
    """

    label: str
    box: Box
    text: Box


@dataclass(frozen=True)
class RenderedPage:
    """A page as it is seen.

    Attributes:
        png: the screenshot's file.
        elements: what may be tapped and is seen whole; no label twice.
        words: all text of the page.
    """

    png: bytes
    elements: tuple[PageElement, ...]
    words: str

    def image(self) -> Image.Image:
        """Decode the screenshot."""
        return Image.open(io.BytesIO(self.png)).convert("RGB")


def rendered_pages(
    cache: Path,
    *,
    rng: random.Random,
    count: int,
    labels: Sequence[str],
    sizes: Sequence[float] = LARGE,
    report: Callable[[int], None] = lambda _: None,
) -> list[RenderedPage]:
    """Return ``count`` pages, rendered now or found in ``cache``.

    Args:
        cache: directory of what was rendered before.
        rng: source of all randomness.
        count: how many.
        labels: what the pages may show; Chinese and English ones are not mixed on a page.
        sizes: of the text, to choose from.
        report: called with the number of pages that are there.

    Raises:
        ConfigError: there is no browser or no Chinese font, or the labels do not fit on any page.
        StorageError: the cache cannot be written.
    """
    find_font()
    languages = [part for part in _by_language(labels) if len(part) >= _FEWEST]
    if not languages:
        raise ConfigError(f"pages need at least {_FEWEST} labels of one language")
    pages: list[RenderedPage] = []
    with contextlib.ExitStack() as stack:
        camera = _Camera(cache, stack)
        for _ in range(_ATTEMPTS * count):
            if len(pages) == count:
                return pages
            known = rng.choice(languages)
            html = make_page(rng, rng.sample(known, min(MOST_LABELS, len(known))), scale=rng.choice(sizes))
            width, height = rng.choice(_PIXELS)
            viewport = Viewport(_CSS_WIDTH, round(height * _CSS_WIDTH / width), width / _CSS_WIDTH)
            if len((page := camera.take(html, viewport)).elements) >= _FEWEST:
                pages.append(page)
                report(len(pages))
    if len(pages) < count:
        raise ConfigError("the labels do not fit on the pages: they are too long")
    return pages


class _Camera:
    """Takes a page's picture once; the browser starts with the first page that is not kept yet."""

    def __init__(self, cache: Path, stack: contextlib.ExitStack) -> None:
        self._cache, self._stack = cache, stack
        self._browser: Browser | None = None

    def take(self, html: str, viewport: Viewport) -> RenderedPage:
        name = hashlib.sha256(f"{_LOOK}\0{viewport}\0{html}".encode()).hexdigest()[:32]
        if (kept := self._kept(name)) is not None:
            return kept
        if self._browser is None:
            self._browser = self._stack.enter_context(Browser())
        shot = self._browser.render(html, viewport, _LOOK)
        page = RenderedPage(shot.png, _elements(shot.value["elements"]), shot.value["words"])
        self._keep(name, page)
        return page

    def _keep(self, name: str, page: RenderedPage) -> None:
        make_directory(self._cache)
        write_durably(self._cache / f"{name}.png", page.png)
        truth = {"elements": [asdict(element) for element in page.elements], "words": page.words}
        write_durably(self._cache / f"{name}.json", json.dumps(truth, ensure_ascii=False).encode())

    def _kept(self, name: str) -> RenderedPage | None:
        """Return a page rendered before; None where it is missing or does not read back."""
        try:
            png = (self._cache / f"{name}.png").read_bytes()
            truth = json.loads((self._cache / f"{name}.json").read_bytes())
            return RenderedPage(png, _elements(truth["elements"]), str(truth["words"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _elements(found: Any) -> tuple[PageElement, ...]:
    return tuple(PageElement(each["label"], _box(each["box"]), _box(each["text"])) for each in found)


def _box(values: Any) -> Box:
    x, y, width, height = (float(value) for value in cast("Sequence[float]", values))
    return x, y, width, height


def _by_language(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    return [label for label in labels if is_chinese(label)], [x for x in labels if not is_chinese(x)]

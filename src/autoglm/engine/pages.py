"""Who owns which page of a release's cache, and which pages another prompt may begin with.

What it guarantees: a page is written by one sequence and read by any number; a full page is found again by
what it holds (:func:`page_keys`) until its room is needed, the least recently used one going first; a
sequence gets its pages one run at the start of a slot wherever that can be had, by moving pages that nobody
reads, because a run is read without copying. Nothing here is ever shared between releases.

    >>> pool = PagePool(num_slots=1, pages_per_slot=4)
    >>> table = pool.open([])
    >>> pool.grow(table), table.pages
    (True, [0])
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from autoglm.model.pages import PageTable
from autoglm.model.prompt import Prompt


def media_digests(prompt: Prompt) -> dict[int, bytes]:
    """Return a digest of the content behind each media span, whatever the file it came from."""
    digests: dict[int, bytes] = {}
    pairs = [*zip(prompt.image_spans, prompt.images, strict=True)]
    pairs += [*zip(prompt.audio_spans, prompt.audios, strict=True)]
    for span, content in pairs:
        shape = f"{tuple(content.shape)} {content.dtype}".encode()
        digests[span] = sha256(shape + content.contiguous().numpy().tobytes()).digest()
    return digests


def page_keys(seed: bytes, prompt: Prompt, digests: Mapping[int, bytes], page: int) -> list[bytes]:
    """Return the keys of a prompt's full pages: each of all before it, its tokens and its media.

    A page that touches a media span depends on the whole of it, because the span's tokens see each other.
    """
    keys: list[bytes] = []
    ids, spans = prompt.token_ids.numpy().astype("<i4"), prompt.spans.tolist()
    for start in range(0, len(spans) - page + 1, page):
        touched = dict.fromkeys(span for span in spans[start : start + page] if span)
        media = b"".join(digests[span] for span in touched)
        before = keys[-1] if keys else seed
        keys.append(sha256(before + ids[start : start + page].tobytes() + media).digest())
    return keys


class PagePool:
    """The pages of one cache. It belongs to the thread that runs the model.

    Args:
        num_slots: contexts that the cache holds.
        pages_per_slot: pages of each.
        move: called as ``move(source, target)`` to copy what a page holds.
        wipe: called to fill a page with zeros.
    """

    def __init__(
        self,
        num_slots: int,
        pages_per_slot: int,
        move: Callable[[int, int], None] = lambda source, target: None,
        wipe: Callable[[int], None] = lambda page: None,
    ) -> None:
        self.num_pages = num_slots * pages_per_slot
        self._per_slot = pages_per_slot
        self._move, self._wipe = move, wipe
        self._readers = [0] * self.num_pages
        self._keys: list[bytes | None] = [None] * self.num_pages
        self._index: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, int] = OrderedDict()  # found by a key, read by nobody; oldest first
        self._free = set(range(self.num_pages))
        self._high = [-page for page in reversed(range(self.num_pages))]  # a heap; may name pages in use
        self._in_high = set(self._free)
        self._spoiled: set[int] = set()
        self._homes: dict[PageTable, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that a sequence can have: empty ones and those kept only to be found again."""
        return len(self._free) + len(self._idle)

    @property
    def num_kept(self) -> int:
        """Pages that can be found by what they hold."""
        return len(self._index)

    def find(self, keys: Sequence[bytes]) -> int:
        """Return how many pages at the beginning are there."""
        return next((i for i, key in enumerate(keys) if key not in self._index), len(keys))

    def has_room(self, keys: Sequence[bytes], num_pages: int) -> bool:
        """Tell whether a sequence that begins with ``keys`` could have ``num_pages`` in all."""
        num_idle = sum(key in self._idle for key in keys)
        return num_pages - len(keys) <= self.num_free - num_idle

    def open(self, keys: Sequence[bytes]) -> PageTable:
        """Begin a sequence with the pages of ``keys``, all of which must be there."""
        table = PageTable(self._per_slot)
        pages = [self._index[key] for key in keys]
        for key, page in zip(keys, pages, strict=True):
            self._readers[page] += 1
            self._idle.pop(key, None)
        home = self._find_home(pages)
        if home is not None:
            self._homes[table] = home
            self._bring_home(pages, home * self._per_slot)
        for page in pages:
            table.append(page)
        return table

    def grow(self, table: PageTable) -> bool:
        """Give a sequence one more page; return False when every page is being read."""
        if not self.num_free:
            return False
        wanted = self._next_place(table)
        page = wanted if wanted is not None and self._clear(wanted) else self._empty_page()
        self._free.discard(page)
        self._readers[page] = 1
        table.append(page)
        return True

    def publish(self, page: int, key: bytes) -> None:
        """Let a full page be found by its key; of two with the same content the first is kept."""
        if key not in self._index and self._keys[page] is None:
            self._index[key] = page
            self._keys[page] = key

    def close(self, table: PageTable, *, is_clean: bool = True) -> None:
        """End a sequence. Pages that may hold NaN are forgotten at once, and wiped when nobody reads them."""
        self._homes.pop(table, None)
        for page in reversed(table.pages):  # the end of a conversation is the first to go
            if not is_clean:
                self._forget(page)
                self._spoiled.add(page)
            self._readers[page] -= 1
            if not self._readers[page]:
                self._retire(page)

    def forget_all(self) -> None:
        """Let no page be found any more; what is being read stays where it is."""
        for page in self._idle.values():
            self._set_free(page)
        self._idle.clear()
        self._index.clear()
        self._keys = [None] * self.num_pages

    # Inside

    def _find_home(self, pages: Sequence[int]) -> int | None:
        """Return a slot for a new sequence: where its beginning lies, else the lowest without a tenant."""
        taken = set(self._homes.values())
        if pages and pages[0] % self._per_slot == 0 and pages[0] // self._per_slot not in taken:
            return pages[0] // self._per_slot
        slots = range(self.num_pages // self._per_slot)
        return next((slot for slot in slots if slot not in taken), None)

    def _next_place(self, table: PageTable) -> int | None:
        """Return the page that would keep a sequence in one run, None when there is no such page."""
        home = self._homes.get(table)
        if home is not None:
            return home * self._per_slot + len(table)
        after = table.pages[-1] + 1 if table.pages else 0
        return after if after % self._per_slot else None

    def _bring_home(self, pages: list[int], first: int) -> None:
        """Move the pages of a new sequence to ``first`` and after, but those that others read or stand on."""
        for i, wanted in enumerate(range(first, first + len(pages))):
            if pages[i] == wanted or self._readers[pages[i]] > 1:
                continue
            if wanted in pages and self._readers[wanted] == 1 and self.num_free:
                pages[pages.index(wanted)] = self._shift(wanted, self._empty_page())
            if self._clear(wanted):
                pages[i] = self._shift(pages[i], wanted)

    def _shift(self, page: int, target: int) -> int:
        """Move a page with one reader to an empty one; return that."""
        self._free.discard(target)
        self._relocate(page, target)
        self._readers[target], self._readers[page] = 1, 0
        self._set_free(page)
        return target

    def _clear(self, page: int) -> bool:
        """Make a page empty by moving what it keeps; return False when somebody reads it."""
        if self._readers[page]:
            return False
        if page not in self._free:
            target = self._empty_page()
            if target != page:  # it was the oldest itself otherwise
                self._free.discard(target)
                self._relocate(page, target)
            self._set_free(page)
        return True

    def _empty_page(self) -> int:
        """Return the highest empty page; when there is none, the least recently used kept page goes."""
        if not self._free:
            _, page = self._idle.popitem(last=False)
            self._forget(page)
            self._set_free(page)
        while -self._high[0] not in self._free:
            self._in_high.discard(-heapq.heappop(self._high))
        return -self._high[0]

    def _set_free(self, page: int) -> None:
        self._free.add(page)
        if page not in self._in_high:
            self._in_high.add(page)
            heapq.heappush(self._high, -page)

    def _retire(self, page: int) -> None:
        """Put away a page that nobody reads any more."""
        if page in self._spoiled:
            self._spoiled.discard(page)
            self._wipe(page)
        key = self._keys[page]
        if key is None:
            self._set_free(page)
        else:
            self._idle[key] = page

    def _relocate(self, page: int, target: int) -> None:
        """Copy a kept page and let it be found in its new place, as old as it was."""
        self._move(page, target)
        key = self._keys[page]
        self._keys[page], self._keys[target] = None, key
        if key is not None:
            self._index[key] = target
            if key in self._idle:
                self._idle[key] = target

    def _forget(self, page: int) -> None:
        key = self._keys[page]
        if key is not None:
            del self._index[key]
            self._keys[page] = None

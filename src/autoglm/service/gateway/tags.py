"""Thought and answer out of the text that a server streams, which holds them between tags.

What it guarantees: ``<think>``, ``</think>``, ``<answer>`` and ``</answer>`` never show as text, however they
are cut into pieces; the answer ends before ``</answer>`` and before the first stop string, of which no part
is emitted. Text before any tag is answer.

    >>> reader = TagReader()
    >>> reader.push("<think>a</th"), reader.push("ink><answer>b</answer>c"), reader.ended
    ([('thought', 'a')], [('answer', 'b')], True)
"""

from __future__ import annotations

from collections.abc import Sequence

from autoglm.engine.generation import Kind

_OPENINGS: dict[str, Kind] = {"<think>": "thought", "</think>": "answer", "<answer>": "answer"}
_END = "</answer>"

Piece = tuple[Kind, str]


class TagReader:
    """Reads one choice.

    Attributes:
        ended: whether the answer is over, whatever the server still sends.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.ended = False
        self._kind: Kind = "answer"
        self._stops = tuple(stops)
        self._held = ""
        self._is_fresh = True  # nothing of this part was emitted: spaces after a tag belong to the tag

    def push(self, text: str) -> list[Piece]:
        """Return what is certain of the text so far."""
        self._held += text
        pieces: list[Piece] = []
        while not self.ended:
            place, marker = self._first_marker()
            if marker is None:
                pieces += self._emit(len(self._held) - self._num_unsure())
                break
            pieces += self._emit(place)
            self._pass(marker)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back: the text is over."""
        return [] if self.ended else self._emit(len(self._held))

    def _markers(self) -> tuple[str, ...]:
        return (*_OPENINGS, _END, *(self._stops if self._kind == "answer" else ()))

    def _first_marker(self) -> tuple[int, str | None]:
        found = [(self._held.find(marker), marker) for marker in self._markers()]
        present = [entry for entry in found if entry[0] >= 0]
        return min(present, key=lambda entry: entry[0]) if present else (-1, None)

    def _num_unsure(self) -> int:
        """Return how many characters at the end may be the beginning of a marker."""
        longest = max(len(marker) for marker in self._markers()) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(marker.startswith(self._held[-length:]) for marker in self._markers()):
                return length
        return 0

    def _emit(self, length: int) -> list[Piece]:
        text, self._held = self._held[:length], self._held[length:]
        if self._is_fresh:
            text = text.lstrip()
        if not text:
            return []
        self._is_fresh = False
        return [(self._kind, text)]

    def _pass(self, marker: str) -> None:
        if marker not in _OPENINGS:
            self.ended = True
            return
        self._held = self._held[len(marker) :]
        self._kind, self._is_fresh = _OPENINGS[marker], True

"""Turn the tokens of one assistant turn into text: thought apart from answer, stop strings cut off.

What it guarantees: thought and answer are told apart by the marker *tokens*, so that no text, however it
looks, can move words from one to the other; a marker never shows as text; no part of a stop string and no
part of a character is ever emitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from autoglm.engine.generation import Kind, TextDelta, TokenLogprob
from autoglm.engine.sampling import Choice
from autoglm.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Markers:
    """The token ids that structure an assistant turn.

    Attributes:
        kinds: marker token -> what follows it.
        ends: tokens that end the turn; a control token that opens another turn ends this one too.
        assistant: token that opens the assistant's turn.
        end_think: token that ends a thought.
        answer: token that opens an answer.
    """

    kinds: dict[int, Kind]
    ends: frozenset[int]
    assistant: int
    end_think: int
    answer: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Markers:
        """Read them from a tokenizer."""
        t = tokenizer
        return cls(
            kinds={t.think: "thought", t.end_think: "answer", t.answer: "answer"},
            ends=frozenset({t.eos, t.end_answer, t.bos, t.pad, t.system, t.user, t.assistant, t.tool}),
            assistant=t.assistant,
            end_think=t.end_think,
            answer=t.answer,
        )

    def opening(self, prompt_ids: Sequence[int]) -> Kind:
        """Return what the first generated token belongs to: the template may have opened a thought."""
        for token_id in reversed(prompt_ids):
            if token_id in self.kinds:
                return self.kinds[token_id]
            if token_id == self.assistant:
                break
        return "answer"


class Transcript:
    """The text of one assistant turn as it grows.

    Attributes:
        stopped: whether a stop string was met; nothing more may be pushed.
        thought_tokens: tokens pushed while the thought was open.
    """

    def __init__(
        self, tokenizer: Tokenizer, markers: Markers, opening: Kind, stop: Sequence[str] = ()
    ) -> None:
        self.stopped = False
        self.thought_tokens = 0
        self._tokenizer = tokenizer
        self._kinds = markers.kinds
        self._kind: Kind = opening
        self._stop = tuple(stop)
        self._open_part()

    @property
    def kind(self) -> Kind:
        """What the next token belongs to."""
        return self._kind

    def _open_part(self) -> None:
        self._decoder = self._tokenizer.stream()
        self._held = ""  # decoded, not yet emitted
        self._emitted = 0  # characters of this part already emitted
        self._tokens: deque[tuple[int, Choice]] = deque()  # (its first character in this part, token)

    def push(self, choice: Choice) -> list[TextDelta]:
        """Take the next token; return the text that is now certain."""
        self.thought_tokens += self._kind == "thought"
        if choice.token_id in self._kinds:
            deltas = self.finish()
            self._kind = self._kinds[choice.token_id]
            self._open_part()
            return deltas
        self._tokens.append((self._emitted + len(self._held), choice))
        self._held += self._decoder.push(choice.token_id)
        return self._advance()

    def finish(self) -> list[TextDelta]:
        """Return what was held back; the turn, or this part of it, is over."""
        if self.stopped:
            return []
        self._held += self._decoder.finish()
        deltas = self._advance()
        return deltas if self.stopped else deltas + self._emit(len(self._held))

    def _advance(self) -> list[TextDelta]:
        """Emit up to a stop string, or all but what may become one. Stop strings end answers only."""
        stops = self._stop if self._kind == "answer" else ()
        found = [at for text in stops if (at := self._held.find(text)) >= 0]
        self.stopped = bool(found)
        return self._emit(min(found) if found else len(self._held) - _possible_start(self._held, stops))

    def _emit(self, length: int) -> list[TextDelta]:
        text, self._held = self._held[:length], self._held[length:]
        self._emitted += len(text)
        if not text:
            return []
        chosen: list[Choice] = []
        while self._tokens and self._tokens[0][0] < self._emitted:
            chosen.append(self._tokens.popleft()[1])
        token_ids = tuple(choice.token_id for choice in chosen)
        logprobs = tuple(self._explain(choice) for choice in chosen if choice.logprob is not None)
        return [TextDelta(self._kind, text, token_ids, logprobs)]

    def _explain(self, choice: Choice) -> TokenLogprob:
        decode = self._tokenizer.decode
        top = tuple((token_id, decode([token_id]), logprob) for token_id, logprob in choice.top)
        return TokenLogprob(choice.token_id, decode([choice.token_id]), choice.logprob or 0.0, top)


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of ``text`` that begins one of ``stops``."""
    longest = min(len(text), max((len(stop) - 1 for stop in stops), default=0))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)

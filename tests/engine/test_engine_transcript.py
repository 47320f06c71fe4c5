"""From tokens to text: thought, answer, stop strings, whole characters."""

from __future__ import annotations

import pytest

from autoglm.engine.generation import Kind, TextDelta
from autoglm.engine.sampling import Choice
from autoglm.engine.transcript import Markers, Transcript
from autoglm.model.tokenizer import Tokenizer


def run(
    tokenizer: Tokenizer, tokens: list[int], *, opening: Kind = "answer", stop: tuple[str, ...] = ()
) -> tuple[list[TextDelta], Transcript]:
    """Push tokens until a stop string is met, then finish."""
    transcript = Transcript(tokenizer, Markers.of(tokenizer), opening, stop)
    deltas: list[TextDelta] = []
    for token in tokens:
        if transcript.stopped:
            break
        deltas += transcript.push(Choice(token, -0.5))
    return deltas + transcript.finish(), transcript


def text(deltas: list[TextDelta], kind: Kind = "answer") -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


def test_characters_are_emitted_whole(tokenizer: Tokenizer) -> None:
    """Multi-byte characters never show in part, though each byte is a token."""
    deltas, _ = run(tokenizer, tokenizer.encode("你好 🙂 hi"))
    assert [delta.text for delta in deltas] == ["你", "好", " ", "🙂", " ", "h", "i"]
    assert [len(delta.token_ids) for delta in deltas] == [3, 3, 1, 4, 1, 1, 1]


def test_an_unfinished_character_at_the_end_is_marked(tokenizer: Tokenizer) -> None:
    """A turn cut inside a character ends with U+FFFD, not with broken bytes."""
    deltas, _ = run(tokenizer, tokenizer.encode("好")[:2])
    assert text(deltas) == "\ufffd"


def test_markers_separate_thought_from_answer_and_never_show(tokenizer: Tokenizer) -> None:
    """The marker tokens switch the kind; their text appears nowhere."""
    e = tokenizer.encode
    tokens = [*e("hm"), tokenizer.end_think, tokenizer.answer, *e("yes")]
    deltas, transcript = run(tokenizer, tokens, opening="thought")
    assert (text(deltas, "thought"), text(deltas)) == ("hm", "yes")
    assert transcript.thought_tokens == 3


def test_text_that_looks_like_a_marker_is_text(tokenizer: Tokenizer) -> None:
    """The characters <think> are an answer like any other."""
    deltas, _ = run(tokenizer, tokenizer.encode("a<think>b</think>"))
    assert text(deltas) == "a<think>b</think>"


def test_the_prompt_decides_what_comes_first(tokenizer: Tokenizer) -> None:
    """The opening is read off the end of the prompt; older turns do not count."""
    markers, t = Markers.of(tokenizer), tokenizer
    assert markers.opening([t.bos, t.user, 60, t.assistant, t.think]) == "thought"
    assert markers.opening([t.assistant, t.think, 60, t.eos, t.assistant, t.answer]) == "answer"
    assert markers.opening([t.assistant, t.think, 60, t.eos, t.assistant]) == "answer"


@pytest.mark.parametrize(
    ("full", "stop", "left"),
    [
        ("hello STOP more", ("STOP",), "hello "),
        ("aab", ("ab",), "a"),
        ("abcd", ("zz", "cd", "bc"), "a"),
        ("结束语:完。再见", ("完。",), "结束语:"),
        ("STOP", ("STOP",), ""),
        ("STO", ("STOP",), "STO"),
    ],
)
def test_stop_strings_end_the_answer_and_no_part_is_emitted(
    tokenizer: Tokenizer, full: str, stop: tuple[str, ...], left: str
) -> None:
    """However the stop string falls over tokens, exactly what is before it comes out."""
    deltas, transcript = run(tokenizer, tokenizer.encode(full), stop=stop)
    assert text(deltas) == left
    assert transcript.stopped == any(s in full for s in stop)


def test_text_that_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    """While "ST" may still become "STOP" it is not emitted; when it does not, it comes."""
    transcript = Transcript(tokenizer, Markers.of(tokenizer), "answer", ("STOP",))
    pieces = [transcript.push(Choice(token)) for token in tokenizer.encode("aSTx")]
    assert [[delta.text for delta in piece] for piece in pieces] == [["a"], [], [], ["STx"]]


def test_a_stop_string_in_a_thought_does_not_end_the_answer(tokenizer: Tokenizer) -> None:
    """Stop strings are about the answer; a thought may say anything."""
    e = tokenizer.encode
    tokens = [*e("END"), tokenizer.end_think, tokenizer.answer, *e("ok END")]
    deltas, _ = run(tokenizer, tokens, opening="thought", stop=("END",))
    assert (text(deltas, "thought"), text(deltas)) == ("END", "ok ")


def test_tokens_travel_with_the_text_that_they_began(tokenizer: Tokenizer) -> None:
    """Tokens of a cut stop string are not reported, all others are, once, with log-probabilities."""
    deltas, _ = run(tokenizer, tokenizer.encode("好abEND"), stop=("END",))
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == tokenizer.encode("好ab")
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == tokens
    assert deltas[-1].logprobs[-1].text == "b"

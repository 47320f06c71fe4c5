"""Text to ids and back, whole and streamed."""

from __future__ import annotations

import random

import pytest

from autoglm.errors import FormatError
from autoglm.model.tokenizer import LABEL_TOKEN, NUM_BINS, X_TOKEN, Y_TOKEN, Tokenizer, bin_of, centre_of
from autoglm.training.actions import ALL_LABELS

TEXTS = (
    "",
    "你是谁?",
    "我是 AutoGLM-Phone-9B,由智谱AI与CSDN联合推出的移动端多模态大模型。",
    "Who are you?\n\tI'm fine  ",
    "😀👩‍👩‍👧 é ñ ß עברית नमस्ते",
    'do(action="Launch", app="哔哩哔哩")',
    "\x00\x7f\u200b\ufeff",
    "<think></answer><|user|><|eos|><x_3>",
    "[1000,5] [5,] [,5] [a,b] [12, 1000]",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_went_in(tokenizer: Tokenizer, text: str) -> None:
    """Chinese, emoji, control characters and lookalikes of control tokens survive a round trip."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.controls & set(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_equals_whole_text(tokenizer: Tokenizer, text: str) -> None:
    """Pieces decoded one token at a time join to the whole, and none holds half a character."""
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_lone_surrogates_do_not_break_encoding(tokenizer: Tokenizer) -> None:
    """Text that no UTF-8 can hold is encoded with replacements instead of raising."""
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: Tokenizer) -> None:
    """Ids of broken UTF-8 decode without raising, whole and streamed alike."""
    rng = random.Random(3)
    for _ in range(50):
        ids = [rng.randrange(tokenizer.vocab_size + 5) for _ in range(30)]
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
    half = tokenizer.encode("😀")[:1]
    assert tokenizer.decode(half) == "\ufffd"


def test_labels_are_single_tokens_in_any_company(tokenizer: Tokenizer) -> None:
    """Every app label is one token, next to Chinese characters as well."""
    for i, label in enumerate(ALL_LABELS):
        assert tokenizer.encode(label) == [LABEL_TOKEN + i]
        assert LABEL_TOKEN + i in tokenizer.encode(f"点击{label}吗")


def test_coordinates_are_two_tokens_and_come_back_as_bin_centres(tokenizer: Tokenizer) -> None:
    """``[x,y]`` is two tokens whose text is the centres of the bins that x and y lie in."""
    for x, y in ((0, 999), (500, 31), (999, 0)):
        ids = tokenizer.encode(f"at [{x},{y}]!")
        assert ids[-3:-1] == [X_TOKEN + bin_of(x), Y_TOKEN + bin_of(y)]
        assert tokenizer.decode(ids) == f"at [{centre_of(bin_of(x))},{centre_of(bin_of(y))}]!"
    assert tokenizer.encode("[7, 8]") == tokenizer.encode("[7,8]")


def test_bins_cover_the_axis_evenly() -> None:
    """A bin's centre lies in that bin, and the bins cover 0 to 999."""
    assert [bin_of(centre_of(i)) for i in range(NUM_BINS)] == list(range(NUM_BINS))
    assert (bin_of(0), bin_of(999)) == (0, NUM_BINS - 1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]", b'{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes) -> None:
    """Anything but a tokenizer of this project raises a format error."""
    with pytest.raises(FormatError):
        Tokenizer.from_bytes(content)


def test_a_tokenizer_without_control_tokens_is_refused(tokenizer_text: str) -> None:
    """A tokenizer that lacks a control token is refused by its name."""
    with pytest.raises(FormatError, match="<think>"):
        Tokenizer.from_bytes(tokenizer_text.replace('"<think>"', '"<thunk>"').encode())

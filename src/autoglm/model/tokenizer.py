"""Text to tokens and back: byte-level BPE with the assistant's own tokens.

The vocabulary starts with fixed blocks, so that their ids never depend on the trained merges: control
tokens, the pieces of the action grammar, whole app labels, and coordinate bins. Text never produces a
control token, whatever it contains; ``[x,y]`` with 0 <= x, y <= 999 becomes two coordinate tokens, which
decode as the centres of their bins.

    >>> tokenizer = Tokenizer.from_file(Path("tokenizer.json"))          # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("你好, hello"))                 # doctest: +SKIP
    '你好, hello'
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as _Backend

from autoglm.errors import FormatError

MAX_TOKENIZER_BYTES = 64 << 20
NUM_BINS: Final = 32
X_TOKEN: Final = 128
Y_TOKEN: Final = X_TOKEN + NUM_BINS
LABEL_TOKEN: Final = 64
CONTROLS: Final = (
    "<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
    "<think>", "</think>", "<answer>", "</answer>",
    "<|begin_of_image|>", "<|image|>", "<|end_of_image|>",
    "<|begin_of_audio|>", "<|audio|>", "<|end_of_audio|>",
)  # fmt: skip
_COORDINATES = re.compile(r"\[(\d{1,3}), ?(\d{1,3})\]")
_COORDINATE_TOKEN = re.compile(r"<([xy])_(\d{1,4})>")


def bin_of(coordinate: int, bins: int = NUM_BINS) -> int:
    """Return the bin of a coordinate 0..999."""
    return coordinate * bins // 1000


def centre_of(index: int, bins: int = NUM_BINS) -> int:
    """Return the centre 0..999 of a bin."""
    return (2 * index + 1) * 1000 // (2 * bins)


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """A Hugging Face ``tokenizers`` file with this project's special tokens.

    Attributes:
        vocab_size: number of ids.
        bos, eos, pad, system, user, assistant, tool, think, end_think, answer, end_answer: control token ids.
        image_begin, image_pad, image_end, audio_begin, audio_pad, audio_end: the media tokens' ids.
    """

    def __init__(self, backend: _Backend) -> None:
        """Wrap a loaded backend.

        Raises:
            FormatError: a control token is missing.
        """
        backend.encode_special_tokens = True  # control tokens in a text stay text
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        ids = [_required(backend, token) for token in CONTROLS]
        self.vocab_size = max(backend.get_vocab().values()) + 1
        (
            self.pad, self.bos, self.eos, self.system, self.user, self.assistant, self.tool,
            self.think, self.end_think, self.answer, self.end_answer,
            self.image_begin, self.image_pad, self.image_end,
            self.audio_begin, self.audio_pad, self.audio_end,
        ) = ids  # fmt: skip
        self.controls = frozenset(ids)
        self._num_bins = max(1, sum(token.startswith("<x_") for token in backend.get_vocab()))
        self._bytes = _token_bytes(backend, self._num_bins)
        self._x_token, self._y_token = backend.token_to_id("<x_0>"), backend.token_to_id("<y_0>")

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Load ``tokenizer.json``.

        Raises:
            FormatError: missing, too large, or not a tokenizer of this project.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from error

    @classmethod
    def from_bytes(cls, content: bytes) -> Tokenizer:
        """Load from the bytes of ``tokenizer.json``.

        Raises:
            FormatError: too large, or not a tokenizer of this project.
        """
        if len(content) > MAX_TOKENIZER_BYTES:
            raise FormatError(f"tokenizer.json has {len(content)} bytes, more than {MAX_TOKENIZER_BYTES}")
        try:
            json.loads(content)
            backend = _Backend.from_str(content.decode())
        except Exception as error:
            raise FormatError(f"tokenizer.json does not parse: {str(error)[:200]}") from error
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; never a control token's, whatever the text contains."""
        clean = text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        start = 0
        if self._x_token is not None and self._y_token is not None:
            for match in _COORDINATES.finditer(clean):
                ids += self._encode_plain(clean[start : match.start()])
                x, y = (bin_of(int(number), self._num_bins) for number in match.groups())
                ids += [self._x_token + x, self._y_token + y]
                start = match.end()
        return ids + self._encode_plain(clean[start:])

    def _encode_plain(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids if text else []

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to the text; control tokens and unused ids add nothing."""
        return self._bytes.get(token_id, b"")

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in token_ids).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """Return a decoder for tokens that come one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decode token by token; never emits half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that became complete with this token."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _required(backend: _Backend, token: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise FormatError(f"tokenizer.json lacks the control token {token}")
    return token_id


def _token_bytes(backend: _Backend, num_bins: int) -> dict[int, bytes]:
    """Return each token's bytes, coordinates as the centres of their bins, controls left out."""
    letters = _byte_letters()
    added = backend.get_added_tokens_decoder()
    table: dict[int, bytes] = {}
    for token, i in backend.get_vocab().items():
        if i in added:
            table[i] = _added_bytes(added[i], num_bins)
        elif all(letter in letters for letter in token):
            table[i] = bytes(letters[letter] for letter in token)
    return table


def _added_bytes(token: Any, num_bins: int) -> bytes:
    if match := _COORDINATE_TOKEN.fullmatch(token.content):
        centre = centre_of(int(match[2]), num_bins)
        return f"[{centre},".encode() if match[1] == "x" else f"{centre}]".encode()
    return b"" if token.special else token.content.encode()

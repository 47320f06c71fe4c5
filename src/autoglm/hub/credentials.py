"""The secrets that the hub hands out, as text: tokens, and codes that people type.

Both carry a prefix, by which a scanner for leaked secrets finds them (``autoglm_[0-9A-Za-z]{49}``,
``enrol(-[0-9A-Z]{4}){6}``), and a checksum, by which a mistyped or cut-off one is known without asking the
database. The checksum protects nothing: the random part does (256 bits in a token, 100 in a code).

    >>> is_token(new_token()), is_token(new_token()[:-1])
    (True, False)
    >>> code = new_code()
    >>> read_code(code.lower().replace("-", " ")) == code
    True
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib

TOKEN_PREFIX = "autoglm_"
CODE_PREFIX = "enrol"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: without I, L, O and U
_TOKEN_RANDOM, _TOKEN_CHECK = 43, 6
_CODE_RANDOM, _CODE_CHECK = 20, 4
_TOKEN = re.compile(rf"{TOKEN_PREFIX}[0-9A-Za-z]{{{_TOKEN_RANDOM + _TOKEN_CHECK}}}")
# What versions before the prefix made, and what may still lie in an ``admin.token``.
_PLAIN_TOKEN = re.compile(r"[0-9A-Za-z_-]{43}")
_MAX_CODE_TEXT = 64


def _digits(value: int, alphabet: str, length: int) -> str:
    """Write the lowest ``length`` digits of a number."""
    digits = ""
    for _ in range(length):
        value, digit = divmod(value, len(alphabet))
        digits = alphabet[digit] + digits
    return digits


def _check(text: str, alphabet: str, length: int) -> str:
    return _digits(zlib.crc32(text.encode()), alphabet, length)


def new_token() -> str:
    """Make a token: 256 random bits and a checksum, in letters and digits."""
    body = TOKEN_PREFIX + _digits(secrets.randbits(256), _BASE62, _TOKEN_RANDOM)
    return body + _check(body, _BASE62, _TOKEN_CHECK)


def is_token(text: str) -> bool:
    """Tell whether ``text`` can be a token at all; a mistyped or cut-off one cannot."""
    if _TOKEN.fullmatch(text) is None:
        return _PLAIN_TOKEN.fullmatch(text) is not None and not text.startswith(TOKEN_PREFIX)
    return _check(text[:-_TOKEN_CHECK], _BASE62, _TOKEN_CHECK) == text[-_TOKEN_CHECK:]


def new_code() -> str:
    """Make an enrolment code, such as ``enrol-7K3M-...``, that can be read out and typed."""
    body = _digits(secrets.randbits(100), _BASE32, _CODE_RANDOM)
    text = body + _check(body, _BASE32, _CODE_CHECK)
    return "-".join([CODE_PREFIX, *(text[at : at + 4] for at in range(0, len(text), 4))])


def read_code(text: str) -> str | None:
    """Return a code as it was made, however it was typed; None for a mistyped or cut-off one."""
    if len(text) > _MAX_CODE_TEXT or not text.isascii():
        return None
    plain = re.sub(r"[\s-]", "", text).upper().removeprefix(CODE_PREFIX.upper())
    plain = plain.translate(str.maketrans("OIL", "011"))
    if len(plain) != _CODE_RANDOM + _CODE_CHECK or set(plain) - set(_BASE32):
        return None
    if _check(plain[:_CODE_RANDOM], _BASE32, _CODE_CHECK) != plain[_CODE_RANDOM:]:
        return None
    return "-".join([CODE_PREFIX, *(plain[at : at + 4] for at in range(0, len(plain), 4))])


def digest(secret: str) -> str:
    """Return what is kept of a secret: its SHA-256, which cannot be searched back for that many bits."""
    return hashlib.sha256(secret.encode()).hexdigest()

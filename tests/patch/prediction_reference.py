"""A slow, plain reading of docs/wpatch-format.md: what SCALED and PREDICTED say about one element.

Numbers are Python's own, of any size; where the document says two's complement, ``signed`` says so here.
Nothing is shared with the C core but the document.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = {4: (4, 3), 5: (5, 2), 8: (5, 10), 9: (8, 7), 12: (8, 23)}
ONE = 1 << 20


@dataclass(frozen=True)
class Curve:
    """How the product of the factors moves the base, and its classes."""

    rank: int
    drop: int
    limit: int
    slope: int
    bend: int
    shift: int
    classes: int


@dataclass(frozen=True)
class Guess:
    """A prediction, the context of what is left, and whether the sign of that is turned."""

    prediction: int
    context: int
    turned: bool


def signed(number: int, width: int) -> int:
    """Bring a number into the two's complement of a width."""
    number %= 1 << width
    return number - (1 << width) if number >> (width - 1) else number


def fold(difference: int, width: int) -> int:
    difference = signed(difference, width)
    return 2 * difference if difference >= 0 else -2 * difference - 1


def order(u: int, width: int) -> int:
    return u ^ ((1 << (width - 1)) - 1) if u >> (width - 1) else u


def scale_parts(bits: int, dtype: int) -> tuple[int, int]:
    """Return mantissa and exponent of a scale; mantissa 0 for any that is not positive and finite."""
    x, m = FLOATS[dtype]
    sign, exponent, mantissa = bits >> (x + m), bits >> m & ((1 << x) - 1), bits & ((1 << m) - 1)
    if sign or exponent == (1 << x) - 1:
        return 0, 0
    return (mantissa, 1) if exponent == 0 else (mantissa + (1 << m), exponent)


def ratio(old: int, new: int, dtype: int) -> int:
    (a, i), (b, j) = scale_parts(old, dtype), scale_parts(new, dtype)
    if a == 0 or b == 0:
        return ONE
    s = 20 + i - j
    if s < 0:
        return 0
    return 1 << 23 if s > 38 else min(1 << 23, ((a << s) + b // 2) // b)


def product(left: list[int], right: list[int]) -> int:
    return signed(sum(p * q for p, q in zip(left, right, strict=True)), 32)


def move(acc: int, curve: Curve) -> tuple[int, int]:
    """Return v and k of a product."""
    t = min(abs(acc) >> curve.drop, curve.limit)
    v = signed(t * (curve.slope - (t * curve.bend >> 15)), 32)
    v = signed(v << curve.shift, 32) if curve.shift >= 0 else v >> -curve.shift
    return signed(-v, 32) if acc < 0 else v, min(7, t * curve.classes >> 16)


def code_class(t: int) -> tuple[int, int, bool]:
    """Return prediction, class and turn of a code from t, in 32-bit two's complement."""
    t = signed(t, 32)
    p, f = signed(t + (1 << 19), 32) >> 20, (t >> 16) % 16
    if p <= -127 or p >= 127:
        return max(-127, min(127, p)), 8, p < 0
    up = bool(f >> 3)
    return p, 15 - f if up else f, up


def magnitude_class(b: int) -> int:
    a = abs(signed(b, 8))
    return 8 if a >= 127 else a.bit_length()


def scaled(b: int, r: int) -> Guess:
    """SCALED: a code ``b`` whose scale moved by ``r``."""
    if r == ONE:
        return Guess(b, magnitude_class(b), b >= 128)
    p, group, turned = code_class(signed(b, 8) * r)
    return Guess(p % 256, 9 + group, turned)


def predicted_code(b: int, r: int, acc: int, curve: Curve) -> Guess:
    """PREDICTED of I8."""
    v, k = move(acc, curve)
    p, group, turned = code_class(signed(b, 8) * r + v)
    return Guess(p % 256, group * 8 + k, turned)


def predicted_float(b: int, dtype: int, top: int, acc: int, curve: Curve) -> Guess:
    """PREDICTED of floats; the prediction in bits, not ordered."""
    x, m = FLOATS[dtype]
    v, k = move(acc, curve)
    width, exponent, mantissa = 1 + x + m, b >> m & ((1 << x) - 1), b & ((1 << m) - 1)
    negative = bool(b >> (x + m))
    e = max(1, exponent)
    if v == 0:
        return Guess(b, min(19, max(0, top - e)) * 4 * 8 + k, negative)
    bits, h = (64, 53) if dtype == 12 else (32, 29)
    w = (mantissa + ((1 << m) if exponent else 0)) << (h - m)
    w = (-w if negative else w) >> (min(bits - 1, top - e) if top >= e else bits - 1)
    total = signed(w + (v << 24 if dtype == 12 else v), bits)
    a = (total if total >= 0 else -1 - total) | 1
    e = max(1, top + a.bit_length() - 1 - h)
    s = h - m - top + e
    parts = a << 3 >> s if s >= 0 else a << 3 << -s
    upper, f = parts >> 3, parts & 7
    up = f >= 4
    upper, f = (upper + 1, 7 - f) if up else (upper, f)
    size = (((e - 1) << m) + upper) % (1 << (width - 1))
    prediction = size | (1 << (width - 1) if total < 0 else 0)
    return Guess(prediction, (min(19, max(0, top - e)) * 4 + f) * 8 + k, (total < 0) != up)


def value(u: int, guess: Guess, width: int, *, is_float: bool) -> int:
    """Return the number that tokens spell for an element ``u``."""
    difference = (order(u, width) - order(guess.prediction, width)) if is_float else u - guess.prediction
    return fold(-difference if guess.turned else difference, width)


def token(z: int, width: int) -> int:
    d, fine = {8: (32, 3), 16: (16, 2), 32: (4, 1)}[width]
    if z < d:
        return z
    n = z.bit_length() - 1
    return d + ((n - (d.bit_length() - 1)) << fine) + (z >> (n - fine)) % (1 << fine)

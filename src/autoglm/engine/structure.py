"""Answers that must have a form: JSON, JSON of a schema, or calls of given tools.

The form is a grammar; before each token, those that would leave it are masked. It binds the answer only: a
thought before it is free. llguidance does the parsing: it has no dependencies, decides in microseconds a
token, and refuses a schema keyword that it does not implement where others would ignore it.

    >>> JsonAnswer({"type": "object", "properties": {"x": {"type": "integer"}}}).grammar()   # doctest: +SKIP
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from autoglm.engine.closing import closed
from autoglm.engine.endless import is_endless
from autoglm.errors import RequestError
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.tools import CALL_BEGIN, CALL_END, Tool, call_opening

MAX_GRAMMAR_CHARS = 256 << 10
MAX_AHEAD = 64  # tokens
# One way to write each value: a model that may put spaces anywhere may put nothing else.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ENDLESS = "nothing that ends can be written by it, as by a $ref that leads back to itself without a way out"
_DEEP = "it is nested too deep"
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)


@dataclass(frozen=True)
class JsonAnswer:
    """The answer is one JSON value.

    Attributes:
        schema: the JSON schema that it follows; the default is any object.
        param: the request field to name when the schema cannot be used.
    """

    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    param: str = "response_format"

    def grammar(self) -> str:
        """Return llguidance's form of it.

        Raises:
            RequestError: it is too large, or no JSON.
        """
        return llguidance.LLMatcher.grammar_from_json_schema(self.styled())

    def styled(self) -> str:
        """Return the schema with this service's one way to write values.

        Raises:
            RequestError: it is too large, or no JSON.
        """
        return _dump({**self.schema, "x-guidance": _STYLE}, self.param)


@dataclass(frozen=True)
class ToolAnswer:
    """The answer is free text, or calls of tools; see :mod:`autoglm.model.tools` for their form.

    Attributes:
        tools: which may be called.
        otherwise: the form of an answer that calls none; None: any text.
        required: whether at least one must be.
        parallel: whether more than one may be.
        param: the request field to name when a tool cannot be used.
    """

    tools: tuple[Tool, ...]
    otherwise: JsonAnswer | None = None
    required: bool = False
    parallel: bool = True
    param: str = "tools"

    def grammar(self) -> str:
        """Return llguidance's form of it.

        Raises:
            RequestError: a schema is too large, or no JSON.
        """
        calls = " | ".join(f"call_{i}" for i in range(len(self.tools)))
        lines = [f"start: ({calls}){'+' if self.parallel else ''}{'' if self.required else ' | text'}"]
        if self.otherwise:
            lines.append(f"text: %json {self.otherwise.styled()}")
        elif not self.required:
            lines += ["text: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:{CALL_BEGIN}.*)/"]
        for i, tool in enumerate(self.tools):
            opening, closing = json.dumps(call_opening(tool.name)), json.dumps("}" + CALL_END)
            schema = {**tool.parameters, "type": "object", "x-guidance": _STYLE}
            lines += [
                f"call_{i}: {opening} args_{i} {closing}",
                f"args_{i}: %json {_dump(schema, self.param)}",
            ]
        return llguidance.LLMatcher.grammar_from_lark("\n".join(lines))


Structure = JsonAnswer | ToolAnswer


def _dump(schema: object, param: str) -> str:
    _text(schema, param)  # its length is known before it is walked: that of a huge one takes seconds
    try:
        held = closed(schema)
    except RecursionError as error:
        raise RequestError(f"the schema cannot be used: {_DEEP}", param=param) from error
    text = _text(held, param)
    if '"$ref"' in text and is_endless(held):  # of others that have no value the parser says why
        raise RequestError(f"the schema cannot be used: {_ENDLESS}", param=param)
    return text


def _text(schema: object, param: str) -> str:
    try:
        text = json.dumps(schema)
    except RecursionError as error:
        raise RequestError(f"the schema cannot be used: {_DEEP}", param=param) from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"the schema is no JSON: {error}", param=param) from error
    if len(text) > MAX_GRAMMAR_CHARS:
        raise RequestError(f"the schema has more than {MAX_GRAMMAR_CHARS} characters", param=param)
    return text


def _reason(said: str) -> str:
    """Return llguidance's message as one clause that speaks of the schema only."""
    text = said.strip().partition("failed to compile JSON schema: ")[2] or said.strip()
    if text.startswith("regex parse error"):  # the pattern, a mark below it, and then what is wrong
        wrong = text.partition("\nerror: ")[2].partition("\n")[0]
        return f"a pattern is no regular expression that is known here: {wrong or 'it cannot be read'}"[:200]
    if "NoExtensionBias" in text:
        return _ENDLESS
    if "recursion limit exceeded" in text:
        return _DEEP
    if "ff_tokens" in text:
        return "it leaves the model no choice for more text than can be followed"
    return (text.splitlines() or ["it is too complex"])[0][:200]


class Grammars:
    """Makes constraints for one release's tokenizer; safe to use from every thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._table: llguidance.LLTokenizer | None = None

    def constrain(self, structure: Structure) -> Constraint:
        """Return a constraint at its beginning.

        Raises:
            RequestError: the schema is invalid, uses what is not implemented, is too complex, or lets nothing
                be written that ends.
        """
        matcher = llguidance.LLMatcher(self._vocabulary(), structure.grammar(), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            raise RequestError(f"the schema cannot be used: {reason}", param=structure.param)
        constraint = Constraint(matcher, structure.param)
        constraint.check_ahead()
        constraint.allowed(self._tokenizer.vocab_size)  # what fails at the first token is refused here
        return constraint

    def _vocabulary(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._table is None:
                tokenizer = self._tokenizer
                ends = [tokenizer.eos, tokenizer.end_answer]
                wrapper: Any = _Vocabulary(tokenizer)
                self._table = llguidance.LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size, eos_token=ends)
            return self._table


class _Vocabulary:
    """A tokenizer in the shape that llguidance reads; the names are its own."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.eos_token_id, self.bos_token_id = tokenizer.eos, tokenizer.bos
        self.tokens = [text or f"<|{i}|>".encode() for i, text in enumerate(texts)]
        self.special_token_ids = [i for i, text in enumerate(texts) if not text]
        self.is_tokenizer_wrapper = True
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class Constraint:
    """How far one answer has come in its form."""

    def __init__(self, matcher: llguidance.LLMatcher, param: str) -> None:
        self._matcher, self._param = matcher, param
        self._next: Tensor | None = None

    def allowed(self, vocab_size: int) -> Tensor:
        """Return which tokens may come next, (vocab_size,) bool.

        Raises:
            RequestError: the form became too complex to follow.
        """
        if self._next is not None and len(self._next) == vocab_size:
            return self._next
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        known = np.unpackbits(bits, bitorder="little")[:vocab_size].astype(bool)
        mask = torch.zeros(vocab_size, dtype=torch.bool)
        mask[: len(known)] = torch.from_numpy(known)
        self._next = mask
        return mask

    def check_ahead(self) -> None:
        """Follow on a copy what must come first, so that a form that cannot be is known before it is used.

        Raises:
            RequestError: the form is too complex to follow.
        """
        ahead = Constraint(self._matcher.deep_copy(), self._param)
        forced = ahead._matcher.compute_ff_tokens()[:MAX_AHEAD]
        if forced:
            ahead._matcher.consume_tokens(forced)
            ahead._check()
            ahead._matcher.compute_bitmask()
            ahead._check()

    def accept(self, token_id: int) -> None:
        """Take the chosen token.

        Raises:
            RequestError: the form became too complex to follow.
        """
        self._next = None
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise RequestError(f"the schema cannot be followed: {reason}", param=self._param)

"""The self-test that a release carries: questions, and what their greedy answers must contain."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from autoglm.errors import ManifestError
from autoglm.releases.manifest import MAX_MANIFEST_BYTES
from autoglm.releases.reading import Reader, canonical_json, parse_json

HEALTH_NAME = "health.json"
MAX_HEALTH_PROMPTS = 64
MAX_HEALTH_TOKENS = 512


@dataclass(frozen=True)
class HealthPrompt:
    """One question of a release's self-test.

    Attributes:
        messages: the conversation, as in the chat API, text only.
        expect: what the greedy answer, without the thought, must contain.
        enable_thinking: whether the model thinks first.
        max_tokens: bound on the generation, the thought included.
    """

    messages: tuple[dict[str, str], ...]
    expect: str
    enable_thinking: bool = False
    max_tokens: int = 64


@dataclass(frozen=True)
class HealthCheck:
    """A release's own self-test, ``health.json``.

    Attributes:
        prompts: questions with expected answers.
        min_tokens_per_s: the slowest acceptable generation; 0 accepts any speed.
    """

    prompts: tuple[HealthPrompt, ...] = ()
    min_tokens_per_s: float = 0.0

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a ``health.json``.

        Raises:
            ManifestError: a rule is broken.
        """
        parsed = parse_json(content, MAX_MANIFEST_BYTES, HEALTH_NAME, ManifestError)
        reader = Reader(parsed, HEALTH_NAME, ManifestError)
        reader.only("prompts", "min_tokens_per_s")
        prompts = tuple(cls._prompt(item) for item in reader.items("prompts", MAX_HEALTH_PROMPTS))
        return cls(prompts, reader.maybe_number("min_tokens_per_s", 0, 1e6) or 0.0)

    @staticmethod
    def _prompt(value: object) -> HealthPrompt:
        reader = Reader(value, f"{HEALTH_NAME} prompt", ManifestError)
        reader.only("messages", "expect", "enable_thinking", "max_tokens")
        messages: list[dict[str, str]] = []
        for item in reader.items("messages", 20):
            message = Reader(item, f"{HEALTH_NAME} message", ManifestError)
            message.only("role", "content")
            role = message.choice("role", "system", "user", "assistant")
            messages.append({"role": role, "content": message.text("content", 10_000)})
        if not messages:
            raise reader.refuse("messages", "a conversation of at least one message")
        thinking = bool(reader.maybe_boolean("enable_thinking"))
        max_tokens = reader.maybe_integer("max_tokens", 1, MAX_HEALTH_TOKENS) or 64
        return HealthPrompt(tuple(messages), reader.text("expect", 10_000), thinking, max_tokens)

    def to_bytes(self) -> bytes:
        """Return the canonical ``health.json``."""
        return canonical_json(asdict(self))

"""One conversation with one service: what was said, what goes with the next message, who answers.

What it guarantees: a turn that failed is forgotten and leaves the conversation as it was; attachments wait
for the next try, unless the service refused them. A turn that was stopped keeps what had been said. It prints
nothing.
"""

from __future__ import annotations

import base64
import io
import mimetypes
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoglm.errors import ConfigError, HubError, ProtocolError

if TYPE_CHECKING:
    from autoglm.cli.client import ServiceClient

MAX_MEDIA_BYTES = 24 << 20

Kind = Literal["thought", "text"]
Show = Callable[[Kind, str], None]


@dataclass(frozen=True)
class Release:
    """What answers.

    Attributes:
        version: such as ``v1.2``.
        fingerprint: as in the answers' ``system_fingerprint``.
        loaded: versions that may be pinned.
        description: the release in words.
    """

    version: str
    fingerprint: str
    loaded: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Answer:
    """One whole answer.

    Attributes:
        text: what was said.
        thought: what was thought before, where it was asked for.
        finish_reason: as the service gave it.
        fingerprint: of the release that answered.
        usage: tokens, as the service counts them.
    """

    text: str
    thought: str
    finish_reason: str | None
    fingerprint: str | None
    usage: dict[str, Any] | None


@dataclass
class Chat:
    """A conversation.

    Attributes:
        client: the service.
        model: ``NAME`` or ``NAME@VERSION``.
        think: whether the model thinks first.
        turns: what was said, as the API takes it.
        media: parts that go with the next message.
    """

    client: ServiceClient
    model: str
    think: bool = False
    temperature: float = 0.0
    max_tokens: int | None = None
    turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    media: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def attach_image(self, path: Path) -> None:
        """Send an image with the next message.

        Raises:
            ConfigError: it cannot be read, is too large, or is no image.
        """
        content = _read(path)
        _require_image(path.name, content)
        kind = mimetypes.guess_type(path.name)[0] or "image/png"
        self.media.append(
            {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{_base64(content)}"}}
        )

    def attach_audio(self, path: Path) -> None:
        """Send a recording (WAV or MP3) with the next message.

        Raises:
            ConfigError: it is neither, cannot be read, is too large, or is no recording.
        """
        kind = path.suffix.lower().removeprefix(".")
        if kind not in ("wav", "mp3"):
            raise ConfigError(f"{path.name} is neither a .wav nor an .mp3 file")
        content = _read(path)
        _require_audio(path.name, content)
        self.media.append({"type": "input_audio", "input_audio": {"data": _base64(content), "format": kind}})

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.turns, self.media = [turn for turn in self.turns if turn["role"] == "system"], []

    def ask(self, text: str, show: Show) -> Answer:
        """Send a message and return the answer, shown piece by piece as it comes.

        Raises:
            NetworkError: the service was not reached, or broke off.
            HubError: it refuses.
            KeyboardInterrupt: as it came; what had been said until then stays in the conversation.
        """
        content = [*self.media, {"type": "text", "text": text}] if self.media else text
        self.turns.append({"role": "user", "content": content})
        pieces: dict[Kind, list[str]] = {"thought": [], "text": []}
        try:
            answer = self._stream(pieces, show)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and pieces["text"]:
                self._keep("".join(pieces["text"]))
            else:
                self.turns.pop()
            if isinstance(error, HubError):
                self.media = []  # what was refused once would be refused with every further message
            raise
        self._keep(answer.text)
        return answer

    def release(self) -> Release | None:
        """Return which release answers now, None where the service does not say (it is another's).

        Raises:
            NetworkError: the service was not reached.
        """
        try:
            info = self.client.get("/v1/model/info")
            where = ", ".join(info["devices"])
            words = f"{info['model']} {info['version']}, {info['name']}, {where}"
            return Release(info["version"], info["system_fingerprint"], tuple(info["loaded_versions"]), words)
        except (HubError, ProtocolError, KeyError, TypeError):
            return None

    def _keep(self, said: str) -> None:
        self.turns.append({"role": "assistant", "content": said})
        self.media = []

    def _stream(self, pieces: dict[Kind, list[str]], show: Show) -> Answer:
        reason, fingerprint, usage = None, None, None
        for event in self.client.stream("/v1/chat/completions", self._body()):
            fingerprint = event.get("system_fingerprint") or fingerprint
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                for kind, piece in _said(choice.get("delta") or {}):
                    pieces[kind].append(piece)
                    show(kind, piece)
                reason = choice.get("finish_reason") or reason
        return Answer("".join(pieces["text"]), "".join(pieces["thought"]), reason, fingerprint, usage)

    def _body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": self.turns,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "enable_thinking": self.think,
            "return_reasoning": self.think,
        }


def _said(delta: dict[str, Any]) -> list[tuple[Kind, str]]:
    """Return what a delta adds."""
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    found: list[tuple[Kind, str]] = [("thought", thought), ("text", delta.get("content") or "")]
    return [(kind, text) for kind, text in found if text]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MEDIA_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_MEDIA_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _require_image(name: str, content: bytes) -> None:
    """Refuse at once what the service would refuse with the message; only the header is read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the size is the service's to judge
            Image.open(io.BytesIO(content)).close()
    except Exception as error:  # the decoders of strange files raise all sorts
        raise ConfigError(f"{name} does not open as an image") from error


def _require_audio(name: str, content: bytes) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)):
            pass
    except Exception as error:
        raise ConfigError(f"{name} does not open as a recording") from error

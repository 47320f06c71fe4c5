"""``autoglm chat``: talk to a running service from the terminal."""

from __future__ import annotations

import base64
import contextlib
import importlib
import mimetypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.errors import AutoGLMError, ConfigError

if TYPE_CHECKING:
    from autoglm.cli.client import ServiceClient

MAX_MEDIA_BYTES = 24 << 20
_HELP = "/image FILE and /audio FILE attach to your next message; /clear forgets; /quit ends."
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def command(
    message: Annotated[str | None, typer.Argument(help="Ask this and end; else an interactive chat.")] = None,
    url: Annotated[
        str | None, typer.Option(help="The service's address.", show_default="the local one")
    ] = None,
    token: Annotated[str | None, typer.Option(help="An API key, where the service asks for one.")] = None,
    model: Annotated[str, typer.Option(help="NAME or NAME@VERSION.")] = "autoglm-phone-9b",
    think: Annotated[bool, typer.Option("--think", help="Let the model think first, and show it.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    image: Annotated[Path | None, typer.Option(help="Attach an image to the first message.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Attach a recording to the first message.")] = None,
    temperature: Annotated[float, typer.Option(help="Chance in the answer; 0 has none.", min=0, max=2)] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(help="Bound on each answer.", min=1)] = None,
) -> None:
    """Chat with a running service; the answer appears as it is generated.

    Examples:

      autoglm chat

      autoglm chat "你是谁?"

      autoglm chat --url http://phone.local:8000 --think --image screen.png "tap Maps"
    """
    from autoglm.cli.client import ServiceClient
    from autoglm.cli.places import find_service

    address = find_service(url)
    client = ServiceClient(address.url, token=token, certificate=address.certificate)
    chat = Chat(client, model=model, think=think, temperature=temperature, max_tokens=max_tokens)
    if system is not None:
        chat.turns.append({"role": "system", "content": system})
    for path, attach in ((image, chat.attach_image), (audio, chat.attach_audio)):
        if path is not None:
            attach(path)
    if message is not None:
        chat.ask(message)
    elif sys.stdin.isatty():
        _converse(chat)
    else:
        chat.ask(sys.stdin.read())


@dataclass
class Chat:
    """One conversation with one service.

    Attributes:
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
    fingerprint: str | None = None

    def attach_image(self, path: Path) -> None:
        """Send an image with the next message."""
        kind = mimetypes.guess_type(path.name)[0] or "image/png"
        self.media.append({"type": "image_url", "image_url": {"url": f"data:{kind};base64,{_base64(path)}"}})

    def attach_audio(self, path: Path) -> None:
        """Send a recording (WAV or MP3) with the next message."""
        kind = path.suffix.lower().removeprefix(".")
        if kind not in ("wav", "mp3"):
            raise ConfigError(f"{path.name} is neither a .wav nor an .mp3 file")
        self.media.append({"type": "input_audio", "input_audio": {"data": _base64(path), "format": kind}})

    def ask(self, text: str) -> None:
        """Send a message and print the answer as it comes; a failed turn is forgotten."""
        content = [*self.media, {"type": "text", "text": text}] if self.media else text
        self.turns.append({"role": "user", "content": content})
        try:
            answer = self._stream()
        except BaseException:
            self.turns.pop()
            raise
        self.media = []
        self.turns.append({"role": "assistant", "content": answer})

    def show_version(self) -> None:
        """Print which release answers."""
        info = self.client.get("/v1/model/info")
        self.fingerprint = info["system_fingerprint"]
        print(_dimmed(f"[{info['model']} {info['version']}, {info['name']}, {', '.join(info['devices'])}]"))

    def _stream(self) -> str:
        body = {
            "model": self.model,
            "messages": self.turns,
            "stream": True,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "enable_thinking": self.think,
            "return_reasoning": self.think,
        }
        pieces: list[str] = []
        for event in self.client.stream("/v1/chat/completions", body):
            self._notice_swap(event.get("system_fingerprint"))
            for choice in event["choices"]:
                delta = choice["delta"]
                print(_dimmed(delta.get("reasoning_content") or ""), end="", flush=True)
                text = delta.get("content") or ""
                if text and not pieces and self.think:
                    print()
                pieces.append(text) if text else None
                print(text, end="", flush=True)
        print()
        return "".join(pieces)

    def _notice_swap(self, fingerprint: str | None) -> None:
        """Say so when another release answers than before."""
        if self.fingerprint not in (None, fingerprint) and "@" not in self.model:
            self.show_version()
        self.fingerprint = self.fingerprint and fingerprint


def _converse(chat: Chat) -> None:
    with contextlib.suppress(ImportError):  # gives input() a history and line editing where there is one
        importlib.import_module("readline")
    chat.show_version()
    print(_dimmed(_HELP))
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        try:
            _obey(chat, line)
        except AutoGLMError as error:
            print(f"error: {error}", file=sys.stderr)


def _obey(chat: Chat, line: str) -> None:
    verb, _, rest = line.partition(" ")
    attach: dict[str, Callable[[Path], None]] = {"/image": chat.attach_image, "/audio": chat.attach_audio}
    if verb in attach:
        attach[verb](Path(rest.strip()).expanduser())
        print(_dimmed("attached to your next message"))
    elif verb == "/clear":
        chat.turns, chat.media = [turn for turn in chat.turns if turn["role"] == "system"], []
    elif line.startswith("/"):
        print(_dimmed(_HELP))
    elif line:
        chat.ask(line)


def _base64(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_MEDIA_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_MEDIA_BYTES >> 20} MiB")
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _dimmed(text: str) -> str:
    return f"{_DIM}{text}{_PLAIN}" if text and sys.stdout.isatty() else text

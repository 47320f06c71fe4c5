"""``autoglm chat``: talk to a running service from the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.chat_session import Answer, Chat, Kind
from autoglm.cli.chat_terminal import Printer, Terminal
from autoglm.cli.output import print_json
from autoglm.errors import ConfigError


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as JSON at its end.")
    ] = False,
) -> None:
    """Chat with a running service; the answer appears as it is generated.

    Without a message it is a conversation at the terminal, where /help lists the commands; a pipe's whole
    text is one message.

    Examples:

      autoglm chat

      autoglm chat "你是谁?"

      autoglm chat --url http://phone.local:8000 --think --image screen.png "tap Maps"

      echo "你是谁?" | autoglm chat --json
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
    if message is None and sys.stdin.isatty():
        if as_json:
            raise ConfigError("--json answers one message: give it as an argument or through a pipe")
        Terminal(chat).run()
    else:
        _ask_once(chat, sys.stdin.read() if message is None else message, as_json)


def _ask_once(chat: Chat, message: str, as_json: bool) -> None:
    if not as_json:
        chat.ask(message, Printer().show)
        print()
        return
    print_json(_document(chat, chat.ask(message, _silently)))


def _silently(kind: Kind, text: str) -> None:
    """Show nothing."""


def _document(chat: Chat, answer: Answer) -> dict[str, Any]:
    """Return an answer for scripts; the version is null when another release came between."""
    release = chat.release()
    return {
        "content": answer.text,
        "reasoning": answer.thought or None,
        "finish_reason": answer.finish_reason,
        "model": chat.model,
        "version": release.version if release and release.fingerprint == answer.fingerprint else None,
        "system_fingerprint": answer.fingerprint,
        "usage": answer.usage,
    }

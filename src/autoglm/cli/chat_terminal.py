"""The conversation at a terminal: a prompt that names the release, commands, and notice of updates.

What it guarantees: an error, a stopped answer and a service that went away leave the session alive; when the
model is updated, a line says so at once, also while nothing is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from autoglm.cli.chat_session import Chat, Kind, Release
from autoglm.errors import AutoGLMError, ConfigError, NetworkError

HELP = """\
/image FILE     attach an image to your next message
/audio FILE     attach a recording (.wav, .mp3) to your next message
/think on|off   let the model think first, shown dimmed
/model VERSION  be answered by one loaded release; /model alone: by the active one
/clear          forget the conversation
/save FILE      write the conversation as JSON
/help           this list
/quit           end (or Ctrl-D)
A line that ends with \\ goes on in the next one; so does everything between two lines of \"\"\".
Ctrl-C stops an answer."""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# Control characters but newline and tab: an answer must not move the cursor or rename the window.
_STEERING = {n: None for n in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(n) not in "\n\t"}
_WATCH_S = 2.0
_WAIT_S = 120.0
_MAX_HISTORY = 1000


def harmless(text: str) -> str:
    """Return the text without what would steer a terminal; as it is where stdout is none."""
    return text.translate(_STEERING) if sys.stdout.isatty() else text


def dimmed(text: str) -> str:
    """Return the text as a terminal shows it in the background; as it is where stdout is none."""
    return f"{_DIM}{text}{_PLAIN}" if text and sys.stdout.isatty() else text


class Printer:
    """Prints one answer: the thought dimmed, on lines of its own."""

    def __init__(self) -> None:
        self._last: Kind | None = None

    @property
    def has_printed(self) -> bool:
        """Whether anything of the answer was shown."""
        return self._last is not None

    def show(self, kind: Kind, text: str) -> None:
        """Print a piece as it comes."""
        if self._last not in (None, kind):
            print()
        self._last = kind
        shown = harmless(text)
        print(dimmed(shown) if kind == "thought" else shown, end="", flush=True)


class Terminal:
    """A session of one chat, from the first prompt to ``/quit``."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._base = chat.model.partition("@")[0]
        self._release: Release | None = None
        self._printing = threading.RLock()  # one at a time: an answer, or a notice
        self._prompted = ""  # the prompt that waits for a line, "" while none does
        self._ended = threading.Event()
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/audio": self._audio,
            "/think": self._think,
            "/model": self._model,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: self._say(HELP),
        }

    def run(self) -> None:
        """Converse until the user ends it.

        Raises:
            NetworkError: no service is reached at the beginning.
        """
        self._announce(self.chat.release(), first=True)
        self._say("/help lists the commands, /quit ends.")
        with _line_editing():
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            try:
                while (text := self._read()) is not None:
                    self._obey(text)
            finally:
                self._ended.set()

    def _say(self, text: str) -> None:
        print(dimmed(text), flush=True)

    # Reading

    def _read(self) -> str | None:
        """Return the next message or command, None at the end."""
        try:
            line = self._line(self._prompt())
            if line.strip() == '"""':
                return "\n".join(iter(lambda: self._line("... "), '"""'))
            while line.endswith("\\"):
                line = line[:-1] + "\n" + self._line("... ")
            return None if line.strip() == "/quit" else line.strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            return ""

    def _line(self, prompt: str) -> str:
        self._prompted = prompt
        try:
            return input(prompt)
        finally:
            self._prompted = ""

    def _prompt(self) -> str:
        if "@" in self.chat.model:
            return f"@{self.chat.model.partition('@')[2]}> "
        return f"{self._release.version}> " if self._release else "> "

    # Obeying

    def _obey(self, text: str) -> None:
        try:
            verb, _, rest = text.partition(" ")
            if verb in self._commands:
                self._commands[verb](rest.strip().strip("'\""))
            elif text.startswith("/") and "\n" not in text:
                self._say(f"there is no command {verb}\n{HELP}")
            elif text:
                with self._printing:
                    self._ask(text)
        except AutoGLMError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            self._say("\n[stopped]")

    def _ask(self, text: str) -> None:
        printer = Printer()
        try:
            answer = self.chat.ask(text, printer.show)
        except NetworkError as error:
            if printer.has_printed:
                print()
                raise  # half an answer was shown: the user decides whether to ask again
            self._wait_for_service(error)
            answer = self.chat.ask(text, printer.show)
        print(flush=True)
        if self._release and answer.fingerprint not in (None, self._release.fingerprint):
            self._announce(self.chat.release())
        if answer.finish_reason == "length":
            self._say("[cut off by the token limit]")

    def _wait_for_service(self, error: NetworkError) -> None:
        """Return once the service is there again; the first error is raised when it does not come."""
        self._say(f"[{error}; waiting for it, Ctrl-C gives up]")
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(AutoGLMError):
                self.chat.client.get("/v1/models")
                return
        raise error

    def _image(self, name: str) -> None:
        self.chat.attach_image(_path(name))
        self._say("attached to your next message")

    def _audio(self, name: str) -> None:
        self.chat.attach_audio(_path(name))
        self._say("attached to your next message")

    def _think(self, word: str) -> None:
        if word not in ("on", "off"):
            raise ConfigError("write /think on or /think off")
        self.chat.think = word == "on"

    def _model(self, version: str) -> None:
        version = version.removeprefix(f"{self._base}@").removeprefix("@")
        release = self.chat.release()
        if version and release and version not in release.loaded:
            raise ConfigError(f"{version} is not loaded; these are: {', '.join(release.loaded)}")
        self.chat.model = f"{self._base}@{version}" if version else self._base

    def _clear(self, _: str) -> None:
        self.chat.clear()
        self._say("forgotten")

    def _save(self, name: str) -> None:
        path = _path(name)
        document = {"model": self.chat.model, "messages": self.chat.turns}
        try:
            path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        self._say(f"{len(self.chat.turns)} messages written to {path}")

    # The release

    def _watch(self) -> None:
        """Look which release answers, so that an update is seen without a question."""
        while not self._ended.wait(_WATCH_S):
            with contextlib.suppress(AutoGLMError):
                release = self.chat.release()
                if release and self._release and release.fingerprint != self._release.fingerprint:
                    self._announce(release)

    def _announce(self, release: Release | None, *, first: bool = False) -> None:
        """Say which release answers, if it is another than before; give back a prompt that waits."""
        with self._printing:
            if release is None or release == self._release:
                return
            is_new = self._release is None or release.fingerprint != self._release.fingerprint
            self._release = release
            if not is_new:
                return
            waits = self._prompted
            start = "\r\x1b[K" if waits and sys.stdout.isatty() else ""
            said = dimmed(f"[{'' if first else 'now '}{release.description}]")
            print(f"{start}{said}", flush=True)
            if waits:
                self._prompted = self._prompt() if waits != "... " else waits
                print(self._prompted + _typed(), end="", flush=True)


def _path(name: str) -> Path:
    if not name:
        raise ConfigError("name a file")
    return Path(name).expanduser()


def _typed() -> str:
    """Return what stands on the line that is being edited."""
    readline: Any = sys.modules.get("readline")
    return readline.get_line_buffer() if readline is not None else ""


@contextlib.contextmanager
def _line_editing() -> Generator[None]:
    """Edit lines and keep a history of them, readable by its owner only, where this Python can."""
    try:
        readline: Any = importlib.import_module("readline")
    except ImportError:
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    place = Path(state).expanduser() / "autoglm" / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(place)
    readline.set_history_length(_MAX_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch(mode=0o600)
            readline.write_history_file(place)

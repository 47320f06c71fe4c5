"""``autoglm chat`` at a real terminal, against a real service in this process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pexpect
import pytest

from autoglm.cli.chat_terminal import Printer
from autoglm.engine.scheduler import Scheduler
from service.running import running_service, tiny_settings

DEADLINE_S = 120
LONG = ("--temperature", "1", "--max-tokens", "900")


class Session:
    """A chat at a pseudo-terminal."""

    def __init__(self, url: str, directory: Path, *options: str) -> None:
        environment = os.environ | {"XDG_STATE_HOME": str(directory), "TERM": "xterm", "PYTHONUTF8": "1"}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "autoglm.cli", "chat", "--url", url, *options],
            env=environment,
            cwd=str(directory),
            encoding="utf-8",
            codec_errors="replace",
            timeout=DEADLINE_S,
            dimensions=(40, 200),
        )

    def see(self, text: str) -> None:
        """Wait until the terminal shows it."""
        self.child.expect_exact(text)

    def type(self, line: str) -> None:
        """Type a line at the prompt."""
        self.child.sendline(line)

    def ask(self, line: str, prompt: str = "v1.2> ") -> str:
        """Type a line, wait for the next prompt and return what stood between."""
        self.type(line)
        self.see("\r\n")
        self.see(prompt)
        return self.child.before

    def end(self) -> None:
        """End it as a user does."""
        self.type("/quit")
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus == 0


@pytest.fixture
def terminal(tmp_path: Path) -> Generator[Any]:
    """Open a chat: ``terminal(url, "--think")``."""
    with ExitStack() as stack:

        def open_session(url: str, *options: str) -> Session:
            session = Session(url, tmp_path, *options)
            stack.callback(session.child.close, force=True)
            return session

        yield open_session


@pytest.mark.needs("pty")
def test_a_session_asks_attaches_saves_and_ends(terminal: Any, cli_service: Any, tmp_path: Path) -> None:
    """The prompt names the release; the commands do what /help says; nothing wrong ends the session."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a screen.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.wav").write_text("no sound")
    session = terminal(cli_service.url, "--max-tokens", "8")
    session.see("autoglm-phone-9b v1.2")
    session.see("v1.2> ")
    answer = cli_service.chat("hi").json()["choices"][0]["message"]["content"]
    assert session.ask("hi").startswith(answer[0])
    assert "/save FILE" in session.ask("/help")
    assert "there is no command /nothing" in session.ask("/nothing")
    assert "attached" in session.ask("/image 'a screen.png'")
    assert session.ask("what is this?").strip()
    assert "no.png" in session.ask("/image no.png")
    assert "does not open as an image" in session.ask("/image c.wav")
    assert "does not open as a recording" in session.ask("/audio c.wav")
    assert "attached" in session.ask("/image b.png")
    assert "cannot be decoded" in session.ask("what is this?")
    assert "error" not in session.ask("and now?")
    assert "messages written" in session.ask("/save talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["user", "assistant"] * 3
    assert saved["messages"][2]["content"][0]["type"] == "image_url"
    assert "forgotten" in session.ask("/clear")
    assert "0 messages written" in session.ask("/save talk.json")
    session.end()
    history = tmp_path / "autoglm" / "chat_history"
    assert "what is this?" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


@pytest.mark.needs("pty")
def test_several_lines_are_one_message(terminal: Any, cli_service: Any, tmp_path: Path) -> None:
    """A backslash continues a line, three quotation marks open and close a block."""
    session = terminal(cli_service.url, "--max-tokens", "4")
    session.see("v1.2> ")
    session.type("first\\")
    session.see("... ")
    session.ask("second")
    for line in ('"""', "third", "/quit"):
        session.type(line)
        session.see("... ")
    session.ask('"""')
    session.ask("/save talk.json")
    turns = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [turn["content"] for turn in turns[::2]] == ["first\nsecond", "third\n/quit"]
    session.end()


@pytest.mark.needs("pty")
def test_thinking_is_shown_dimmed_when_it_is_on(terminal: Any, cli_service: Any) -> None:
    """/think on and off change what the next question shows."""
    session = terminal(cli_service.url, "--max-tokens", "12")
    session.see("v1.2> ")
    session.ask("/think on")
    assert "\x1b[2m" in session.ask("hi")
    session.ask("/think off")
    assert "\x1b[2m" not in session.ask("hi").replace("\x1b[2m[cut off", "[cut off")
    assert "write /think on or /think off" in session.ask("/think maybe")
    session.end()


@pytest.mark.needs("pty")
def test_ctrl_c_stops_an_answer_and_not_the_session(
    terminal: Any, cli_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stops too, and at the prompt the key only drops the line."""
    session = terminal(cli_service.url, *LONG)
    session.see("v1.2> ")
    engine = cli_service.state.engine
    step, written = Scheduler.step, 0

    def paced(scheduler: Scheduler) -> Any:
        """Step as a large model does; after some tokens slowly: a busy machine passes the key on late."""
        time.sleep(0.5 if engine.stats().generated_tokens >= written else 0.02)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", paced)
    cancelled = engine.stats().cancelled
    for _ in range(5):  # an answer may end by itself before the key arrives
        written, deadline = engine.stats().generated_tokens + 3, time.monotonic() + DEADLINE_S / 10
        session.type("hi")
        while engine.stats().generated_tokens < written and time.monotonic() < deadline:
            time.sleep(0.01)
        session.child.sendintr()
        session.see("v1.2> ")
        written = engine.stats().generated_tokens + 1_000
        while engine.stats().running:
            time.sleep(0.01)
        if "[stopped]" in session.child.before and engine.stats().cancelled > cancelled:
            break
    assert "[stopped]" in session.child.before
    assert engine.stats().cancelled > cancelled
    session.child.send("half a line")
    session.see("half a line")
    session.child.sendintr()
    session.see("v1.2> ")
    session.end()


@pytest.mark.needs("pty")
def test_an_update_is_announced_while_nobody_asks(terminal: Any, cli_service: Any, cli_store: Path) -> None:
    """The live model goes to v1.3: a line says so at the waiting prompt, and the old one can be pinned."""
    session = terminal(cli_service.url, "--max-tokens", "4")
    session.see("v1.2> ")
    cli_service.state.hub.publish(cli_store / "v1.3.wpatch", percent=100)
    cli_service.build_packages()
    assert cli_service.state.updater.update(cli_service.state.engine).kind == "updated"
    session.see("now autoglm-phone-9b v1.3")
    session.see("v1.3> ")
    assert session.ask("hi", "v1.3> ").strip()
    assert "v9 is not loaded" in session.ask("/model v9", "v1.3> ")
    session.ask("/model v1.2", "@v1.2> ")
    assert session.ask("hi", "@v1.2> ").strip()
    session.ask("/model", "v1.3> ")
    session.end()


@pytest.mark.needs("pty")
def test_a_restarted_service_is_waited_for(terminal: Any, cli_store: Path, tmp_path: Path) -> None:
    """A question that finds nobody is asked again once the service is back; the conversation goes on."""
    with running_service(tiny_settings(cli_store, tmp_path / "service")) as service:
        port = int(service.url.rpartition(":")[2])
        session = terminal(service.url, "--max-tokens", "4")
        session.see("v1.2> ")
        session.ask("hi")
    session.type("are you there?")
    session.see("waiting for it")
    with running_service(tiny_settings(cli_store, tmp_path / "service", port=port)):
        session.see("v1.2> ")
        session.ask("/save talk.json")
        turns = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        session.end()


def test_an_answer_for_scripts_is_one_document(autoglm: Any, cli_service: Any) -> None:
    """--json prints the answer, its thought, the release and the usage, from an argument or a pipe."""
    options = ("--url", cli_service.url, "--max-tokens", "12", "--json")
    said = autoglm("chat", "hi", *options, "--think")
    assert said.status == 0, said.error
    assert (said.json["version"], said.json["finish_reason"]) == ("v1.2", "length")
    assert said.json["reasoning"]
    assert said.json["usage"]["completion_tokens"] == 12
    piped = autoglm("chat", *options, text="hi")
    assert piped.json["content"] == autoglm("chat", "hi", *options).json["content"]


def test_what_would_steer_a_terminal_is_left_out_of_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences in an answer lose the character that makes them one; lines and tabs stay."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Printer().show("text", "a\x1b]0;owned\x07\n\tb\x9b2J\x7f")
    assert capsys.readouterr().out == "a]0;owned\n\tb2J"

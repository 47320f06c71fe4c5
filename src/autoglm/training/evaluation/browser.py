"""A headless Chromium, spoken to through a pipe in its DevTools protocol: pages in, pixels and boxes out.

One process renders many pages. It gets an empty profile of its own, which is deleted with it, and pages that
refer to nothing outside themselves. Nothing is downloaded and no port is opened. A browser that does not
answer within its time limit is killed.

    >>> with Browser() as browser:                                       # doctest: +SKIP
    ...     shot = browser.render("<p>hello</p>", Viewport(320, 711, 3.375), "document.body.innerText")
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

from autoglm.errors import ConfigError

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--hide-scrollbars", "--mute-audio", "--font-render-hinting=none", "--force-color-profile=srgb"),
    *("--disable-lcd-text", "--remote-debugging-pipe"),
)
_TIMEOUT_SECONDS = 60.0
_MAX_ANSWER_BYTES = 64 << 20
# Two frames after the fonts are there, nothing moves any more.
_SETTLED = (
    "document.fonts.ready.then(() => new Promise(done => "
    "requestAnimationFrame(() => requestAnimationFrame(() => done(1)))))"
)
# The browser's pipe must be the descriptors 3 and 4; both are moved out of the way of each other first.
_LAUNCH = (
    "import fcntl, os, sys\n"
    "ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]\n"
    "for end, wanted in zip(ends, (3, 4)):\n"
    "    os.dup2(end, wanted)\n"
    "    os.close(end)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


@dataclass(frozen=True)
class Viewport:
    """The size of a page.

    Attributes:
        width: in CSS pixels.
        height: in CSS pixels.
        scale: device pixels a CSS pixel.
    """

    width: int
    height: int
    scale: float


@dataclass(frozen=True)
class Shot:
    """A rendered page: the bytes of a PNG, and the value of the expression that was asked for."""

    png: bytes
    value: Any


def find_browser() -> str:
    """Return the path of an installed Chromium.

    Raises:
        ConfigError: there is none.
    """
    for program in _PROGRAMS:
        if found := shutil.which(program):
            return found
    raise ConfigError(
        "no Chromium was found, which renders the app pages of the evaluation: install it "
        "(apt install chromium fonts-wqy-zenhei), or leave the pages out with --only"
    )


class Browser:
    """A running browser; use it as a context, so that it ends with its profile."""

    def __init__(self, program: str | None = None, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """Start it.

        Args:
            program: path of the browser; the installed one if not given.
            timeout_seconds: within which every command must be answered.

        Raises:
            ConfigError: it is not installed, or does not start.
        """
        self._timeout = timeout_seconds
        self._left, self._next = b"", 0
        self._profile = tempfile.TemporaryDirectory(prefix="autoglm-browser-", ignore_cleanup_errors=True)
        self._process, self._write, self._read = _start(program or find_browser(), self._profile.name)
        try:
            target = self._send("Target.createTarget", url="about:blank")["targetId"]
            attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
            self._session: str | None = attached["sessionId"]
            tree = self._send("Page.getFrameTree", session=self._session)
            self._frame = tree["frameTree"]["frame"]["id"]
            self.version = str(self._send("Browser.getVersion")["product"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def render(self, html: str, viewport: Viewport, expression: str) -> Shot:
        """Show a page and return its pixels, and the value of a JavaScript expression on it.

        Raises:
            ConfigError: the browser ended, hangs, or the expression fails.
        """
        size = {"width": viewport.width, "height": viewport.height, "deviceScaleFactor": viewport.scale}
        session = self._session
        self._send("Emulation.setDeviceMetricsOverride", session=session, mobile=False, **size)
        self._send("Page.setDocumentContent", session=session, frameId=self._frame, html=html)
        self._value(_SETTLED)
        value = self._value(expression)
        shot = self._send("Page.captureScreenshot", session=session, format="png")
        return Shot(base64.b64decode(shot["data"]), value)

    def close(self) -> None:
        """End the browser and delete its profile."""
        for end in (self._write, self._read):
            os.close(end)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def _value(self, expression: str) -> Any:
        wanted = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self._send("Runtime.evaluate", session=self._session, **wanted)
        if "exceptionDetails" in answer:
            raise ConfigError(f"the page's script failed: {str(answer['exceptionDetails'])[:300]}")
        return answer["result"].get("value")

    def _send(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events in between are dropped."""
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        deadline = time.monotonic() + self._timeout
        self._put(json.dumps(message).encode() + b"\0", deadline)
        while (answer := self._receive(deadline)).get("id") != self._next:
            pass
        if "error" in answer:
            raise ConfigError(f"the browser refused {method}: {str(answer['error'])[:300]}")
        return cast("dict[str, Any]", answer["result"])

    def _put(self, content: bytes, deadline: float) -> None:
        try:
            while content:
                self._await(deadline, writing=True)
                content = content[os.write(self._write, content[: 1 << 15]) :]
        except OSError as error:
            raise self._gone() from error

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            self._await(deadline, writing=False)
            piece = os.read(self._read, 1 << 20)
            if not piece or len(self._left) > _MAX_ANSWER_BYTES:
                raise self._gone()
            self._left += piece
        message, _, self._left = self._left.partition(b"\0")
        return cast("dict[str, Any]", json.loads(message))

    def _await(self, deadline: float, *, writing: bool) -> None:
        ends = ([], [self._write]) if writing else ([self._read], [])
        if not any(select.select(*ends, [], max(0.0, deadline - time.monotonic()))):
            raise ConfigError(f"the browser did not answer within {self._timeout:g} seconds")

    def _gone(self) -> ConfigError:
        return ConfigError("the browser ended before it answered: try `chromium --headless --version`")


def _start(program: str, profile: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start the browser with its pipe on the descriptors 3 and 4; return it and our ends of the pipe."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [sys.executable, "-I", "-c", _LAUNCH, str(theirs_in), str(theirs_out), program, *_FLAGS]
    try:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile},
        )
    except OSError as error:
        for end in (ours_out, ours_in):
            os.close(end)
        raise ConfigError(f"{program} could not be started: {error.strerror}") from error
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return process, ours_out, ours_in

"""What the SDK asks of the thing that runs the model.

The inference engine matches :class:`Runtime` by its shape alone; the SDK never imports it. An app that
loads weights by its own means uses :class:`FileRuntime`, or writes the few methods itself.

The order of calls in one update: ``stage`` (the old model serves on), ``self_test``, the durable commit,
``swap``; then, when the trial is over, ``release_previous``, or ``rollback`` when it went badly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoglm.errors import AutoGLMError, EngineError
from autoglm.releases import Manifest


class SelfTestReport(Protocol):
    """What came of a self-test, on the staged weights or on the live path."""

    @property
    def ok(self) -> bool:
        """Whether the release may serve."""
        ...

    @property
    def failures(self) -> Sequence[str]:
        """One sentence for each thing wrong."""
        ...

    @property
    def score(self) -> float:
        """Share of the health prompts answered as expected."""
        ...

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token."""
        ...

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed."""
        ...

    @property
    def peak_memory_bytes(self) -> int:
        """Highest memory use seen."""
        ...


class Runtime(Protocol):
    """Runs releases. A method that fails raises; whatever it raises, the old release goes on serving."""

    def stage(self, directory: Path, /) -> Any:
        """Load the release in ``directory`` beside the live one and return a handle on it."""
        ...

    def self_test(self, staged: Any, /) -> SelfTestReport:
        """Examine the staged release with its own health prompts, off the live path."""
        ...

    def swap(self, staged: Any, /) -> Any:
        """Make the staged release the live one; the report's ``pause_s`` is how long nothing was served."""
        ...

    def discard(self, staged: Any, /) -> Any:
        """Drop a staged release that will not be used."""
        ...

    def rollback(self) -> Any:
        """Swap back to the release that served before the last ``swap``."""
        ...

    def release_previous(self) -> Any:
        """Let go of the release that served before: the trial is over."""
        ...

    def live_self_test(self) -> SelfTestReport:
        """Run the health prompts through the live path, on a device where nobody asks anything."""
        ...


@dataclass(frozen=True)
class FileReport:
    """The report of a :class:`FileRuntime`: it checks files and runs nothing."""

    ok: bool
    failures: tuple[str, ...] = ()
    score: float = 1.0
    first_token_s: float = 0.0
    tokens_per_s: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class FileSwap:
    """How long the app's callback took."""

    pause_s: float


class FileRuntime:
    """A runtime for apps that load the weights themselves: it verifies files and tells the app.

    Args:
        load: called with a release directory to load now; None when the app looks at ``updater.active``
            by itself. If it raises, the update fails and the previous release stays.
    """

    def __init__(self, load: Callable[[Path], object] | None = None) -> None:
        self._load = load
        self._live: Path | None = None
        self._previous: Path | None = None

    def stage(self, directory: Path, /) -> Path:
        """Note the directory; nothing is loaded yet."""
        return directory

    def self_test(self, staged: Path, /) -> FileReport:
        """Check every file of the release against its manifest."""
        try:
            Manifest.read(staged).verify(staged)
        except (AutoGLMError, OSError) as error:
            return FileReport(False, (str(error),), score=0.0)
        return FileReport(True)

    def swap(self, staged: Path, /) -> FileSwap:
        """Let the app load the release."""
        started = time.monotonic()
        if self._load is not None:
            self._load(staged)
        self._previous, self._live = self._live, staged
        return FileSwap(time.monotonic() - started)

    def discard(self, staged: Path, /) -> None:
        """Forget the directory."""

    def rollback(self) -> None:
        """Let the app load the release that it had before.

        Raises:
            EngineError: this runtime did not see which one that was.
        """
        if self._previous is None:
            raise EngineError("no earlier release was loaded through this runtime")
        self.swap(self._previous)
        self._previous = None

    def release_previous(self) -> None:
        """Forget the release that served before."""
        self._previous = None

    def live_self_test(self) -> FileReport:
        """Check the files of the release in use."""
        return FileReport(True) if self._live is None else self.self_test(self._live)

"""What the SDK asks of the thing that runs the model.

The inference engine matches :class:`Runtime` by its shape alone; the SDK never imports it. An app that
loads weights by its own means uses :class:`FileRuntime`, or writes the few methods itself.

The order of calls in one update: ``stage`` (the old model serves on), ``self_test``, the durable commit,
``swap``; then, when the trial is over, ``release_previous``, or ``rollback`` when it went badly. Where memory
holds only one model, a :class:`ExclusiveRuntime` is asked to let the old one go first.

Nothing here knows what a release holds: one weights file, or a program and its data (``.pte`` and ``.ptd``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoglm import memory
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


class Room(Protocol):
    """What loading a release takes, and what there is."""

    @property
    def needed_bytes(self) -> int:
        """Memory that it takes beside the live one."""
        ...

    @property
    def free_bytes(self) -> int:
        """Memory that may still be taken."""
        ...


class ExclusiveRuntime(Runtime, Protocol):
    """A runtime that can also make room: unload the live release before it loads the new one.

    Between such a ``stage`` and ``swap`` or ``discard`` it serves nothing; requests wait, and none is lost.
    """

    def room(self, directory: Path, /) -> Room:
        """Measure whether the release in ``directory`` fits beside the live one."""
        ...

    def stage(self, directory: Path, /, *, instead_of: Path | None = None) -> Any:
        """Load a release; with ``instead_of``, first end what is under way and unload the live one.

        ``discard`` then loads ``instead_of`` again; so does this method itself before it raises.
        """
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
    """How long nothing was loaded, or the app's callback took."""

    pause_s: float


@dataclass(frozen=True)
class FileRoom:
    """The bytes of a release's files, and the free memory of this process."""

    needed_bytes: int
    free_bytes: int


@dataclass
class FileStaged:
    """A release directory on its way to the app.

    Attributes:
        directory: where it lies.
        instead_of: in an exclusive swap, the release to load again should this one be discarded.
        since: when the app was told to unload, monotonic seconds.
    """

    directory: Path
    instead_of: Path | None = None
    since: float = 0.0


class FileRuntime:
    """A runtime for apps that load the weights themselves: it verifies files and tells the app.

    Args:
        load: called with a release directory to load now; None when the app looks at ``updater.active``
            by itself. If it raises, the update fails and the previous release stays.
        unload: called before ``load`` where memory holds only one model: end what is under way, let the
            model go, and keep requests until ``load`` has returned. Without it, updates are never exclusive.
        examine: called with the directory of a release before it is committed to; returns what is wrong
            with it, nothing when it may serve. Run the release's own output check here. In an exclusive
            swap, the release is loaded by then.
        memory_factor: bytes of memory that the app needs for each byte of a release's files.
    """

    def __init__(
        self,
        load: Callable[[Path], object] | None = None,
        *,
        unload: Callable[[], object] | None = None,
        examine: Callable[[Path], Sequence[str]] | None = None,
        memory_factor: float = 1.0,
    ) -> None:
        self._load, self._unload, self._examine = load, unload, examine
        self._memory_factor = memory_factor
        self._live: Path | None = None
        self._previous: Path | None = None

    def room(self, directory: Path, /) -> FileRoom:
        """Estimate the memory of a release by the size of its files."""
        if self._load is None or self._unload is None:
            return FileRoom(0, memory.free_bytes())
        needed = Manifest.read(directory).total_bytes * self._memory_factor
        return FileRoom(int(needed), memory.free_bytes())

    def stage(self, directory: Path, /, *, instead_of: Path | None = None) -> FileStaged:
        """Note the directory; in an exclusive swap, let the app unload and load."""
        if instead_of is None or self._load is None or self._unload is None:
            return FileStaged(directory)  # an app that cannot unload has nothing in the way
        staged = FileStaged(directory, instead_of, time.monotonic())
        self._unload()
        try:
            self._load(directory)
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def self_test(self, staged: FileStaged, /) -> FileReport:
        """Check every file of the release against its manifest, then let the app examine it."""
        return self._check(staged.directory)

    def swap(self, staged: FileStaged, /) -> FileSwap:
        """Let the app load the release, unless it has done so already."""
        started = time.monotonic() if staged.instead_of is None else staged.since
        if staged.instead_of is None and self._load is not None:
            self._load(staged.directory)
        self._previous = self._live if staged.instead_of is None else None
        self._live = staged.directory
        return FileSwap(time.monotonic() - started)

    def discard(self, staged: FileStaged, /) -> None:
        """Forget the directory; in an exclusive swap, let the app load the release before again."""
        if staged.instead_of is not None and self._load is not None and self._unload is not None:
            self._unload()
            self._load(staged.instead_of)
            self._live, staged.instead_of = staged.instead_of, None

    def rollback(self) -> None:
        """Let the app load the release that it had before.

        Raises:
            EngineError: this runtime did not see which one that was.
        """
        if self._previous is None:
            raise EngineError("no earlier release was loaded through this runtime")
        self.swap(FileStaged(self._previous))
        self._previous = None

    def release_previous(self) -> None:
        """Forget the release that served before."""
        self._previous = None

    def live_self_test(self) -> FileReport:
        """Check the files of the release in use."""
        return FileReport(True) if self._live is None else self._check(self._live)

    def _check(self, directory: Path) -> FileReport:
        try:
            Manifest.read(directory).verify(directory)
        except (AutoGLMError, OSError) as error:
            return FileReport(False, (str(error),), score=0.0)
        faults = () if self._examine is None else tuple(self._examine(directory))
        return FileReport(not faults, faults, score=0.0 if faults else 1.0)

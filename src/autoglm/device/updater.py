"""The device SDK's one object: what to load now, and how to get something newer.

What it guarantees: :attr:`Updater.active` is always a whole, verified release or None; an update replaces
it only after the new one has passed its self-test, and for good only after it has proved itself live;
whatever happens in between (crash, power cut, full disk, hostile network) the old or the new release is
there afterwards, and the next run goes on. One process at a time, by a lock on the directory.

    >>> updater = Updater("/var/lib/autoglm", hub_url="https://hub.example")     # doctest: +SKIP
    >>> engine = Engine.load(updater.active)                                     # doctest: +SKIP
    >>> updater.update(engine).kind                                              # doctest: +SKIP
    'updated'
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoglm import files
from autoglm.device import outcome
from autoglm.device.clock import Clock
from autoglm.device.context import Device, keep_device_id, silent
from autoglm.device.control import Control
from autoglm.device.cycle import to_result
from autoglm.device.enrolment import TOKEN_NAME, FileTokenStore, TokenStore
from autoglm.device.http import HttpTransport
from autoglm.device.outbox import Outbox
from autoglm.device.progress import Throttle
from autoglm.device.recovery import recover, settle
from autoglm.device.round import Round
from autoglm.device.runtime import Runtime
from autoglm.device.scrub import Scrub
from autoglm.device.settings import Gate, Progress, UpdateSettings
from autoglm.device.slots import Slots
from autoglm.device.staging import Staging
from autoglm.device.states import E_ROLLBACK, Change, Machine, State
from autoglm.device.status import Status, UpdateResult, make_status
from autoglm.device.transport import Transport
from autoglm.device.trial import Proving
from autoglm.device.trust import Trust, read_root
from autoglm.errors import (
    AutoGLMError,
    ConfigError,
    ConflictError,
    NotFoundError,
)
from autoglm.releases import DeviceEnvironment, UpdateAnswer

_log = logging.getLogger(__name__)


class Updater:
    """Keeps one data directory, and through it one model, up to date.

    Opening it recovers from whatever happened before, and takes one try from a release on trial: opening
    counts as a start of the app.

    Args:
        root: the data directory; made when missing.
        hub_url: where the hub is; or ``transport``, any other way to reach it. With neither, nothing can
            be fetched, and all else works.
        model, variant: what to follow.
        device_id: this device's name; made up and kept when not given.
        runtime: what runs the model; may also be given to :meth:`update` later.
        progress: told how far downloads and patches are, a few times a second; see
            :mod:`autoglm.device.progress`.
        token: the device's token for the hub.
        token_store: where it is kept, if ``token`` is not given; without one, ``device.token`` in the data
            directory, where :func:`~autoglm.device.enrol` puts it.
        trust_root: the hub's ``root.json``, as bytes or a path, to verify releases with; kept once given.
        trust_first_use: believe the first root that the hub sends where none was ever given: whoever stands
            between the two at that moment chooses what this device runs.
        allow_http, ca_file, pins: see :class:`~autoglm.device.http.HttpTransport`.
        boot: False for a process that will not load :attr:`active`, such as a command that only checks.

    Raises:
        LockedError: another process uses the directory.
        ConfigError: an argument is wrong.
        StorageError: the disk refused.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        hub_url: str | None = None,
        transport: Transport | None = None,
        model: str = "autoglm-phone-9b",
        variant: str | None = None,
        device_id: str | None = None,
        settings: UpdateSettings | None = None,
        runtime: Runtime | None = None,
        progress: Progress | None = None,
        token: str | None = None,
        token_store: TokenStore | None = None,
        trust_root: bytes | str | Path | None = None,
        trust_first_use: bool = False,
        allow_http: bool = False,
        ca_file: str | Path | bytes | None = None,
        pins: Sequence[str] = (),
        boot: bool = True,
        clock: Clock | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        self.settings = settings or UpdateSettings()
        self.clock = clock or Clock()
        self._runtime = runtime
        self._progress = Throttle(progress or silent, self.clock.monotonic)
        self._listeners: list[Callable[[Change], None]] = []
        self._busy = threading.RLock()
        self._progress_now: dict[str, Any] | None = None
        self.next_check: str | None = None
        self._closed = False
        root, trusted = Path(root), read_root(trust_root)
        random_source = random_source or random.Random()
        with ExitStack() as stack:
            if transport is None and hub_url is not None:
                kept = token_store or FileTokenStore(root / TOKEN_NAME)
                transport = http = HttpTransport(
                    hub_url,
                    token=token or kept.load(),
                    allow_http=allow_http,
                    ca_file=ca_file,
                    pins=pins,
                    clock=self.clock,
                    random_source=random_source,
                )
                stack.callback(http.close)
            stack.enter_context(files.directory_lock(root))
            slots = Slots(root)
            outbox = Outbox(root / "outbox.db")
            stack.callback(outbox.close)
            self._device = Device(
                root=root,
                device_id=keep_device_id(root, device_id),
                model=model,
                variant=variant,
                settings=self.settings,
                clock=self.clock,
                random_source=random_source,
                slots=slots,
                machine=Machine(root / "state.json", self._announce),
                outbox=outbox,
                transport=transport,
                trust=Trust(root, slots, root=trusted, first_use=trust_first_use, now=self.clock.now),
                progress=self._note_progress,
            )
            recover(self._device, boot=boot)
            if boot:
                self._device.live.slot = slots.now.current
            self._proving = Proving(self._device)
            self._staging = Staging()
            self._scrub = Scrub(self._device)
            self.control = Control(root)
            self._resources = stack.pop_all()

    # -- what is there ------------------------------------------------------------------------------

    @property
    def active(self) -> Path | None:
        """The release directory to load now; None on a device that has none yet."""
        return self._device.slots.active

    @property
    def device_id(self) -> str:
        """This device's name towards the hub."""
        return self._device.device_id

    @property
    def root(self) -> Path:
        """The data directory."""
        return self._device.root

    @property
    def wire_bytes(self) -> int:
        """Bytes sent and received by this process so far."""
        return 0 if self._device.transport is None else self._device.transport.wire_bytes

    @property
    def is_damaged(self) -> bool:
        """Whether files of the current release changed on the disk; the next update fetches them again."""
        return self._device.slots.is_rotten(self._device.slots.now.current)

    def on_change(self, listener: Callable[[Change], None]) -> None:
        """Call ``listener(change)`` after every change of state, on the thread that made it.

        The state is on the disk by then. What a listener raises is logged.
        """
        self._listeners.append(listener)

    def status(self) -> Status:
        """Return how things stand; may be called at any time, from any thread."""
        status = make_status(
            self._device.root,
            self._device.slots.now,
            self._device.machine.saved,
            self._device.device_id,
            progress=self._progress_now,
            next_check=self.next_check,
        )
        return replace(status, staged=self._staging.version)

    # -- updating -----------------------------------------------------------------------------------

    def attach(self, runtime: Runtime) -> None:
        """Name the runtime that serves :attr:`active` in this process.

        After a first installation, this is the first start of the release installed, and its trial begins.
        """
        self._runtime = runtime
        live, current = self._device.live, self._device.slots.now.current
        if live.slot is None and current is not None:
            live.slot = current
            self._proving.begin()

    def check(self, environment: DeviceEnvironment | None = None) -> UpdateAnswer:
        """Ask the hub whether there is something newer; install nothing.

        Raises:
            ConfigError: no hub was named.
            NetworkError: the hub was not reached.
            HubError: it refuses this device.
        """
        with self._busy:
            transport = self._transport()
            self._flush_quietly()
            try:
                return transport.check(self._device.request(environment))
            finally:
                self._device.count_wire_bytes()

    def update(
        self,
        runtime: Runtime | None = None,
        *,
        environment: DeviceEnvironment | None = None,
        gate: Gate | None = None,
    ) -> UpdateResult:
        """Run one whole cycle: check, download, verify, apply, self-test, commit, swap.

        Without a runtime the release is installed, and the app loads :attr:`active` at its next start.

        Args:
            runtime: what serves now; the one given before when None.
            environment: the device's state, told to the hub.
            gate: asked at every step whether to go on; see :data:`~autoglm.device.settings.Gate`.

        Returns:
            What came of it; failures too. The old release serves on unless ``kind`` is ``updated``.

        Raises:
            ConfigError: no hub was named.
        """
        with self._busy:
            self._transport()
            if runtime is not None:
                self.attach(runtime)
            return self._counted(lambda: self._round(environment, gate).run())

    def stage(
        self,
        runtime: Runtime | None = None,
        *,
        environment: DeviceEnvironment | None = None,
        wait_s: float | None = None,
    ) -> UpdateResult:
        """Run a cycle up to the commit: check, download, verify, apply, load beside the live one, self-test.

        What was staged waits for :meth:`commit`, in memory; scheduled updates leave it alone as long as the
        hub offers it. Where memory holds one model it is loaded by the commit. Staging what is staged already
        changes nothing.

        Args:
            runtime, environment: as for :meth:`update`.
            wait_s: longest wait for an update under way, in seconds; None waits for its end.

        Returns:
            ``staged``, or as :meth:`update`.

        Raises:
            ConfigError: no hub was named.
            ConflictError: nothing runs a model here, or an update is under way.
        """
        with self._holding(wait_s):
            self._transport()
            if runtime is not None:
                self.attach(runtime)
            if self._runtime is None:
                raise ConflictError("nothing runs a model here: there is nothing to stage beside")
            return self._counted(lambda: self._round(environment, None).stage())

    def commit(self, *, wait_s: float | None = None) -> UpdateResult:
        """Make the staged release the current one and swap it in; its trial begins.

        Args:
            wait_s: as for :meth:`stage`.

        Returns:
            As :meth:`update`.

        Raises:
            ConflictError: nothing is staged, or an update is under way.
        """
        with self._holding(wait_s):
            self._staging.require()
            return self._counted(self._commit)

    def discard(self, *, wait_s: float | None = None) -> bool:
        """Drop the staged release; return whether there was one. The next update stages it again.

        Args:
            wait_s: as for :meth:`stage`.

        Raises:
            ConflictError: an update is under way.
        """
        with self._holding(wait_s):
            return self._staging.drop()

    def _commit(self) -> UpdateResult:
        arrival = self._staging.commit()
        self._proving.begin()
        return UpdateResult("updated", to_version=arrival.manifest.version, pause_s=arrival.pause_s)

    def _counted(self, work: Callable[[], UpdateResult]) -> UpdateResult:
        """Do a cycle or a part of one; say what it took."""
        started = self.clock.monotonic()
        wire_before = self.wire_bytes
        before = self._device.request().current_version
        result = to_result(self._device, lambda: self._settled(work()))
        self._progress_now = None
        self._flush_quietly()
        return replace(
            result,
            from_version=before,
            wire_bytes=self.wire_bytes - wire_before,
            seconds=self.clock.monotonic() - started,
        )

    def _settled(self, result: UpdateResult) -> UpdateResult:
        """Let go of the last error where a success has overtaken it."""
        if result.kind in ("none", "updated") and not self._device.slots.rotten:
            self._device.machine.forget_error(also_of_releases=result.kind == "updated")
        return result

    def _round(self, environment: DeviceEnvironment | None, gate: Gate | None) -> Round:
        return Round(
            self._device,
            self._transport(),
            self._proving,
            self._staging,
            self._runtime,
            environment,
            gate or _open_gate,
        )

    @contextmanager
    def _holding(self, wait_s: float | None) -> Generator[None]:
        """Have the updater alone for a block.

        Raises:
            ConflictError: an update is under way, longer than ``wait_s`` seconds.
        """
        if not self._busy.acquire(timeout=-1 if wait_s is None else wait_s):
            raise ConflictError("an update is under way: try again when it has ended")
        try:
            if self._closed:
                raise ConflictError("the updater is closed")
            yield
        finally:
            self._busy.release()

    # -- the trial ----------------------------------------------------------------------------------

    def answered(self, ok: bool, version: str | None = None) -> bool:
        """Count a finished live answer towards the trial; cheap, and safe on the thread that answers.

        The verdict itself is carried out by :meth:`tick`, because it touches the disk and the runtime.

        Args:
            ok: whether the model answered properly.
            version: which release answered; answers of an older one, finishing late, do not count.

        Returns:
            Whether :meth:`tick` should be called soon.
        """
        return self._proving.answered(ok, version)

    def tick(self, now: float | None = None) -> None:
        """Do what is due: the verdict of a trial, events that wait, a look at the files on the disk.

        Returns at once while an update runs.

        Args:
            now: monotonic seconds; the clock's when None.

        Raises:
            StorageError: the disk refused; the next tick tries again.
        """
        if not self._busy.acquire(blocking=False):
            return
        try:
            settle(self._device)
            self._proving.judge(self._runtime, self.clock.monotonic() if now is None else now)
            if len(self._device.outbox):
                self._flush_quietly()
            self._scrub.step()
        finally:
            self._busy.release()

    @property
    def seconds_to_verdict(self) -> float | None:
        """How long a trial lasts at least from now; None outside of one."""
        return self._proving.seconds_left(self.clock.monotonic())

    def rollback(
        self,
        runtime: Runtime | None = None,
        *,
        reason: str = "rolled back by hand",
        wait_s: float | None = None,
    ) -> UpdateResult:
        """Go back to the previous release and quarantine the current one; what is staged is dropped.

        Args:
            runtime: what serves now; the one given before when None.
            reason: what is reported.
            wait_s: as for :meth:`stage`.

        Raises:
            NotFoundError: there is no previous release.
            ConflictError: the previous release is damaged, the current one forbids going back to it, or an
                update is under way.
            StorageError: the disk refused.
        """
        with self._holding(wait_s):
            if runtime is not None:
                self.attach(runtime)
            slots = self._device.slots
            manifest, previous = slots.manifest(slots.now.current), slots.manifest(slots.now.previous)
            if slots.now.previous is None or manifest is None:
                raise NotFoundError("there is no previous release to go back to")
            if previous is None or not slots.may_fall_back():
                raise ConflictError("the previous release is damaged or no longer allowed")
            self._staging.drop()
            outcome.withdraw(self._device)
            on_trial = self._device.machine.state is State.TRIAL
            attempt = None if on_trial else outcome.attempt_about(manifest, self._device)
            outcome.fail(self._device, E_ROLLBACK, reason, quarantine=True, attempt=attempt)
            self._device.trust.proved(previous)
            self._proving.go_back(self._runtime)
            self._flush_quietly()
            return UpdateResult(
                "updated", manifest.version, previous.version, code=E_ROLLBACK, message=reason
            )

    # -- the rest -----------------------------------------------------------------------------------

    def _transport(self) -> Transport:
        if self._device.transport is None:
            raise ConfigError("no hub is named: give hub_url or transport")
        return self._device.transport

    def _flush_quietly(self) -> None:
        """Send events; when the hub is out of reach they wait for the next time."""
        if self._device.transport is None or not len(self._device.outbox):
            return
        try:
            self._device.outbox.flush(self._device.transport, self._device.device_id)
        except AutoGLMError as error:
            _log.debug("events wait: %s", error)
        with suppress(AutoGLMError):
            self._device.count_wire_bytes()

    def _announce(self, change: Change) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception:  # noqa: BLE001 - the app's own code
                _log.exception("a listener to changes of state broke")

    def _note_progress(self, phase: str, done: int, total: int) -> None:
        self._progress_now = {"phase": phase, "done": done, "total": total}
        self._progress(phase, done, total)

    def close(self, *, in_order: bool = True) -> None:
        """Let go of the directory; may be called twice.

        Args:
            in_order: whether the app ends because it wants to. Then a release on trial that was loaded (a
                runtime is attached, or it has answered) and never failed gets the try of this start back,
                on the disk before this returns: it was no crash.
        """
        with self._busy:
            if not self._closed:
                self._staging.drop()
            if in_order and not self._closed:
                self._proving.spare_the_try(is_loaded=self._runtime is not None)
            self._closed = True
            self._resources.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close(in_order=error is None)


def _open_gate() -> str | None:
    return None

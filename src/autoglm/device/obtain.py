"""Getting an offered release onto the disk: the direct package, or the full one when that fails.

What it guarantees: bytes that are here already and verify are not fetched again; a package that fails is
counted durably, and after its second failure given up; nothing is applied whose hash was not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autoglm import files
from autoglm.device.context import Device
from autoglm.device.download import Download
from autoglm.device.install import install, require_room_to_download
from autoglm.device.offer import Offer, PackagePin
from autoglm.device.slots import Slot
from autoglm.device.states import GiveUpError, State
from autoglm.device.transport import Transport
from autoglm.errors import (
    AutoGLMError,
    BaseMismatchError,
    ConfigError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    PermissionDeniedError,
    TrustError,
)
from autoglm.releases import Manifest

_MAX_FAILURES = 2
_FAULTS_OF_A_PACKAGE = (FormatError, TrustError, ConfigError, ConflictError)


class Obtaining:
    """Downloads and applies for one attempt.

    Args:
        go_on: called at every step; raises to stop there.
    """

    def __init__(self, device: Device, transport: Transport, go_on: Callable[[], None]) -> None:
        self._device, self._transport, self._go_on = device, transport, go_on
        self._machine = device.machine

    def obtain(self, offer: Offer) -> tuple[Slot, Manifest]:
        """Download and apply the direct package, or the full one when that fails.

        Raises:
            GiveUpError: neither will do.
            NetworkError, HubError, StorageError: not now.
        """
        while True:
            use_full = self._machine.attempt is not None and self._machine.attempt.use_full
            pin = (offer.fallback if use_full else None) or offer.direct
            try:
                return self._install(offer, pin, self._download(offer, pin))
            except _FAULTS_OF_A_PACKAGE as error:
                self._count_failure(offer, pin, error)

    def _download(self, offer: Offer, pin: PackagePin) -> Path:
        """Return the verified package, fetched unless it lies here already."""
        package = self._device.slots.objects / pin.sha256
        if self._is_whole(package, pin):
            return package
        staging = self._staging(offer)
        if self._machine.state is not State.DOWNLOADING:
            self._machine.move(State.DOWNLOADING)
        self._machine.note(package_sha256=pin.sha256)
        require_room_to_download(self._device, pin, staging)
        download = Download(
            staging,
            pin,
            settings=self._device.settings,
            clock=self._device.clock,
            random_source=self._device.random_source,
            step=self._stepper("download"),
        )
        download.resume()
        try:
            blob = self._fetch(download, pin, offer)
        finally:
            self._device.count_wire_bytes()
        files.publish_file(blob, package)
        files.remove(staging / "journal")
        return package

    def _fetch(self, download: Download, pin: PackagePin, offer: Offer) -> Path:
        """Fetch, with a fresh address when the one at hand has expired."""
        url, before = pin.url, -1
        while True:
            try:
                return download.fetch(self._transport, url)
            except (NotFoundError, PermissionDeniedError):
                if download.done_bytes <= before:
                    raise
                before = download.done_bytes
                fresh = self._fresh_url(pin, offer)
                if fresh is None:
                    raise
                url = fresh

    def _fresh_url(self, pin: PackagePin, offer: Offer) -> str | None:
        """Ask where the package lies now; what it must be is signed and stays."""
        rotten = self._device.slots.is_rotten(self._device.slots.now.current)
        answer = self._transport.check(self._device.request(as_new=rotten))
        if not answer.need_update or answer.manifest_sha256 != offer.manifest_sha256:
            return None
        places = {answer.full_sha256: answer.full_url, answer.sha256: answer.download_url}
        return places.get(pin.sha256)

    def _install(self, offer: Offer, pin: PackagePin, package: Path) -> tuple[Slot, Manifest]:
        self._machine.move(State.APPLYING)
        self._go_on()
        step = self._stepper("apply")
        return install(self._device, offer, pin, package, self._staging(offer), step)

    def _count_failure(self, offer: Offer, pin: PackagePin, error: AutoGLMError) -> None:
        """Record that a package failed; try again, or change to the full one, or give up."""
        attempt = self._machine.attempt
        failures = 1 if attempt is None else attempt.failures + 1
        if not pin.full and offer.fallback and (failures >= _MAX_FAILURES or _is_base(error)):
            self._machine.note(use_full=True, failures=0)
        elif failures >= _MAX_FAILURES or isinstance(error, ConflictError):
            # A full package whose own bytes are right but whose content is not: that release is no good.
            at_fault = pin.full and self._machine.state is State.APPLYING
            raise GiveUpError(str(error), reason=error.code, quarantine=at_fault) from error
        else:
            self._machine.note(failures=failures)

    def _is_whole(self, package: Path, pin: PackagePin) -> bool:
        try:
            files.verify_file(package, size=pin.size, sha256=pin.sha256)
        except IntegrityError:
            files.remove(package)
            return False
        return True

    def _staging(self, offer: Offer) -> Path:
        """Return the attempt's directory; its name never comes from the other side as it is."""
        staging = self._device.slots.staging / offer.manifest_sha256[:16]
        files.make_directory(staging)
        return staging

    def _stepper(self, phase: str) -> Callable[[int, int], None]:
        def step(done: int, total: int) -> None:
            self._device.progress(phase, done, total)
            self._go_on()

        return step


def _is_base(error: AutoGLMError) -> bool:
    """Tell whether the installed files, not the package, are at fault: another try cannot help."""
    return isinstance(error, BaseMismatchError)

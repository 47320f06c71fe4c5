"""From a downloaded package to an installed release.

What it guarantees: nothing lands under ``releases/`` that is not, byte for byte, the release that was
offered, of the right model and variant, and newer than the present one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from autoglm import files, patch
from autoglm.device.context import Device
from autoglm.device.offer import Offer, PackagePin
from autoglm.device.slots import Slot
from autoglm.errors import DiskFullError, IntegrityError, RollbackError, TrustError
from autoglm.patch import Progress
from autoglm.releases import Manifest


def find_installed(device: Device, offer: Offer) -> tuple[Slot, Manifest] | None:
    """Return the offered release when it lies here already, whole."""
    found = device.slots.find(offer.manifest_sha256)
    if found is None:
        return None
    slot, manifest = found
    try:
        manifest.verify(device.slots.directory(slot))
    except (IntegrityError, OSError):
        return None
    _accept(device, offer, manifest)
    return found


def install(
    device: Device, offer: Offer, pin: PackagePin, package: Path, staging: Path, progress: Progress
) -> tuple[Slot, Manifest]:
    """Apply a verified package and admit what comes out as a release.

    Args:
        package: the downloaded file; its size and hash have been checked.
        staging: the attempt's directory; the output is made in it.
        progress: told bytes made and bytes to make; may raise to stop.

    Raises:
        FormatError: the package or the release breaks its format; BaseMismatchError: for another base.
        TrustError: it makes other bytes than those offered, or a release that this device must not take.
        StorageError: the disk refused; DiskFullError: no room.
    """
    out = staging / "release"
    files.remove(out)
    base = None if pin.full else device.slots.active
    _require_room_to_apply(device, package)
    patch.apply(
        *(base, package, out),
        header=pin.header,
        partial=staging / "partial",
        link_unchanged=True,
        progress=progress,
    )
    manifest = Manifest.read(out)
    _accept(device, offer, manifest)
    manifest.verify(out)
    return device.slots.admit(out, manifest), manifest


def _accept(device: Device, offer: Offer, manifest: Manifest) -> None:
    """Refuse a release that is not the one offered, or that this device must not take."""
    if manifest.sha256 != offer.manifest_sha256 or manifest.version != offer.version:
        raise IntegrityError(f"the package makes another release than {offer.version} as it was offered")
    if manifest.counter != offer.counter:
        raise TrustError(f"{manifest.version} has counter {manifest.counter}, offered as {offer.counter}")
    wanted = device.request()
    if manifest.model != device.model or wanted.variant not in (None, manifest.variant):
        raise TrustError(f"{manifest.version} is of {manifest.model}/{manifest.variant}, not of this device")


def require_newer(device: Device, offer: Offer) -> None:
    """Refuse an offer that would lead back.

    Raises:
        RollbackError: its counter is not above that of the present release.
    """
    present = device.slots.manifest(device.slots.now.current)
    if present is not None and offer.counter <= present.counter:
        raise RollbackError(
            f"{offer.version} (counter {offer.counter}) is not newer than {present.version} "
            f"(counter {present.counter}): refused"
        )


def require_room_to_download(device: Device, pin: PackagePin, staging: Path) -> None:
    """Check that what is missing of the package, and about what it will make, finds room.

    Raises:
        DiskFullError: it does not.
    """
    present = device.slots.manifest(device.slots.now.current)
    output = pin.size if present is None else max(pin.size, present.total_bytes)
    blob = staging / "blob.part"
    reserved = blob.stat().st_blocks * 512 if blob.exists() else 0
    _require_room(device, max(0, pin.size - reserved) + output)


def _require_room_to_apply(device: Device, package: Path) -> None:
    info = patch.inspect(package)
    _require_room(device, sum(file.size for file in info.files if file.mode != "same"))


def _require_room(device: Device, num_bytes: int) -> None:
    needed = num_bytes * 21 // 20 + device.settings.keep_free_bytes
    free = shutil.disk_usage(device.root).free
    if needed > free:
        message = f"the update needs {needed} bytes, {free} are free: free some; what was fetched is kept"
        raise DiskFullError(message, needed_bytes=needed, free_bytes=free)

"""What a device was offered, and the promises that its bytes are held to.

Everything that is later checked (hash and size of a package, its header, the identity of the release)
comes from :func:`read_offer` and from nowhere else, and there from signed metadata: the hub's answer only
says which of the signed releases and packages it has chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoglm.device.context import Device
from autoglm.device.transport import Transport
from autoglm.errors import ProtocolError, RevokedError, RollbackError, SignatureError, TrustError
from autoglm.patch import HeaderPin
from autoglm.releases import UpdateAnswer, is_name
from autoglm.trust.roles import release_path

if TYPE_CHECKING:
    from autoglm.trust.client import Verified
    from autoglm.trust.targets import SignedRelease


@dataclass(frozen=True)
class PackagePin:
    """One package and the promises about it.

    Attributes:
        url: where it is, absolute or relative to the hub.
        sha256, size: of the whole package.
        header: length and hash of its header, checked before that is parsed.
        full: whether it needs no base.
    """

    url: str
    sha256: str
    size: int
    header: HeaderPin
    full: bool


@dataclass(frozen=True)
class Offer:
    """A release to go to.

    Attributes:
        version: its version.
        manifest_sha256: its identity.
        counter: its place in the order of releases.
        min_counter: the lowest counter that may be fallen back to once this release is known.
        direct: the package to try first.
        fallback: the full package for when a patch fails, None when ``direct`` is it or none was offered.
        rollout_id, attempt_id: to be repeated in events.
    """

    version: str
    manifest_sha256: str
    counter: int
    min_counter: int
    direct: PackagePin
    fallback: PackagePin | None
    rollout_id: str | None
    attempt_id: str | None


def signed_offer(device: Device, transport: Transport, answer: UpdateAnswer) -> Offer | None:
    """Refresh what is signed, and hold the hub's answer against it; None when it offers nothing.

    Metadata is refreshed in any case: a release that is installed here may have been called back.

    Raises:
        TrustError: the metadata or the offer is not to be believed; see :func:`read_offer`.
        NetworkError, HubError: signed metadata could not be fetched.
        StorageError: the disk refused.
    """
    try:
        verified = device.trust.refresh(transport)
        if not answer.need_update:
            return None
        offer = read_offer(answer, verified, device)
        device.trust.demand(offer.min_counter)
        verified.prune()
        return offer
    finally:
        device.count_wire_bytes()


def read_offer(answer: UpdateAnswer, verified: Verified, device: Device) -> Offer:
    """Take the offer out of an answer that has one, as far as it is signed.

    Raises:
        ProtocolError: it has none, or it is not complete.
        SignatureError: what it chooses is not signed.
        RevokedError: the release was called back.
        RollbackError: the release is older than one that proved itself here, or than is still allowed.
        TrustError: it contradicts what is signed.
        NetworkError, HubError: signed metadata could not be fetched.
    """
    if not answer.need_update or not is_name(answer.target_version):
        raise ProtocolError("the hub's answer offers nothing")
    if answer.download_url is None or answer.sha256 is None:
        raise ProtocolError("the hub offers an update without saying which package it is")
    release = verified.release(_path(answer, device))
    _require_allowed(release, device)
    _require_same("release", release.version, answer.manifest_sha256, release.manifest_sha256)
    _require_same("release", release.version, answer.counter, release.counter)
    is_full = answer.kind == "full"
    base = None if is_full else device.request().current_sha256
    direct = _pin(verified, release, answer.download_url, answer.sha256, base)
    _require_same("package", answer.sha256, answer.size, direct.size)
    _require_same("package", answer.sha256, answer.header_sha256, direct.header.sha256)
    fallback = None
    if not is_full and answer.full_url is not None and answer.full_sha256 is not None:
        fallback = _pin(verified, release, answer.full_url, answer.full_sha256, None)
    return Offer(
        version=release.version,
        manifest_sha256=release.manifest_sha256,
        counter=release.counter,
        min_counter=release.min_counter,
        direct=direct,
        fallback=fallback,
        rollout_id=answer.rollout_id,
        attempt_id=answer.attempt_id,
    )


def _path(answer: UpdateAnswer, device: Device) -> str:
    """Return the target path of the release offered, of the right model, variant and version."""
    wanted, version = device.request().variant, answer.target_version or ""
    path = answer.manifest or release_path(device.model, wanted or "", version)
    names = path.split("/")
    variant = wanted if wanted is not None else names[1] if len(names) == 4 else ""
    if path != release_path(device.model, variant, version):
        raise TrustError(f"the hub offers {path[:200]}, which is not for this device or not {version}")
    return path


def _require_allowed(release: SignedRelease, device: Device) -> None:
    floor = device.trust.floor
    if release.revoked or release.manifest_sha256 in floor.revoked:
        raise RevokedError(f"{release.version} was called back by its publisher: it is not installed")
    if release.counter < max(floor.counter, floor.min_counter):
        raise RollbackError(
            f"{release.version} (counter {release.counter}) is older than this device accepts "
            f"({max(floor.counter, floor.min_counter)}): refused"
        )


def _pin(verified: Verified, release: SignedRelease, url: str, sha256: str, base: str | None) -> PackagePin:
    """Return the signed promises about one package, which must lead from ``base`` to ``release``."""
    signed = verified.package(sha256)
    if signed.manifest_sha256 != release.manifest_sha256 or signed.base_sha256 != base:
        raise SignatureError(f"package {sha256[:16]} is not signed as a way from here to {release.version}")
    header = HeaderPin(signed.header_length, signed.header_sha256)
    return PackagePin(url, sha256, signed.size, header, full=base is None)


def _require_same(what: str, name: str, said: object, signed: object) -> None:
    """Refuse an answer that contradicts what is signed; one that leaves it out says nothing wrong."""
    if said is not None and said != signed:
        raise TrustError(f"the hub's answer about {what} {name[:16]} contradicts what is signed")

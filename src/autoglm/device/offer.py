"""What a device was offered, and the promises that its bytes are held to.

Everything that is later checked (hash and size of a package, its header, the identity of the release)
comes from :func:`read_offer` and from nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoglm.errors import ProtocolError
from autoglm.patch import HeaderPin
from autoglm.releases import UpdateAnswer, is_name


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
        direct: the package to try first.
        fallback: the full package for when a patch fails, None when ``direct`` is it or none was offered.
        rollout_id, attempt_id: to be repeated in events.
    """

    version: str
    manifest_sha256: str
    counter: int
    direct: PackagePin
    fallback: PackagePin | None
    rollout_id: str | None
    attempt_id: str | None


def read_offer(answer: UpdateAnswer) -> Offer:
    """Take the offer out of an answer that has one.

    Raises:
        ProtocolError: it has none, or it is not complete.
    """
    header = _header(answer.header_length, answer.header_sha256)
    if not answer.need_update or not is_name(answer.target_version):
        raise ProtocolError("the hub's answer offers nothing")
    if None in (answer.download_url, answer.sha256, answer.size, answer.manifest_sha256, answer.counter):
        raise ProtocolError("the hub offers an update without saying which bytes it must have")
    is_full = answer.kind == "full"
    direct = PackagePin(answer.download_url or "", answer.sha256 or "", answer.size or 0, header, is_full)
    return Offer(
        version=answer.target_version or "",
        manifest_sha256=answer.manifest_sha256 or "",
        counter=answer.counter or 0,
        direct=direct,
        fallback=None if is_full else _fallback(answer),
        rollout_id=answer.rollout_id,
        attempt_id=answer.attempt_id,
    )


def _header(length: int | None, sha256: str | None) -> HeaderPin:
    if length is None or sha256 is None:
        raise ProtocolError("the hub offers a package without the length and hash of its header")
    return HeaderPin(length, sha256)


def _fallback(answer: UpdateAnswer) -> PackagePin | None:
    if answer.full_url is None or answer.full_sha256 is None or answer.full_size is None:
        return None
    header = _header(answer.full_header_length, answer.full_header_sha256)
    return PackagePin(answer.full_url, answer.full_sha256, answer.full_size, header, full=True)

"""What is signed about a release and about a package, as TUF targets and back.

What it guarantees: a target that says less than a device needs, or something out of range, is refused here,
so nobody behind this module meets half a promise.

    >>> SignedRelease.of(Manifest.read(directory)).path           # doctest: +SKIP
    'autoglm-phone-9b/nano-int8/v1.3/manifest.json'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from tuf.api.metadata import TargetFile

from autoglm.errors import MetadataError
from autoglm.files import is_sha256
from autoglm.releases import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, Manifest, is_name
from autoglm.trust.roles import package_path, release_path


@dataclass(frozen=True)
class SignedRelease:
    """What a release key says about a release.

    Attributes:
        model, variant, version: its names.
        manifest_sha256, manifest_length: of ``manifest.json``, which pins every other file.
        counter: its place in the order of releases; ``release_counter`` in the metadata.
        min_counter: the oldest counter that a device which knows of it may still fall back to.
        channel: such as ``stable``.
        revoked: whether it was called back: never installed, never fallen back to.
    """

    model: str
    variant: str
    version: str
    manifest_sha256: str
    manifest_length: int
    counter: int
    min_counter: int = 0
    channel: str = "stable"
    revoked: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return what there is to sign about a release."""
        return cls(
            manifest.model,
            manifest.variant,
            manifest.version,
            manifest.sha256,
            len(manifest.to_bytes()),
            manifest.counter,
            manifest.min_counter,
            manifest.channel,
        )

    @property
    def path(self) -> str:
        """Its target path."""
        return release_path(self.model, self.variant, self.version)

    @classmethod
    def from_target(cls, target: TargetFile) -> Self:
        """Read what was signed.

        Raises:
            MetadataError: it is no release, or says less than is needed.
        """
        custom, sha256 = _custom(target), _sha256(target)
        names = target.path.split("/")
        if len(names) != 4 or names[3] != "manifest.json" or not all(is_name(name) for name in names[:3]):
            raise MetadataError(f"{target.path[:200]!r} is no path of a release")
        if not 0 < target.length <= MAX_MANIFEST_BYTES:
            raise MetadataError(f"{target.path}: a manifest of {target.length} bytes")
        counter = _integer(target, custom, "release_counter", 1)
        channel, revoked = custom.get("channel"), custom.get("revoked")
        if not isinstance(channel, str) or not is_name(channel) or not isinstance(revoked, bool):
            raise MetadataError(f"{target.path}: channel or revoked is missing or malformed")
        min_counter = _integer(target, custom, "min_counter", 0)
        return cls(
            names[0], names[1], names[2], sha256, target.length, counter, min_counter, channel, revoked
        )

    def to_target(self) -> TargetFile:
        """Return the target to sign."""
        custom = {
            "release_counter": self.counter,
            "min_counter": self.min_counter,
            "channel": self.channel,
            "revoked": self.revoked,
        }
        return _target(self.path, self.manifest_length, self.manifest_sha256, custom)


@dataclass(frozen=True)
class SignedPackage:
    """What the patches key says about a package. Its output is held to what the release key says.

    Attributes:
        sha256, size: of the package.
        header_length, header_sha256: of its header, checked before that is parsed.
        manifest_sha256: identity of the release that it makes.
        base_sha256: identity of the release that it is applied to, None for a full package.
    """

    sha256: str
    size: int
    header_length: int
    header_sha256: str
    manifest_sha256: str
    base_sha256: str | None = None

    @property
    def path(self) -> str:
        """Its target path."""
        return package_path(self.sha256)

    @classmethod
    def from_target(cls, target: TargetFile) -> Self:
        """Read what was signed.

        Raises:
            MetadataError: it is no package, or says less than is needed.
        """
        custom, sha256 = _custom(target), _sha256(target)
        if target.path != package_path(sha256) or not 0 < target.length <= MAX_FILE_BYTES:
            raise MetadataError(f"{target.path[:200]!r} is no package, or of impossible size")
        header, output, base = (custom.get(key) for key in ("header_sha256", "output", "base"))
        if not (is_sha256(header) and is_sha256(output) and (base is None or is_sha256(base))):
            raise MetadataError(f"{target.path}: a hash is missing or malformed")
        length = _integer(target, custom, "header_length", 1)
        return cls(sha256, target.length, length, str(header), str(output), base)

    def to_target(self) -> TargetFile:
        """Return the target to sign."""
        custom: dict[str, Any] = {
            "header_length": self.header_length,
            "header_sha256": self.header_sha256,
            "output": self.manifest_sha256,
        }
        if self.base_sha256 is not None:
            custom["base"] = self.base_sha256
        return _target(self.path, self.size, self.sha256, custom)


def _target(path: str, length: int, sha256: str, custom: dict[str, Any]) -> TargetFile:
    return TargetFile(length, {"sha256": sha256}, path, {"custom": custom})


def _custom(target: TargetFile) -> dict[str, Any]:
    custom: Any = target.custom
    if not isinstance(custom, dict):
        raise MetadataError(f"{target.path[:200]!r} is signed without its custom fields")
    return custom


def _sha256(target: TargetFile) -> str:
    if not is_sha256(digest := target.hashes.get("sha256")):
        raise MetadataError(f"{target.path[:200]!r} is signed without a SHA-256")
    return str(digest)


def _integer(target: TargetFile, custom: dict[str, Any], key: str, low: int) -> int:
    value = custom.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= 1 << 53:
        raise MetadataError(f"{target.path}: {key} is missing or out of range")
    return value

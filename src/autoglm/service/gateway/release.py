"""A release as a vLLM server sees it: a checkpoint directory of its own, and a label.

What it guarantees: the directory's name holds the identity of the release's bytes and its files are never
replaced, so a path always means the same weights; it appears whole or not at all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from autoglm import files
from autoglm.errors import FormatError
from autoglm.files import verify_file
from autoglm.releases import HEALTH_NAME, MAX_MANIFEST_BYTES, HealthCheck, Manifest

WEIGHTS_SUFFIX = ".safetensors"
_INCOMING = ".incoming-"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedRelease:
    """A release that is given to servers.

    Attributes:
        manifest: what it is.
        manifest_sha256: its identity.
        directory: where it lies on this machine.
        health: its own self-test.
    """

    manifest: Manifest
    manifest_sha256: str
    directory: Path
    health: HealthCheck

    @property
    def version(self) -> str:
        """Such as ``v1.2``."""
        return self.manifest.version

    @property
    def fingerprint(self) -> str:
        """A short name of exactly these bytes, for answers and logs."""
        return f"fp_{self.manifest_sha256[:16]}"

    @property
    def label(self) -> str:
        """What a server is told that it holds; another one means other bytes."""
        return f"{self.version}+{self.manifest_sha256[:16]}"

    @property
    def fixed_files(self) -> dict[str, str]:
        """Path and hash of what a reload of the weights does not bring: tokenizer, template and the like."""
        return {
            file.path: file.sha256
            for file in self.manifest.files
            if not file.path.endswith(WEIGHTS_SUFFIX) and file.path != HEALTH_NAME
        }


class Checkpoints:
    """The directory from which servers load.

    Args:
        root: where it is on this machine.
        there: the same directory as the servers see it; None: at the same place.
    """

    def __init__(self, root: Path, there: str | None = None) -> None:
        self.root, self._there = root, there
        files.make_directory(root)

    def publish(self, directory: Path) -> ServedRelease:
        """Verify a release and give it a directory of its own, unless it has one.

        Raises:
            TrustError: a file differs from the manifest.
            FormatError: it has no weights that vLLM reads.
            StorageError: the disk refused.
        """
        manifest = Manifest.read(directory)
        manifest.verify(directory)
        if not any(file.path.endswith(WEIGHTS_SUFFIX) for file in manifest.files):
            raise FormatError(f"{manifest.version} has no {WEIGHTS_SUFFIX} file: vLLM cannot load it")
        target = self.root / f"{manifest.folder}-{manifest.sha256[:16]}"
        if target.is_dir():
            _check(directory, manifest, target)
        else:
            self._link(directory, manifest, target)
        return ServedRelease(manifest, manifest.sha256, target, _read_health(directory))

    def path_there(self, release: ServedRelease) -> str:
        """Return a release's directory as the servers see it."""
        if self._there is None:
            return str(release.directory)
        return f"{self._there.rstrip('/')}/{release.directory.name}"

    def keep_only(self, *releases: ServedRelease) -> None:
        """Remove what no server may load any more."""
        kept = {release.directory.name for release in releases}
        for entry in self.root.iterdir():
            if entry.is_dir() and entry.name not in kept:
                _log.info("removing the checkpoint %s", entry.name)
                files.remove(entry)

    def _link(self, directory: Path, manifest: Manifest, target: Path) -> None:
        incoming = self.root / f"{_INCOMING}{target.name}"
        files.remove(incoming)
        for file in manifest.files:
            place = incoming / file.path
            files.make_directory(place.parent)
            files.link_file(directory / file.path, place)
        files.publish_tree(incoming, target)


def _check(directory: Path, manifest: Manifest, target: Path) -> None:
    """Verify the files of a checkpoint that are not the very ones just verified."""
    for file in manifest.files:
        place = target / file.path
        if not (place.exists() and place.samefile(directory / file.path)):
            verify_file(place, size=file.size, sha256=file.sha256)


def _read_health(directory: Path) -> HealthCheck:
    path = directory / HEALTH_NAME
    if not path.is_file():
        return HealthCheck()
    with path.open("rb") as file:
        return HealthCheck.from_bytes(file.read(MAX_MANIFEST_BYTES + 1))

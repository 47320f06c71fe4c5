"""What a release is: its names, its place in the order, and every file by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from autoglm.errors import IntegrityError, ManifestError
from autoglm.files import safe_relative_path, verify_file
from autoglm.releases.reading import MAX_FILE_BYTES, Reader, canonical_json, parse_json

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 10_000


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release.

    Attributes:
        path: relative to the release directory, with ``/``.
        size: in bytes.
        sha256: of the content, 64 lower-case hexadecimal digits.
    """

    path: str
    size: int
    sha256: str

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read one entry of a manifest's ``files``.

        Raises:
            ManifestError: a rule is broken.
        """
        reader = Reader(value, "manifest file", ManifestError)
        reader.only("path", "size", "sha256")
        path = reader.text("path", 255)
        if not safe_relative_path(path) or path == MANIFEST_NAME:
            raise reader.refuse("path", "a plain relative path inside the release")
        return cls(path, reader.integer("size", 0, MAX_FILE_BYTES), reader.sha256("sha256"))


@dataclass(frozen=True)
class Manifest:
    """What a release is: its names, its place in the order of releases, and every file by hash.

    Attributes:
        model: the model's public name, such as ``autoglm-phone-9b``.
        variant: which build of the model, such as ``nano-int8``; patches never cross variants.
        name: the release's folder name without the version, such as ``autoglm-phone-nano``.
        version: such as ``v1.2``.
        counter: strictly increasing over the releases of one model and variant; devices refuse to go back.
        min_counter: the oldest counter that a device on this release may still fall back to.
        channel: such as ``stable``.
        files: every file of the release but the manifest itself.
    """

    model: str
    variant: str
    name: str
    version: str
    counter: int
    files: tuple[ReleaseFile, ...]
    min_counter: int = 0
    channel: str = "stable"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a ``manifest.json``.

        Raises:
            ManifestError: it is not one, or breaks a rule.
        """
        reader = Reader(
            parse_json(content, MAX_MANIFEST_BYTES, "manifest", ManifestError), "manifest", ManifestError
        )
        reader.only("model", "variant", "name", "version", "counter", "min_counter", "channel", "files")
        files = tuple(ReleaseFile.from_json(item) for item in reader.items("files", MAX_FILES))
        if len({file.path for file in files}) != len(files):
            raise ManifestError("manifest: a path is listed twice")
        counter = reader.integer("counter", 1)
        return cls(
            model=reader.name("model"),
            variant=reader.name("variant"),
            name=reader.name("name"),
            version=reader.name("version"),
            counter=counter,
            files=files,
            min_counter=reader.integer("min_counter", 0, counter),
            channel=reader.name("channel"),
        )

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the manifest of the release in ``directory``.

        Raises:
            ManifestError: it is missing or breaks a rule.
        """
        try:
            with (directory / MANIFEST_NAME).open("rb") as file:
                return cls.from_bytes(file.read(MAX_MANIFEST_BYTES + 1))
        except OSError as error:
            raise ManifestError(f"no readable {MANIFEST_NAME} in {directory}") from error

    @classmethod
    def of_directory(
        cls, directory: Path, *, model: str, variant: str, name: str, version: str, counter: int, **more: Any
    ) -> Self:
        """Describe the files that lie in ``directory`` as a release.

        Raises:
            ManifestError: a name breaks the rules.
            IntegrityError: the directory changed while it was read.
        """
        files: list[ReleaseFile] = []
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            relative = path.relative_to(directory).as_posix()
            if relative != MANIFEST_NAME:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    files.append(ReleaseFile(relative, file.tell(), digest))
        manifest = cls(model, variant, name, version, counter, tuple(files), **more)
        return cls.from_bytes(manifest.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical ``manifest.json``; its SHA-256 is the identity of the release."""
        return canonical_json(asdict(self))

    @property
    def sha256(self) -> str:
        """The identity of the release: SHA-256 of the canonical manifest."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def folder(self) -> str:
        """The directory name under which the release is kept."""
        return f"{self.name}-{self.version}"

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)

    def verify(self, directory: Path, pace: Callable[[], None] = lambda: None) -> None:
        """Check every file of the release in ``directory``, and that nothing else lies there.

        ``pace`` is called between two pieces of reading; it may rest.

        Raises:
            IntegrityError: a file is missing, differs, or is not of this release.
        """
        for file in self.files:
            verify_file(directory / file.path, size=file.size, sha256=file.sha256, pace=pace)
        if (directory / MANIFEST_NAME).read_bytes() != self.to_bytes():
            raise IntegrityError(f"{directory / MANIFEST_NAME} is not this release's manifest")
        known = {file.path for file in self.files} | {MANIFEST_NAME}
        for path in directory.rglob("*"):
            if not path.is_dir() and path.relative_to(directory).as_posix() not in known:
                raise IntegrityError(f"{path} does not belong to the release")

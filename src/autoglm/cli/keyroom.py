"""A directory of keys and metadata, as an operator works in it, with or without a hub in reach.

::

    keys/        private keys of root, targets and releases; to be moved to where they are kept
    online/      private keys of snapshot, timestamp and patches; for the hub
    metadata/    signed metadata: on a hub's own directory the truth, elsewhere a copy
    root.json    the newest root, for apps

What an act makes is written to ``metadata/`` and, where a hub is named, sent there. A hub that runs on the
directory itself takes it in the same way as an upload: verified, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from autoglm import patch
from autoglm.cli.client import ServiceClient
from autoglm.errors import ConfigError, MetadataError
from autoglm.files import remove, write_durably
from autoglm.releases import Manifest
from autoglm.trust import documents
from autoglm.trust.admission import Overlay, verify_offline
from autoglm.trust.authority import Authority, Documents
from autoglm.trust.client import MetadataClient
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import Repository
from autoglm.trust.roles import (
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    OFFLINE,
    PATCHES,
    RELEASES,
    ROOT,
    TIMESTAMP_NAME,
    is_bin,
    metadata_name,
    owner_of,
    parse_name,
    release_path,
)
from autoglm.trust.shelf import Picture, Shelf
from autoglm.trust.targets import SignedRelease

METADATA_PATH = "/v1/model/metadata/"
UPLOAD_PATH = "/v1/admin/metadata"


class KeyRoom:
    """The directory.

    Args:
        directory: where it is.
        places: further key files and directories, such as those on a stick.
        passphrase: for encrypted keys.
    """

    def __init__(self, directory: Path, places: list[Path], passphrase: bytes | None = None) -> None:
        self.directory = directory
        self.shelf = Shelf(directory / "metadata")
        self.keys, self.online = directory / "keys", directory / "online"
        self.ring = KeyRing([self.keys, self.online, *places], passphrase)

    @property
    def is_hub(self) -> bool:
        """Whether a hub keeps its own metadata here."""
        return (self.directory / "lock").exists()

    def picture(self) -> Picture:
        """Return the metadata here: what devices see, or the newest of a copy.

        Raises:
            ConfigError: there is none.
        """
        if ROOT not in self.shelf.versions():
            raise ConfigError(f"there is no metadata in {self.directory}: make keys with 'autoglm keys init'")
        return Picture.published(self.shelf) if self.is_hub else Picture.newest(self.shelf)

    def act(self, make: Callable[[Authority], Documents], hub: ServiceClient | None = None) -> Documents:
        """Sign something, keep it here, and send it to the hub, if one is named.

        Raises:
            ConfigError: keys or metadata are missing.
            TrustError: what the hub has does not follow from the root here.
            HubError, NetworkError: the hub does not take it.
        """
        made = make(Authority(self.picture(), self.ring, datetime.now(UTC)))
        if self.is_hub:
            Repository.open(self.directory).accept(made)
            return made
        self.shelf.write(made)
        self.publish_root()
        if hub is not None and made:
            self.send(made, hub)
        return made

    def send(self, made: Documents, hub: ServiceClient) -> None:
        """Send signed files to the hub."""
        hub.send("POST", UPLOAD_PATH, {"files": {name: content.decode() for name, content in made.items()}})

    def publish_root(self) -> None:
        """Keep the newest root beside the metadata, for apps."""
        newest = metadata_name(ROOT, self.shelf.versions()[ROOT][-1])
        write_durably(self.directory / "root.json", self.shelf.read(newest))

    # -- a copy of what a hub has ----------------------------------------------------------------------

    def fetch(self, hub: ServiceClient, release: str | None = None) -> None:
        """Bring the copy here to what the hub has, verified from the root that lies here.

        Args:
            hub: where to fetch.
            release: target path of the one release that is of interest; None fetches all.

        Raises:
            TrustError: it does not follow from the root.
        """
        if self.is_hub:
            raise ConfigError(f"{self.directory} is a hub's own directory: nothing is fetched into it")
        fetched = self._read_top(hub)
        top = Picture.of(Overlay(self.shelf, fetched), _versions(fetched))
        snapshot = next(name for name in fetched if (parse_name(name) or ("",))[0] == "snapshot")
        named = documents.versions_of(documents.read(documents.Snapshot, fetched[snapshot]).signed)
        wanted = None if release is None else documents.bin_of(top.delegated[RELEASES], release)
        for role, version in named.items():
            if is_bin(role) and owner_of(role) == RELEASES and wanted in (None, role):
                name = metadata_name(role, version)
                fetched[name] = hub.fetch(METADATA_PATH + name, MAX_TARGETS_BYTES)
        verify_offline(Picture.of(Overlay(self.shelf, fetched), _versions(fetched)))
        self._keep(fetched)

    def _read_top(self, hub: ServiceClient) -> dict[str, bytes]:
        """Fetch and verify the top of the tree, as a device does, and return all of its files."""
        fetched: dict[str, bytes] = {}

        def read(name: str, limit: int) -> bytes:
            fetched[name] = content = hub.fetch(METADATA_PATH + name, limit)
            return content

        with TemporaryDirectory(prefix="autoglm-keys-") as work:
            root = self.shelf.read(metadata_name(ROOT, self.shelf.versions()[ROOT][-1]))
            client = MetadataClient(Path(work) / "tuf", Path(work) / "floor.json", read=read, root=root)
            verified = client.refresh()
            for path in (release_path("a", "b", "c"), f"packages/{'0' * 64}.wpatch"):
                verified.find(path)  # loads releases and patches
        newest = max(version for version in self.shelf.versions()[ROOT])
        fetched.setdefault(metadata_name(ROOT, newest), root)
        return {name: content for name, content in fetched.items() if _is_wanted(name)}

    def _keep(self, fetched: Documents) -> None:
        """Make the shelf what the hub has: what lies here beyond it was never accepted."""
        limits = _versions(fetched)
        for role, versions in self.shelf.versions().items():
            for version in versions:
                name = metadata_name(role, version)
                if version > limits.get(role, version) or (is_bin(role) and role not in limits):
                    remove(self.shelf.directory / name)
        self.shelf.write(fetched)
        self.publish_root()

    def unsent(self, hub: ServiceClient) -> Documents:
        """Return what was signed here offline and is newer than what the hub has."""
        content = hub.fetch(METADATA_PATH + TIMESTAMP_NAME, MAX_TIMESTAMP_BYTES)
        number = documents.read(documents.Timestamp, content).signed.snapshot_meta.version
        content = hub.fetch(METADATA_PATH + metadata_name("snapshot", number), MAX_SNAPSHOT_BYTES)
        known = documents.versions_of(documents.read(documents.Snapshot, content).signed)
        made: Documents = {}
        for role, versions in self.shelf.versions().items():
            if owner_of(role) not in OFFLINE:
                continue
            newer = versions if role == ROOT else [v for v in versions[-1:] if v > known.get(role, 0)]
            made |= {metadata_name(role, v): self.shelf.read(metadata_name(role, v)) for v in newer}
        return made

    # -- releases ----------------------------------------------------------------------------------------

    def sign_package(self, package: Path, base: Path | None, hub: ServiceClient | None = None) -> Documents:
        """Make the release that a package leads to, look at it, and sign it.

        Args:
            package: a ``.wpatch``.
            base: the folder of the release that a patch was made against.
            hub: is sent the signature, if named.

        Raises:
            ConfigError: a patch without its base, or the release key is not here.
            FormatError, TrustError: the package or what it makes is broken.
            ConflictError: another release is signed under its names.
        """
        release = SignedRelease.of(_manifest_of(package, base))
        if hub is not None and not self.is_hub:
            self.fetch(hub, release.path)
        return self.act(lambda authority: authority.sign_release(release), hub)

    def revoke_release(self, model: str, variant: str, version: str, hub: ServiceClient) -> None:
        """Call a release back, at the hub too."""
        if not self.is_hub:
            self.fetch(hub, release_path(model, variant, version))
        self.act(lambda authority: authority.revoke_release(model, variant, version), hub)


def _manifest_of(package: Path, base: Path | None) -> Manifest:
    is_full = patch.inspect(package).kind == "full"
    if not is_full and base is None:
        raise ConfigError(
            f"{package.name} is a patch: name the release folder that it was made against with --base, "
            "so that what is signed can be made and looked at here"
        )
    with TemporaryDirectory(prefix="autoglm-sign-") as work:
        release = Path(work) / "release"
        patch.apply(None if is_full else base, package, release)
        manifest = Manifest.read(release)
        manifest.verify(release)
        return manifest


def _is_wanted(name: str) -> bool:
    role = (parse_name(name) or ("", 0))[0]
    return not (is_bin(role) and owner_of(role) == PATCHES)


def _versions(fetched: Documents) -> dict[str, int]:
    versions: dict[str, int] = {}
    for name in fetched:
        if (parsed := parse_name(name)) is not None:
            versions[parsed[0]] = max(parsed[1], versions.get(parsed[0], 0))
    if ROOT not in versions:
        raise MetadataError("the hub sends no root")
    return versions

"""Private keys as files: made, found, read. Ed25519 throughout, so that a phone can verify without help.

A key file is PKCS #8 in PEM, for its owner only, maybe encrypted by a passphrase. Its name says whose it is:
``root-<first 16 digits of its id>.pem``. Where a file lies is its owner's business; :class:`KeyRing` looks
through the places that it is given.

Only this module needs the library ``cryptography``; a device never imports it.

    >>> key = make_key("root", Path("/media/alice"))              # doctest: +SKIP
    >>> KeyRing([Path("/media/alice")]).signers([key.keyid])      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securesystemslib.signer import CryptoSigner, Key, Signer

from autoglm.errors import ConfigError
from autoglm.files import make_directory, write_durably

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ID_DIGITS = 16
_MAX_KEY_BYTES = 1 << 14


def key_file_name(role: str, keyid: str) -> str:
    """Return the name of a key's file."""
    return f"{role}-{keyid[:ID_DIGITS]}.pem"


def make_key(role: str, directory: Path, passphrase: bytes | None = None) -> Key:
    """Make a key, keep its private half in ``directory``, and return its public half.

    Args:
        role: whose it will be; a part of the file's name and nothing else.
        directory: made when missing, for its owner only.
        passphrase: encrypts the file; None leaves it readable to whoever can read the file.

    Raises:
        StorageError: it cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    key = CryptoSigner(private).public_key
    if not directory.is_dir():
        make_directory(directory)
        directory.chmod(0o700)
    path = directory / key_file_name(role, key.keyid)
    write_durably(path, _to_pem(private, passphrase), mode=0o600)
    return key


def _to_pem(private: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    from cryptography.hazmat.primitives import serialization

    protection: Any = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def _read_key(path: Path, passphrase: bytes | None) -> CryptoSigner:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with path.open("rb") as file:
        content = file.read(_MAX_KEY_BYTES)
    locked = b"ENCRYPTED" in content.partition(b"\n")[0]
    if locked and not passphrase:
        raise ConfigError(f"{path} is locked: give its passphrase (AUTOGLM_PASSPHRASE)")
    try:
        private = load_pem_private_key(content, passphrase if locked else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the passphrase is wrong, or the file is damaged" if locked else "it is no private key in PEM"
        raise ConfigError(f"{path} cannot be read: {why}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds another kind of key than Ed25519")
    return CryptoSigner(private)


class KeyRing:
    """The private keys that can be reached now.

    Args:
        places: key files, and directories that hold some.
        passphrase: for the files that are encrypted.
    """

    def __init__(self, places: Iterable[Path], passphrase: bytes | None = None) -> None:
        self._places, self._passphrase = tuple(places), passphrase

    @property
    def passphrase(self) -> bytes | None:
        """What encrypted files are read with."""
        return self._passphrase

    def joined(self, place: Path) -> KeyRing:
        """Return a ring that also looks in ``place``."""
        return KeyRing([*self._places, place], self._passphrase)

    def find(self, keyid: str) -> Path | None:
        """Return the file of a key, None when it is in none of the places."""
        ending = f"-{keyid[:ID_DIGITS]}.pem"
        return next((path for path in self._files() if path.name.endswith(ending)), None)

    def _files(self) -> Iterator[Path]:
        for place in self._places:
            yield from sorted(place.glob("*.pem")) if place.is_dir() else [place]

    def signers(self, keyids: Iterable[str]) -> list[Signer]:
        """Return a signer for each of these keys that is here.

        Raises:
            ConfigError: a key file cannot be read, or holds another key than its name says.
        """
        found: list[Signer] = []
        for keyid in keyids:
            if (path := self.find(keyid)) is None:
                continue
            signer = _read_key(path, self._passphrase)
            if signer.public_key.keyid != keyid:
                raise ConfigError(f"{path} holds another key than its name says")
            found.append(signer)
        return found

    def require(self, role: str, keyids: Sequence[str], threshold: int) -> list[Signer]:
        """Return signers for at least ``threshold`` of these keys.

        Raises:
            ConfigError: too few are here; the message names those that are missing.
        """
        found = self.signers(keyids)
        if len(found) < threshold:
            have = {signer.public_key.keyid for signer in found}
            missing = ", ".join(key_file_name(role, keyid) for keyid in keyids if keyid not in have)
            raise ConfigError(
                f"{role} needs {threshold} of its {len(keyids)} keys, {len(found)} are here; "
                f"name with --key where some of these are: {missing}"
            )
        return found

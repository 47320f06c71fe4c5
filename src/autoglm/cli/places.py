"""Where the command line finds things: the configuration, the data directory, the running service.

Verbs that talk to a hub take ``--hub URL --token T``, or ``--data DIR``, the data directory of a service
on this machine, in which its address (``service.json``) and its admin token (``admin.token``) lie. Without
either, the data directory of the configuration is taken.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import autoglm
from autoglm.cli.client import ServiceClient
from autoglm.errors import ConfigError

if TYPE_CHECKING:
    from autoglm.service.settings import Settings

SERVICE_NAME = "service.json"
TOKEN_NAME = "admin.token"
ROOT_PLACE = Path("trust") / "root.json"
DEVICE_FOLDER = "phone"  # in the data directory, where a device is kept when none is named
_DEFAULT_PORT = 8000


def find_config(given: Path | None) -> Path | None:
    """Return the configuration file: the one given, ``$AUTOGLM_CONFIG``, ``./config.yaml``, the checkout's.

    Raises:
        ConfigError: the one given does not exist.
    """
    named = given or (Path(text) if (text := os.environ.get("AUTOGLM_CONFIG")) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"there is no configuration file {named}")
        return named
    checkout = Path(autoglm.__file__).resolve().parents[2] / "config.yaml"
    return next((path for path in (Path("config.yaml"), checkout) if path.is_file()), None)


def configured_data() -> Path:
    """Return the data directory of the configuration, ``data`` without one."""
    config = find_config(None)
    if config is None:
        return Path("data").absolute()
    from autoglm.service.settings import load_settings

    return load_settings(config).data_path


@dataclass(frozen=True)
class ServiceAddress:
    """A running service as it describes itself in its data directory.

    Attributes:
        url: its address on this machine.
        certificate: the PEM file it serves TLS with, None without TLS.
    """

    url: str
    certificate: Path | None = None


def read_service_address(data: Path) -> ServiceAddress | None:
    """Return the address that the service of ``data`` wrote down, None when none did."""
    try:
        fields = json.loads((data / SERVICE_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    values = cast("dict[str, Any]", fields)
    url, certificate = values.get("url"), values.get("certificate")
    if not isinstance(url, str):
        return None
    return ServiceAddress(url, Path(certificate) if isinstance(certificate, str) else None)


def find_service(url: str | None) -> ServiceAddress:
    """Return the service at ``url``, or the one that the configuration describes."""
    if url is not None:
        return ServiceAddress(url)
    config = find_config(None)
    if config is not None:
        from autoglm.service.settings import load_settings

        return hub_of(load_settings(config))
    return read_service_address(configured_data()) or ServiceAddress(f"http://127.0.0.1:{_DEFAULT_PORT}")


def hub_of(settings: Settings) -> ServiceAddress:
    """Return where the service of a configuration is: running on this machine, public, or to be started."""
    if (address := read_service_address(settings.data_path)) is not None:
        return address
    scheme = "https" if settings.tls.cert else "http"
    return ServiceAddress(settings.public_url or f"{scheme}://127.0.0.1:{settings.port}")


def local_root(url: str, data: Path | None) -> Path | None:
    """Return the trusted root that a hub at a loopback address keeps in its data directory on this machine.

    A file of this machine's own is a way to be trusted; another hub's root would only make the device refuse.

    Args:
        url: the hub's address.
        data: the data directory; the configuration's when None, as far as that can be read.
    """
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not host.startswith("127.") and host != "::1":
        return None
    try:
        root = (configured_data() if data is None else data) / ROOT_PLACE
    except (ImportError, ConfigError):
        return None
    return root if root.is_file() else None


def admin_client(hub: str | None, token: str | None, data: Path | None) -> ServiceClient:
    """Return a client that may administer the hub which these options name.

    Raises:
        ConfigError: the options contradict each other, or no service or token is found there.
    """
    if hub is not None:
        token = token or os.environ.get("AUTOGLM_TOKEN")
        if data is not None:
            raise ConfigError("give either --hub URL with --token T, or --data DIR, not both")
        if not token:
            raise ConfigError("--hub needs --token T (or AUTOGLM_TOKEN): administration is never open")
        return ServiceClient(hub, token=token)
    directory = configured_data() if data is None else data
    address = read_service_address(directory)
    if address is None:
        raise ConfigError(
            f"no service runs on the data directory {directory}: start one with 'autoglm serve', "
            "or name one with --hub URL --token T or --data DIR"
        )
    return ServiceClient(
        address.url, token=token or _read_token(directory / TOKEN_NAME), certificate=address.certificate
    )


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the admin token {path}: {error.strerror}; give --token T") from error

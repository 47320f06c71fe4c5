"""What the machine must give before anything is loaded: an address and a data directory.

Imports nothing heavy, so that what is wrong is said at once.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

from autoglm.errors import ConfigError, StorageError
from autoglm.files import directory_lock, make_directory, remove, write_durably
from autoglm.service.settings import Settings


def check_machine(settings: Settings) -> None:
    """Find out now, before the model's libraries are loaded, whether the service can run here.

    Raises:
        ConfigError: the port is taken, the certificate cannot be used, or the data directory not written.
        LockedError: another service uses the data directory.
    """
    check_certificate(settings)
    check_data_directory(settings.data_path)
    with directory_lock(settings.data_path):
        pass
    bind(settings.host, settings.port).close()


def check_certificate(settings: Settings) -> None:
    """Find out now whether TLS can be served, if it is configured.

    Raises:
        ConfigError: a file is missing or no PEM file, or the two do not belong together.
    """
    if settings.tls.cert is None or settings.tls.key is None:
        return
    for key, name in (("cert", settings.tls.cert), ("key", settings.tls.key)):
        if not settings.path(name).is_file():
            raise ConfigError(f"tls.{key}: there is no file {settings.path(name)}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.path(settings.tls.cert), settings.path(settings.tls.key)
        )
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"tls: the certificate or its key cannot be used: {error}") from error


def check_data_directory(directory: Path) -> None:
    """Find out now, not at the first update, whether the data directory can be written.

    Raises:
        ConfigError: it cannot.
    """
    probe = directory / f".probe-{os.getpid()}"
    try:
        make_directory(directory)
        write_durably(probe, b"")
        remove(probe)
    except StorageError as error:
        raise ConfigError(f"data_dir: {directory} cannot be written: {error}") from error


def bind(host: str, port: int) -> socket.socket:
    """Take the address without listening on it yet.

    Raises:
        ConfigError: the host is unknown, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"host: {host!r} is no address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _port_error(host, port, error) from error
    return listener


def listen(listener: socket.socket, backlog: int) -> None:
    """Let a bound socket accept.

    Raises:
        ConfigError: somebody else took the port meanwhile.
    """
    try:
        listener.listen(backlog)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _port_error(host, port, error) from error


def _port_error(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"port: cannot listen on {host}:{port}: {error.strerror}; stop what uses it, or choose another --port"
    )

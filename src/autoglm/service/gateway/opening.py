"""Start the gateway: reach the servers, or start them, and give the active one its release."""

from __future__ import annotations

from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.service.gateway.admin import AdminClient
from autoglm.service.gateway.gateway import Gateway
from autoglm.service.gateway.process import HOST, Program, Supervised
from autoglm.service.gateway.release import Checkpoints
from autoglm.service.gateway.server import Server
from autoglm.service.settings import Settings

FOLDER = "vllm"
_MAX_KEY_BYTES = 4096
_DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}


def open_gateway(release_dir: Path | str, settings: Settings) -> Gateway:
    """Return a gateway whose active server holds the release.

    Raises:
        ConfigError: a setting, or a server, cannot be used.
        BackendError: a server was not reached in time.
        EngineError, FormatError, TrustError: the release cannot be loaded.
    """
    folder = settings.data_path / FOLDER
    given = settings.backend.checkpoints
    root = folder / "checkpoints" if given is None else settings.path(given)
    checkpoints = Checkpoints(root, settings.backend.checkpoints_there)
    release = checkpoints.publish(Path(release_dir))
    key = _read_key(settings)
    servers = (
        _started_here(settings, folder, key) if settings.backend.is_supervised else _elsewhere(settings, key)
    )
    gateway = Gateway(
        servers,
        settings.backend,
        served_name=settings.model.name,
        key=key,
        checkpoints=checkpoints,
        queue=settings.limits.queue,
    )
    try:
        gateway.begin(release)
    except BaseException:
        gateway.close()
        raise
    return gateway


def _elsewhere(settings: Settings, key: str | None) -> list[Server]:
    backend = settings.backend
    return [
        Server(f"vllm-{number}", url, AdminClient(backend.admin_of(number - 1, url), key))
        for number, url in enumerate(backend.url, start=1)
    ]


def _started_here(settings: Settings, folder: Path, key: str | None) -> list[Server]:
    servers: list[Server] = []
    for number in range(1, settings.backend.servers + 1):
        program = _program(settings, folder, number, key)
        url = f"http://{HOST}:{program.port}"
        servers.append(Server(f"vllm-{number}", url, AdminClient(url, key), Supervised(program)))
    return servers


def _program(settings: Settings, folder: Path, number: int, key: str | None) -> Program:
    backend = settings.backend
    own = backend.environment[number - 1] if backend.environment else {}
    return Program(
        command=tuple(backend.command),
        arguments=tuple(backend.arguments),
        environment={
            **({} if key is None else {"VLLM_API_KEY": key}),
            **(_DEV_MODE if backend.reloads else {}),
            **own,
        },
        port=backend.port + number - 1,
        served_name=settings.model.name,
        log=folder / f"vllm-{number}.log",
    )


def _read_key(settings: Settings) -> str | None:
    if settings.backend.api_key_file is None:
        return None
    path = settings.path(settings.backend.api_key_file)
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"backend.api_key_file: {path} cannot be read: {error}") from error
    if not key or not key.isprintable():
        raise ConfigError(f"backend.api_key_file: {path} holds no key")
    return key

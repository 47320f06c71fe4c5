"""The service's settings: ``config.yaml`` read once, checked, and frozen.

What it guarantees: every key is known and of the right type, or :class:`~autoglm.errors.ConfigError` names
the key and the file; relative paths are taken from the file's directory; a key whose feature this version
does not have is refused when it is set to anything but its default, never silently ignored.

What it refuses to do: read the environment (only the command line does).

    >>> load_settings(Path("config.yaml")).port      # doctest: +SKIP
    8000
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from autoglm.device.settings import MAX_TRIAL_ANSWERS, MAX_TRIAL_MINUTES, MAX_TRIES, parse_every
from autoglm.errors import ConfigError
from autoglm.releases import is_name
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.consistency import location_text, pin_text, require_consistent

MAX_CONFIG_BYTES = 1 << 20
_KNOWN_KEYS = ConfigDict(extra="forbid")


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("must be 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def _duration(text: str) -> str:
    try:
        parse_every(text)
    except ConfigError as error:
        raise ValueError("must be a number with s, m, h or d, at most 366d, such as 30s or 6h") from error
    return text


def _public_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an address such as https://models.example.com")
    return text.rstrip("/")


def _database_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise ValueError("must be sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE")
    return text


def _storage_url(text: str) -> str:
    if not text.startswith("s3://"):
        raise ValueError("must be s3://BUCKET/FOLDER")
    return text


def _proxy(text: str) -> str:
    if text != "*":
        ipaddress.ip_network(text)
    return text


def _devices(value: str | list[str]) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not names or not all(re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name) for name in names):
        raise ValueError("must be auto, cpu, cuda:0, or a list of such devices")
    return value


Name = Annotated[str, AfterValidator(_name)]
Duration = Annotated[str, AfterValidator(_duration)]
Switch = Annotated[bool, Strict()]


@dataclass(frozen=True)
class ModelSettings:
    """The served model.

    Attributes:
        name: its public name.
        variant: which build of it.
        store: the directory of shipped packages (``.wpatch``), or of ``.pt`` files.
        aliases: further names that clients may ask for.
        device: ``auto`` (all GPUs, else the CPU), a device, or a list of devices to split the layers over.
        threads: CPU threads for the model; 0 chooses by the size of the model.
        max_context: the longest conversation in tokens; 0 takes the model's own limit.
        max_batch: requests computed together.
        cache_tokens: tokens of all requests that are held together; 0 takes a whole context for each of
            ``max_batch``.
        in_flight: what a hot swap does with running answers; ``pin`` finishes them on their release while new
            ones begin on the next, ``drain`` lets new ones wait until the running ones have ended.
        drain_seconds: the longest such wait.
        step_seconds: the longest computing of one step; what takes longer counts as hanging.
    """

    __pydantic_config__ = _KNOWN_KEYS

    name: Name = "autoglm-phone-9b"
    variant: Name = "nano-int8"
    store: str = "models/autoglm-phone-nano"
    aliases: list[Name] = field(default_factory=lambda: ["autoglm-phone-nano"])
    device: Annotated[str | list[str], AfterValidator(_devices)] = "auto"
    threads: Annotated[int, Strict(), Field(ge=0, le=1024)] = 0
    max_context: Annotated[int, Strict(), Field(ge=0, le=1 << 20)] = 0
    max_batch: Annotated[int, Strict(), Field(ge=1, le=1024)] = 8
    cache_tokens: Annotated[int, Strict(), Field(ge=0, le=1 << 26)] = 0
    in_flight: Literal["pin", "drain"] = "pin"
    drain_seconds: Annotated[float, Strict(), Field(ge=0, le=3600, allow_inf_nan=False)] = 120.0
    step_seconds: Annotated[float, Strict(), Field(ge=1, le=3600, allow_inf_nan=False)] = 300.0


@dataclass(frozen=True)
class AuthSettings:
    """Whether inference and the update check need a token; administration always does.

    Attributes:
        required: whether they do.
        keys_file: the keys that open inference in a process without a hub.
        open_metrics: let everyone read ``/metrics``.
    """

    __pydantic_config__ = _KNOWN_KEYS

    required: Switch = False
    keys_file: str | None = None
    open_metrics: Switch = False


@dataclass(frozen=True)
class TLSSettings:
    """Certificate chain and private key (PEM files); both or neither."""

    __pydantic_config__ = _KNOWN_KEYS

    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class HubSettings:
    """Where the hub keeps its tables and bytes, and whether the service starts the patch worker.

    Attributes:
        database_url: of an SQLite file or a PostgreSQL database; None for a file in ``data_dir``.
        storage_url: ``s3://BUCKET/FOLDER``; None keeps the bytes in ``data_dir``.
        delivery: with cloud storage, whether devices are sent there or the hub passes packages on.
        keys: the directory of the online keys; None for the one in ``data_dir``.
        worker: whether the service starts the process that builds packages.
        accel_redirect: the internal location from which a trusted proxy sends packages by itself.
    """

    __pydantic_config__ = _KNOWN_KEYS

    database_url: Annotated[str, AfterValidator(_database_url)] | None = None
    storage_url: Annotated[str, AfterValidator(_storage_url)] | None = None
    delivery: Literal["redirect", "proxy"] = "redirect"
    keys: str | None = None
    worker: Switch = True
    accel_redirect: Annotated[str, AfterValidator(location_text)] | None = None


@dataclass(frozen=True)
class UpdateSettings:
    """How the service's own engine follows the hub.

    Attributes:
        channel: of the releases it follows.
        every: how often it asks by itself; a publication makes it ask at once.
        automatic: whether it does; if not, operators stage and commit.
        trial_answers: good live answers that confirm a new release.
        trial_minutes: and the time it must have run.
        tries: starts that an unconfirmed release is given.
        root: the hub's ``root.json``, for an engine without a hub and for devices that run from this file.
        trust_first_use: let them believe the first root that their hub sends.
        hub_url: the hub that an engine without one follows; the rest is for such an engine too.
        token_file: holds its token for that hub.
        device_id: its name there; None makes one up and keeps it.
        ca_file: trust this CA alone (PEM).
        pins: and a certificate with one of these keys only, ``sha256/BASE64``.
        allow_http: follow it over plain http.
    """

    __pydantic_config__ = _KNOWN_KEYS

    channel: Name = "stable"
    every: Duration = "6h"
    automatic: Switch = True
    trial_answers: Annotated[int, Strict(), Field(ge=0, le=MAX_TRIAL_ANSWERS)] = 5
    trial_minutes: Annotated[float, Strict(), Field(ge=0, le=MAX_TRIAL_MINUTES, allow_inf_nan=False)] = 10.0
    tries: Annotated[int, Strict(), Field(ge=1, le=MAX_TRIES)] = 3
    root: str | None = None
    trust_first_use: Switch = False
    hub_url: Annotated[str, AfterValidator(_public_url)] | None = None
    token_file: str | None = None
    device_id: Name | None = None
    ca_file: str | None = None
    pins: list[Annotated[str, AfterValidator(pin_text)]] = field(default_factory=list[str])
    allow_http: Switch = False


@dataclass(frozen=True)
class LimitSettings:
    """What one client may ask for.

    Attributes:
        body_mb: size of a request body in MiB (uploads of releases excepted).
        image_mp: megapixels of one image.
        audio_seconds: length of one recording.
        queue: requests that may wait; more are answered 503.
        requests_per_minute: of one token or address; 0 is unlimited.
        tokens_per_minute: of prompts and answers of one token or address; 0 is unlimited.
        failures_per_minute: wrong tokens and links of one address; 0 is unlimited.
        connections: open at once; the ones longest idle make way.
        connections_per_address: the same for one address, trusted proxies excepted; 0 is unlimited.
        slow_seconds: for a request's head to arrive, and for the next bytes of its body.
        idle_seconds: for which a connection stays open between two requests.
        fetch_images: let requests name images by ``http`` addresses.
        fetch_mb: size of such an image in MiB.
        fetch_seconds: for it to come, in all.
        drain_seconds: for answers under way to end when the service is told to stop.
    """

    __pydantic_config__ = _KNOWN_KEYS

    body_mb: Annotated[int, Strict(), Field(ge=1, le=1024)] = 32
    image_mp: Annotated[float, Strict(), Field(gt=0, le=1000, allow_inf_nan=False)] = 40.0
    audio_seconds: Annotated[float, Strict(), Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    queue: Annotated[int, Strict(), Field(ge=1, le=100_000)] = 256
    requests_per_minute: Annotated[int, Strict(), Field(ge=0, le=1_000_000)] = 0
    tokens_per_minute: Annotated[int, Strict(), Field(ge=0, le=1_000_000_000)] = 0
    failures_per_minute: Annotated[int, Strict(), Field(ge=0, le=1_000_000)] = 30
    connections: Annotated[int, Strict(), Field(ge=16, le=1_000_000)] = 4096
    connections_per_address: Annotated[int, Strict(), Field(ge=0, le=1_000_000)] = 512
    slow_seconds: Annotated[int, Strict(), Field(ge=1, le=3600)] = 15
    idle_seconds: Annotated[int, Strict(), Field(ge=1, le=3600)] = 75
    fetch_images: Switch = False
    fetch_mb: Annotated[int, Strict(), Field(ge=1, le=1024)] = 16
    fetch_seconds: Annotated[int, Strict(), Field(ge=1, le=600)] = 10
    drain_seconds: Annotated[int, Strict(), Field(ge=0, le=3600)] = 25


@dataclass(frozen=True)
class Settings:
    """All settings; the attributes are the keys of ``config.yaml``.

    Attributes:
        role: ``all``, ``hub`` (no model, no torch) or ``engine`` (a model that follows a hub elsewhere).
        host, port: where to listen; port 0 takes a free one.
        public_url: the address that devices are given for downloads; None takes the request's own.
        trusted_proxies: addresses or networks whose ``X-Forwarded-*`` headers are believed; ``*`` for all.
        data_dir: everything the service keeps.
        log_path: the file that gets every log line too; None takes ``autoglm.log`` in ``data_dir``.
        log_format: ``text`` or ``json``.
        log_level: the least level that is written.
        directory: where relative paths start; not a key.
    """

    __pydantic_config__ = _KNOWN_KEYS

    role: Literal["all", "hub", "engine"] = "all"
    host: str = "0.0.0.0"
    port: Annotated[int, Strict(), Field(ge=0, le=65535)] = 8000
    public_url: Annotated[str, AfterValidator(_public_url)] | None = None
    trusted_proxies: list[Annotated[str, AfterValidator(_proxy)]] = field(default_factory=list[str])
    data_dir: str = "data"
    log_path: str | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    model: ModelSettings = field(default_factory=ModelSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    tls: TLSSettings = field(default_factory=TLSSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    backend: BackendSettings = field(default_factory=BackendSettings)
    directory: Path = field(default_factory=Path.cwd)

    def path(self, text: str) -> Path:
        """Return a path of the settings, taken from the directory of the file they came from."""
        return (self.directory / Path(text).expanduser()).absolute()

    @property
    def data_path(self) -> Path:
        """The data directory."""
        return self.path(self.data_dir)

    @property
    def log_file(self) -> Path:
        """The log file."""
        return self.data_path / "autoglm.log" if self.log_path is None else self.path(self.log_path)

    @property
    def max_body_bytes(self) -> int:
        """The largest request body."""
        return self.limits.body_mb << 20


# Keys whose feature another version brings: (section, key, the values that are fine).
_NOT_BUILT: tuple[tuple[str, str, tuple[object, ...]], ...] = (("update", "channel", ("stable",)),)


def load_settings(path: Path | None, **overrides: Any) -> Settings:
    """Read the settings from ``path`` (None: the defaults), with ``overrides`` of top-level keys.

    Overrides that are None are left out, so that absent command-line options can be passed as they are.

    Raises:
        ConfigError: the file is unreadable, or a key is unknown, wrong, or not available in this version.
    """
    where = "the command line" if path is None else str(path)
    values = {} if path is None else _read(path)
    directory = Path.cwd() if path is None else path.resolve().parent
    settings = _typed(values, where, directory)
    chosen = {key: value for key, value in overrides.items() if value is not None}
    if chosen:
        settings = _typed(values | chosen, "the command line", directory)
    require_consistent(settings, where)
    return settings


def parse_settings(values: dict[str, Any], *, where: str, directory: Path) -> Settings:
    """Check settings given as plain values.

    Raises:
        ConfigError: a key is unknown, wrong, or not available in this version; ``where`` is named.
    """
    settings = _typed(values, where, directory)
    require_consistent(settings, where)
    return settings


def _typed(values: dict[str, Any], where: str, directory: Path) -> Settings:
    if "directory" in values:
        raise ConfigError(f"{where}: unknown key 'directory': remove it or correct its name")
    try:
        settings = TypeAdapter(Settings).validate_python(values | {"directory": directory})
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error
    _refuse_unbuilt(settings, where)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: this is no configuration")
        values = yaml.safe_load(content)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values at its top, not {type(values).__name__}")
    return cast("dict[str, Any]", values)


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    parts = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
    key = ".".join(parts) or "the configuration"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key {key!r}: remove it or correct its name"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message[0].lower()}{message[1:]}"


def _refuse_unbuilt(settings: Settings, where: str) -> None:
    for section, key, fine in _NOT_BUILT:
        value = getattr(getattr(settings, section), key)
        if value not in fine:
            allowed = "null" if fine[0] is None else repr(fine[0])
            raise ConfigError(
                f"{where}: {section}.{key}: {value!r} is not available in this version; set it to {allowed}"
            )


def setting_keys() -> tuple[str, ...]:
    """Return every key of ``config.yaml``, dotted, for the documentation's checks."""
    keys: list[str] = []
    for entry in dataclasses.fields(Settings):
        default = getattr(Settings(), entry.name)
        if dataclasses.is_dataclass(default):
            keys += [f"{entry.name}.{inner.name}" for inner in dataclasses.fields(default)]
        elif entry.name != "directory":
            keys.append(entry.name)
    return tuple(keys)

"""``autoglm device``: what a device does, from the command line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.cli import device_control
from autoglm.cli.device_control import DataOption
from autoglm.cli.device_identity import DeviceIdOption, EnrolOption, Identity, TokenFileOption, TokenOption
from autoglm.cli.device_link import AllowHTTPOption, CAOption, Link, PinOption
from autoglm.cli.device_rules import (
    BatteryOption,
    ChargingOption,
    FreeOption,
    HoursOption,
    MeteredOption,
    SwapOption,
    UnknownOption,
    WifiOption,
    rules,
)
from autoglm.cli.device_show import explain, show
from autoglm.cli.hub_options import JSONOption
from autoglm.errors import AutoGLMError, ConfigError

if TYPE_CHECKING:
    from autoglm.cli.places import ServiceAddress
    from autoglm.device import Updater
    from autoglm.service.settings import Settings

app = typer.Typer(help="A device that follows a hub: check, update, roll back, or run.", no_args_is_help=True)

HubOption = Annotated[
    str | None, typer.Option("--hub", help="The hub's address.", show_default="the configuration's")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration file.", show_default="config.yaml")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="The model to follow.")]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="The hub's root.json, which releases are verified with; kept once given."),
]
FirstUseOption = Annotated[
    bool,
    typer.Option("--trust-first-use", help="Believe the first root that the hub sends, if none was given."),
]


@app.command()
def run(
    hub: HubOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Load the model and answer chat requests here.")
    ] = None,
    every: Annotated[str | None, typer.Option(help="Time between two checks, such as 30s or 6h.")] = None,
    trial_answers: Annotated[
        int | None, typer.Option(help="Good live answers that confirm a release.", min=0)
    ] = None,
    trial_minutes: Annotated[
        float | None, typer.Option(help="And the minutes it must have run.", min=0)
    ] = None,
    model: ModelOption = None,
    device_id: DeviceIdOption = None,
    enrol: EnrolOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    root: RootOption = None,
    trust_first_use: FirstUseOption = False,
    allow_http: AllowHTTPOption = False,
    ca_file: CAOption = None,
    pin: PinOption = None,
    wifi_only: WifiOption = False,
    charging_only: ChargingOption = False,
    min_battery: BatteryOption = None,
    keep_free: FreeOption = None,
    quiet_hours: HoursOption = None,
    metered_per_day: MeteredOption = None,
    when_unknown: UnknownOption = None,
    swap_mode: SwapOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")] = False,
) -> None:
    """Follow a hub until stopped: check, download, verify, apply, swap, confirm or roll back.

    Examples:

      autoglm device run --hub https://hub.example.com --data /var/lib/autoglm

      autoglm device run --listen 127.0.0.1:8100 --every 10s --wifi-only --quiet-hours 07:00-23:00
    """
    _log_to_stdout(as_json)
    settings = _settings(config, needed=listen is not None or hub is None or data is None)
    power = (wifi_only, charging_only, min_battery)
    given = rules(*power, keep_free, quiet_hours, metered_per_day, when_unknown, swap_mode)
    given |= {"every": every, "trial_answers": trial_answers, "trial_minutes": trial_minutes}
    trust = _Trust(root, trust_first_use)
    identity = Identity(token, token_file, device_id, enrol)
    opened = _opener(settings, hub, data, model, identity, trust, Link.of(allow_http, ca_file, pin), given)
    if listen is not None:
        from autoglm.service.phone import serve_device

        with opened() as updater:
            serve_device(_listening(settings, listen), updater)
    else:
        _follow(opened)


@app.command()
def check(
    hub: HubOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    device_id: DeviceIdOption = None,
    enrol: EnrolOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    root: RootOption = None,
    trust_first_use: FirstUseOption = False,
    allow_http: AllowHTTPOption = False,
    ca_file: CAOption = None,
    pin: PinOption = None,
    as_json: JSONOption = False,
) -> None:
    """Ask whether there is an update; install nothing.

    Example:

      autoglm device check --hub https://hub.example.com --data /var/lib/autoglm
    """
    settings = _settings(config, needed=hub is None or data is None)
    trust = _Trust(root, trust_first_use)
    identity = Identity(token, token_file, device_id, enrol)
    link = Link.of(allow_http, ca_file, pin)
    opened = _opener(settings, hub, data, model, identity, trust, link, {}, boot=False)
    with opened() as updater:
        answer = updater.check()
    if as_json:
        _print(answer.to_json())
    elif answer.need_update:
        from autoglm.cli.output import as_bytes

        print(f"{answer.target_version} is there: a {answer.kind} package of {as_bytes(answer.size)}")
    else:
        print("nothing newer")


@app.command()
def update(
    hub: HubOption = None,
    data: DataOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    device_id: DeviceIdOption = None,
    enrol: EnrolOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    root: RootOption = None,
    trust_first_use: FirstUseOption = False,
    allow_http: AllowHTTPOption = False,
    ca_file: CAOption = None,
    pin: PinOption = None,
    as_json: JSONOption = False,
) -> None:
    """Check, download, verify and install now; whoever runs the model loads it at its next start.

    Example:

      autoglm device update --hub https://hub.example.com --data /var/lib/autoglm
    """
    from autoglm.cli.output import progress_bar

    settings = _settings(config, needed=hub is None or data is None)
    with progress_bar("updating", quiet=as_json) as bar:

        def progress(_phase: str, done: int, total: int) -> None:
            bar(done, total)

        trust = _Trust(root, trust_first_use)
        identity = Identity(token, token_file, device_id, enrol)
        link = Link.of(allow_http, ca_file, pin)
        more: dict[str, Any] = {"boot": False, "progress": progress}
        opened = _opener(settings, hub, data, model, identity, trust, link, {}, **more)
        with opened() as updater:
            result = updater.update()
    if as_json:
        _print(result.to_json())
    elif result.kind != "failed":
        explain(result)
    if result.kind == "failed":
        raise AutoGLMError(f"not updated ({result.code}): {result.message}; what was installed is untouched")


@app.command()
def status(data: DataOption = None, as_json: JSONOption = False) -> None:
    """Show what a device runs and how its last update went; also while it runs.

    Example:

      autoglm device status --data /var/lib/autoglm
    """
    from autoglm.device import read_status

    root = _directory(None, data)
    if not root.is_dir():
        raise ConfigError(f"there is no device in {root}; make one with: autoglm device run --data {root}")
    found = read_status(root)
    _print(found.to_json()) if as_json else show(found)


@app.command()
def rollback(
    data: DataOption = None,
    reason: Annotated[str, typer.Option(help="Kept and reported.")] = "rolled back by hand",
    as_json: JSONOption = False,
) -> None:
    """Return to the previous release; the present one is not installed again on this device.

    Example:

      autoglm device rollback --data /var/lib/autoglm
    """
    from autoglm.device import Updater

    root = _directory(None, data)
    if not root.is_dir():
        raise ConfigError(f"there is no device in {root}")
    with Updater(root, boot=False) as updater:
        result = updater.rollback(reason=reason)
    _print(result.to_json()) if as_json else print(f"back from {result.from_version} to {result.to_version}")


device_control.register(app, lambda data: _directory(None, data))


# What the verbs share.


def _settings(config: Path | None, *, needed: bool) -> Settings | None:
    """Read the configuration where it is needed; a bare device goes without, and without its library."""
    if config is None and not needed:
        return None
    from autoglm.cli.places import find_config
    from autoglm.service.settings import load_settings

    return load_settings(find_config(config))


def _directory(settings: Settings | None, data: Path | None) -> Path:
    from autoglm.cli.places import DEVICE_FOLDER, configured_data

    if data is not None:
        return data.absolute()
    return (configured_data() if settings is None else settings.data_path) / DEVICE_FOLDER


def _opener(
    settings: Settings | None,
    hub: str | None,
    data: Path | None,
    model: str | None,
    identity: Identity,
    trust: _Trust,
    link: Link,
    given: dict[str, Any],
    **more: Any,
) -> Callable[[], Updater]:
    """Return what opens the device that the options name; ``given`` wins over the configuration."""
    from autoglm.device import Updater, UpdateSettings

    address = _hub(settings, hub)
    chosen: dict[str, Any] = {}
    if settings is not None:
        wanted = settings.update
        chosen = {key: getattr(wanted, key) for key in ("every", "trial_answers", "trial_minutes", "tries")}
    chosen |= {key: value for key, value in given.items() if value is not None}
    update_settings = UpdateSettings(**chosen)
    trusted = trust.root or _configured_root(settings, address)
    name = model or (settings.model.name if settings else "autoglm-phone-9b")

    root, reached = _directory(settings, data), link.options(address.certificate)

    def opened() -> Updater:
        identity.enrol(root, address.url, **reached)
        return Updater(
            root,
            hub_url=address.url,
            model=name,
            settings=update_settings,
            device_id=identity.device_id,
            token=identity.token,
            token_store=identity.store(root),
            trust_root=trusted,
            trust_first_use=trust.first_use or (settings is not None and settings.update.trust_first_use),
            **reached,
            **more,
        )

    return opened


@dataclass(frozen=True)
class _Trust:
    """The options that say where trust begins."""

    root: Path | None
    first_use: bool


def _configured_root(settings: Settings | None, address: ServiceAddress) -> Path | None:
    """Return the root that the configuration names, or that a hub on this machine keeps in its directory."""
    from autoglm.cli.places import local_root

    if settings is not None and settings.update.root is not None:
        return settings.path(settings.update.root)
    return local_root(address.url, None if settings is None else settings.data_path)


def _hub(settings: Settings | None, hub: str | None) -> ServiceAddress:
    from autoglm.cli.places import ServiceAddress, hub_of

    if hub is not None:
        return ServiceAddress(hub)
    if settings is None:
        raise ConfigError("name the hub with --hub URL")
    return hub_of(settings)


def _listening(settings: Settings | None, listen: str) -> Settings:
    """Return the settings with the address of ``--listen``."""
    from dataclasses import replace

    host, _, port = listen.rpartition(":")
    if settings is None or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {listen}: write HOST:PORT, such as 127.0.0.1:8100")
    return replace(settings, host=host.strip("[]"), port=int(port))


def _follow(opened: Callable[[], Updater]) -> None:
    """Run the agent without a model: releases are installed and checked, and an app loads them."""
    import signal
    import threading

    from autoglm.device import Agent, FileRuntime, LinuxEnvironment

    stopped = threading.Event()

    def stop(_signal: int, _frame: object) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with opened() as updater:
        environment = LinuxEnvironment(updater.root)
        agent = Agent(updater, FileRuntime(), environment=environment, control_seconds=2.0)
        logging.getLogger(__name__).info("Device %s follows its hub", updater.device_id)
        agent.start()
        stopped.wait()
        agent.stop()


def _print(value: dict[str, Any]) -> None:
    from autoglm.cli.output import print_json

    print_json(value)


class _JSONLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"ts": record.created, "level": record.levelname, "message": record.getMessage()}
        return json.dumps(entry, ensure_ascii=False)


def _log_to_stdout(as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JSONLines() if as_json else logging.Formatter("[%(levelname)s] %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("autoglm").setLevel(logging.INFO)

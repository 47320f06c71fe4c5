"""Run the service: wire hub, engine and the engine's own updater together, listen, and end in order.

The service's engine follows the hub as any device does: it is installed from the hub's baseline by the
same updater that a phone runs, and updated by it afterwards.

What it guarantees: the seven start-up lines come in their documented order and each is true when it is
written (the listening line only once the socket accepts); what is wrong with the machine (a port in use, a
directory that cannot be written) is one clear error before anything is loaded; SIGTERM and SIGINT finish
running answers within a bound and end with status 0; one data directory serves one service.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Generator

from autoglm import device
from autoglm.device import Agent, LocalTransport, Updater
from autoglm.errors import EngineError
from autoglm.files import directory_lock, remove, write_durably
from autoglm.hub import TRUST_FOLDER, GuardTimer, Hub, HubConfig, WorkerProcess
from autoglm.service.access import Access
from autoglm.service.logs import STARTUP, close_logging, open_up, set_up_logging
from autoglm.service.machine import bind, check_data_directory
from autoglm.service.server import run_server, stoppable
from autoglm.service.settings import Settings
from autoglm.service.start import load_engine
from autoglm.service.state import ServiceState
from autoglm.service.store import import_baseline

SERVICE_NAME = "service.json"
DEVICE_ID = "service"
UPDATE_PATH = "/v1/model/update"

_log = logging.getLogger(STARTUP)


def serve(settings: Settings) -> None:
    """Run a service until it is told to stop.

    Raises:
        ConfigError: a setting, the port or a directory cannot be used.
        LockedError: another service uses the data directory.
        AutoGLMError: the model cannot be installed or loaded.
    """
    check_data_directory(settings.data_path)
    with contextlib.ExitStack() as stack:
        stack.callback(close_logging)
        set_up_logging(settings)
        with stoppable(), contextlib.ExitStack() as inner:
            inner.enter_context(directory_lock(settings.data_path))
            listener = inner.enter_context(bind(settings.host, settings.port))
            state = inner.enter_context(running_parts(settings))
            inner.callback(remove, settings.data_path / SERVICE_NAME)
            run_server(state, listener, on_listening=lambda url: _announce(settings, state, url))


@contextlib.contextmanager
def running_parts(settings: Settings) -> Generator[ServiceState]:
    """Open the hub, install and load the model, start worker and agent; end them all after the block."""
    _log.info("Initializing AutoGLM-Phone-9B server...")
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Hub.open(_hub_config(settings)))
        import_baseline(hub, settings)
        stack.enter_context(GuardTimer(hub.rollout_control.tend))
        updater = open_updater(hub, settings)
        stack.callback(updater.close)
        engine = stack.enter_context(load_engine(updater, settings))
        if settings.hub.worker:
            stack.enter_context(WorkerProcess(hub.config))
        agent = Agent(updater, engine)
        agent.start()
        stack.callback(agent.stop)
        access = Access(
            hub, required=settings.auth.required, requests_per_minute=settings.limits.requests_per_minute
        )
        yield ServiceState(settings, engine, access, hub=hub, updater=updater, agent=agent)


def _hub_config(settings: Settings) -> HubConfig:
    return HubConfig(
        directory=settings.data_path,
        database_url=settings.hub.database_url,
        model=settings.model.name,
        variant=settings.model.variant,
    )


def open_updater(hub: Hub, settings: Settings) -> Updater:
    """Return the updater of the service's own engine, with a release installed.

    Raises:
        EngineError: nothing could be installed.
    """
    wanted = settings.update
    updater = Updater(
        settings.data_path / "device",
        transport=LocalTransport(
            check=hub.check,
            report=hub.record,
            package=hub.package_path,
            metadata=hub.trust.repository.read,
        ),
        trust_root=hub.trust.repository.root,
        model=settings.model.name,
        variant=settings.model.variant,
        device_id=DEVICE_ID,
        settings=device.UpdateSettings(
            every=wanted.every,
            trial_answers=wanted.trial_answers,
            trial_minutes=wanted.trial_minutes,
            tries=wanted.tries,
        ),
    )
    if updater.active is None:
        result = updater.update()
        if updater.active is None:
            updater.close()
            raise EngineError(f"no release could be installed: {result.message or 'the hub offers none'}")
    return updater


def _announce(settings: Settings, state: ServiceState, url: str) -> None:
    write_service_file(settings, url)
    _log.info("Server listening on %s", url)
    _log.info("Hot-update endpoint available at %s", UPDATE_PATH)
    if state.hub is not None and state.hub.trust.repository.holds_release_key:
        _log.warning(
            "ALL SIGNING KEYS ARE IN %s: fine for one machine; a fleet wants keys that lie elsewhere "
            "(autoglm keys, docs/trust.md)",
            settings.data_path / TRUST_FOLDER,
        )
    if not settings.auth.required:
        _log.warning(
            "AUTHENTICATION IS OFF: whoever reaches this port may use the model and ask for updates; "
            "set auth.required to close it (administration always needs the token in %s)",
            settings.data_path / "admin.token",
        )
    open_up(settings)


def write_service_file(settings: Settings, url: str) -> None:
    """Write down where the service is, for the command line on this machine."""
    local = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    content = {"url": local, "pid": os.getpid()}
    if settings.tls.cert is not None:
        content["certificate"] = str(settings.path(settings.tls.cert))
    write_durably(settings.data_path / SERVICE_NAME, json.dumps(content).encode() + b"\n")

"""Run the service: wire hub, engine and the engine's own updater together, listen, and end in order.

The service's engine follows the hub as any device does: it is installed from the hub's baseline by the
same updater that a phone runs, and updated by it afterwards. The two may also be two processes, anywhere: a
hub only, which goes without the model's libraries, and an engine that follows it over the network.

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
import time
from collections.abc import Callable, Generator
from typing import Any

from autoglm import device
from autoglm.device import Agent, LocalTransport, Updater
from autoglm.errors import EngineError
from autoglm.files import directory_lock, remove, write_durably
from autoglm.hub import TRUST_FOLDER, GuardTimer, Hub, WorkerProcess
from autoglm.service.access import Access, read_keys, read_token
from autoglm.service.hub_config import hub_config
from autoglm.service.logs import STARTUP, close_logging, open_up, set_up_logging
from autoglm.service.machine import bind, check_data_directory
from autoglm.service.server import run_server, stoppable
from autoglm.service.settings import Settings
from autoglm.service.state import ServiceState
from autoglm.service.store import import_baseline

SERVICE_NAME = "service.json"
DEVICE_ID = "service"
UPDATE_PATH = "/v1/model/update"
_FIRST_RELEASE_S = 30.0

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
def running_parts(settings: Settings, *, clock: Callable[[], float] = time.time) -> Generator[ServiceState]:
    """Open the hub, install and load the model, start worker and agent; end them all after the block.

    Args:
        settings: of which the role says what of these there is.
        clock: the hub's, seconds since 1970.
    """
    _log.info("Initializing AutoGLM-Phone-9B server...")
    with contextlib.ExitStack() as stack:
        hub = None
        if settings.role != "engine":
            hub = stack.enter_context(Hub.open(hub_config(settings), clock=clock))
            import_baseline(hub, settings)
            stack.enter_context(GuardTimer(hub.rollout_control.tend))
        state = ServiceState(settings, None, _access(hub, settings), hub=hub)
        if settings.role != "hub":
            state.updater = open_updater(hub, settings)
            stack.callback(state.updater.close)
            _run_model(state, state.updater, stack)
        if hub is not None and settings.hub.worker:
            stack.enter_context(WorkerProcess(hub.config))
        yield state


def _run_model(state: ServiceState, updater: Updater, stack: contextlib.ExitStack) -> None:
    from autoglm.service.start import load_engine  # which imports the model's libraries

    state.engine = stack.enter_context(load_engine(updater, state.settings))
    state.agent = Agent(updater, state.engine, automatic=state.settings.update.automatic)
    state.agent.start()
    stack.callback(state.agent.stop)


def _access(hub: Hub | None, settings: Settings) -> Access:
    keys = settings.auth.keys_file
    return Access(
        hub,
        required=settings.auth.required,
        requests_per_minute=settings.limits.requests_per_minute,
        tokens_per_minute=settings.limits.tokens_per_minute,
        failures_per_minute=settings.limits.failures_per_minute,
        keys=() if keys is None else read_keys(settings.path(keys)),
    )


def open_updater(hub: Hub | None, settings: Settings) -> Updater:
    """Return the updater of this process's engine, with a release installed.

    Args:
        hub: beside the engine; None follows the one at ``update.hub_url`` and waits for its release.
        settings: of the service.

    Raises:
        ConfigError: a setting of the hub to follow is wrong.
        EngineError: nothing could be installed.
    """
    following = _following(settings) if hub is None else _beside(hub)
    wanted = settings.update
    updater = Updater(
        settings.data_path / "device",
        model=settings.model.name,
        variant=settings.model.variant,
        settings=device.UpdateSettings(
            every=wanted.every,
            trial_answers=wanted.trial_answers,
            trial_minutes=wanted.trial_minutes,
            tries=wanted.tries,
        ),
        **following,
    )
    try:
        _install(updater, waits=hub is None)
    except BaseException:
        updater.close()
        raise
    return updater


def _beside(hub: Hub) -> dict[str, Any]:
    transport = LocalTransport(
        check=hub.check,
        report=hub.record,
        package=hub.package_path,
        metadata=hub.trust.repository.read,
    )
    root = hub.trust.repository.root
    return {"transport": transport, "trust_root": root, "device_id": DEVICE_ID}


def _following(settings: Settings) -> dict[str, Any]:
    wanted = settings.update
    return {
        "hub_url": wanted.hub_url,
        "token": None if wanted.token_file is None else read_token(settings.path(wanted.token_file)),
        "device_id": wanted.device_id,
        "trust_root": None if wanted.root is None else settings.path(wanted.root),
        "trust_first_use": wanted.trust_first_use,
        "ca_file": None if wanted.ca_file is None else settings.path(wanted.ca_file),
        "pins": wanted.pins,
        "allow_http": wanted.allow_http,
    }


def _install(updater: Updater, *, waits: bool) -> None:
    if updater.active is not None:
        return
    if waits:
        from autoglm.service.phone import install  # which imports the model's libraries

        # Until then it serves nothing, so it asks more often than it will later.
        install(updater, every=min(_FIRST_RELEASE_S, device.parse_every(updater.settings.every)))
        return
    result = updater.update()
    if updater.active is None:
        raise EngineError(f"no release could be installed: {result.message or 'the hub offers none'}")


def _announce(settings: Settings, state: ServiceState, url: str) -> None:
    write_service_file(settings, url)
    _log.info("Server listening on %s", url)
    if state.hub is None:
        _log.info("Following the hub at %s", settings.update.hub_url)
    else:
        _log.info("Hot-update endpoint available at %s", UPDATE_PATH)
    if state.hub is not None and state.hub.trust.repository.holds_release_key:
        _log.warning(
            "ALL SIGNING KEYS ARE IN %s: fine for one machine; a fleet wants keys that lie elsewhere "
            "(autoglm keys, docs/trust.md)",
            settings.data_path / TRUST_FOLDER,
        )
    if not settings.auth.required and state.hub is None:
        _log.warning("AUTHENTICATION IS OFF: whoever reaches this port may use the model; see auth.required")
    elif not settings.auth.required:
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

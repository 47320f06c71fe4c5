"""A device that answers requests: what a phone app does with the SDK and the engine, as one process.

It serves chat, ``/v1/model/info`` and health from the release that its own updater keeps, and swaps it
live. It has no hub and no administration; the release comes from the hub that the updater follows.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from autoglm.device import Agent, Environment, LinuxEnvironment, Updater, UpdateResult
from autoglm.errors import PermissionDeniedError
from autoglm.service.access import Access
from autoglm.service.logs import STARTUP
from autoglm.service.machine import bind
from autoglm.service.server import run_server, stoppable
from autoglm.service.settings import Settings
from autoglm.service.start import load_engine
from autoglm.service.state import ServiceState

CONTROL_SECONDS = 2.0

_log = logging.getLogger(STARTUP)


def serve_device(settings: Settings, updater: Updater) -> None:
    """Install a release if there is none, then serve and update it until told to stop.

    Args:
        settings: where to listen, and how the model runs; its hub part is not used.
        updater: the device; the caller closes it.

    Raises:
        ConfigError: the address cannot be used.
        PermissionDeniedError: the hub does not take the device's token, and there is no release yet.
        AutoGLMError: the release cannot be loaded.
    """
    with stoppable(), contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        environment = LinuxEnvironment(updater.root)
        install(updater, environment)
        engine = stack.enter_context(load_engine(updater, settings))
        agent = Agent(updater, engine, environment=environment, control_seconds=CONTROL_SECONDS)
        agent.start()
        stack.callback(agent.stop)
        limits = settings.limits
        access = Access(
            None,
            required=False,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
        )
        state = ServiceState(settings, engine, access, updater=updater, agent=agent)
        name = updater.device_id
        run_server(state, listener, lambda url: _log.info("Device %s listening on %s", name, url))


def install(
    updater: Updater,
    environment: Environment | None = None,
    *,
    every: float | None = None,
    wait: Callable[[float], object] = threading.Event().wait,
) -> None:
    """See that there is a release on the device, asking the hub until it gives one.

    It is asked as ever after: on schedule, by the rules of the updater, and not during a pause.

    Args:
        updater: the device.
        environment: tells what surrounds it, where a rule needs that.
        every: seconds between two checks; the updater's setting when None.
        wait: passes this many seconds.

    Raises:
        PermissionDeniedError: the hub does not take the device's token; asking again would not help.
    """
    if updater.active is not None:
        return
    agent = Agent(updater, every=every, environment=environment, control_seconds=CONTROL_SECONDS)
    before: UpdateResult | None = None
    is_paused = False
    while updater.active is None:
        seconds = agent.step()
        if agent.last_result is not before:
            before = agent.last_result
            _explain(updater, before)
        if not is_paused and updater.control.is_paused:
            _log.warning("no release yet, and updates are paused: autoglm device resume ends it")
        is_paused = updater.control.is_paused
        if updater.active is None:
            wait(seconds)
    _log.info("Installed the first release, %s", updater.active)


def _explain(updater: Updater, result: UpdateResult | None) -> None:
    """Say why there is no release yet; end where there will be none."""
    if updater.active is not None:
        return
    message = (result and result.message) or "the hub offers none"
    if result is not None and result.code == PermissionDeniedError.code:
        raise PermissionDeniedError(f"no release could be installed: {message}")
    _log.warning("no release yet: %s; asking again", message)

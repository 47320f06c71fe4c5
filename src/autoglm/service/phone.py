"""A device that answers requests: what a phone app does with the SDK and the engine, as one process.

It serves chat, ``/v1/model/info`` and health from the release that its own updater keeps, and swaps it
live. It has no hub and no administration; the release comes from the hub that the updater follows.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from autoglm.device import Agent, Updater
from autoglm.service.access import Access
from autoglm.service.logs import STARTUP
from autoglm.service.machine import bind
from autoglm.service.server import run_server, stoppable
from autoglm.service.settings import Settings
from autoglm.service.start import load_engine
from autoglm.service.state import ServiceState

MAX_WAIT_S = 30.0

_log = logging.getLogger(STARTUP)


def serve_device(settings: Settings, updater: Updater) -> None:
    """Install a release if there is none, then serve and update it until told to stop.

    Args:
        settings: where to listen, and how the model runs; its hub part is not used.
        updater: the device; the caller closes it.

    Raises:
        ConfigError: the address cannot be used.
        AutoGLMError: the release cannot be loaded.
    """
    with stoppable(), contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        install(updater)
        engine = stack.enter_context(load_engine(updater, settings))
        agent = Agent(updater, engine)
        agent.start()
        stack.callback(agent.stop)
        access = Access(None, required=False, requests_per_minute=settings.limits.requests_per_minute)
        state = ServiceState(settings, engine, access, updater=updater, agent=agent)
        name = updater.device_id
        run_server(state, listener, lambda url: _log.info("Device %s listening on %s", name, url))


def install(updater: Updater, wait: Callable[[float], object] = threading.Event().wait) -> None:
    """See that there is a release on the device, asking the hub until it gives one."""
    if updater.active is not None:
        return
    pause_s = 1.0
    while updater.active is None:
        result = updater.update()
        if updater.active is None:
            _log.warning("no release yet: %s; asking again", result.message or "the hub offers none")
            wait(min(MAX_WAIT_S, result.retry_after_s or pause_s))
            pause_s *= 2
    _log.info("Installed the first release, %s", updater.active)

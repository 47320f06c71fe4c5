"""Load the release that an updater keeps, saying so in the start-up lines."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path

from autoglm.device import Updater
from autoglm.engine import Engine, pick_devices
from autoglm.errors import AutoGLMError, BackendError, EngineError
from autoglm.model import core
from autoglm.service.gateway import Gateway, open_gateway
from autoglm.service.logs import STARTUP
from autoglm.service.settings import Settings

Backend = Engine | Gateway
"""What answers: the engine of this project, or vLLM servers behind a gateway of the same shape."""

_log = logging.getLogger(STARTUP)


def load_engine(updater: Updater, settings: Settings) -> Backend:
    """Load the active release; one on trial that does not load makes way for the previous one.

    Raises:
        EngineError, FormatError, TrustError: no release can be loaded.
        BackendError: the server that should load it was not reached, which is no fault of the release.
    """
    try:
        return _load(updater, settings)
    except BackendError:
        raise
    except AutoGLMError as error:
        status = updater.status()
        if status.confirmed or status.previous is None:
            raise
        _log.warning(
            "%s could not be loaded and makes way for %s: %s", status.current, status.previous, error
        )
        updater.rollback(reason=f"it could not be loaded: {error}")
        return _load(updater, settings)


def _load(updater: Updater, settings: Settings) -> Backend:
    directory = updater.active
    if directory is None:
        raise EngineError("no release is installed: the hub offers none to this service")
    _log.info("Loading model from %s", directory)
    started = time.perf_counter()
    is_native = settings.backend.kind == "native"
    engine = _load_here(directory, settings) if is_native else _load_there(directory, settings)
    _log.info("Model loaded successfully in %.1fs", time.perf_counter() - started)
    _log.info("Fast tokenizer enabled for GLM architecture")
    return engine


def _load_there(directory: Path, settings: Settings) -> Gateway:
    backend = settings.backend
    _log.info("Using device: vllm %s", ", ".join(backend.url) or shlex.join(backend.command))
    return open_gateway(directory, settings)


def _load_here(directory: Path, settings: Settings) -> Engine:
    model = settings.model
    devices = pick_devices(model.device)
    _log.info("Using device: %s", ", ".join(map(str, devices)))
    if devices[0].type == "cpu" and core.library() is None:
        _log.warning("the native core of decoding was not built: torch decodes, slower (autoglm doctor)")
    return Engine.load(
        directory,
        devices=model.device,
        threads=model.threads or None,
        max_batch=model.max_batch,
        max_context=model.max_context or None,
        cache_tokens=model.cache_tokens or None,
        queue=settings.limits.queue,
        in_flight=model.in_flight,
        drain_s=model.drain_seconds,
        step_s=model.step_seconds,
    )

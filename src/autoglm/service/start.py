"""Load the release that an updater keeps, saying so in the start-up lines."""

from __future__ import annotations

import logging
import time

from autoglm.device import Updater
from autoglm.engine import Engine, pick_devices
from autoglm.errors import AutoGLMError, EngineError
from autoglm.service.logs import STARTUP
from autoglm.service.settings import Settings

_log = logging.getLogger(STARTUP)


def load_engine(updater: Updater, settings: Settings) -> Engine:
    """Load the active release; one on trial that does not load makes way for the previous one.

    Raises:
        EngineError, FormatError, TrustError: no release can be loaded.
    """
    try:
        return _load(updater, settings)
    except AutoGLMError as error:
        status = updater.status()
        if status.confirmed or status.previous is None:
            raise
        _log.warning(
            "%s could not be loaded and makes way for %s: %s", status.current, status.previous, error
        )
        updater.rollback(reason=f"it could not be loaded: {error}")
        return _load(updater, settings)


def _load(updater: Updater, settings: Settings) -> Engine:
    directory = updater.active
    if directory is None:
        raise EngineError("no release is installed: the hub offers none to this service")
    model = settings.model
    _log.info("Loading model from %s", directory)
    _log.info("Using device: %s", ", ".join(str(each) for each in pick_devices(model.device)))
    started = time.perf_counter()
    engine = Engine.load(
        directory,
        devices=model.device,
        threads=model.threads or None,
        max_batch=model.max_batch,
        max_context=model.max_context or None,
        queue=settings.limits.queue,
    )
    _log.info("Model loaded successfully in %.1fs", time.perf_counter() - started)
    _log.info("Fast tokenizer enabled for GLM architecture")
    return engine

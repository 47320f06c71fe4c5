"""The hub's settings out of the service's; apart from the service, so that a worker needs no model."""

from __future__ import annotations

from autoglm.hub import HubConfig
from autoglm.service.settings import Settings


def hub_config(settings: Settings) -> HubConfig:
    """Return the hub's settings."""
    keys = settings.hub.keys
    return HubConfig(
        directory=settings.data_path,
        database_url=settings.hub.database_url,
        model=settings.model.name,
        variant=settings.model.variant,
        storage_url=settings.hub.storage_url,
        keys=None if keys is None else settings.path(keys),
    )

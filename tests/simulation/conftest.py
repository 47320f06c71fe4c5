"""A real service of the test's own, for a fleet to follow."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from service.running import RunningService, running_service, tiny_settings
from service.tiny import write_store


@pytest.fixture
def busy_service(tmp_path: Path) -> Generator[RunningService]:
    """A service that offers v1.3 to everyone, from v1.2 by a patch."""
    store = write_store(tmp_path / "model")
    with running_service(tiny_settings(store, tmp_path / "service")) as running:
        assert running.state.hub is not None
        running.state.hub.publish(store / "v1.3.wpatch", percent=100)
        running.build_packages()
        yield running

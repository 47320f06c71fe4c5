"""An agent's view of its surroundings: asked again at every step, with what went over metered networks.

What it guarantees: an environment that raises is one of which nothing is known; it never stops the agent.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from autoglm.device.environment import Environment, Reading
from autoglm.device.policy import counts_as_metered, reason_to_wait
from autoglm.device.traffic import Traffic
from autoglm.device.updater import Updater
from autoglm.errors import StorageError

_log = logging.getLogger(__name__)


class Surroundings:
    """The environment of one updater, and its traffic.

    Args:
        environment: asked; None where no rule needs one.
    """

    def __init__(self, updater: Updater, environment: Environment | None) -> None:
        self._updater, self._environment = updater, environment
        self._settings = updater.settings
        self._counts = environment is not None and updater.settings.metered_bytes_per_day is not None
        self._traffic = Traffic(updater.root / "traffic.json")
        self._counted = updater.wire_bytes
        self._was_metered = False

    def read(self) -> Reading:
        """Return the surroundings now."""
        if self._environment is None:
            return Reading()
        try:
            return self._environment.read()
        except Exception:  # noqa: BLE001 - the app's own code
            _log.exception("the environment could not be read")
            return Reading()

    def reason_to_wait(self) -> str | None:
        """Return why a scheduled update must wait, or None."""
        reading, now = self.read(), self._updater.clock.now()
        self.count(keep=False)
        self._was_metered = counts_as_metered(self._settings, reading)
        spent = self._traffic.today(reading.local_time or now)
        return reason_to_wait(self._settings, reading, now, metered_bytes=spent)

    def count(self, *, keep: bool) -> None:
        """Count what was sent and received since the last call, if the network was a metered one then.

        Args:
            keep: write the count to the disk.
        """
        so_far = self._updater.wire_bytes
        num_bytes, self._counted = so_far - self._counted, so_far
        if self._counts:
            local = self.read().local_time or self._updater.clock.now()
            with suppress(StorageError):  # counting must not stop what it counts
                self._traffic.add(num_bytes if self._was_metered else 0, local, keep=keep)

"""What a simulation is told: how many devices, how well they and their networks do, and what is released."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoglm.errors import ConfigError

MAX_DEVICES = 1_000_000
STAFF = "staff"
START = 1_798_761_600.0  # 2027-01-01T00:00:00Z: where virtual time begins
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


@dataclass(frozen=True)
class Scenario:
    """One story: a bad release goes out, the hub halts it, and its repair reaches everybody.

    Attributes:
        devices: how many.
        seed: the same seed gives the same run.
        bad_share: devices on which the first release fails; 0 makes it a good one, and the only one.
        stages: of both roll-outs.
        soak_s: of each stage, in virtual seconds.
        threshold_percent: the failure rate that a roll-out may have.
        repair_s: virtual seconds from a halt to the roll-out of the repair.
        every_s: how often a device asks by itself.
        days: virtual days after which the simulation ends, whatever the devices have.
        fetch_share: devices that really download, with ranges, cuts and hashes; the others count bytes.
        bad_networks: devices whose connections break.
        slow_phones: devices that take ten times as long.
        crash_rate: how often a step of an update ends in a restart of the device.
        noise: how often an attempt at a good release fails once for a reason of the device's own.
        weights_bytes: size of the weights that are made for the releases.
        connections: to the hub; with more than one the order of requests is no longer the same every time.
        tick_s: requests of this many virtual seconds are sent together.
    """

    devices: int = 1000
    seed: int = 1
    bad_share: float = 0.2
    stages: tuple[str, ...] = (STAFF, "1", "5", "25", "50", "100")
    soak_s: float = 12 * HOUR
    threshold_percent: float = 2.0
    repair_s: float = 6 * HOUR
    every_s: float = 6 * HOUR
    days: float = 30.0
    fetch_share: float = 0.01
    bad_networks: float = 0.15
    slow_phones: float = 0.1
    crash_rate: float = 0.01
    noise: float = 0.003
    weights_bytes: int = 1 << 18
    connections: int = 1
    tick_s: float = 60.0

    def __post_init__(self) -> None:
        shares = ("bad_share", "fetch_share", "bad_networks", "slow_phones", "crash_rate", "noise")
        for key in shares:
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"simulation: {key} must be a share from 0 to 1")
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ConfigError(f"simulation: devices must be 1 to {MAX_DEVICES}")
        if self.crash_rate > 0.5 or self.noise > 0.5:
            raise ConfigError("simulation: crash_rate and noise must be at most 0.5, or nothing is ever done")
        if not 1 <= self.connections <= 1000:
            raise ConfigError("simulation: connections must be 1 to 1000")
        for key in ("repair_s", "every_s", "days", "tick_s"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"simulation: {key} must be above 0")
        if not 1 << 12 <= self.weights_bytes <= 1 << 30:
            raise ConfigError("simulation: weights_bytes must be 4 KiB to 1 GiB")

    @property
    def look_s(self) -> float:
        """How often the operator looks, and the guard with it: often enough for the shortest stage."""
        return min(30 * MINUTE, max(self.tick_s, self.soak_s / 24))

    @property
    def staff(self) -> int:
        """Devices in the group of the first stage: two in a thousand, at least one."""
        return max(1, self.devices // 500)

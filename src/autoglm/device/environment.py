"""What a device knows of its surroundings: network, power, storage, local time.

What it guarantees: what cannot be found out is None, never a guess; reading it never raises. It decides
nothing: :mod:`autoglm.device.policy` does.

    >>> LinuxEnvironment("/var/lib/autoglm").read()        # doctest: +SKIP
    Reading(net='wifi', metered=None, charging=True, battery=80, free_bytes=9000000000, local_time=None)
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from autoglm.releases import DeviceEnvironment

_UP = 0x1
_METERED = {"cellular": True, "wifi": False, "ethernet": False, "none": False}
_ETHERNET, _POINT_TO_POINT, _RAW_IP = 1, 512, 519  # if_arp.h
_CELLULAR_NAMES = ("wwan", "rmnet", "ppp", "ccmni")


@dataclass(frozen=True)
class Reading:
    """The surroundings at one moment; None is what is not known.

    Attributes:
        net: ``wifi``, ``ethernet``, ``cellular`` or ``none``.
        metered: whether traffic costs; when not known, it is taken to on a cellular network.
        charging: whether it is connected to power.
        battery: per cent; 100 for a machine without one.
        free_bytes: room where the data directory lies.
        local_time: the time of day for quiet hours; the updater's clock when None.
    """

    net: str | None = None
    metered: bool | None = None
    charging: bool | None = None
    battery: int | None = None
    free_bytes: int | None = None
    local_time: datetime | None = None

    @property
    def is_metered(self) -> bool | None:
        """Whether traffic costs, as far as that is known."""
        return _METERED.get(self.net or "") if self.metered is None else self.metered

    def to_wire(self) -> DeviceEnvironment:
        """Return what the hub is told of it."""
        return DeviceEnvironment(self.free_bytes, self.net, self.charging, self.battery)


class Environment(Protocol):
    """Tells what surrounds the device; an app asks its own system."""

    def read(self) -> Reading:
        """Return the surroundings now. What raises counts as not known."""
        ...


class SettableEnvironment:
    """Surroundings that the app sets as it learns of them, from any thread."""

    def __init__(self, **known: Any) -> None:
        self._reading = Reading(**known)

    def set(self, **known: Any) -> None:
        """Change the fields of :class:`Reading` that are given."""
        self._reading = replace(self._reading, **known)

    def read(self) -> Reading:
        """Return what was set last."""
        return self._reading


class LinuxEnvironment:
    """Asks the Linux kernel, by the files in ``/sys`` and ``/proc``.

    Args:
        directory: the data directory, whose free room is measured.
        sys, proc: where the kernel's files are.
    """

    def __init__(
        self, directory: str | Path, *, sys: Path = Path("/sys"), proc: Path = Path("/proc")
    ) -> None:
        self._directory, self._sys, self._proc = Path(directory), sys, proc

    def read(self) -> Reading:
        """Return the surroundings now."""
        charging, battery = self._power()
        return Reading(net=self._net(), charging=charging, battery=battery, free_bytes=self._free_bytes())

    def _free_bytes(self) -> int | None:
        try:
            return shutil.disk_usage(self._directory).free
        except OSError:
            return None

    # -- power --------------------------------------------------------------------------------------

    def _power(self) -> tuple[bool | None, int | None]:
        """Return (charging, battery); a machine with no battery at all stands for a full one on power."""
        supplies = self._sys / "class/power_supply"
        try:
            found = sorted(supplies.iterdir())
        except OSError:
            return None, None
        batteries = [path for path in found if _is_battery(path)]
        mains = [_text(path / "online") for path in found if _text(path / "type") in ("Mains", "USB")]
        if not batteries:
            return (None, None) if found and "1" not in mains else (True, 100)
        states = {_text(path / "status") for path in batteries}
        levels = [_number(path / "capacity") for path in batteries]
        known = [level for level in levels if level is not None and 0 <= level <= 100]
        return _charging(states, mains), min(known, default=None)

    # -- network ------------------------------------------------------------------------------------

    def _net(self) -> str | None:
        """Return the kind of the interface that the default route leads over."""
        routes = [self._default_route_4(), self._default_route_6()]
        names = [name for name in routes if name]
        if names:
            return self._kind(names[0])
        return None if None in routes else "none"

    def _default_route_4(self) -> str | None:
        """Return the interface of the IPv4 default route with the lowest metric, "" for none."""
        rows = _rows(self._proc / "net/route")
        if rows is None:
            return None
        found = [(_int(row[6]), row[0]) for row in rows if len(row) > 7 and _is_default_4(row)]
        return min(found)[1] if found else ""

    def _default_route_6(self) -> str | None:
        rows = _rows(self._proc / "net/ipv6_route")
        if rows is None:
            return ""  # a kernel without IPv6
        found = [(_int(row[5], 16), row[9]) for row in rows if len(row) > 9 and _is_default_6(row)]
        return min(found)[1] if found else ""

    def _kind(self, interface: str) -> str | None:
        """Return what an interface is; None for a tunnel, which may lead over anything."""
        directory = self._sys / "class/net" / interface
        if (directory / "wireless").exists() or (directory / "phy80211").exists():
            return "wifi"
        number = _number(directory / "type")
        if interface.startswith(_CELLULAR_NAMES) or number in (_POINT_TO_POINT, _RAW_IP):
            return "cellular"
        return "ethernet" if number == _ETHERNET else None


def _is_battery(path: Path) -> bool:
    # A mouse's or a pen's battery has the scope Device.
    return _text(path / "type") == "Battery" and _text(path / "scope") != "Device"


def _charging(states: set[str | None], mains: list[str | None]) -> bool | None:
    if "Discharging" in states:
        return False
    if states & {"Charging", "Full"} or "1" in mains:
        return True
    return False if "Not charging" in states or "0" in mains else None


def _is_default_4(row: list[str]) -> bool:
    return row[1] == "00000000" and row[7] == "00000000" and bool(_int(row[3], 16) & _UP)


def _is_default_6(row: list[str]) -> bool:
    return row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo" and bool(_int(row[8], 16) & _UP)


def _rows(path: Path) -> list[list[str]] | None:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _int(text: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0

"""The Python side of an Android app: one update step for UpdateWorker.kt, with Android's own surroundings.

In the app it lies in ``src/main/python``, with the hub's ``root.json`` beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoglm.device import Agent, Reading, Updater, UpdateSettings

HUB_URL = "https://hub.example.com"
_TRANSPORTS = {0: "cellular", 1: "wifi", 3: "ethernet"}  # android.net.NetworkCapabilities.TRANSPORT_*
_NOT_METERED, _BATTERY_CAPACITY = 11, 4  # NET_CAPABILITY_NOT_METERED, BATTERY_PROPERTY_CAPACITY


class AndroidEnvironment:
    """What Android knows: ConnectivityManager and BatteryManager; needs ACCESS_NETWORK_STATE."""

    def __init__(self, context: Any) -> None:
        self._connectivity = context.getSystemService("connectivity")
        self._battery = context.getSystemService("batterymanager")

    def read(self) -> Reading:
        """Return the surroundings now."""
        network = self._connectivity.getActiveNetwork()
        capabilities = None if network is None else self._connectivity.getNetworkCapabilities(network)
        if capabilities is None:
            net, metered = "none", None
        else:
            found = [name for number, name in _TRANSPORTS.items() if capabilities.hasTransport(number)]
            net, metered = (found or [None])[0], not capabilities.hasCapability(_NOT_METERED)
        level = self._battery.getIntProperty(_BATTERY_CAPACITY)
        battery = level if 0 <= level <= 100 else None
        return Reading(net=net, metered=metered, charging=self._battery.isCharging(), battery=battery)


def _open(directory: str, context: Any, *, boot: bool) -> tuple[Updater, AndroidEnvironment]:
    if context is None:
        from com.chaquo.python import Python  # type: ignore[import-not-found]

        context = Python.getPlatform().getApplication()
    settings = UpdateSettings(wifi_only=True, min_battery=30)
    root = Path(__file__).with_name("root.json").read_bytes()
    data = Path(directory) / "autoglm"
    updater = Updater(data, hub_url=HUB_URL, settings=settings, trust_root=root, boot=boot)
    return updater, AndroidEnvironment(context)


class Phone:
    """The agent of a process that shows the app and loads the model; keep it as long as the process lives."""

    running: Phone | None = None

    def __init__(self, directory: str, runtime: Any, context: Any = None) -> None:
        """Open the device: this is a start of the app, which a release on trial must survive."""
        self.updater, environment = _open(directory, context, boot=True)
        self.agent = Agent(self.updater, runtime, environment=environment)
        Phone.running = self


def step(directory: str, context: Any = None) -> str:
    """Take one step of an update; return ``none``, ``updated``, ``failed`` or ``held``.

    A process that Android has started for the worker alone loads no model: what it installs is loaded at the
    next start of the app, and no try of a release on trial is used up.

    Args:
        directory: the app's private directory.
        context: Android's; Chaquopy's application when None.
    """
    if Phone.running is not None:
        agent = Phone.running.agent
        agent.update_now()
        agent.step()
    else:
        updater, environment = _open(directory, context, boot=False)
        with updater:
            agent = Agent(updater, environment=environment)
            agent.step()
    return "failed" if agent.last_result is None else agent.last_result.kind

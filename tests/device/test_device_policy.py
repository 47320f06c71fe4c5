"""The rules by which scheduled updates hold back, and what tells a device of its surroundings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import LinuxEnvironment, Reading, SettableEnvironment, UpdateSettings
from autoglm.device.policy import reason_to_wait
from autoglm.device.settings import parse_window
from autoglm.device.traffic import Traffic
from autoglm.errors import ConfigError
from autoglm.releases import DeviceEnvironment

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rules", "known", "waits"),
    [
        ({"wifi_only": True}, {"net": "wifi"}, False),
        ({"wifi_only": True}, {"net": "ethernet"}, False),
        ({"wifi_only": True}, {"net": "cellular"}, True),
        ({"wifi_only": True}, {}, True),
        ({"charging_only": True}, {"charging": True}, False),
        ({"charging_only": True}, {"charging": False, "battery": 100}, True),
        ({"min_battery": 30}, {"battery": 30}, False),
        ({"min_battery": 30}, {"battery": 29}, True),
        ({"min_battery": 30}, {"battery": 5, "charging": True}, False),
        ({"min_battery": 30}, {}, True),
        ({"keep_free_bytes": 100}, {"free_bytes": 100}, False),
        ({"keep_free_bytes": 100}, {"free_bytes": 99}, True),
        ({"keep_free_bytes": 100}, {}, True),
        ({"quiet_hours": ("08:00-18:00",)}, {}, True),
        ({"quiet_hours": ("22:00-07:00",)}, {}, False),
        ({"quiet_hours": ("22:00-12:01",)}, {}, True),
        ({"quiet_hours": ("22:00-12:00",)}, {}, False),
        ({"quiet_hours": ("01:00-02:00", "11:59-12:01")}, {}, True),
        ({"quiet_hours": ("08:00-18:00",)}, {"local_time": NOON.replace(hour=19)}, False),
        ({"metered_bytes_per_day": 10}, {"net": "cellular"}, True),
        ({"metered_bytes_per_day": 11}, {"net": "cellular"}, False),
        ({"metered_bytes_per_day": 10}, {"net": "cellular", "metered": False}, False),
        ({"metered_bytes_per_day": 10}, {"net": "wifi", "metered": True}, True),
        ({"metered_bytes_per_day": 10}, {"net": "wifi"}, False),
        ({"metered_bytes_per_day": 10}, {}, True),
        ({}, {}, False),
    ],
)
def test_rules_for_waiting(rules: dict[str, Any], known: dict[str, Any], waits: bool) -> None:
    """At noon, after 10 metered bytes: what is not known counts as bad, quiet hours may pass midnight."""
    reason = reason_to_wait(UpdateSettings(**rules), Reading(**known), NOON, metered_bytes=10)
    assert (reason is not None) is waits


@pytest.mark.parametrize(
    "rules",
    [
        {"wifi_only": True},
        {"charging_only": True},
        {"min_battery": 30},
        {"keep_free_bytes": 100},
        {"metered_bytes_per_day": 1},
    ],
)
def test_what_is_not_known_may_be_let_pass(rules: dict[str, Any]) -> None:
    """The policy for the unknown is a setting; by default the reason says what is not known."""
    reason = reason_to_wait(UpdateSettings(**rules), Reading(), NOON, metered_bytes=10)
    assert reason is not None and ("not known" in reason or "metered" in reason)
    generous = UpdateSettings(**rules, when_unknown="go")
    assert reason_to_wait(generous, Reading(), NOON, metered_bytes=10) is None


@pytest.mark.parametrize(
    "text", ["", "22-7", "22:00-25:00", "22:60-07:00", "24:00-01:00", "07:00-07:00", "22"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    """The error shows what was given and how to write it."""
    with pytest.raises(ConfigError, match="22:30-07:00"):
        parse_window(text)


@pytest.mark.parametrize(
    "wrong", [{"when_unknown": "guess"}, {"swap_mode": "both"}, {"scrub_every": "rarely"}]
)
def test_words_that_are_no_choice_are_refused(wrong: dict[str, Any]) -> None:
    """A setting with words takes only its own."""
    with pytest.raises(ConfigError):
        UpdateSettings(**wrong)


def test_an_app_sets_what_it_knows() -> None:
    """The plain environment keeps what was set, and tells the hub of it."""
    environment = SettableEnvironment(net="wifi")
    environment.set(battery=70, charging=False)
    assert environment.read() == Reading(net="wifi", battery=70, charging=False)
    assert environment.read().to_wire() == DeviceEnvironment(None, "wifi", False, 70)


def test_metered_traffic_is_counted_by_the_day(tmp_path: Path) -> None:
    """The count survives a restart, and a new date begins at zero; damage counts as nothing."""
    path = tmp_path / "traffic.json"
    traffic = Traffic(path)
    traffic.add(1000, NOON, keep=True)
    traffic.add(500, NOON, keep=False)
    assert (traffic.today(NOON), Traffic(path).today(NOON)) == (1500, 1000)
    traffic.add(2 << 20, NOON, keep=False)
    assert Traffic(path).today(NOON) == 1500 + (2 << 20)
    tomorrow = NOON.replace(day=23)
    assert Traffic(path).today(tomorrow) == 0
    path.write_text("[")
    assert Traffic(path).today(NOON) == 0


# The Linux kernel's files


class Kernel:
    """A made-up /sys and /proc."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc, self.data = root / "sys", root / "proc", root / "data"
        self.data.mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        target = self.sys.parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def supply(self, name: str, **values: str) -> None:
        for key, value in values.items():
            self.write(f"sys/class/power_supply/{name}/{key}", value)

    def route(self, *interfaces: tuple[str, int], more: str = "") -> None:
        head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"
        rows = [
            f"{name}\t00000000\t0102A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0"
            for name, metric in interfaces
        ]
        self.write("proc/net/route", "\n".join([head, *rows, more]))

    def read(self) -> Reading:
        return LinuxEnvironment(self.data, sys=self.sys, proc=self.proc).read()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel that tells nothing yet."""
    return Kernel(tmp_path)


def test_a_kernel_that_tells_nothing_is_believed_in_nothing(kernel: Kernel) -> None:
    """Without its files, network and power are not known; the room on the disk is measured."""
    reading = kernel.read()
    assert (reading.net, reading.charging, reading.battery) == (None, None, None)
    assert reading.free_bytes is not None and reading.free_bytes > 0


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({"BAT0": {"type": "Battery", "status": "Discharging", "capacity": "41"}}, (False, 41)),
        ({"BAT0": {"type": "Battery", "status": "Charging", "capacity": "41"}}, (True, 41)),
        ({"BAT0": {"type": "Battery", "status": "Full", "capacity": "100"}}, (True, 100)),
        ({"b": {"type": "Battery", "status": "Unknown", "capacity": "7"}}, (None, 7)),
        (
            {
                "b": {"type": "Battery", "status": "Not charging", "capacity": "80"},
                "AC": {"type": "Mains", "online": "1"},
            },
            (True, 80),
        ),
        (
            {"b": {"type": "Battery", "status": "Unknown"}, "usb": {"type": "USB", "online": "0"}},
            (False, None),
        ),
        (
            {"mouse": {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "3"}},
            (None, None),
        ),
        ({"AC": {"type": "Mains", "online": "1"}}, (True, 100)),
        ({"b": {"type": "Battery", "status": "Charging", "capacity": "900"}}, (True, None)),
    ],
)
def test_power_is_read_from_the_kernel(
    kernel: Kernel, supplies: dict[str, dict[str, str]], expected: Any
) -> None:
    """Battery and charger, as far as they are there; a mouse's battery says nothing about the machine."""
    for name, values in supplies.items():
        kernel.supply(name, **values)
    reading = kernel.read()
    assert (reading.charging, reading.battery) == expected


def test_a_machine_without_any_battery_is_on_power(kernel: Kernel) -> None:
    """The folder is there and empty."""
    (kernel.sys / "class/power_supply").mkdir(parents=True)
    assert (kernel.read().charging, kernel.read().battery) == (True, 100)


def test_the_network_is_that_of_the_default_route(kernel: Kernel) -> None:
    """The route with the lowest metric counts; tunnels are unknown."""
    kernel.write("sys/class/net/eth0/type", "1")
    kernel.write("sys/class/net/wlan0/type", "1")
    kernel.write("sys/class/net/wlan0/wireless/x", "")
    kernel.write("sys/class/net/rmnet0/type", "519")
    kernel.write("sys/class/net/tun0/type", "65534")
    kernel.route()
    assert kernel.read().net == "none"
    found: list[str | None] = []
    for name in ("eth0", "wlan0", "rmnet0", "tun0"):
        kernel.route(("other", 900), (name, 100))
        found.append(kernel.read().net)
    assert found == ["ethernet", "wifi", "cellular", None]


def test_a_network_with_ipv6_alone_is_found(kernel: Kernel) -> None:
    """No IPv4 default route, one of IPv6."""
    kernel.route()
    kernel.write("sys/class/net/wlan0/phy80211/x", "")
    zero = "0" * 32
    rows = [
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo",
        f"{zero} 00 {zero} 00 fe80{'0' * 28} 00000400 00000001 00000000 00000003 wlan0",
    ]
    kernel.write("proc/net/ipv6_route", "\n".join(rows))
    assert kernel.read().net == "wifi"


def test_this_machine_can_be_read() -> None:
    """Whatever the machine of the test is, reading it raises nothing and measures the disk."""
    reading = LinuxEnvironment("/").read()
    assert reading.net in (None, "none", "wifi", "ethernet", "cellular")
    assert reading.free_bytes is not None

"""The Python side of the Android sample, with Android's services stood in for."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autoglm.device import read_status

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/android/phone.py"


class Services:
    """A context with its two services, as Chaquopy shows them."""

    def __init__(self, transport: int | None = 1, *, metered: bool = False, level: int = 80) -> None:
        self.transport, self.metered, self.level = transport, metered, level

    def getSystemService(self, name: str) -> Services:  # noqa: N802 - Android's names
        assert name in ("connectivity", "batterymanager")
        return self

    def getActiveNetwork(self) -> object:  # noqa: N802
        return None if self.transport is None else self

    def getNetworkCapabilities(self, network: object) -> Services:  # noqa: N802
        return self

    def hasTransport(self, number: int) -> bool:  # noqa: N802
        return number == self.transport

    def hasCapability(self, number: int) -> bool:  # noqa: N802
        return number == 11 and not self.metered

    def getIntProperty(self, number: int) -> int:  # noqa: N802
        assert number == 4
        return self.level

    def isCharging(self) -> bool:  # noqa: N802
        return False


@pytest.fixture
def phone(tmp_path: Path, lab: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The sample, with the root of the test's hub beside it, and its hub in this process."""
    place = tmp_path / "phone.py"
    shutil.copy(EXAMPLE, place)
    (tmp_path / "root.json").write_bytes(lab.hub.world.trust.root)
    spec = importlib.util.spec_from_file_location("android_phone", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real = module.Updater

    def updater(root: Path, *, hub_url: str, **more: Any) -> Any:
        assert hub_url == module.HUB_URL
        return real(root, transport=lab.hub.transport, clock=lab.clock, **more)

    monkeypatch.setattr(module, "Updater", updater)
    return module


def test_a_worker_installs_and_uses_up_no_try(phone: ModuleType, hub: Any, tmp_path: Path) -> None:
    """Step by step in processes of their own: installed, and however often it runs, the tries stay."""
    hub.target = "v1.2"
    assert phone.step(str(tmp_path), Services()) == "updated"
    before = read_status(tmp_path / "autoglm").tries_left
    for _ in range(5):
        phone.step(str(tmp_path), Services())
    assert read_status(tmp_path / "autoglm").tries_left == before


def test_a_worker_waits_for_its_conditions(phone: ModuleType, hub: Any, tmp_path: Path) -> None:
    """On a cellular network and with a low battery it holds back."""
    hub.target = "v1.2"
    assert phone.step(str(tmp_path), Services(0, metered=True)) == "held"
    assert phone.step(str(tmp_path), Services(None)) == "held"
    assert phone.step(str(tmp_path), Services(1, level=10)) == "held"
    assert phone.step(str(tmp_path), Services(3)) == "updated"


def test_a_worker_beside_the_app_uses_its_agent(phone: ModuleType, hub: Any, tmp_path: Path) -> None:
    """The directory has one user at a time, so the step is the running agent's."""
    hub.target = "v1.2"
    app = phone.Phone(str(tmp_path), None, Services())
    assert phone.step(str(tmp_path)) == "updated"
    app.updater.close()


def test_what_android_does_not_know_is_not_guessed(phone: ModuleType) -> None:
    """A VPN alone is no known network; a battery level of Integer.MIN_VALUE is none."""
    reading = phone.AndroidEnvironment(Services(4, level=-(2**31))).read()
    assert (reading.net, reading.metered, reading.battery, reading.charging) == (None, False, None, False)

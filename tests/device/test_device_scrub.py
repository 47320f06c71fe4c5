"""Storage that forgets: files that change on the disk while nobody looks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import Agent
from autoglm.releases import Manifest

HOUR = 3600


@pytest.fixture(autouse=True)
def _often(lab: Any) -> None:
    lab.change(scrub_every="1h")


def rot(directory: Path, name: str = "model.safetensors") -> None:
    """Change one bit of an installed file in place, as a failing flash does; its date stays."""
    with (directory / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def look_around(updater: Any, clock: Any) -> None:
    """Let the time pass, and the device look at all its files."""
    updater.tick()
    clock.seconds += HOUR + 1
    for _ in range(40):
        updater.tick()


def verify(updater: Any) -> str:
    """Return the current version, all of whose bytes are as they should be."""
    manifest = Manifest.read(updater.active)
    manifest.verify(updater.active)
    return manifest.version


def test_a_whole_release_is_left_alone(lab: Any, hub: Any, clock: Any) -> None:
    """Looking finds nothing, asks nobody, and is not done again before its time."""
    updater = lab.install("v1.2")
    hub.requests.clear()
    look_around(updater, clock)
    assert not updater.is_damaged and updater.status().last_error is None
    assert hub.requests == []
    done = (lab.root / "scrub.json").read_bytes()
    clock.seconds += HOUR / 2
    updater.tick()
    assert (lab.root / "scrub.json").read_bytes() == done


def test_a_rotten_release_is_fetched_again(lab: Any, hub: Any, clock: Any, make_runtime: Any) -> None:
    """Found, remembered, and mended in place from the full package, while the old weights serve on."""
    updater, runtime = lab.install("v1.2"), make_runtime("v1.2")
    updater.attach(runtime)
    rot(updater.active)
    look_around(updater, clock)
    status = updater.status()
    assert (status.damaged, status.last_error["code"]) == (True, "E_INTEGRITY")
    hub.target = "v1.2"
    assert updater.update(runtime).kind == "none"
    assert hub.requests[-1].current_version is None
    assert verify(updater) == "v1.2"
    assert not updater.is_damaged and updater.status().last_error is None
    assert runtime.calls == [] and updater.status().state == "IDLE"
    assert ("ok", "v1.2", None) in hub.outcomes()
    look_around(updater, clock)
    assert not updater.is_damaged


def test_a_rotten_release_gives_way_to_a_newer_one(lab: Any, hub: Any, clock: Any) -> None:
    """When the hub has something newer by then, that comes, and from the full package."""
    updater = lab.install("v1.2")
    rot(updater.active)
    look_around(updater, clock)
    hub.target = "v1.3"
    assert updater.update().to_version == "v1.3"
    assert verify(updater) == "v1.3"


def test_the_agent_does_not_wait_for_its_schedule(lab: Any, hub: Any, clock: Any) -> None:
    """It asks as soon as the damage is found; when that does not help, as scheduled."""
    updater = lab.install("v1.2")
    agent = Agent(updater, every="30d", jitter=0.0, random_source=random.Random(1))
    agent.step()
    rot(updater.active)
    look_around(updater, clock)
    hub.requests.clear()
    hub.target = None
    agent.step()
    agent.step()
    assert len(hub.requests) == 1
    assert updater.is_damaged


def test_what_is_shared_by_both_releases_is_mended_in_both(lab: Any, hub: Any, clock: Any) -> None:
    """The tokenizer is one file under two names; after mending, going back is possible."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    rot(updater.active, "tokenizer.json")
    assert not Path(lab.root / "releases/nano-v1.2/tokenizer.json").read_bytes().endswith(b"}}")
    look_around(updater, clock)
    assert updater.status().previous is None  # nothing to go back to in the meantime
    hub.target = "v1.3"
    assert updater.update().kind == "none"
    assert verify(updater) == "v1.3"


def test_a_rotten_previous_release_is_let_go(lab: Any, hub: Any, clock: Any) -> None:
    """It is of no use for going back, and nothing is fetched for it."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    rot(lab.root / "releases/nano-v1.2")
    look_around(updater, clock)
    status = updater.status()
    assert (status.current, status.previous, status.damaged) == ("v1.3", None, False)
    assert {path.name for path in (lab.root / "releases").iterdir()} == {"nano-v1.3"}


def test_the_next_start_does_not_load_what_rotted(lab: Any, hub: Any, clock: Any) -> None:
    """Damage that could not be mended is left at the start, for the previous release."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    rot(updater.active)
    look_around(updater, clock)
    updater = lab.open()
    assert verify(updater) == "v1.2"


@pytest.mark.parametrize("cut", range(1, 40, 4))
def test_a_crash_while_mending_is_gone_on_from(
    lab: Any, hub: Any, clock: Any, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses at any operation, and a start after it: mended, or gone on with, never worse."""
    import errno
    import os

    updater = lab.install("v1.2")
    rot(updater.active)
    look_around(updater, clock)
    hub.target = "v1.2"
    left = cut
    with monkeypatch.context() as patched:
        for name in ("fsync", "fdatasync", "replace", "rename", "link"):
            real = getattr(os, name)

            def refuse(*arguments: Any, real: Any = real, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise OSError(errno.EIO, "a failing disk")
                return real(*arguments, **named)

            patched.setattr(os, name, refuse)
        updater.update()
    updater = lab.open()
    if updater.update().kind == "updated":  # the start had let go of what was damaged
        updater = lab.open()
    assert verify(updater) == "v1.2"
    assert not updater.is_damaged
    assert not list(lab.root.rglob(".tmp-*"))


def test_looking_can_be_turned_off(lab: Any, hub: Any, clock: Any) -> None:
    """Without a period nothing is read."""
    lab.change(scrub_every=None)
    updater = lab.install("v1.2")
    rot(updater.active)
    look_around(updater, clock)
    assert not updater.is_damaged

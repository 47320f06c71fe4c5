"""A device believes what is signed, whatever its hub says; and never goes back below what it has seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ConfigError, ConflictError
from autoglm.files import sha256_file
from autoglm.releases import canonical_json
from autoglm.trust.repository import Repository


@pytest.fixture
def own(lab: Any, world: Any, tmp_path: Path) -> Any:
    """The lab, with signed metadata of the test's own, which follows its clock."""
    trust = Repository.open(tmp_path / "trust", clock=lambda: lab.clock.now().timestamp())
    mine = type(world)(world.root, trust, dict(world.releases), dict(world.packages))
    for version, bases in (("v1.2", ()), ("v1.3", ("v1.2",)), ("v1.4", ("v1.2", "v1.3"))):
        mine._sign(version, bases)
    lab.hub.world = mine
    return lab


def revoke(lab: Any, version: str) -> None:
    lab.hub.world.trust.revoke_release("autoglm-phone-9b", "nano-int8", version)


def test_a_revoked_release_is_not_installed(own: Any, hub: Any) -> None:
    """The hub offers it all the same; the device says why it refuses, and keeps what it has."""
    updater = own.install("v1.2")
    hub.target = "v1.3"
    revoke(own, "v1.3")
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_REVOKED")
    assert updater.status().current == "v1.2"


def test_a_revoked_release_goes_on_until_there_is_another(own: Any, hub: Any) -> None:
    """The device that runs it says so, and takes the next one."""
    updater = own.install("v1.3")
    revoke(own, "v1.3")
    assert updater.update().kind == "none"
    assert updater.status().revoked == ("v1.3",)
    hub.target = "v1.4"
    assert updater.update().to_version == "v1.4"


def test_neither_a_failed_nor_a_revoked_release_is_run(own: Any, hub: Any) -> None:
    """The previous one was called back and the present one loops: none loads, and the head comes in full."""
    own.install("v1.2")
    hub.target = "v1.3"
    revoke(own, "v1.2")
    updater = own.open()
    assert updater.update().kind == "updated"
    for _ in range(own.settings.tries + 1):
        assert updater.active is not None
        updater = own.open()  # each start is killed before it answers
    assert updater.active is None
    assert updater.status().quarantined == ("v1.3",)
    hub.target = "v1.4"
    result = updater.update()
    assert (result.kind, result.from_version, result.to_version) == ("updated", None, "v1.4")
    assert hub.requests[-1].current_version is None


def test_going_back_to_a_revoked_release_by_hand_is_refused(own: Any) -> None:
    """Whoever asks for it."""
    own.install("v1.2")
    updater = own.install("v1.3")
    revoke(own, "v1.2")
    updater.update()
    assert updater.status().revoked == ("v1.2",)
    with pytest.raises(ConflictError, match="no longer allowed"):
        updater.rollback()


def test_an_older_release_is_refused_even_when_everything_else_was_lost(own: Any, hub: Any) -> None:
    """Releases, state and cache are gone; the floor remembers which release had proved itself."""
    own.install("v1.2")
    own.install("v1.3").close()
    for name in ("current.json", "state.json", "releases", "objects", "tuf/snapshot.json"):
        path = own.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    hub.target, updater = "v1.2", own.open()
    assert updater.active is None
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_REPLAY")
    hub.target = "v1.3"
    assert updater.update().to_version == "v1.3"


def test_after_a_rollback_by_hand_a_release_between_the_two_is_taken(own: Any, hub: Any) -> None:
    """The owner went back from v1.4 to v1.2 on purpose, so v1.3 is newer than what runs."""
    own.install("v1.2")
    updater = own.install("v1.4")
    updater.rollback()
    hub.target = "v1.3"
    assert own.open().update().to_version == "v1.3"


@pytest.mark.parametrize("lose", [False, True])
def test_a_replayed_hub_installs_nothing(own: Any, hub: Any, lose: bool) -> None:
    """Old metadata with an old offer, with the cache zeroed by a power cut too."""
    hub.target, old = "v1.2", own.root.parent / "old"
    shutil.copytree(hub.world.trust.directory / "metadata", old)
    updater = own.install("v1.3")
    for _ in range(2):
        own.clock.seconds += 15 * 3600
        updater.update()
    if lose:
        for path in (own.root / "tuf").glob("*.json"):
            path.resolve().write_bytes(bytes(path.stat().st_size))
    hub.metadata = lambda name: _read(old / name)
    hub.target = "v1.4"
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_REPLAY")
    assert updater.status().current == "v1.3"


def test_expired_metadata_installs_nothing_and_stops_nothing(own: Any, hub: Any) -> None:
    """The old release serves on, reports still go out, and the reason is in the status."""
    updater = own.install("v1.2")
    hub.target, frozen = "v1.3", own.root.parent / "frozen"
    shutil.copytree(hub.world.trust.directory / "metadata", frozen)
    hub.metadata = lambda name: _read(frozen / name)
    own.clock.seconds += 5 * 86_400
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_EXPIRED")
    assert updater.status().last_error["code"] == "E_EXPIRED"
    assert updater.active is not None
    del hub.metadata
    assert updater.update().kind == "updated"


def _read(path: Path) -> bytes:
    from autoglm.errors import NotFoundError

    if not path.exists():
        raise NotFoundError(path.name)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        # The full package of another release, a patch from another base, a release of another name.
        lambda hub: {"kind": "full", "sha256": _pin(hub, None, "v1.4"), "size": None},
        lambda hub: {"sha256": _pin(hub, "v1.2", "v1.4")},
        lambda hub: {"full_sha256": _pin(hub, None, "v1.2")},
        lambda hub: {"manifest": "autoglm-phone-9b/nano-int8/v1.4/manifest.json"},
        lambda hub: {"manifest": "other/nano-int8/v1.3/manifest.json"},
        lambda hub: {"manifest": "../../x"},
    ],
)
def test_a_choice_that_is_signed_for_something_else_is_refused(
    lab: Any, hub: Any, change: Callable[[Any], dict[str, Any]]
) -> None:
    """Each part is signed, the whole is not what it is offered as: nothing is fetched."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    hub.change = lambda answer: replace(answer, **change(hub))
    hub.package = lambda sha256: pytest.fail("nothing may be fetched")
    result = updater.update()
    assert result.kind == "failed"
    assert result.code in ("E_TRUST", "E_SIGNATURE")
    assert updater.status().current == "v1.2"


def _pin(hub: Any, base: str | None, target: str) -> str:
    return sha256_file(hub.world.packages[base, target])


def test_an_answer_without_pins_is_enough(lab: Any, hub: Any) -> None:
    """What the hub leaves out, signed metadata says."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    empty = dict.fromkeys(
        ("manifest", "manifest_sha256", "counter", "size", "header_length", "header_sha256")
    )
    hub.change = lambda answer: replace(answer, **empty)
    assert updater.update().to_version == "v1.3"


# Where trust begins


def test_without_a_root_nothing_is_installed(lab: Any, hub: Any) -> None:
    """The message says what to give, and once given the root is kept."""
    hub.target = "v1.2"
    updater = lab.open(trust_root=None)
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_NO_ROOT")
    assert "--root" in (result.message or "")
    root = lab.root.parent / "root.json"
    root.write_bytes(hub.world.trust.root)
    assert lab.open(trust_root=root).update().to_version == "v1.2"
    assert lab.open(trust_root=None).update().kind in ("none", "held")


def test_the_first_root_is_believed_only_where_that_was_asked_for(lab: Any, hub: Any) -> None:
    """Trust on first use is a setting; afterwards another hub is not believed."""
    hub.target = "v1.2"
    assert lab.open(trust_root=None, trust_first_use=True).update().to_version == "v1.2"
    stranger = Repository.open(lab.root.parent / "stranger", clock=lambda: lab.clock.now().timestamp())
    hub.metadata = stranger.read
    result = lab.open(trust_root=None, trust_first_use=True).update()
    assert (result.kind, result.code) == ("failed", "E_SIGNATURE")


@pytest.mark.parametrize("content", [None, b"", b"x" * 300_000])
def test_a_root_file_that_is_none_is_a_wrong_setting(lab: Any, content: bytes | None) -> None:
    """Missing, empty or far too long."""
    path = lab.root.parent / "root.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        lab.open(trust_root=path)


def test_the_floor_lies_beside_the_cache(lab: Any, hub: Any) -> None:
    """docs/device-sdk.md names the files; both are there after the first update."""
    updater = lab.install("v1.2")
    assert json.loads((lab.root / "floor.json").read_bytes())["counter"] == 12
    assert {"timestamp.json", "bootstrap"} <= {path.name for path in (lab.root / "tuf").iterdir()}
    assert updater.status().revoked == ()


def test_a_phone_verifies_without_the_cryptography_library(lab: Any, hub: Any, tmp_path: Path) -> None:
    """A whole update with only pure Python for the signatures, and with every heavy library blocked."""
    lab.install("v1.2").close()
    program = f"""
import sys
for name in ("cryptography numpy torch pydantic msgspec fastapi sqlalchemy requests nacl".split()):
    sys.modules[name] = None
from datetime import UTC, datetime
from pathlib import Path
from autoglm.device import LocalTransport, Updater
from autoglm.device.clock import Clock
from autoglm.errors import NotFoundError
from autoglm.releases import EventAnswer, UpdateAnswer
answer = UpdateAnswer.from_bytes(Path(sys.argv[1]).read_bytes())
def metadata(name):
    path = Path(sys.argv[3]) / name
    if not path.exists():
        raise NotFoundError(name)
    return path.read_bytes()
transport = LocalTransport(
    check=lambda r: answer,
    report=lambda b: EventAnswer(tuple(e.event_id for e in b.events)),
    package=lambda s: Path(sys.argv[2]),
    metadata=metadata,
)
clock = Clock()
clock.now = lambda: datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
with Updater({str(lab.root)!r}, transport=transport, boot=False, clock=clock) as updater:
    result = updater.update()
    from securesystemslib.signer import _key
    print(result.kind, updater.status().current, bool(_key.CRYPTO_IMPORT_ERROR))
"""
    answer = tmp_path / "answer.json"
    answer.write_bytes(canonical_json(hub.offer("v1.2", "v1.3").to_json()))
    package, signed = hub.world.packages["v1.2", "v1.3"], hub.world.trust.directory / "metadata"
    command = [sys.executable, "-c", program, str(answer), str(package), str(signed)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.stdout.split() == ["updated", "v1.3", "True"], output.stderr


def test_the_device_imports_what_signs_nowhere() -> None:
    """`autoglm.device` leaves the TUF library and the signing side out until there is a hub to talk to."""
    program = (
        "import sys, autoglm.device; "
        "print([n for n in sys.modules if n.split('.')[0] in ('tuf', 'securesystemslib', 'cryptography')"
        " or n in ('autoglm.trust.keys', 'autoglm.trust.authority', 'autoglm.trust.repository')])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"

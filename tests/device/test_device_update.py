"""The whole cycle of an update over the real codec and the real disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import FileRuntime, Updater, read_status
from autoglm.errors import (
    ConfigError,
    ConflictError,
    EngineError,
    LockedError,
    NotFoundError,
    OutOfMemoryError,
)
from autoglm.files import sha256_file
from autoglm.releases import Manifest


def version_of(updater: Updater) -> str | None:
    if updater.active is None:
        return None
    manifest = Manifest.read(updater.active)
    manifest.verify(updater.active)
    return manifest.version


def test_a_device_with_nothing_installs_the_full_release(lab: Any, hub: Any) -> None:
    """A cold device fetches the full package, has it active, and puts it on trial."""
    hub.target = "v1.2"
    updater = lab.open()
    assert updater.active is None
    result = updater.update()
    assert (result.kind, result.from_version, result.to_version) == ("updated", None, "v1.2")
    assert version_of(updater) == "v1.2"
    assert not updater.status().confirmed


def test_a_patch_leads_to_the_next_release_and_swaps_the_live_model(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """check, patch, self-test, commit, swap: in this order, with the old release kept to go back to."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    result = updater.update(runtime)
    assert (result.kind, result.from_version, result.to_version) == ("updated", "v1.2", "v1.3")
    assert runtime.calls == ["stage", "self_test", "swap"]
    assert runtime.serving == "v1.3"
    status = updater.status()
    assert (status.state, status.current, status.previous, status.tries_left) == ("TRIAL", "v1.3", "v1.2", 3)
    assert version_of(updater) == "v1.3"


def test_unchanged_files_are_stored_once(lab: Any, hub: Any) -> None:
    """The tokenizer that both releases share is one file on the disk, under three names."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    updater.update()
    tokenizer = updater.active / "tokenizer.json"
    assert tokenizer.samefile(lab.root / "releases" / "nano-v1.2" / "tokenizer.json")
    assert tokenizer.samefile(lab.root / "objects" / sha256_file(tokenizer))


def test_nothing_offered_changes_nothing(lab: Any, hub: Any) -> None:
    """With no newer release the cycle ends after the check."""
    updater = lab.install("v1.2")
    assert updater.update().kind == "none"
    assert updater.status().state == "IDLE"


def test_the_check_says_what_is_installed(lab: Any, hub: Any, world: Any) -> None:
    """The hub hears version, identity, variant and free room."""
    updater = lab.install("v1.2")
    hub.target = None
    updater.check()
    request = hub.requests[-1]
    assert (request.current_version, request.current_sha256) == ("v1.2", world.manifest("v1.2").sha256)
    assert (request.model, request.variant) == ("autoglm-phone-9b", "nano-int8")
    assert request.env.free_bytes > 0


def test_a_confirmed_update_leaves_no_package_behind(lab: Any, hub: Any, world: Any) -> None:
    """After confirmation only what the current and previous release consist of stays on the disk."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    files = {file.sha256 for version in ("v1.2", "v1.3") for file in world.manifest(version).files}
    assert {path.name for path in (lab.root / "objects").iterdir()} == files
    assert list((lab.root / "staging").iterdir()) == []
    hub.target = "v1.4"
    updater.update()
    lab.prove(lab.open())
    assert sorted(p.name for p in (lab.root / "releases").iterdir()) == ["nano-v1.3", "nano-v1.4"]


def test_a_failed_self_test_keeps_the_old_release_and_is_never_tried_again(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """The release is dropped before it serves, quarantined, reported, and named in the next check."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    runtime.report = replace(runtime.report, ok=False, failures=("prompt 1: 'x', not 'y'",))
    result = updater.update(runtime)
    assert (result.kind, result.code) == ("failed", "E_HEALTH")
    assert "prompt 1" in (result.message or "")
    assert runtime.calls == ["stage", "self_test", "discard"]
    assert (version_of(updater), updater.status().state) == ("v1.2", "IDLE")
    assert updater.status().quarantined == ("v1.3",)
    assert ("fail", "v1.3", "E_HEALTH") in hub.outcomes()
    updater.check()
    assert hub.requests[-1].failed == ("v1.3",)


def test_a_quarantined_release_is_refused_even_when_offered(lab: Any, hub: Any, make_runtime: Any) -> None:
    """A hub that offers it all the same is not obeyed."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    runtime.faults["stage"] = EngineError("weights are not finite")
    assert updater.update(runtime).code == "E_ENGINE"
    hub.check = lambda request: hub.offer("v1.2", "v1.3")
    updater = lab.open()
    result = updater.update(runtime)
    assert (result.kind, result.code) == ("held", "E_QUARANTINED")
    assert runtime.calls == ["stage"]


def test_a_swap_that_breaks_falls_back(lab: Any, hub: Any, make_runtime: Any) -> None:
    """After the commit too: the previous release is the current one again."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    runtime.faults["swap"] = RuntimeError("driver gone")
    result = updater.update(runtime)
    assert (result.kind, result.code) == ("failed", "E_ENGINE")
    assert (version_of(updater), runtime.serving, updater.status().confirmed) == ("v1.2", "v1.2", True)


@pytest.mark.parametrize("fault", [MemoryError("too big"), OutOfMemoryError("too big")])
def test_no_memory_to_stage_is_no_fault_of_the_release(
    lab: Any, hub: Any, make_runtime: Any, fault: Exception
) -> None:
    """A device that cannot hold both models now tries again later, without another download."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    runtime.faults["stage"] = fault
    assert updater.update(runtime).kind == "failed"
    assert updater.status().quarantined == ()
    del runtime.faults["stage"]
    hub.package = lambda sha256: pytest.fail("the package lies here already")
    assert lab.open().update(runtime).kind == "updated"


def test_a_corrupted_patch_is_replaced_by_the_full_package(lab: Any, hub: Any, tmp_path: Path) -> None:
    """Wrong bytes never reach the codec: the download fails its hash twice, then the full one is fetched."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    good = hub.world.packages["v1.2", "v1.3"]
    bad = tmp_path / "bad.wpatch"
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    fetched: list[str] = []

    def package(sha256: str) -> Path:
        fetched.append(sha256)
        return bad if hub.files[sha256] == good else hub.files[sha256]

    hub.package = package
    assert updater.update().kind == "updated"
    full = hub.world.packages[None, "v1.3"]
    assert fetched == [sha256_file(good), sha256_file(good), sha256_file(full)]
    assert version_of(updater) == "v1.3"


def test_rotten_installed_files_lead_to_the_full_package(lab: Any, hub: Any) -> None:
    """A patch that does not fit because the base has rotted is given up at once for the full one."""
    updater = lab.install("v1.2")
    weights = updater.active / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    weights.write_bytes(content)
    hub.target = "v1.3"
    assert updater.update().kind == "updated"
    assert version_of(updater) == "v1.3"


def test_a_rotten_shared_file_does_not_poison_the_store(lab: Any, hub: Any) -> None:
    """A rotten object is replaced by the fresh file of the same name, not linked into the new release."""
    updater = lab.install("v1.2")
    (updater.active / "tokenizer.json").write_text("x" * 26)
    hub.target = "v1.3"
    assert updater.update().kind == "updated"
    tokenizer = updater.active / "tokenizer.json"
    assert version_of(updater) == "v1.3"
    assert (lab.root / "objects" / sha256_file(tokenizer)).samefile(tokenizer)


def test_a_release_that_is_here_already_is_not_fetched(lab: Any, hub: Any, make_runtime: Any) -> None:
    """A release applied before a hold is found again by its identity."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    runtime.faults["stage"] = MemoryError()
    updater.update(runtime)
    hub.package = lambda sha256: pytest.fail("nothing needs to be fetched")
    del runtime.faults["stage"]
    assert updater.update(runtime).kind == "updated"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"manifest_sha256": "0" * 64}, "E_TRUST"),
        ({"counter": 99}, "E_TRUST"),
        ({"target_version": "v9"}, "E_TRUST"),
        ({"target_version": "v9", "manifest": None}, "E_SIGNATURE"),
        ({"size": 1}, "E_TRUST"),
        ({"header_sha256": "0" * 64, "full_header_sha256": "0" * 64}, "E_TRUST"),
        ({"sha256": "0" * 64, "full_sha256": "0" * 64}, "E_SIGNATURE"),
    ],
)
def test_a_package_that_is_not_what_was_promised_is_not_installed(
    lab: Any, hub: Any, change: dict[str, Any], code: str
) -> None:
    """Whatever promise is broken, the old release stays and the reason is named."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    hub.change = lambda answer: replace(answer, **change)
    if "sha256" in change:
        name = f"/v1/model/packages/{'1' * 64}.wpatch"
        hub.change = lambda answer: replace(answer, **change, download_url=name, full_url=name)
        hub.package = lambda sha256: _missing()
    result = updater.update()
    assert (result.kind, result.code) == ("failed", code)
    assert version_of(updater) == "v1.2"


def _missing() -> Path:
    raise NotFoundError("no such package")


def test_an_older_release_is_refused(lab: Any, hub: Any) -> None:
    """A hub that offers a lower counter is not obeyed, and nothing is fetched."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    hub.check = lambda request: hub.offer(None, "v1.2")
    hub.package = lambda sha256: pytest.fail("nothing may be fetched")
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_REPLAY")
    assert version_of(updater) == "v1.3"


def test_another_variant_is_refused(lab: Any, hub: Any, world: Any) -> None:
    """A device that runs one build of a model does not take another."""
    if "other" not in world.releases:
        world.add("v1.5", 15, label="other", variant="nano-bf16")
    hub.files[sha256_file(world.packages[None, "other"])] = world.packages[None, "other"]
    updater = lab.install("v1.2")
    hub.target = "other"
    result = updater.update()
    assert (result.kind, result.code) == ("failed", "E_TRUST")
    assert version_of(updater) == "v1.2"


def test_the_hub_may_call_an_update_off(lab: Any, hub: Any) -> None:
    """A cancel in answer to the first report drops the attempt; a pause keeps it for later."""
    updater = lab.install("v1.2")
    hub.target, hub.control = "v1.3", "cancel"
    assert (updater.update().code, updater.status().state) == ("E_CANCELLED", "IDLE")
    hub.control = "pause"
    assert (updater.update().code, updater.status().state) == ("E_HELD", "DOWNLOADING")
    hub.control = "continue"
    assert updater.update().kind == "updated"


def test_an_offer_withdrawn_drops_what_was_fetched(lab: Any, hub: Any) -> None:
    """When the hub stops offering an update under way, nothing of it stays."""
    lab.install("v1.2")
    lab.change(chunk_bytes=4096)
    updater = lab.open()
    hub.target = "v1.3"
    steps = iter([None, None, None, "the app is closing"])
    assert updater.update(gate=lambda: next(steps)).kind == "held"
    assert list((lab.root / "staging").iterdir())
    hub.target = None
    assert updater.update().kind == "none"
    assert list((lab.root / "staging").iterdir()) == []
    assert updater.status().state == "IDLE"


def test_a_held_download_goes_on_where_it_stopped(lab: Any, hub: Any) -> None:
    """The bytes that came before the hold are not fetched again."""
    lab.change(chunk_bytes=4096)
    hub.target = "v1.2"
    gate = iter([None] * 5 + ["no Wi-Fi"])
    assert lab.open().update(gate=lambda: next(gate)).code == "E_HELD"
    seen: list[int] = []
    updater = lab.open(progress=lambda phase, done, total: seen.append(done) if phase == "download" else None)
    assert updater.update().kind == "updated"
    assert seen[0] > 4 * lab.settings.chunk_bytes


def test_no_room_is_said_before_anything_is_fetched(
    lab: Any, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result names the bytes needed and free, and the update goes through once there is room."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        result = updater.update()
        assert (result.kind, result.code) == ("failed", "E_DISK_FULL")
        assert "1000 are free" in (result.message or "")
    assert updater.update().kind == "updated"


def test_without_a_hub_nothing_can_be_fetched(lab: Any) -> None:
    """An updater without a hub says so, and still knows what is installed."""
    lab.install("v1.2")
    updater = lab.open(transport=None)
    assert version_of(updater) == "v1.2"
    with pytest.raises(ConfigError, match="hub_url"):
        updater.update()


def test_a_second_start_on_the_same_directory_is_refused(lab: Any) -> None:
    """One process at a time holds a data directory."""
    lab.open()
    with pytest.raises(LockedError, match="in use"):
        Updater(lab.root)


def test_the_device_keeps_the_name_it_made_up(tmp_path: Path) -> None:
    """Without a name given the device invents one and stays with it."""
    with Updater(tmp_path / "d") as updater:
        name = updater.device_id
    with Updater(tmp_path / "d") as updater:
        assert updater.device_id == name
    with pytest.raises(ConfigError, match="device_id"):
        Updater(tmp_path / "d", device_id="no spaces please")
    (tmp_path / "d" / "device.json").write_text('{"device_id": "damaged name"}')
    with Updater(tmp_path / "d") as updater:
        assert updater.device_id.startswith("dev_")


def test_status_can_be_read_beside_a_running_updater(lab: Any, hub: Any) -> None:
    """The status needs no lock, and reading it does not count as a start."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    updater.update()
    assert read_status(lab.root).to_json() == updater.status().to_json() | {
        "next_check": None,
        "progress": None,
    }
    assert read_status(lab.root / "nowhere").current is None


def test_rolling_back_by_hand_quarantines_the_newer_release(lab: Any, hub: Any, make_runtime: Any) -> None:
    """Also after confirmation: the previous release serves, and the newer one does not come back."""
    lab.install("v1.2")
    updater = lab.install("v1.3")
    runtime = make_runtime("v1.3")
    result = updater.rollback(runtime, reason="bad answers")
    assert (result.from_version, result.to_version, runtime.serving) == ("v1.3", "v1.2", "v1.2")
    assert version_of(updater) == "v1.2"
    assert ("fail", "v1.3", "E_ROLLBACK") in hub.outcomes()
    assert updater.update(runtime).kind == "none"
    with pytest.raises(NotFoundError):
        updater.rollback(runtime)


def test_a_release_may_forbid_going_back(lab: Any, hub: Any, world: Any) -> None:
    """``min_counter`` of the current release bars the previous one."""
    if "final" not in world.releases:
        world.add("v1.6", 16, label="final", min_counter=16)
    hub.files[sha256_file(world.packages[None, "final"])] = world.packages[None, "final"]
    lab.install("v1.2")
    hub.target = "final"
    updater = lab.open()
    assert updater.update().kind == "updated"
    with pytest.raises(ConflictError, match="no longer allowed"):
        updater.rollback()


def test_an_app_that_loads_the_weights_itself_is_told_where_they_are(lab: Any, hub: Any) -> None:
    """FileRuntime checks the files and calls the app with each directory to load, back and forth."""
    updater = lab.install("v1.2")
    hub.target, loaded = "v1.3", []
    runtime = FileRuntime(loaded.append)
    assert updater.update(runtime).kind == "updated"
    updater.rollback(runtime)
    assert [path.name for path in loaded] == ["nano-v1.3", "nano-v1.2"]


def test_a_first_release_makes_way_before_it_is_proven(lab: Any, hub: Any) -> None:
    """With nothing to go back to there is no reason to wait for its trial; it is not reported as good."""
    hub.target = "v1.2"
    lab.open().update()
    hub.target = "v1.3"
    updater = lab.open()
    assert updater.update().kind == "updated"
    assert (updater.status().current, updater.status().previous) == ("v1.3", "v1.2")
    assert [outcome for outcome in hub.outcomes() if outcome[0] == "ok"] == []

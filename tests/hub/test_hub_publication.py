"""Publishing: a release is there whole or not at all, whatever is killed, raced or broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoglm import patch
from autoglm.errors import (
    AutoGLMError,
    ConfigError,
    ConflictError,
    FormatError,
    ManifestError,
    NotFoundError,
    TrustError,
)
from autoglm.hub import Hub, HubConfig
from autoglm.releases import UpdateRequest

HERE = Path(__file__).parent
World = Any
PackageMaker = Callable[..., Path]


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def stored_files(config: HubConfig) -> set[str]:
    return {
        name for part in ("objects", "releases", "uploads") for name in files_under(config.directory / part)
    }


def test_a_full_package_becomes_a_release(hub: Hub, world: World) -> None:
    """The release's files are the publisher's, byte for byte, and linked from the store's objects."""
    made = hub.publish(world.full["v1.2"])
    assert made.created and made.manifest == world.manifest("v1.2") and made.rollout is None
    release = hub.release("v1.2")
    release.manifest.verify(release.directory)
    weights = release.directory / "model.safetensors"
    assert weights.read_bytes() == (world.releases["v1.2"] / "model.safetensors").read_bytes()
    assert weights.stat().st_nlink == 2


def test_a_patch_becomes_a_release_on_its_base(hub: Hub, world: World) -> None:
    """A patch is applied to the base it names, and is itself the stored package of that pair."""
    hub.publish(world.full["v1.2"])
    package = world.patches["v1.2", "v1.3"]
    hub.publish(package)
    release = hub.release("v1.3")
    assert release.manifest == world.manifest("v1.3")
    row = next(row for row in hub.packages() if (row.from_version, row.to_version) == ("v1.2", "v1.3"))
    assert row.state == "stored" and row.sha256 is not None
    assert hub.package_path(row.sha256).read_bytes() == package.read_bytes()


def test_a_published_patch_wants_its_full_package(hub: Hub, world: World) -> None:
    """Nothing is offered before a device without the base could be served too."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.patches["v1.2", "v1.3"], percent=100)
    full = next(row for row in hub.packages() if (row.from_version, row.to_version) == (None, "v1.3"))
    assert full.state == "pending"
    assert not hub.check(UpdateRequest("d1", "v1.2")).need_update


def test_files_that_did_not_change_are_stored_once(hub: Hub, config: HubConfig, world: World) -> None:
    """Two releases share the objects of their equal files."""
    hub.publish(world.full["v1.2"])
    before = len(list((config.directory / "objects").iterdir()))
    hub.publish(world.full["v1.3"])
    manifest_weights_and_package = 3
    assert len(list((config.directory / "objects").iterdir())) == before + manifest_weights_and_package


def test_the_same_release_again_changes_nothing(hub: Hub, config: HubConfig, world: World) -> None:
    """Publishing is idempotent, whichever package of the release comes."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    before = stored_files(config)
    again = hub.publish(world.full["v1.3"])
    assert not again.created and again.manifest == world.manifest("v1.3")
    assert stored_files(config) == before and len(hub.releases()) == 2


def test_a_second_package_of_a_release_is_kept_for_its_pair(hub: Hub, world: World) -> None:
    """A release published in full and then as a patch serves both."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"], percent=100)
    assert not hub.publish(world.patches["v1.2", "v1.3"]).created
    assert hub.check(UpdateRequest("d1", "v1.2")).kind == "patch"


def test_a_version_with_other_bytes_is_refused(hub: Hub, config: HubConfig, world: World) -> None:
    """A published version never changes its meaning."""
    hub.publish(world.full["v1.3"])
    before = stored_files(config)
    with pytest.raises(ConflictError, match=r"v1\.3 is published already"):
        hub.publish(world.other)
    assert stored_files(config) == before


def test_a_counter_that_does_not_grow_is_refused(hub: Hub, world: World, package_of: PackageMaker) -> None:
    """Devices refuse to go back, so the hub refuses to number backwards; the message says which to take."""
    hub.publish(world.full["v1.3"])
    for counter in (12, 13):
        with pytest.raises(ConflictError, match="give it 14 or more"):
            hub.publish(package_of("v1.9", counter))


def test_a_package_of_another_model_is_refused(hub: Hub, package_of: PackageMaker) -> None:
    """A hub serves one model and variant."""
    with pytest.raises(ConflictError, match="other-int8"):
        hub.publish(package_of("v1.9", 20, variant="other-int8"))


def test_an_unknown_base_is_named(hub: Hub, config: HubConfig, world: World) -> None:
    """A patch whose base is missing says which release to publish first, and leaves nothing."""
    with pytest.raises(NotFoundError, match=world.manifest("v1.2").sha256):
        hub.publish(world.patches["v1.2", "v1.3"])
    assert stored_files(config) == set()


def test_a_missing_file_is_said(hub: Hub, tmp_path: Path) -> None:
    """A path without a file, or of a directory, is an error of the caller."""
    for path in (tmp_path / "none.wpatch", tmp_path):
        with pytest.raises(NotFoundError):
            hub.publish(path)


@pytest.mark.parametrize("damage", ["cut", "flip-start", "flip-middle", "flip-end", "empty", "noise"])
def test_a_broken_package_leaves_nothing(
    hub: Hub, config: HubConfig, world: World, tmp_path: Path, damage: str
) -> None:
    """A corrupted package is refused with a typed error and nothing of it is stored."""
    content = bytearray(world.full["v1.2"].read_bytes())
    if damage.startswith("flip"):
        content[{"start": 9, "middle": len(content) // 2, "end": len(content) - 1}[damage[5:]]] ^= 0x10
    broken = tmp_path / "broken.wpatch"
    cut = {"cut": content[: len(content) // 2], "empty": b"", "noise": bytes(range(256)) * 8}
    broken.write_bytes(bytes(cut.get(damage, content)))
    with pytest.raises((FormatError, TrustError)):
        hub.publish(broken)
    assert stored_files(config) == set() and hub.releases() == [] and hub.packages() == []


def test_a_package_that_is_no_release_is_refused(
    hub: Hub, config: HubConfig, tmp_path: Path, make_release: PackageMaker
) -> None:
    """A sound package without a manifest, or with one that lies, is not a release."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    patch.diff(None, plain, tmp_path / "plain.wpatch")
    with pytest.raises(ManifestError):
        hub.publish(tmp_path / "plain.wpatch")
    lying = make_release(tmp_path / "lying", "v1.9", 20, 5)
    (lying / "config.json").write_text('{"more": 1}')
    patch.diff(None, lying, tmp_path / "lying.wpatch")
    with pytest.raises(TrustError):
        hub.publish(tmp_path / "lying.wpatch")
    assert stored_files(config) == set()


def test_a_release_with_a_broken_self_test_is_refused(hub: Hub, package_of: PackageMaker) -> None:
    """A health.json that no device could read would fail on all of them, so it is refused here."""
    with pytest.raises(ManifestError, match=r"health\.json"):
        hub.publish(package_of("v1.9", 20, health=b'{"prompts": 3}'))


def test_publishing_with_an_audience_makes_the_rollout(hub: Hub, world: World) -> None:
    """Release and roll-out appear together."""
    made = hub.publish(world.full["v1.2"], percent=5, groups=["staff"], regions=["cn-east"])
    assert made.rollout is not None
    assert made.rollout.percent == 5 and made.rollout.audience.groups == ("staff",)
    assert [rollout.id for rollout in hub.rollouts()] == [made.rollout.id]


def test_a_group_alone_means_all_of_it(hub: Hub, world: World) -> None:
    """Without a percentage the whole group is reached."""
    made = hub.publish(world.full["v1.2"], groups=["staff"])
    assert made.rollout is not None and made.rollout.percent == 100


@pytest.mark.parametrize("percent", [-0.1, 100.5, float("nan"), True, "50"])
def test_a_bad_percentage_publishes_nothing(hub: Hub, world: World, percent: Any) -> None:
    """A roll-out that cannot be is refused before anything happens."""
    with pytest.raises(ConfigError, match="percent"):
        hub.publish(world.full["v1.2"], percent=percent)
    assert hub.releases() == []


def test_a_bad_group_publishes_nothing(hub: Hub, world: World) -> None:
    """Groups and regions are names."""
    with pytest.raises(ConfigError, match="group"):
        hub.publish(world.full["v1.2"], groups=["a b"])
    with pytest.raises(ConfigError, match="region"):
        hub.publish(world.full["v1.2"], regions=["../x"])


def test_an_upload_is_published_without_another_copy(hub: Hub, config: HubConfig, world: World) -> None:
    """What was received on the store's own disk becomes the object, and the upload is gone afterwards."""
    with hub.upload() as path:
        path.write_bytes(world.full["v1.2"].read_bytes())
        hub.publish(path)
    assert list((config.directory / "uploads").iterdir()) == []
    assert len(hub.releases()) == 1


def kill_publishes(config: HubConfig, package: Path, scratch: Path, stride: int) -> dict[str, int]:
    """Publish again and again, killed at every ``stride``-th step; return how often it was what."""
    scratch.mkdir()
    command = [sys.executable, str(HERE / "publish_killer.py"), str(config.directory), str(package)]
    done = subprocess.run([*command, str(scratch), str(stride)], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["wrong"] == 0, done.stderr
    return result


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["full", "patch"])
def test_a_killed_publish_is_whole_or_absent(
    config: HubConfig, world: World, tmp_path: Path, kind: str, stride: int
) -> None:
    """SIGKILL at fsyncs, renames, links and commits: the next open finds the old state or the new one."""
    with Hub.open(config) as hub:
        hub.publish(world.full["v1.2"], percent=100)
    package = world.full["v1.3"] if kind == "full" else world.patches["v1.2", "v1.3"]
    result = kill_publishes(config, package, tmp_path / "scratch", stride)
    assert result["absent"] * stride >= 25 and result["last"] == 0, result
    assert result["whole"] >= 1


PUBLISH = """
import sys
from pathlib import Path
from autoglm.errors import ConflictError
from autoglm.hub import Hub, HubConfig
hub = Hub.open(HubConfig(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(hub.publish(Path(sys.argv[2]), percent=100).created)
except ConflictError as error:
    print("conflict")
hub.close()
"""


def publish_together(config: HubConfig, *packages: Path) -> list[str]:
    """Publish from one process each, all begun at the same moment; return what they said."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(config.directory), str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for package in packages
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return sorted(child.communicate()[0].strip() for child in children)


def test_two_processes_publish_the_same_release(config: HubConfig, world: World) -> None:
    """One creates it, the other finds it there; both succeed and one roll-out is made."""
    assert publish_together(config, world.full["v1.3"], world.full["v1.3"]) == ["False", "True"]
    with Hub.open(config) as hub:
        release = hub.release("v1.3")
        release.manifest.verify(release.directory)
        assert len(hub.rollouts()) == 1


def test_two_processes_publish_different_bytes_as_one_version(config: HubConfig, world: World) -> None:
    """Exactly one wins, the other is told."""
    assert publish_together(config, world.full["v1.3"], world.other) == ["True", "conflict"]
    with Hub.open(config) as hub:
        release = hub.release("v1.3")
        release.manifest.verify(release.directory)


def test_a_lost_release_directory_is_linked_anew(config: HubConfig, world: World) -> None:
    """The objects are the truth; directories are only names for them."""
    with Hub.open(config) as hub:
        hub.publish(world.full["v1.2"])
        directory = hub.release("v1.2").directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    with Hub.open(config) as hub:
        world.manifest("v1.2").verify(hub.release("v1.2").directory)


def test_a_full_disk_publishes_nothing(config: HubConfig, world: World, tmp_path: Path) -> None:
    """A publish that the disk refuses is a typed error, and works once there is room."""
    script = """
import resource, signal, sys
from pathlib import Path
from autoglm.errors import StorageError
from autoglm.hub import Hub, HubConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Hub.open(HubConfig(Path(sys.argv[1]))) as hub:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
    try:
        hub.publish(Path(sys.argv[2]))
    except StorageError:
        print("refused", len(hub.releases()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("then", hub.publish(Path(sys.argv[2])).created)
"""
    command = [sys.executable, "-c", script, str(config.directory), str(world.full["v1.2"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "0", "then", "True"]


def test_errors_of_publishing_are_all_typed(hub: Hub, tmp_path: Path) -> None:
    """Whatever a file holds, the error is one of this package's."""
    for length in (1, 7, 64, 5000):
        junk = tmp_path / "junk.wpatch"
        junk.write_bytes(b"wpatch\x01\x00" * length)
        with pytest.raises(AutoGLMError):
            hub.publish(junk)

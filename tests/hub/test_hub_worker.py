"""The worker: builds what is wanted, alone, and may be killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from autoglm import files, patch
from autoglm.hub import Hub, HubConfig, PackageRecord, WorkerProcess
from autoglm.hub.ledger import MAX_ATTEMPTS, RETRY_AFTER_S
from autoglm.hub.tables import PackageRow
from autoglm.hub.worker import Worker
from autoglm.releases import UpdateRequest

World = Any
Clock = Any
PATIENCE_S = 60.0


@pytest.fixture
def worker(hub: Hub, config: HubConfig, clock: Clock) -> Iterator[Worker]:
    made = Worker(config, clock=clock)
    yield made
    made.close()


def drain(worker: Worker) -> int:
    builds = 0
    while worker.run_once():
        builds += 1
    return builds


def row_of(hub: Hub, source: str | None, target: str) -> PackageRecord:
    return next(row for row in hub.packages() if (row.from_version, row.to_version) == (source, target))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another process; a test that hangs fails here."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the other process never got there"
        time.sleep(0.05)


def test_the_full_package_is_built_first(hub: Hub, world: World, worker: Worker) -> None:
    """After a publish by patch, the first build makes the release offerable."""
    hub.publish(world.full["v1.1"])
    hub.publish(world.patches["v1.1", "v1.2"])
    hub.publish(world.patches["v1.2", "v1.3"], percent=100)
    worker.run_once()
    worker.run_once()
    assert row_of(hub, None, "v1.2").state == row_of(hub, None, "v1.3").state == "stored"
    assert hub.check(UpdateRequest("d1", "v1.2")).kind == "patch"


def test_a_built_package_makes_the_release(hub: Hub, world: World, worker: Worker, tmp_path: Path) -> None:
    """What the worker stores applies to the base and gives the release; its costs are in the ledger."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    assert drain(worker) == 1
    row = row_of(hub, "v1.2", "v1.3")
    assert row.sha256 is not None and row.size is not None and row.size < 1500
    assert row.seconds is not None and row.memory_bytes is not None and row.memory_bytes > 1 << 20
    package = hub.package_path(row.sha256)
    assert files.sha256_file(package) == row.sha256
    patch.apply(world.releases["v1.2"], package, tmp_path / "out")
    world.manifest("v1.3").verify(tmp_path / "out")


def test_builds_are_deterministic(hub: Hub, world: World, worker: Worker) -> None:
    """The worker's package equals the publisher's, so a build may be repeated anywhere."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.patches["v1.2", "v1.3"])
    drain(worker)
    assert row_of(hub, None, "v1.3").sha256 == files.sha256_file(world.full["v1.3"])


def test_patches_are_made_from_where_the_devices_are(hub: Hub, package_of: Any, worker: Worker) -> None:
    """The versions in the field come first, most used first, then the newest three releases."""
    for counter in range(1, 7):
        hub.publish(package_of(f"v{counter}", counter, seed=counter))
    drain(worker)
    for number in range(3):
        hub.check(UpdateRequest(f"a{number}", "v2"))
    hub.check(UpdateRequest("b", "v1"))
    hub.check(UpdateRequest("c", "homemade"))
    hub.publish(package_of("v7", 7, seed=7))
    queued = [row.from_version for row in hub.packages() if row.to_version == "v7" and row.state == "pending"]
    assert queued == ["v2", "v1", "v6", "v5", "v4"]


def test_a_patch_that_would_not_pay_is_skipped(
    hub: Hub, config: HubConfig, package_of: Any, worker: Worker
) -> None:
    """A patch above 60 % of the full package is not kept, and the ledger says why."""
    hub.publish(package_of("v1", 1, seed=1))
    hub.publish(package_of("v2", 2, ancestor=77), percent=100)
    drain(worker)
    row = row_of(hub, "v1", "v2")
    assert row.state == "skipped" and row.reason is not None and "would not pay" in row.reason
    assert hub.check(UpdateRequest("d1", "v1")).kind == "full"
    kept = len(list((config.directory / "objects").iterdir()))
    with Hub.open(config):
        assert len(list((config.directory / "objects").iterdir())) == kept


def test_a_version_from_the_field_gets_its_patch_built(hub: Hub, world: World, worker: Worker) -> None:
    """A device on a release without a ledger row is answered in full, and its patch is wanted."""
    hub.publish(world.full["v1.1"])
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"], percent=100)
    drain(worker)
    with hub._database.write() as session:  # as if the pair had been collected long ago
        session.execute(delete(PackageRow).where(PackageRow.base_id == 1, PackageRow.target_id == 3))
    assert hub.check(UpdateRequest("d1", "v1.1")).kind == "full"
    hub.devices()
    assert row_of(hub, "v1.1", "v1.3").state == "pending"
    drain(worker)
    assert hub.check(UpdateRequest("d1", "v1.1")).kind == "patch"


def test_a_failing_build_is_tried_again_and_given_up(
    hub: Hub, world: World, worker: Worker, clock: Clock
) -> None:
    """A build that fails is tried three times, then says why; publishing again revives it."""
    hub.publish(world.full["v1.2"])
    objects = hub.release("v1.2").directory.parent.parent / "objects"
    hub.publish(world.patches["v1.2", "v1.3"])
    weights = next(file for file in world.manifest("v1.3").files if file.path == "model.safetensors")
    kept = (objects / weights.sha256).read_bytes()
    (objects / weights.sha256).chmod(0o644)
    (objects / weights.sha256).write_bytes(kept[:-1] + b"?")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert worker.run_once()
        assert row_of(hub, None, "v1.3").attempts == attempt
        assert not worker.run_once()
        clock.now += RETRY_AFTER_S
    row = row_of(hub, None, "v1.3")
    assert row.state == "skipped" and row.reason is not None and "given up after 3 attempts" in row.reason
    (objects / weights.sha256).write_bytes(kept)
    hub.publish(world.patches["v1.2", "v1.3"])
    assert worker.run_once()
    assert row_of(hub, None, "v1.3").state == "stored"


HANGING = """
import sys
import autoglm.hub.worker as worker
import autoglm.patch as patch
def hang(*arguments, **options):
    print("building", flush=True)
    sys.stdin.readline()
    raise SystemExit("never told to go on")
patch.diff = hang
sys.exit(worker.main(sys.argv[1:]))
"""


def test_a_killed_workers_build_is_taken_over(hub: Hub, config: HubConfig, world: World) -> None:
    """After SIGKILL in the middle of a build, the next worker finds the row and finishes it."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    command = [sys.executable, "-c", HANGING, "--directory", str(config.directory)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "building\n"
    assert row_of(hub, "v1.2", "v1.3").state == "running"
    child.kill()
    child.communicate()
    taking_over = Worker(config)
    try:
        assert taking_over.run_once()
    finally:
        taking_over.close()
    row = row_of(hub, "v1.2", "v1.3")
    assert row.state == "stored" and row.attempts == 2
    with Hub.open(config):
        assert list((config.directory / "uploads").iterdir()) == []


def test_a_worker_that_is_dismissed_gives_its_build_back(hub: Hub, config: HubConfig, world: World) -> None:
    """When the service ends, its worker ends too, and the attempt does not count against the build."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    script = HANGING.replace("sys.stdin.readline()", "import time; time.sleep(600)")
    command = [sys.executable, "-c", script, "--directory", str(config.directory), "--attached"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "building\n"
    child.communicate()
    assert child.returncode == 0
    row = row_of(hub, "v1.2", "v1.3")
    assert row.state == "pending" and row.attempts == 0


def test_a_second_worker_is_refused(hub: Hub, config: HubConfig, world: World) -> None:
    """Two workers on one directory would take each other's builds for abandoned."""
    with files.directory_lock(config.directory / "worker"):
        command = [sys.executable, "-m", "autoglm.hub.worker", "--directory", str(config.directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "in use by another process" in done.stderr and "Traceback" not in done.stderr


def test_a_builder_that_kills_its_worker_is_given_up(hub: Hub, config: HubConfig, world: World) -> None:
    """A build that was begun three times and never ended does not keep the others waiting for ever."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    for _ in range(MAX_ATTEMPTS):
        dying = Worker(config)
        assert dying._ledger.next_job() is not None
        dying.close()
    Worker(config).close()
    row = row_of(hub, "v1.2", "v1.3")
    assert row.state == "skipped" and row.reason is not None and "killed" in row.reason


def test_the_supervised_worker_builds_and_is_started_again(
    hub: Hub, config: HubConfig, world: World, package_of: Any
) -> None:
    """A worker process beside the hub builds what is published; killed, it comes back and goes on."""
    with WorkerProcess(config) as process:
        first = process.pid
        hub.publish(world.full["v1.2"], percent=100)
        hub.publish(world.patches["v1.2", "v1.3"], percent=100)
        wait_until(lambda: hub.check(UpdateRequest("d1", "v1.2")).kind == "patch")
        assert first is not None and process.pid == first
        os.kill(first, signal.SIGKILL)
        hub.publish(package_of("v1.4", 14), percent=100)
        wait_until(lambda: row_of(hub, "v1.3", "v1.4").state == "stored")
        assert process.num_restarts == 1
        second = process.pid
    assert process.pid is None and second not in (None, first)

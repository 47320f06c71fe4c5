"""Several hubs and workers on one PostgreSQL and one bucket: they agree, and a killed one loses nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm import patch
from autoglm.errors import ConfigError, StorageError
from autoglm.hub import Claims, Hub, HubConfig, PackageRecord
from autoglm.hub.jobs import QueueWorker
from autoglm.hub.ledger import Ledger
from autoglm.releases import Event, EventBatch, UpdateRequest

World = Any
PATIENCE_S = 90.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another process or thread; a test that hangs fails here."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.fixture
def first_config(tmp_path: Path, postgres_url: str, bucket_url: str) -> HubConfig:
    return HubConfig(
        tmp_path / "first", postgres_url, storage_url=bucket_url, keys=tmp_path / "keys", retry_after_s=5
    )


@pytest.fixture
def second_config(tmp_path: Path, first_config: HubConfig) -> HubConfig:
    return HubConfig(
        tmp_path / "second",
        first_config.database_url,
        storage_url=first_config.storage_url,
        keys=first_config.keys,
        retry_after_s=5,
    )


@pytest.fixture
def first(first_config: HubConfig) -> Iterator[Hub]:
    with Hub.open(first_config) as hub:
        yield hub


@pytest.fixture
def second(first: Hub, first_config: HubConfig, second_config: HubConfig) -> Iterator[Hub]:
    """A hub on another machine, where releases are signed too."""
    shutil.copytree(first_config.directory / "trust/keys", second_config.directory / "trust/keys")
    with Hub.open(second_config) as hub:
        yield hub


def row_of(hub: Hub, source: str | None, target: str) -> PackageRecord:
    return next(row for row in hub.packages() if (row.from_version, row.to_version) == (source, target))


def test_what_one_hub_publishes_every_hub_offers(first: Hub, second: Hub, world: World) -> None:
    """Release, roll-out, signed metadata and the package itself reach a hub that has nothing on its disk."""
    first.publish(world.full["v1.2"], percent=100)
    wait_until(lambda: second.check(UpdateRequest("d1")).need_update)
    answer = second.check(UpdateRequest("d1"))
    assert answer.sha256 is not None
    assert second.package_path(answer.sha256).read_bytes() == world.full["v1.2"].read_bytes()
    trust = second.trust.repository
    assert trust.release("autoglm-phone-9b", "nano-int8", "v1.2") is not None
    assert trust.read("timestamp.json") == first.trust.repository.read("timestamp.json")


def test_a_patch_is_published_at_a_hub_without_its_base(first: Hub, second: Hub, world: World) -> None:
    """The base is fetched from the bucket, and its copy verified."""
    first.publish(world.full["v1.2"])
    made = second.publish(world.patches["v1.2", "v1.3"])
    assert made.created and made.manifest == world.manifest("v1.3")
    again = first.publish(world.patches["v1.2", "v1.3"])
    assert not again.created


def test_a_halt_reaches_the_other_hub_within_two_seconds(first: Hub, second: Hub, world: World) -> None:
    """What one hub pauses the other one offers to nobody, two seconds later at most."""
    rollout = first.publish(world.full["v1.2"], percent=100).rollout
    assert rollout is not None
    wait_until(lambda: second.check(UpdateRequest("d1")).need_update)
    first.set_rollout_state(rollout.id, "paused")
    assert not first.check(UpdateRequest("d1")).need_update
    began = time.monotonic()
    wait_until(lambda: not second.check(UpdateRequest("d1")).need_update)
    assert time.monotonic() - began < 2.0
    token = first.issue_token(Claims("viewer", name="dashboard"))
    assert second.verify_token(token) is not None
    first.revoke_token("dashboard")
    wait_until(lambda: second.verify_token(token) is None)


def test_hubs_do_not_undo_what_each_other_saw(first: Hub, second: Hub, world: World) -> None:
    """An older sighting that is written later does not replace a newer one, and no event counts twice."""
    first.publish(world.full["v1.2"], percent=100)
    first.check(UpdateRequest("d1", "v1.0"))
    time.sleep(0.01)
    second.check(UpdateRequest("d1", "v1.1"))
    second.devices()
    first.devices()
    assert [device.version for device in first.devices()] == ["v1.1"]
    event = Event("e1", 1, "CONFIRMED", "ok", rollout_id="r1", to_version="v1.2")
    for hub in (first, second, first):
        assert hub.record(EventBatch("d1", (event,))).accepted == ("e1",)
    assert [(rollout.offered, rollout.succeeded) for rollout in second.rollouts()] == [(1, 1)]


def test_each_machine_keeps_an_admin_token_of_its_own(first: Hub, second: Hub) -> None:
    """A second hub does not revoke the first one's token."""
    assert first.admin_token != second.admin_token
    for token in (first.admin_token, second.admin_token):
        wait_until(lambda token=token: first.verify_token(token) is not None)


def test_a_hub_without_the_online_keys_is_refused(
    first: Hub, second_config: HubConfig, tmp_path: Path
) -> None:
    """A machine that could not sign says at its start which setting is missing."""
    poor = HubConfig(tmp_path / "poor", second_config.database_url, storage_url=second_config.storage_url)
    with pytest.raises(ConfigError, match=r"hub\.keys"):
        Hub.open(poor)


def test_two_hubs_sign_at_once(first: Hub, second: Hub, package_of: Any) -> None:
    """Packages published at both hubs at the same time are all signed, no version of anything twice."""
    packages = [package_of(f"v{number}", number, seed=number) for number in range(1, 5)]
    for hub, package in zip((first, second) * 2, packages, strict=True):
        hub.publish(package)
    read = first.trust.repository.read
    names = [name for (name,) in _rows(first, "SELECT name FROM metadata_files")]
    assert len(names) == len(set(names)) and read("timestamp.json")
    for hub in (first, second):
        found = [hub.trust.repository.release("autoglm-phone-9b", "nano-int8", f"v{n}") for n in range(1, 5)]
        assert None not in found


def _rows(hub: Hub, statement: str) -> list[Any]:
    with hub._database.read() as session:
        return list(session.connection().exec_driver_sql(statement))


# Workers


def worker_command(config: HubConfig, script: str = "", *more: str) -> list[str]:
    run = ["-c", script] if script else ["-m", "autoglm.hub.worker"]
    assert config.database_url is not None and config.storage_url is not None and config.keys is not None
    urls = ["--database-url", config.database_url, "--storage-url", config.storage_url]
    return [
        sys.executable,
        *run,
        "--directory",
        str(config.directory),
        *urls,
        "--keys",
        str(config.keys),
        *more,
    ]


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


def test_a_killed_workers_build_is_finished_by_another(
    first: Hub, first_config: HubConfig, tmp_path: Path, world: World
) -> None:
    """Two workers on machines of their own: one is killed in the middle of a build, the other one ends it."""
    first.publish(world.full["v1.2"])
    first.publish(world.full["v1.3"])
    doomed = replace(first_config, directory=tmp_path / "doomed")
    command = worker_command(doomed, HANGING, "--take-over-s", "2")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "building\n"
    assert row_of(first, "v1.2", "v1.3").state == "running"
    other = replace(first_config, directory=tmp_path / "other")
    helper = subprocess.Popen(worker_command(other, "", "--take-over-s", "2"))
    try:
        child.kill()
        child.communicate()
        wait_until(lambda: row_of(first, "v1.2", "v1.3").state == "stored")
    finally:
        helper.terminate()
        assert helper.wait(PATIENCE_S) == 0
    rows = first.packages()
    assert len(rows) == len({(row.from_version, row.to_version) for row in rows}) == 3
    row = row_of(first, "v1.2", "v1.3")
    assert row.attempts == 2 and row.sha256 is not None
    package = first.package_path(row.sha256)
    patch.apply(world.releases["v1.2"], package, tmp_path / "out")
    world.manifest("v1.3").verify(tmp_path / "out")
    assert _rows(first, "SELECT count(*) FROM autoglm_jobs.procrastinate_jobs") == [(0,)]


def test_a_worker_that_comes_back_from_the_dead_changes_nothing(
    first: Hub, first_config: HubConfig, world: World
) -> None:
    """A build that was taken over meanwhile is not stored by its first worker, nor counted as its failure."""
    first.publish(world.full["v1.2"])
    first.publish(world.patches["v1.2", "v1.3"])
    slow = Ledger(first._database, "slow/1", time.time)
    job = slow.next_job()
    assert job is not None and slow.running() == [(job.id, "slow/1")]
    quick = Ledger(first._database, "quick/2", time.time)
    assert quick.take_back([(job.id, "somebody/3")]) == 0
    assert quick.take_back(quick.running()) == 1 and quick.claim(job.id) is not None
    slow.fail(job, "too late")
    assert quick.running() == [(job.id, "quick/2")]


def test_a_queue_of_an_older_library_is_made_anew(first: Hub, first_config: HubConfig, world: World) -> None:
    """Tickets hold nothing of their own: they are dropped, and what was under way is wanted again."""
    QueueWorker(first_config).close()
    first.publish(world.full["v1.2"])
    first.publish(world.full["v1.3"])
    with first._database.write() as session:
        run = session.connection().exec_driver_sql
        run("COMMENT ON SCHEMA autoglm_jobs IS '2.0.0'")
        run("UPDATE packages SET state = 'running', worker = 'gone/1' WHERE state = 'pending'")
    QueueWorker(first_config).close()
    assert row_of(first, "v1.2", "v1.3").state == "pending"
    with first._database.write() as session:
        session.connection().exec_driver_sql("COMMENT ON SCHEMA autoglm_jobs IS '99.0.0'")
    with pytest.raises(ConfigError, match="install the newer one"):
        QueueWorker(first_config)


def test_a_lost_database_is_a_typed_error_and_ends_offers(first: Hub, world: World, postgres: Any) -> None:
    """A broken connection undoes its transaction; a hub that hears nothing decides nothing; both heal."""
    first.publish(world.full["v1.2"], percent=100)
    with pytest.raises(StorageError), first._database.write() as session:
        run = session.connection().exec_driver_sql
        run("UPDATE rollouts SET state = 'aborted'")
        (own,) = run("SELECT pg_backend_pid()").one()
        with first._database.read() as other:
            other.connection().exec_driver_sql("SELECT pg_terminate_backend(%s)", (own,))
        run("SELECT 1")
    assert first.check(UpdateRequest("d1")).need_update
    assert [rollout.state for rollout in first.rollouts()] == ["active"]
    postgres.stop()
    try:
        with pytest.raises(StorageError):
            first.publish(world.full["v1.3"])
        wait_until(lambda: _is_silent(first))
    finally:
        postgres.start()
    wait_until(lambda: not _is_silent(first))
    assert first.check(UpdateRequest("d1")).need_update
    assert first.publish(world.full["v1.3"]).created


def _is_silent(hub: Hub) -> bool:
    try:
        hub.check(UpdateRequest("d1"))
    except StorageError:
        return True
    return False

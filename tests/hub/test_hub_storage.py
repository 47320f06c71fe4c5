"""Objects in cloud storage: put once, checked at both ends, handed out by address, swept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest

from autoglm.errors import ConfigError, NotFoundError, StorageError
from autoglm.hub import Hub, HubConfig
from autoglm.hub.bucket import GRACE_S, SMALL_BYTES, BucketStorage, parse_storage_url
from autoglm.hub.store import UNUSED_S, Store
from autoglm.hub.worker import Worker
from autoglm.releases import UpdateRequest

World = Any
Clock = Any
HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path, bucket_url: str) -> Store:
    return Store(tmp_path / "hub", bucket_url)


def bucket_of(store: Store) -> Any:
    assert isinstance(store.storage, BucketStorage)
    return store.storage._bucket


def a_file(directory: Path, content: bytes) -> tuple[Path, str]:
    path = directory / f"file-{len(content)}"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 5, SMALL_BYTES, SMALL_BYTES + 1, 40 << 20])
def test_an_object_comes_back_as_it_went(store: Store, tmp_path: Path, size: int) -> None:
    """Small ones in one request, big ones in parts: the bytes are the same, and ranges of them."""
    content = os.urandom(size)
    source, sha256 = a_file(tmp_path, content)
    store.storage.send(source, sha256)
    assert store.object_path(sha256).read_bytes() == content
    assert store.object_path(sha256) == store.objects / sha256
    (store.objects / sha256).unlink()
    assert b"".join(store.storage.stream(sha256, size // 3, size)) == content[size // 3 :]


def test_what_is_there_is_not_sent_again(store: Store, tmp_path: Path) -> None:
    """The second of two who send the same object leaves the first one's in its place."""
    source, sha256 = a_file(tmp_path, b"content")
    store.storage.send(source, sha256)
    before = obstore.head(bucket_of(store), f"objects/{sha256}")
    store.storage.send(source, sha256)
    assert obstore.head(bucket_of(store), f"objects/{sha256}") == before


def test_a_damaged_object_is_not_taken(store: Store, tmp_path: Path) -> None:
    """Other bytes under a hash are refused on arrival, and leave no copy behind."""
    sha256 = hashlib.sha256(b"content").hexdigest()
    obstore.put(bucket_of(store), f"objects/{sha256}", b"c0ntent")
    with pytest.raises(StorageError, match="is damaged"):
        store.object_path(sha256)
    assert not list(store.objects.iterdir()) and not list(store.uploads.iterdir())


@pytest.mark.parametrize("name", ["../secret", "", "A" * 64, "0" * 64])
def test_what_is_not_there_is_not_found(store: Store, name: str) -> None:
    """Unknown hashes and names that are none never lead to another object."""
    with pytest.raises(NotFoundError):
        store.object_path(name)


def test_a_link_serves_ranges_to_anybody_for_a_quarter_of_an_hour(store: Store, tmp_path: Path) -> None:
    """The address needs no credentials, holds the hash, and says when it ends."""
    source, sha256 = a_file(tmp_path, b"0123456789")
    store.storage.send(source, sha256)
    link = store.storage.link(sha256)
    assert link is not None and sha256 in link
    query = parse_qs(urlsplit(link).query)
    assert query["X-Amz-Expires"] == ["900"] and "X-Amz-Signature" in query
    request = urllib.request.Request(link, headers={"Range": "bytes=3-5"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, answer.read()) == (206, b"345")


def test_devices_may_reach_the_bucket_by_another_name(tmp_path: Path, bucket_url: str) -> None:
    """Addresses are signed for the public endpoint, while the hub keeps to its own."""
    made = Store(tmp_path / "hub", bucket_url + "&public_endpoint=https://cdn.example.com")
    link = made.storage.link("0" * 64)
    assert link is not None and link.startswith("https://cdn.example.com/")


@pytest.mark.parametrize(
    "url",
    ["s3://", "http://bucket/x", "s3://b/x?colour=blue", "s3://user:secret@b/x", "s3://b/x#f", "gs://b"],
)
def test_a_wrong_address_is_named_without_its_secrets(url: str) -> None:
    """What is no address of a bucket is a setting error."""
    with pytest.raises(ConfigError, match="storage_url") as caught:
        parse_storage_url(url)
    assert "secret" not in str(caught.value).replace("secret_access_key", "")


def test_a_bucket_that_is_not_reached_is_a_typed_error(tmp_path: Path, bucket_url: str) -> None:
    """A bucket that does not exist is said in one line; that is no missing object."""
    missing = bucket_url.replace("s3://", "s3://no-")
    source, sha256 = a_file(tmp_path, b"x")
    with pytest.raises(StorageError, match="bucket is not there"):
        Store(tmp_path / "hub", missing).storage.send(source, sha256)


@pytest.fixture
def far(tmp_path: Path, bucket_url: str, clock: Clock) -> Iterator[Hub]:
    """A hub on SQLite with its bytes in a bucket."""
    clock.now = 4_000_000_000.0  # the bucket's own clock says when an object came, and it is not ours
    with Hub.open(HubConfig(tmp_path / "hub", storage_url=bucket_url), clock=clock) as hub:
        yield hub


def test_an_embedded_hub_may_keep_its_bytes_in_a_bucket(far: Hub, world: World, clock: Clock) -> None:
    """Publish, build, offer and hand out, with nothing but copies on the disk."""
    far.publish(world.full["v1.2"], percent=100)
    far.publish(world.patches["v1.2", "v1.3"], percent=100)
    worker = Worker(far.config, clock=clock)
    while worker.run_once():
        pass
    worker.close()
    answer = far.check(UpdateRequest("d1", "v1.2"))
    assert answer.kind == "patch" and answer.sha256 is not None
    link = far.package_link(answer.sha256)
    assert link is not None
    with urllib.request.urlopen(link, timeout=10) as got:
        assert got.read() == world.patches["v1.2", "v1.3"].read_bytes()
    with pytest.raises(NotFoundError):
        far.package_link(world.manifest("v1.3").sha256)


def test_lost_copies_are_fetched_again(far: Hub, world: World) -> None:
    """A hub whose disk was replaced goes on from the bucket."""
    far.publish(world.full["v1.2"])
    for part in ("objects", "releases"):
        subprocess.run(["rm", "-rf", str(far.config.directory / part)], check=True)
    with Hub.open(far.config) as hub:
        hub.publish(world.patches["v1.2", "v1.3"])
        assert hub.release("v1.3").manifest == world.manifest("v1.3")


def test_what_killed_uploads_left_is_removed_a_day_later(far: Hub, world: World, tmp_path: Path) -> None:
    """Objects that no row names go, when they are old enough that nobody can be about to name them."""
    far.publish(world.full["v1.2"])
    store = far._store
    source, sha256 = a_file(tmp_path, b"of a killed upload")
    store.storage.send(source, sha256)
    came = obstore.head(bucket_of(store), f"objects/{sha256}")["last_modified"].timestamp()
    for now, removed in ((came + GRACE_S - 5, 0), (came + GRACE_S + 5, 1), (came + GRACE_S + 9, 0)):
        worker = Worker(far.config, clock=lambda now=now: now)
        assert worker._upkeep.sweep() == removed
        worker.close()
    with pytest.raises(NotFoundError):
        store.object_path(sha256)
    for file in world.manifest("v1.2").files:
        store.storage.require([file.sha256])


def test_copies_that_nobody_used_for_a_week_are_dropped(far: Hub, world: World) -> None:
    """A machine does not keep every release for ever; what is dropped is fetched when it is wanted."""
    far.publish(world.full["v1.2"])
    directory = far.release("v1.2").directory
    now = max(path.stat().st_mtime for path in (directory, *far._store.objects.iterdir()))
    far._store.forget_unused(now + UNUSED_S - 5)
    assert directory.is_dir()
    far._store.forget_unused(now + UNUSED_S + 5)
    assert not directory.exists() and not list(far._store.objects.iterdir())
    far._store.release_path(world.manifest("v1.2"))
    world.manifest("v1.2").verify(directory)


def test_a_row_never_names_what_is_gone(far: Hub, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that disappears between its upload and the transaction stops the publication, whole."""
    send = far._store.storage.send
    lost = world.manifest("v1.2").files[0].sha256

    def send_and_lose(source: Path, sha256: str) -> None:
        send(source, sha256)
        if sha256 == lost:
            far._store.storage.delete([sha256])

    monkeypatch.setattr(far._store.storage, "send", send_and_lose)
    with pytest.raises(StorageError, match="disappeared"):
        far.publish(world.full["v1.2"])
    assert far.releases() == []
    monkeypatch.undo()
    assert far.publish(world.full["v1.2"]).created


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_publish_leaves_nothing_half_done(
    tmp_path: Path, world: World, postgres: Any, postgres_url: str, bucket_url: str, stride: int
) -> None:
    """Killed at any write to bucket, disk or PostgreSQL: whole or absent, and to be had by trying again."""
    config = HubConfig(tmp_path / "base", postgres_url, storage_url=bucket_url)
    with Hub.open(config) as hub:
        hub.publish(world.full["v1.2"], percent=100)
    arguments = [str(tmp_path), str(postgres.directory), bucket_url, str(world.full["v1.3"]), str(stride)]
    command = [sys.executable, str(HERE / "shared_killer.py"), postgres_url, *arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    absent, whole = (int(word) for word in done.stdout.split())
    assert absent >= 5 and whole >= 1

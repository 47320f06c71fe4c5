"""Packages in cloud storage: a device gets them by redirect or through the hub, and knows no difference."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import requests

from autoglm.device import Updater
from autoglm.releases import Manifest

Service = Any


@pytest.fixture(params=["redirect", "proxy"])
def far_service(
    request: pytest.FixtureRequest, postgres_url: str, bucket_url: str, start_service: Any
) -> Service:
    """A service with its bytes in a bucket and its tables in PostgreSQL."""
    where = {"storage_url": bucket_url, "database_url": postgres_url, "keys": "keys"}
    return start_service(hub=where | {"delivery": request.param})


def test_a_device_installs_from_afar(far_service: Service, tmp_path: Path) -> None:
    """Check, signed metadata, download, verification: the whole update, with the bytes in a bucket."""
    repository = far_service.state.hub.trust.repository
    updater = Updater(
        tmp_path / "phone",
        hub_url=far_service.url,
        model="autoglm-phone-9b",
        variant="nano-int8",
        trust_root=repository.root,
    )
    try:
        updater.update()
        assert updater.active is not None
        assert Manifest.read(updater.active).version == "v1.2"
        Manifest.read(updater.active).verify(updater.active)
    finally:
        updater.close()


@pytest.fixture
def package(far_service: Service) -> tuple[str, bytes]:
    """The address and the bytes of the full package."""
    answer = far_service.post("/v1/model/update", {"device_id": "d"}).json()
    content = requests.get(answer["download_url"], timeout=60).content
    assert hashlib.sha256(content).hexdigest() == answer["sha256"]
    return answer["download_url"], content


def test_ranges_come_from_afar(far_service: Service, package: tuple[str, bytes]) -> None:
    """A resumed download gets exactly the bytes behind its offset; outside of the package is refused."""
    url, content = package
    for part in far_service.state.hub._store.objects.iterdir():
        part.unlink()  # copies of this machine: they shall come out of the bucket
    got = requests.get(url, headers={"range": "bytes=100-199"}, timeout=60)
    assert (got.status_code, got.content) == (206, content[100:200])
    assert got.headers["content-range"] == f"bytes 100-199/{len(content)}"
    etag = got.headers["etag"]
    rest = requests.get(url, headers={"range": f"bytes={len(content) - 5}-", "if-range": etag}, timeout=60)
    assert (rest.status_code, rest.content) == (206, content[-5:])
    assert requests.get(url, headers={"range": f"bytes={len(content)}-"}, timeout=60).status_code == 416


def test_the_hub_sends_devices_away_or_does_not(far_service: Service, package: tuple[str, bytes]) -> None:
    """By redirect the address may not be kept, and is signed; as a proxy the answer is the hub's own."""
    answer = requests.get(package[0], timeout=60, allow_redirects=False)
    if far_service.state.settings.hub.delivery == "redirect":
        assert answer.status_code == 307 and answer.headers["cache-control"] == "no-store"
        assert "X-Amz-Signature" in answer.headers["location"]
    else:
        assert answer.status_code == 200 and answer.headers["content-length"] == str(len(package[1]))
        assert requests.head(package[0], timeout=60).headers["content-length"] == str(len(package[1]))


def test_a_package_that_is_not_there_is_a_404(far_service: Service) -> None:
    """Other objects of the bucket cannot be had by their hashes."""
    manifest = far_service.state.engine.active.manifest
    for name in ("0" * 64, manifest.files[0].sha256):
        answer = far_service.get(f"/v1/model/packages/{name}.wpatch")
        assert answer.status_code == 404 and "error" in answer.json()

"""Signed metadata over HTTP: served for caches, uploaded by publishers, obeyed by the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoglm.device import HttpTransport, Updater
from autoglm.files import sha256_file

UPDATE = "/v1/model/update"


def metadata(service: Any, name: str, **headers: str) -> Any:
    return service.get(f"/v1/model/metadata/{name}", headers=headers)


def test_metadata_is_served_for_caches(service: Any) -> None:
    """A version never changes under its name; the timestamp is asked for each time; long files are packed."""
    root = metadata(service, "1.root.json")
    assert root.content == service.state.hub.trust.repository.root
    assert "immutable" in root.headers["cache-control"]
    assert root.headers["content-encoding"] == "gzip"
    assert metadata(service, "timestamp.json").headers["cache-control"] == "no-cache"
    plain = metadata(service, "1.root.json", **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == root.content


@pytest.mark.parametrize(
    "name",
    [
        "2.root.json",
        "root.json",
        "..%2fonline",
        "timestamp.json%00",
        "x" * 64,
        "1.root.json%2f..%2flock",
        ".",
    ],
)
def test_there_is_no_other_metadata(service: Any, name: str) -> None:
    """Nothing else in the directory is reached, least of all a key."""
    assert metadata(service, name).status_code == 404


def test_a_name_that_is_too_long_is_refused(service: Any) -> None:
    """Before it is looked at."""
    assert metadata(service, "x" * 65).status_code == 400


def test_metadata_needs_a_token_where_everything_does(start_service: Any) -> None:
    """auth.required closes it as it closes the check."""
    service = start_service(auth={"required": True})
    assert metadata(service, "timestamp.json").status_code == 401
    device = {"authorization": f"Bearer {service.token}"}
    assert metadata(service, "timestamp.json", **device).status_code == 200


def test_the_answer_names_the_signature(service: Any) -> None:
    """A device finds the release under its target name."""
    answer = service.post(UPDATE, {"device_id": "d1"}).json()
    assert answer["manifest"] == "autoglm-phone-9b/nano-int8/v1.2/manifest.json"


def test_a_device_follows_over_http(start_service: Any, store: Path, tmp_path: Path) -> None:
    """From the root in the data directory to an installed, verified update, over real HTTP."""
    service = start_service()
    root = service.state.settings.data_path / "trust" / "root.json"
    with Updater(
        tmp_path / "phone", transport=HttpTransport(service.url), trust_root=root, boot=False
    ) as phone:
        assert phone.update().to_version == "v1.2"
        floor = phone._device.trust.floor
        assert floor.marks["root"].version == 1


def test_a_revoked_release_is_called_back_over_http(start_service: Any, store: Path) -> None:
    """The route answers with the release; devices are offered the one before."""
    service = start_service()
    with (store / "v1.3.wpatch").open("rb") as package:
        assert service.admin("POST", "/releases", data=package, params={"percent": 100}).status_code == 201
    service.build_packages()
    assert service.post(UPDATE, {"device_id": "d1"}).json()["target_version"] == "v1.3"
    answer = service.admin("POST", "/releases/v1.3/revoke")
    assert (answer.status_code, answer.json()["revoked"]) == (200, True)
    assert service.post(UPDATE, {"device_id": "d1"}).json()["target_version"] == "v1.2"
    assert service.admin("POST", "/releases/v9/revoke").status_code == 404
    again = service.admin("POST", "/rollouts", json={"version": "v1.3"})
    assert (again.status_code, again.json()["error"]["code"]) == (400, "E_REVOKED")


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({"2.root.json": "{}"}, 400, "E_METADATA"),
        ({"2.targets.json": ""}, 400, "E_METADATA"),
        ({"timestamp.json": "{}"}, 400, "E_METADATA"),
        ({"../x": "{}"}, 400, "E_METADATA"),
        ({"1.root.json": "{}"}, 409, "E_CONFLICT"),
        ({}, 400, "invalid_value"),
        ({"2.root.json": 5}, 400, "invalid_value"),
    ],
)
def test_an_upload_of_anything_else_is_refused(
    service: Any, files: dict[str, Any], status: int, code: str
) -> None:
    """Typed, and nothing is kept."""
    before = sorted((service.state.settings.data_path / "trust" / "metadata").iterdir())
    answer = service.admin("POST", "/metadata", json={"files": files})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert sorted((service.state.settings.data_path / "trust" / "metadata").iterdir()) == before


def test_the_private_keys_are_for_their_owner_only(service: Any) -> None:
    """Nothing under online/ and keys/ may be read by others."""
    trust = service.state.settings.data_path / "trust"
    modes = {path.stat().st_mode & 0o077 for part in ("online", "keys") for path in (trust / part).iterdir()}
    assert modes == {0}
    assert (trust / "keys").stat().st_mode & 0o077 == 0


def test_packages_are_what_was_signed(service: Any) -> None:
    """The package that the answer names has the signed hash."""
    answer = service.post(UPDATE, {"device_id": "d1"}).json()
    path = service.state.hub.package_path(answer["sha256"])
    assert sha256_file(path) == answer["sha256"]

"""Keys from the command line: a ceremony, a hub without offline keys, rotation, renewal and revocation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ConfigError
from service.running import running_service, tiny_settings


@pytest.fixture
def room(autoglm: Any, tmp_path: Path) -> Path:
    """What ``autoglm keys init`` makes."""
    made = autoglm("keys", "init", tmp_path / "room")
    assert made.status == 0, made.error
    return tmp_path / "room"


@pytest.fixture
def fleet(
    autoglm: Any, room: Path, cli_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Any]:
    """A service whose offline keys lie in ``room``, and whose first release was signed there."""
    directory = tmp_path_factory.mktemp("fleet")
    settings = tiny_settings(cli_store, directory)
    for step in (
        ("keys", "sign", cli_store / "v1.2.wpatch", "--dir", room),
        ("keys", "export", room, "--to-hub", settings.data_path),
    ):
        done = autoglm(*step)
        assert done.status == 0, done.error
    with running_service(settings) as running:
        yield running


def remote(service: Any) -> tuple[str, ...]:
    return ("--hub", service.url, "--token", service.token)


def versions(service: Any) -> dict[str, int]:
    from autoglm.trust.shelf import Picture, Shelf

    return Picture.published(Shelf(service.state.settings.data_path / "trust" / "metadata")).versions


def test_a_ceremony_makes_keys_and_says_what_is_next(autoglm: Any, tmp_path: Path) -> None:
    """All roles, each key in a file for its owner, and never over what is there."""
    said = autoglm("keys", "init", tmp_path / "room")
    assert "--to-hub" in said.output
    files = sorted(path.name.split("-")[0] for path in (tmp_path / "room" / "keys").iterdir())
    assert files == ["releases", *["root"] * 5, *["targets"] * 3]
    assert autoglm("keys", "init", tmp_path / "room").status == 1
    other = autoglm("keys", "init", tmp_path / "other", "--json").json
    assert [(role["role"], role["threshold"], len(role["keys"])) for role in other["roles"]] == [
        ("root", 3, 5),
        ("targets", 2, 3),
        ("releases", 1, 1),
        ("patches", 1, 1),
        ("snapshot", 1, 1),
        ("timestamp", 1, 1),
    ]


def test_locked_keys_need_their_passphrase(
    autoglm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment gives it; without it one line says so."""
    monkeypatch.setenv("AUTOGLM_PASSPHRASE", "correct horse")
    assert autoglm("keys", "init", tmp_path / "room").status == 0
    assert autoglm("keys", "rotate", "root", "--dir", tmp_path / "room").status == 0
    monkeypatch.delenv("AUTOGLM_PASSPHRASE")
    refused = autoglm("keys", "rotate", "root", "--dir", tmp_path / "room")
    assert refused.status == 1
    assert "passphrase" in refused.error


def test_the_status_tells_which_keys_are_here(autoglm: Any, room: Path, tmp_path: Path) -> None:
    """Keys that were moved away show as missing, until --key says where they are."""
    stick = tmp_path / "stick"
    stick.mkdir()
    for path in sorted((room / "keys").glob("root-*.pem"))[:4]:
        shutil.move(path, stick / path.name)

    def here(*options: str | Path) -> int:
        roles = autoglm("keys", "status", room, *options, "--json").json["roles"]
        return sum(key["file"] is not None for key in roles[0]["keys"])

    assert (here(), here("--key", stick)) == (1, 5)
    shown = autoglm("keys", "status", room)
    assert "3 of 5" in shown.output
    refused = autoglm("keys", "rotate", "timestamp", "--dir", room)
    assert "root needs 3 of its 5 keys, 1 are here" in refused.error
    assert autoglm("keys", "rotate", "timestamp", "--dir", room, "--key", stick).status == 0
    assert autoglm("keys", "status", room, "--key", tmp_path / "none").status == 1


def test_the_root_is_exported_for_apps(autoglm: Any, room: Path, tmp_path: Path) -> None:
    """To a file or to stdout: the same bytes, and no key among them."""
    assert autoglm("keys", "export", room, "-o", tmp_path / "root.json").status == 0
    root = json.loads((tmp_path / "root.json").read_bytes())
    assert root["signed"]["_type"] == "root"
    assert json.loads(autoglm("keys", "export", room).output) == root
    assert "PRIVATE" not in (tmp_path / "root.json").read_text()
    assert autoglm("keys", "export", tmp_path / "nothing").status == 1
    assert autoglm("keys", "export", room, "--to-hub", tmp_path / "hub").status == 0
    assert not (tmp_path / "hub" / "trust" / "keys").exists()
    assert autoglm("keys", "export", room, "--to-hub", tmp_path / "hub").status == 1


def test_a_hub_without_offline_keys_takes_what_is_signed(
    autoglm: Any, fleet: Any, room: Path, cli_store: Path
) -> None:
    """Unsigned it refuses; with --keys and the base at hand the release is made, signed and published."""
    package, hub = cli_store / "v1.3.wpatch", remote(fleet)
    refused = autoglm("publish", package, "--percent", "100", *hub)
    assert "is not signed" in refused.error
    assert "--base" in autoglm("publish", package, "--keys", room, *hub).error
    signed = ("--keys", room, "--base", cli_store.parent / "v1.2")
    assert autoglm("publish", package, *signed, "--percent", "100", *hub).status == 0
    again = autoglm("publish", package, *signed, *hub, "--json")
    assert (again.status, again.json["created"]) == (0, False)

    assert "--keys" in autoglm("release", "revoke", "v1.3", *hub).error
    revoked = autoglm("release", "revoke", "v1.3", "--keys", room, *hub, "--json")
    assert revoked.json["revoked"] is True
    assert "yes" in autoglm("release", "list", *hub).output


def test_a_hub_without_keys_and_without_a_signed_release_does_not_start(
    autoglm: Any, room: Path, cli_store: Path, tmp_path: Path
) -> None:
    """The message names the store's package and what is missing."""
    settings = tiny_settings(cli_store, tmp_path)
    assert autoglm("keys", "export", room, "--to-hub", settings.data_path).status == 0
    with pytest.raises(ConfigError, match=r"v1\.2\.wpatch.*is not signed"), running_service(settings):
        pass


def test_a_full_folder_is_signed_without_a_base(
    autoglm: Any, fleet: Any, room: Path, cli_store: Path
) -> None:
    """A release folder is packed whole, so nothing else is needed."""
    done = autoglm("publish", cli_store.parent / "v1.3", "--keys", room, *remote(fleet))
    assert done.status == 0, done.error


def test_a_folder_is_published_at_a_hub_without_a_model(
    autoglm: Any, room: Path, cli_store: Path, tmp_path: Path
) -> None:
    """The hub's newest release tells the names of the next one, so that no engine is asked."""
    settings = tiny_settings(cli_store, tmp_path / "hub-only", role="hub")
    autoglm("keys", "sign", cli_store / "v1.2.wpatch", "--dir", room)
    autoglm("keys", "export", room, "--to-hub", settings.data_path)
    with running_service(settings) as running:
        folder = ("publish", cli_store.parent / "v1.2", "--version", "v1.9", "--keys", room)
        done = autoglm(*folder, *remote(running), "--json")
        assert done.status == 0, done.error
        old, new = autoglm("release", "list", *remote(running), "--json").json["releases"]
    assert (new["version"], new["counter"]) == ("v1.9", old["counter"] + 1)
    assert (new["name"], new["channel"]) == (old["name"], old["channel"])


def test_keys_are_rotated_at_a_running_hub(autoglm: Any, fleet: Any, room: Path) -> None:
    """root, targets and releases in one go; an online key goes to the hub first, then the rest is sent."""
    hub = remote(fleet)
    for role in ("root", "targets", "releases"):
        done = autoglm("keys", "rotate", role, "--dir", room, *hub)
        assert done.status == 0, done.error
    assert versions(fleet)["root"] == 3
    refused = autoglm("keys", "rotate", "timestamp", "--dir", room, *hub)
    assert "autoglm keys upload" in refused.error
    online = fleet.state.settings.data_path / "trust" / "online"
    shutil.copytree(room / "online", online, dirs_exist_ok=True)
    sent = autoglm("keys", "upload", room, *hub, "--json")
    assert "4.root.json" in sent.json["sent"]
    assert versions(fleet)["root"] == 4
    key = autoglm("keys", "status", room, "--json").json["roles"][0]["keys"][0]["id"]
    assert autoglm("keys", "revoke", key[:16], "--dir", room, *hub).status == 0
    assert versions(fleet)["root"] == 5


def test_metadata_is_renewed_and_carried_over(autoglm: Any, fleet: Any, room: Path) -> None:
    """On a machine without a network the new files are only written; upload brings them to the hub."""
    hub = remote(fleet)
    assert "nothing is new" in autoglm("keys", "renew", "--dir", room, *hub).output
    offline = autoglm("keys", "renew", "targets", "releases", "--dir", room)
    assert offline.status == 0, offline.error
    assert "autoglm keys upload" in offline.output
    before = versions(fleet)
    assert autoglm("keys", "upload", room, *hub).status == 0
    after = versions(fleet)
    assert after["targets"] == before["targets"] + 1
    assert after["releases"] > before["releases"]
    assert autoglm("keys", "renew", "snapshot", "--dir", room).status == 1


def test_the_keys_of_one_machine_are_changed_in_place(autoglm: Any, cli_service: Any) -> None:
    """The embedded default: every role rotates without a ceremony, while the service runs."""
    trust = cli_service.state.settings.data_path / "trust"
    for role in ("timestamp", "snapshot", "patches", "releases", "targets", "root"):
        done = autoglm("keys", "rotate", role, "--dir", trust)
        assert done.status == 0, done.error
    assert autoglm("keys", "renew", "root", "--dir", trust, "--json").json["signed"] == ["6.root.json"]
    assert versions(cli_service)["root"] == 6
    data = ("--data", cli_service.state.settings.data_path)
    assert autoglm("release", "revoke", "v1.2", *data).status == 0
    assert autoglm("release", "revoke", "v7", *data).status == 1


def test_a_fleet_leaves_the_keys_of_one_machine_behind(
    autoglm: Any, cli_service: Any, tmp_path: Path
) -> None:
    """The offline roles get keys that never were on the hub, signed by the old ones."""
    trust, vault = cli_service.state.settings.data_path / "trust", tmp_path / "vault"
    for role in ("releases", "targets", "root"):
        done = autoglm("keys", "rotate", role, "--dir", trust, "--to", vault)
        assert done.status == 0, done.error
    shutil.rmtree(trust / "keys")
    assert not cli_service.state.hub.trust.repository.holds_release_key
    roles = autoglm("keys", "status", trust, "--key", vault, "--json").json["roles"]
    assert all(key["file"] for role in roles for key in role["keys"])

"""Tokens, devices and the audit log from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def hub(autoglm: Any, cli_service: Any) -> Any:
    """Run a verb on the service's hub: ``hub("token", "list")``."""
    data = cli_service.state.settings.data_path
    return lambda *arguments: autoglm(*arguments, "--data", data)


def test_tokens_are_made_listed_and_revoked(hub: Any, autoglm: Any, cli_service: Any) -> None:
    """The token is the whole output, so that a script may take it; the list does not show it."""
    made = hub("token", "create", "alice", "--role", "operator", "--for", "90d")
    assert made.status == 0, made.error
    token = made.output.strip()
    assert cli_service.state.hub.verify_token(token).role == "operator"
    listed = hub("token", "list")
    assert "alice" in listed.output and token not in listed.output
    narrow = hub("token", "create", "ci", "--role", "publisher", "--scope", "releases:write", "--json").json
    assert narrow["scopes"] == ["releases:write"]
    at = ("--hub", cli_service.url, "--token")
    assert autoglm("release", "list", *at, narrow["token"]).status == 0
    refused = autoglm("rollout", "status", *at, narrow["token"])
    assert refused.status == 1 and "rollouts:read" in refused.error
    assert "1 token(s)" in hub("token", "revoke", "alice").output
    again = hub("token", "revoke", "alice")
    assert again.status == 1 and "no live token" in again.error
    names = [each["name"] for each in hub("token", "list", "--json").json["tokens"]]
    assert names == ["embedded-admin", "ci"]
    assert "alice" in hub("token", "list", "--all").output
    mistyped = autoglm("release", "list", *at, narrow["token"][:-1])
    assert "mistyped" in mistyped.error


def test_devices_are_registered_shown_moved_and_forgotten(hub: Any) -> None:
    """The operator's verbs in a row, each with and without --json."""
    token = hub("fleet", "register", "d1", "--group", "staff", "--region", "cn-east").output.strip()
    assert token.startswith("autoglm_")
    twice = hub("fleet", "register", "d1")
    assert twice.status == 1 and "registered already" in twice.error
    assert hub("fleet", "register", "d1", "--new-token", "--json").json["groups"] == ["staff"]
    assert hub("fleet", "register", "d1", "--new-token", "--group", "x").status == 1
    assert "d1" in hub("fleet", "list", "--group", "staff").output
    assert hub("fleet", "list", "--state", "UNSEEN", "--json").json["total"] == 1
    assert hub("fleet", "move", "d1").status == 1
    assert "beta, cn-east" in hub("fleet", "move", "d1", "--group", "beta").output
    moved = hub("fleet", "move", "d1", "--no-group", "--region", "eu", "--json").json
    assert (moved["groups"], moved["region"]) == ([], "eu")
    assert "eu" in hub("fleet", "show", "d1").output
    assert "1 token(s)" in hub("fleet", "forget", "d1").output
    assert hub("fleet", "show", "d1").status == 1


def test_long_lists_are_read_page_by_page(hub: Any, cli_service: Any) -> None:
    """--limit bounds, and --after goes on where a list ended."""
    for number in range(3):
        hub("fleet", "register", f"d{number}")
    first = hub("fleet", "list", "--state", "UNSEEN", "--limit", "2", "--json").json
    assert [each["device_id"] for each in first["devices"]] == ["d0", "d1"]
    rest = hub("fleet", "list", "--state", "UNSEEN", "--after", first["next"], "--json").json
    assert [each["device_id"] for each in rest["devices"]] == ["d2"]
    assert rest["next"] is None


def test_a_device_enrols_from_the_command_line(
    hub: Any, autoglm: Any, cli_service: Any, tmp_path: Path
) -> None:
    """invite gives the code, --enrol spends it once, and later starts need neither."""
    code = hub("fleet", "invite", "--group", "staff", "--uses", "1", "--for", "1h").output.splitlines()[0]
    root = cli_service.state.settings.data_path / "trust" / "root.json"
    device = ("--hub", cli_service.url, "--data", tmp_path / "phone", "--root", root)
    enrolled = autoglm("device", "check", *device, "--enrol", code, "--device-id", "d7")
    assert enrolled.status == 0, enrolled.error
    assert (tmp_path / "phone" / "device.token").stat().st_mode & 0o777 == 0o600
    assert autoglm("device", "check", *device, "--enrol", code).status == 0
    assert autoglm("device", "update", *device, "--json").json["to_version"] == "v1.2"
    assert hub("fleet", "list", "--group", "staff", "--json").json["devices"][0]["device_id"] == "d7"
    other = ("--hub", cli_service.url, "--data", tmp_path / "other")
    late = autoglm("device", "check", *other, "--enrol", code)
    assert late.status == 1 and "ask the operator" in late.error
    assert autoglm("device", "check", *other, "--enrol", code, "--token", "x").status == 1
    assert "0" in hub("fleet", "invites").output
    assert hub("fleet", "invites", "--live", "--json").json["invites"] == []
    invite = hub("fleet", "invite", "--json").json["id"]
    assert "useless" in hub("fleet", "uninvite", invite).output


def test_a_token_file_may_lie_elsewhere(hub: Any, autoglm: Any, cli_service: Any, tmp_path: Path) -> None:
    """--token-file is read, and written by --enrol; the data directory holds no token then."""
    code = hub("fleet", "invite").output.splitlines()[0]
    place = tmp_path / "secrets" / "token"
    device = ("--hub", cli_service.url, "--data", tmp_path / "phone", "--token-file", place)
    assert autoglm("device", "check", *device, "--enrol", code).status == 0
    assert place.read_text().startswith("autoglm_")
    assert not (tmp_path / "phone" / "device.token").exists()
    place.write_text("broken token")
    assert autoglm("device", "check", *device).status == 1


def test_the_audit_log_is_listed_and_verified(hub: Any, autoglm: Any) -> None:
    """Who did what is a table or JSON; verify gives the anchor that the next verify takes."""
    hub("token", "create", "alice")
    listed = hub("audit", "list", "--what", "token", "--since", "1h")
    assert "token.create" in listed.output and "embedded-admin" in listed.output
    entries = hub("audit", "list", "--limit", "1", "--json").json["entries"]
    assert entries[0]["details"]["name"] == "alice"
    assert "nothing" in hub("audit", "list", "--who", "nobody").output
    verified = hub("audit", "verify")
    anchor = verified.output.strip().rpartition(" ")[2]
    hub("token", "create", "bob")
    assert hub("audit", "verify", "--anchor", anchor).status == 0
    wrong = hub("audit", "verify", "--anchor", f"1:{'0' * 64}")
    assert wrong.status == 1 and "not whole" in wrong.error
    assert hub("audit", "list", "--since", "yesterday").status == 1
    assert hub("audit", "list", "--since", "2026-01-01", "--until", "2026-01-02T10:00").status == 0

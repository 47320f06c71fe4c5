"""Tokens are shown once and kept as hashes; claims come from nowhere else."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from typing import Any

import pytest

from autoglm.errors import ConfigError, ConflictError, NotFoundError, PermissionDeniedError
from autoglm.hub import Actor, Claims, Hub, HubConfig
from autoglm.hub.credentials import TOKEN_PREFIX, digest, is_token, new_token
from autoglm.hub.database import Database
from autoglm.hub.parts import database_url
from autoglm.releases import RegistrationRequest


def everything_on_disk(config: HubConfig) -> bytes:
    return b"".join(path.read_bytes() for path in config.directory.glob("hub.sqlite*"))


def test_the_admin_token_is_kept_for_the_owner_alone(hub: Hub, config: HubConfig) -> None:
    """It lies in a file of mode 0600 and proves the admin role."""
    path = config.directory / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == hub.admin_token
    claims = hub.verify_token(hub.admin_token)
    assert claims is not None and claims.role == "admin"


def test_no_token_is_in_the_database(hub: Hub, config: HubConfig) -> None:
    """Neither the embedded nor an issued token can be read from the database's files."""
    issued = hub.issue_token(Claims("viewer", name="dashboard"))
    content = everything_on_disk(config)
    assert b"dashboard" in content
    assert issued.encode() not in content and hub.admin_token.encode() not in content


def test_the_admin_token_outlives_a_restart(config: HubConfig) -> None:
    """Opening again keeps it."""
    with Hub.open(config) as first:
        token = first.admin_token
    with Hub.open(config) as second:
        assert second.admin_token == token


def test_a_lost_admin_token_is_replaced_and_revoked(config: HubConfig) -> None:
    """Deleting the file makes a new token, and the lost one proves nothing any more."""
    with Hub.open(config) as hub:
        old = hub.admin_token
    (config.directory / "admin.token").unlink()
    with Hub.open(config) as hub:
        assert hub.admin_token != old
        assert hub.verify_token(old) is None and hub.verify_token(hub.admin_token) is not None


@pytest.mark.parametrize("token", ["", "EMPTY", "x" * 43, "x" * 100_000, "пароль", "a\0b", "' OR 1=1 --"])
def test_an_unknown_token_proves_nothing(hub: Hub, token: str) -> None:
    """Whatever the text, there is no error and no claim."""
    assert hub.verify_token(token) is None


def test_a_token_proves_exactly_its_claims(hub: Hub) -> None:
    """Groups, region and device come back as they were given, from memory the second time."""
    claims = Claims("device", name="phone-7", device_id="d7", groups=("beta", "staff"), region="cn-east")
    token = hub.issue_token(claims)
    assert hub.verify_token(token) == claims == hub.verify_token(token)
    assert hub.verify_token(token[:-1]) is None


def test_a_revoked_token_proves_nothing_at_once(hub: Hub) -> None:
    """Revoking reaches tokens that were just verified."""
    token = hub.issue_token(Claims("operator", name="alice"))
    assert hub.verify_token(token) is not None
    assert hub.revoke_token("alice") == 1
    assert hub.verify_token(token) is None
    with pytest.raises(NotFoundError):
        hub.revoke_token("alice")


@pytest.mark.parametrize(
    "claims",
    [
        Claims("root", name="x"),  # type: ignore[arg-type]
        Claims("viewer"),
        Claims("viewer", name="a b"),
        Claims("device", name="x", groups=("..",)),
        Claims("device", name="x", region="a/b"),
        Claims("device", name="x", device_id="a b"),
        Claims("viewer", name="x", groups=("staff",)),
        Claims("viewer", name="x", device_id="d1"),
        Claims("viewer", name="x", scopes=("releases:write",)),
        *(Claims("viewer", name=name) for name in ("t12", "i3", "local", "Local", "hub", "guard")),
        *(Claims("viewer", name=name) for name in ("unknown", "service", "registered")),
        Claims("device", name="x"),
    ],
)
def test_claims_that_break_a_rule_get_no_token(hub: Hub, claims: Claims) -> None:
    """Roles are fixed, names are names and mean nothing else, and a device's token is for one device."""
    with pytest.raises(ConfigError, match="token"):
        hub.issue_token(claims)


def test_a_token_can_be_told_from_a_mistyped_one(hub: Hub) -> None:
    """Any wrong, missing or swapped character breaks the checksum, without a look into the database."""
    token = hub.issue_token(Claims("viewer", name="eye"))
    assert re.fullmatch(r"autoglm_[0-9A-Za-z]{49}", token)
    assert is_token(token)
    for place in range(len(TOKEN_PREFIX), len(token)):
        wrong = token[:place] + ("a" if token[place] != "a" else "b") + token[place + 1 :]
        assert not is_token(wrong)
    assert not is_token(token[:-1]) and not is_token(token + "0") and not is_token(token.lower())
    assert is_token("x" * 43), "what earlier versions made had no checksum"


def test_why_a_token_proves_nothing_is_said(hub: Hub, clock: Any) -> None:
    """Malformed, unknown, revoked and expired are told apart."""
    revoked = hub.issue_token(Claims("viewer", name="gone"))
    hub.revoke_token("gone")
    expired = hub.issue_token(Claims("viewer", name="late", expires_at=clock.now + 60))
    assert hub.verify_token(expired) is not None
    clock.now += 60
    assert hub.verify_token(expired) is None
    found = [hub.tokens.fault(token) for token in ("EMPTY", new_token(), revoked, expired)]
    assert found == ["malformed", "unknown", "revoked", "expired"]


def test_no_token_makes_a_stronger_or_longer_one(hub: Hub, clock: Any) -> None:
    """``tokens:write`` is no way to more: neither permissions nor time."""
    later = clock.now + 3600
    maker = Actor.of(Claims("admin", "maker", scopes=("tokens:write", "releases:read"), expires_at=later))
    for claims in (
        Claims("admin", "x", expires_at=later),
        Claims("admin", "x", scopes=("devices:write",), expires_at=later),
        Claims("viewer", "x", expires_at=later),
        Claims("viewer", "x", scopes=("releases:read",)),
        Claims("viewer", "x", scopes=("releases:read",), expires_at=later + 1),
        Claims("device", "x", device_id="d1", expires_at=later),
    ):
        with pytest.raises(PermissionDeniedError):
            hub.issue_token(claims, maker)
    narrow = Claims("viewer", "x", scopes=("releases:read",), expires_at=later)
    assert hub.verify_token(hub.issue_token(narrow, maker)) == narrow


def test_tokens_are_listed_without_their_secrets(hub: Hub, clock: Any) -> None:
    """All that is kept, a page at a time, and only the good ones where wanted."""
    tokens = [hub.issue_token(Claims("viewer", name=f"v{number}")) for number in range(5)]
    hub.issue_token(Claims("device", name="phone", device_id="d1", expires_at=clock.now + 1))
    hub.revoke_token("v0")
    clock.now += 1
    listed = hub.tokens.list()
    assert [record.name for record in listed] == ["embedded-admin", "v0", "v1", "v2", "v3", "v4", "phone"]
    assert not [token for token in tokens if token in json.dumps([each.to_json() for each in listed])]
    assert [each.name for each in hub.tokens.list(live=True, role="viewer")] == ["v1", "v2", "v3", "v4"]
    assert [each.name for each in hub.tokens.list(device_id="d1")] == ["phone"]
    last = int(listed[1].id[1:])
    assert [each.name for each in hub.tokens.list(after=last, limit=2)] == ["v1", "v2"]


def test_one_of_several_tokens_of_a_name_is_revoked_by_its_id(hub: Hub) -> None:
    """A new token is brought out before the old one is revoked."""
    old, record = hub.tokens.create(Claims("viewer", name="eye"))
    new = hub.issue_token(Claims("viewer", name="eye"))
    assert hub.revoke_token(record.id) == 1
    assert hub.verify_token(old) is None and hub.verify_token(new) is not None
    for name in (record.id, "t999", "t0", "", "' OR 1=1"):
        with pytest.raises(NotFoundError):
            hub.revoke_token(name)


def test_one_word_does_not_cut_off_all_registered_devices(hub: Hub) -> None:
    """The name that their tokens share is refused; an id revokes one of them."""
    tokens = [hub.enrolment.register(RegistrationRequest(f"d{number}")).token for number in range(2)]
    with pytest.raises(ConflictError, match="by its id"):
        hub.revoke_token("registered")
    assert hub.revoke_token(hub.tokens.list(device_id="d0")[0].id) == 1
    assert [hub.verify_token(token) is None for token in tokens] == [True, False]


def test_the_last_use_is_written_behind(hub: Hub, clock: Any) -> None:
    """A token's last use is in the list a little later, and is not written for each request."""
    token, record = hub.tokens.create(Claims("viewer", name="eye"))

    def last_used() -> float | None:
        hub.behind.flush()
        return next(each.last_used_at for each in hub.tokens.list() if each.id == record.id)

    assert last_used() is None
    first = clock.now
    hub.verify_token(token)
    clock.now += 30
    hub.verify_token(token)
    assert last_used() == first
    clock.now += 60
    hub.verify_token(token)
    assert last_used() == clock.now


def test_what_one_process_revokes_another_refuses(config: HubConfig) -> None:
    """Two hubs on one database: also a token that the other one has just verified."""
    with Hub.open(config) as one, Hub.open(config) as two:
        token = one.issue_token(Claims("operator", name="alice"))
        assert two.verify_token(token) is not None
        one.revoke_token("alice")
        assert two.verify_token(token) is None


def test_a_change_that_takes_nothing_back_forgets_no_token(hub: Hub, world: Any) -> None:
    """Publishing and new tokens leave what is remembered of verified tokens in memory."""
    token = hub.issue_token(Claims("operator", name="alice"))
    hub.verify_token(token)
    known = hub.tokens._known
    hub.publish(world.full["v1.2"], percent=100)
    hub.issue_token(Claims("operator", name="bob"))
    hub.verify_token(token)
    assert hub.tokens._known is known
    hub.revoke_token("bob")
    hub.verify_token(token)
    assert hub.tokens._known is not known


def test_a_token_of_an_earlier_version_goes_on_working(config: HubConfig, monkeypatch: Any) -> None:
    """A database and an ``admin.token`` from before the checksum are taken over as they are."""
    config.directory.mkdir()
    monkeypatch.setattr("autoglm.hub.database.HEAD", "0001")
    Database(database_url(config)).close()
    monkeypatch.undo()
    old = "Ab-_" * 10 + "xyz"
    (config.directory / "admin.token").write_text(f"{old}\n")
    with contextlib.closing(sqlite3.connect(config.directory / "hub.sqlite")) as raw:
        raw.execute(
            "INSERT INTO tokens (digest, name, role, groups, created_at)"
            " VALUES (?, 'embedded-admin', 'admin', '[]', 1)",
            (digest(old),),
        )
        raw.commit()
    with Hub.open(config) as hub:
        assert hub.admin_token == old
        claims = hub.verify_token(old)
        assert claims is not None and (claims.role, claims.scopes, claims.expires_at) == ("admin", (), None)
        assert hub.tokens.list()[0].created_by == "local"
        assert hub.audit.verify().entries == 0

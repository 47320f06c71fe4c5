"""Tokens are shown once and kept as hashes; claims come from nowhere else."""

from __future__ import annotations

import pytest

from autoglm.errors import ConfigError, NotFoundError
from autoglm.hub import Claims, Hub, HubConfig


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
    ],
)
def test_claims_that_break_a_rule_get_no_token(hub: Hub, claims: Claims) -> None:
    """Roles are fixed, and names are names."""
    with pytest.raises(ConfigError, match="token"):
        hub.issue_token(claims)

"""Download links: made for one device and a quarter of an hour, and not to be had otherwise."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sqlalchemy import select

from autoglm.errors import LinkError, PermissionDeniedError
from autoglm.hub import Hub, HubConfig
from autoglm.hub.links import KEY_SECONDS, LINK_SECONDS, READ_SECONDS, SETTLE_SECONDS
from autoglm.hub.tables import LinkKeyRow
from autoglm.releases import UpdateRequest

PACKAGE = "ab" * 32


def fields_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(link).query))


def key_of(link: str) -> str:
    return fields_of(link)["key"]


def turn_over(hub: Hub, clock: Any) -> None:
    """Let a day pass: a new key is made, and is old enough to sign."""
    clock.now += KEY_SECONDS
    hub.links.refresh()
    clock.now += SETTLE_SECONDS


def test_a_link_holds_for_its_device_until_it_expires(hub: Hub, clock: Any) -> None:
    """It names path, expiry, key and device; it works up to its last second, and not in that second."""
    link = hub.links.sign(PACKAGE, "dev_1")
    fields = fields_of(link)
    assert urlsplit(link).path == f"/v1/model/packages/{PACKAGE}.wpatch"
    assert int(fields["exp"]) == clock.now + LINK_SECONDS
    clock.now += LINK_SECONDS - 1
    assert hub.links.verify(PACKAGE, fields) == "dev_1"
    assert hub.links.verify(PACKAGE, fields, "dev_1") == "dev_1"
    clock.now += 1
    with pytest.raises(LinkError, match="expired") as caught:
        hub.links.verify(PACKAGE, fields)
    assert not caught.value.forged


def test_another_devices_token_does_not_go_with_a_link(hub: Hub) -> None:
    """Who proves to be another device is refused, and that is no forgery."""
    fields = fields_of(hub.links.sign(PACKAGE, "dev_1"))
    with pytest.raises(LinkError, match="another device") as caught:
        hub.links.verify(PACKAGE, fields, "dev_2")
    assert not caught.value.forged
    assert isinstance(caught.value, PermissionDeniedError)


@pytest.mark.parametrize(
    "change",
    [
        {"exp": "99999999999"},
        {"exp": ""},
        {"exp": "-1"},
        {"dev": "dev_2"},
        {"dev": "dev_1\nGET"},
        {"key": "0" * 16},
        {"key": ""},
        {"sig": ""},
        {"sig": "A" * 43},
        {"sig": "ä" * 43},
        {"sig": "\ud800"},
        {"sig": "A" * 10_000},
        {"exp": "9" * 5000},
        {"dev": None},
        {"sig": None},
    ],
)
def test_a_changed_link_is_refused(hub: Hub, change: dict[str, str | None]) -> None:
    """Whatever is put in place of a field, or left out, the link holds no more, and counts as forged."""
    fields = fields_of(hub.links.sign(PACKAGE, "dev_1")) | change
    with pytest.raises(LinkError) as caught:
        hub.links.verify(PACKAGE, {name: text for name, text in fields.items() if text is not None})
    assert caught.value.forged


def test_a_link_opens_one_package_only(hub: Hub) -> None:
    """The same query under another path is refused."""
    fields = fields_of(hub.links.sign(PACKAGE, "dev_1"))
    with pytest.raises(LinkError):
        hub.links.verify("cd" * 32, fields)


def test_every_single_changed_character_of_a_signature_counts(hub: Hub) -> None:
    """No part of a signature is left unchecked."""
    fields = fields_of(hub.links.sign(PACKAGE, "dev_1"))
    for place, character in enumerate(fields["sig"]):
        other = "A" if character != "A" else "Q"
        changed = fields["sig"][:place] + other + fields["sig"][place + 1 :]
        with pytest.raises(LinkError):
            hub.links.verify(PACKAGE, fields | {"sig": changed})


def test_keys_change_daily_and_old_links_live_out(hub: Hub, clock: Any) -> None:
    """A new key follows after a day, signs when every hub knows it, and the one before is still accepted."""
    first = hub.links.sign(PACKAGE, "dev_1")
    clock.now += KEY_SECONDS
    hub.links.refresh()
    last_of_the_old = hub.links.sign(PACKAGE, "dev_1")
    assert key_of(last_of_the_old) == key_of(first)
    clock.now += SETTLE_SECONDS
    assert key_of(hub.links.sign(PACKAGE, "dev_1")) != key_of(first)
    assert hub.links.verify(PACKAGE, fields_of(last_of_the_old)) == "dev_1"


def test_keys_that_nobody_accepts_are_forgotten(hub: Hub, clock: Any) -> None:
    """After days there are two keys in the database, and a link under an earlier one is none any more."""
    first = hub.links.sign(PACKAGE, "dev_1")
    for _ in range(4):
        turn_over(hub, clock)
        hub.links.sign(PACKAGE, "dev_1")
    with hub._database.read() as session:
        assert len(session.scalars(select(LinkKeyRow)).all()) == 2
    with pytest.raises(LinkError):
        hub.links.verify(PACKAGE, fields_of(first))


def test_hubs_of_one_database_accept_each_others_links(config: HubConfig, clock: Any) -> None:
    """Also under a key that the other one has just made."""
    with Hub.open(config, clock=clock) as one, Hub.open(config, clock=clock) as other:
        link = one.links.sign(PACKAGE, "dev_1")
        assert other.links.verify(PACKAGE, fields_of(link)) == "dev_1"
        assert key_of(other.links.sign(PACKAGE, "dev_1")) == key_of(link)
        turn_over(one, clock)
        newer = one.links.sign(PACKAGE, "dev_1")
        assert key_of(newer) != key_of(link)
        assert other.links.verify(PACKAGE, fields_of(newer)) == "dev_1"


def test_keys_survive_a_restart(config: HubConfig, clock: Any) -> None:
    """A link made before a hub ended is accepted by the next one."""
    with Hub.open(config, clock=clock) as hub:
        link = hub.links.sign(PACKAGE, "dev_1")
    with Hub.open(config, clock=clock) as hub:
        assert hub.links.verify(PACKAGE, fields_of(link)) == "dev_1"


def test_made_up_keys_do_not_make_a_hub_read_its_database_all_the_time(hub: Hub, clock: Any) -> None:
    """A second link with an unknown key in the same second is refused from memory."""
    fields = fields_of(hub.links.sign(PACKAGE, "dev_1")) | {"key": "f" * 16}
    clock.now += 5
    hub.links.refresh()
    reads: list[None] = []
    hub.links.refresh = lambda: reads.append(None)  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(LinkError):
            hub.links.verify(PACKAGE, fields)
    assert reads == []
    clock.now += 2
    with pytest.raises(LinkError):
        hub.links.verify(PACKAGE, fields)
    assert reads == [None]


def test_signing_never_waits_for_the_database_again(hub: Hub, clock: Any) -> None:
    """When keys are due to be read, that happens on another thread, and what it finds is used after."""
    first = hub.links.sign(PACKAGE, "dev_1")
    clock.now += KEY_SECONDS + READ_SECONDS
    assert key_of(hub.links.sign(PACKAGE, "dev_1")) == key_of(first)
    hub.links.close()  # waits for that thread
    clock.now += SETTLE_SECONDS
    assert key_of(hub.links.sign(PACKAGE, "dev_1")) != key_of(first)


@pytest.mark.parametrize("years", [-5, 5])
def test_a_clock_off_by_years_and_back_ends_well(hub: Hub, clock: Any, years: int) -> None:
    """Links made meanwhile hold by that clock; those made afterwards hold by the right one."""
    hub.links.sign(PACKAGE, "dev_1")
    clock.now += years * 365 * 86_400
    assert hub.links.verify(PACKAGE, fields_of(hub.links.sign(PACKAGE, "dev_1"))) == "dev_1"
    hub.links.close()
    clock.now -= years * 365 * 86_400
    assert hub.links.verify(PACKAGE, fields_of(hub.links.sign(PACKAGE, "dev_1"))) == "dev_1"


def test_an_answer_is_signed_in_both_its_addresses(hub: Hub, world: Any) -> None:
    """Patch and full package carry links of their own; an answer that offers nothing is left as it is."""
    from autoglm.hub.worker import Worker

    hub.publish(world.full["v1.1"], percent=100)
    hub.publish(world.patches["v1.1", "v1.2"], percent=100)
    worker = Worker(hub.config)
    while worker.run_once():
        pass
    worker.close()
    request = UpdateRequest("dev_1", "v1.1")
    answer = hub.links.signed(hub.check(request, None, "https://hub.example/base"), "dev_1")
    assert answer.kind == "patch"
    for url, sha256 in ((answer.download_url, answer.sha256), (answer.full_url, answer.full_sha256)):
        assert url is not None and sha256 is not None
        assert url.startswith(f"https://hub.example/base/v1/model/packages/{sha256}.wpatch?")
        assert hub.links.verify(sha256, fields_of(url)) == "dev_1"
    nothing = hub.check(UpdateRequest("dev_1", "v1.2"))
    assert hub.links.signed(nothing, "dev_1") is nothing


def test_the_database_with_the_keys_is_its_owners_alone(config: HubConfig) -> None:
    """Also one that an older version made for all to read."""
    path = config.directory / "hub.sqlite"
    with Hub.open(config):
        assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with Hub.open(config) as hub:
        hub.links.sign(PACKAGE, "dev_1")
        modes = {each.stat().st_mode & 0o077 for each in config.directory.glob("hub.sqlite*")}
        assert modes == {0}

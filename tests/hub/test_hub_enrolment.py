"""Registration by an administrator and by code; claims that follow the device; the list of devices."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from autoglm.errors import AutoGLMError, ConfigError, ConflictError, NotFoundError, PermissionDeniedError
from autoglm.hub import Actor, Claims, Hub, HubConfig
from autoglm.hub.audit import AuditQuery
from autoglm.hub.credentials import new_code
from autoglm.hub.fleet import UNSEEN, FleetQuery
from autoglm.releases import Event, EventBatch, RegistrationRequest, UpdateRequest

ADMIN = Actor.of(Claims("admin", "alice"))


def enrol(hub: Hub, device_id: str, code: str, **more: Any) -> Any:
    return hub.enrolment.enrol(RegistrationRequest(device_id, code, **more))


def everything_on_disk(config: HubConfig) -> bytes:
    return b"".join(path.read_bytes() for path in config.directory.glob("hub.sqlite*"))


def test_a_registered_devices_token_has_its_claims(hub: Hub) -> None:
    """The token proves the device, with groups and region of the registration."""
    answer = hub.enrolment.register(RegistrationRequest("d1", groups=("staff",), region="cn-east"), ADMIN)
    claims = hub.verify_token(answer.token)
    assert claims is not None
    assert (claims.role, claims.device_id, claims.groups, claims.region) == (
        "device",
        "d1",
        ("staff",),
        "cn-east",
    )


def test_a_device_is_registered_once(hub: Hub) -> None:
    """Again is a conflict; with ``new_token`` the old token is revoked and the claims stay."""
    first = hub.enrolment.register(RegistrationRequest("d1", groups=("staff",)))
    assert hub.verify_token(first.token) is not None
    with pytest.raises(ConflictError, match="d1"):
        hub.enrolment.register(RegistrationRequest("d1", groups=("beta",)))
    second = hub.enrolment.register(RegistrationRequest("d1", new_token=True))
    assert hub.verify_token(first.token) is None
    assert second.groups == ("staff",)
    assert hub.verify_token(second.token) is not None


def test_a_code_registers_a_device_with_the_codes_claims(hub: Hub, config: HubConfig) -> None:
    """What the device says of itself counts for nothing; neither code nor token lies on the disk."""
    code, invite = hub.enrolment.invite(groups=("staff",), region="cn-east", uses=2)
    answer = enrol(hub, "d1", code, groups=("admins",), region="moon")
    assert (answer.groups, answer.region) == (("staff",), "cn-east")
    claims = hub.verify_token(answer.token)
    assert claims is not None and claims.groups == ("staff",)
    assert hub.enrolment.invites()[0].uses_left == 1
    content = everything_on_disk(config)
    assert code.encode() not in content and answer.token.encode() not in content
    entry = hub.audit.list(AuditQuery(what="device.enrol"))[0]
    assert (entry.who, entry.subject) == (invite.id, "d1")
    assert code not in str(entry.to_json()) and answer.token not in str(entry.to_json())


def test_two_at_once_cannot_both_have_the_last_use(hub: Hub) -> None:
    """Many devices send one code at the same moment: exactly as many as it has uses get in."""
    code, _ = hub.enrolment.invite(uses=3)
    results: list[Any] = []
    gate = threading.Barrier(12)

    def attempt(number: int) -> None:
        gate.wait()
        try:
            results.append(enrol(hub, f"d{number}", code))
        except PermissionDeniedError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(each, Exception) for each in results) == 3
    assert len(results) == 12
    assert hub.enrolment.invites()[0].uses_left == 0


def test_two_that_call_themselves_the_same_get_one_registration(hub: Hub) -> None:
    """The second one conflicts, and spends no use of the code."""
    code, _ = hub.enrolment.invite(uses=5)
    results: list[Any] = []
    gate = threading.Barrier(6)

    def attempt() -> None:
        gate.wait()
        try:
            results.append(enrol(hub, "same", code))
        except ConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(each, Exception) for each in results) == 1
    assert hub.enrolment.invites()[0].uses_left == 4


def test_a_lost_answer_is_given_again(hub: Hub) -> None:
    """The same request again gets a token and spends nothing; another request does not."""
    code, _ = hub.enrolment.invite(uses=1)
    first = enrol(hub, "d1", code, request_id="secret-1")
    again = enrol(hub, "d1", code, request_id="secret-1")
    assert hub.verify_token(first.token) is None and hub.verify_token(again.token) is not None
    for other in ("secret-2", None):
        with pytest.raises(PermissionDeniedError, match="used up"):
            enrol(hub, "d1", code, request_id=other)
    assert hub.verify_token(again.token) is not None


def test_a_registered_device_is_not_taken_over(hub: Hub) -> None:
    """A valid code with uses left does not give anybody else's device."""
    code, _ = hub.enrolment.invite(uses=5)
    mine = enrol(hub, "d1", code, request_id="secret-1")
    stranger, _ = hub.enrolment.invite(uses=5)
    for attempt in ((code, None), (code, "guess"), (stranger, None), (stranger, "secret-1")):
        with pytest.raises(ConflictError):
            enrol(hub, "d1", attempt[0], request_id=attempt[1])
    assert hub.verify_token(mine.token) is not None
    assert [invite.uses_left for invite in hub.enrolment.invites()] == [5, 4]


def test_a_code_takes_no_device_from_an_operator(hub: Hub, clock: Any) -> None:
    """A live token that somebody made for the device goes on working, and no use is spent."""
    code, _ = hub.enrolment.invite(uses=5)
    token = hub.issue_token(Claims("device", "handmade", "d1", expires_at=clock.now + 60))
    with pytest.raises(ConflictError, match="operator"):
        enrol(hub, "d1", code)
    enrol(hub, "d2", code, request_id="secret")
    renewed = hub.enrolment.register(RegistrationRequest("d2", new_token=True)).token
    with pytest.raises(ConflictError, match="operator"):
        enrol(hub, "d2", code, request_id="secret")
    assert hub.verify_token(token) is not None and hub.verify_token(renewed) is not None
    assert hub.enrolment.invites()[0].uses_left == 4
    clock.now += 60
    assert hub.verify_token(enrol(hub, "d1", code).token) is not None


def test_nobody_registers_as_the_hubs_own_engine(hub: Hub) -> None:
    """The device id ``service`` is refused to codes and to administrators."""
    code, _ = hub.enrolment.invite()
    with pytest.raises(ConflictError, match="own engine"):
        enrol(hub, "service", code)
    with pytest.raises(ConflictError, match="own engine"):
        hub.enrolment.register(RegistrationRequest("service"))


def test_codes_that_are_over_let_nobody_in(hub: Hub, clock: Any) -> None:
    """Used up, expired, revoked, unknown and mistyped are told apart, and register nothing."""
    used, _ = hub.enrolment.invite()
    enrol(hub, "first", used)
    expired, _ = hub.enrolment.invite(seconds=60)
    revoked, invite = hub.enrolment.invite(seconds=3600)
    hub.enrolment.revoke_invite(invite.id)
    clock.now += 60
    for code, why in (
        (used, "used up"),
        (expired, "expired"),
        (revoked, "revoked"),
        (new_code(), "not known"),
        (revoked[:-1], "mistyped"),
        ("x" * 10_000, "mistyped"),
        ("", "mistyped"),
    ):
        with pytest.raises(PermissionDeniedError, match=why):
            enrol(hub, "d1", code)
    assert [device.device_id for device in hub.fleet.list().devices] == ["first"]


def test_a_lost_answer_is_not_given_again_after_a_revocation(hub: Hub) -> None:
    """A revoked code repeats nothing either."""
    code, invite = hub.enrolment.invite()
    enrol(hub, "d1", code, request_id="secret-1")
    hub.enrolment.revoke_invite(invite.id)
    with pytest.raises(PermissionDeniedError, match="revoked"):
        enrol(hub, "d1", code, request_id="secret-1")


def test_moving_changes_what_the_token_proves(hub: Hub) -> None:
    """Claims are looked up by device: the same token has the new groups from the next check on."""
    token = hub.enrolment.register(RegistrationRequest("d1", groups=("staff",), region="cn-east")).token
    assert hub.verify_token(token) is not None
    hub.enrolment.move("d1", groups=("beta", "alpha", "beta"))
    claims = hub.verify_token(token)
    assert claims is not None and (claims.groups, claims.region) == (("alpha", "beta"), "cn-east")
    hub.enrolment.move("d1", groups=(), no_region=True)
    claims = hub.verify_token(token)
    assert claims is not None and (claims.groups, claims.region) == ((), None)
    with pytest.raises(NotFoundError):
        hub.enrolment.move("d2", groups=("beta",))


def test_a_registration_wins_over_an_older_tokens_claims(hub: Hub) -> None:
    """A token that was made with groups loses them when its device is moved elsewhere."""
    hub.enrolment.register(RegistrationRequest("d1"))
    token = hub.issue_token(Claims("device", "handmade", "d1", ("admins",), "moon"))
    claims = hub.verify_token(token)
    assert claims is not None and (claims.groups, claims.region) == ((), None)


def test_a_forgotten_device_is_a_stranger(hub: Hub) -> None:
    """Its tokens prove nothing, its row is gone, and it may be registered again."""
    token = hub.enrolment.register(RegistrationRequest("d1", groups=("staff",))).token
    hub.check(UpdateRequest("d1", "v1.2"), hub.verify_token(token))
    assert hub.forget_device("d1") == 1
    assert hub.verify_token(token) is None
    assert hub.fleet.list().total == 0
    with pytest.raises(NotFoundError):
        hub.forget_device("d1")
    assert hub.verify_token(hub.enrolment.register(RegistrationRequest("d1")).token) is not None


def test_another_process_learns_of_a_move_and_a_revocation(config: HubConfig, clock: Any) -> None:
    """Two hubs on one database: what one takes back, the other refuses at its next request."""
    with Hub.open(config, clock=clock) as one, Hub.open(config, clock=clock) as two:
        token = one.enrolment.register(RegistrationRequest("d1", groups=("staff",))).token
        assert two.verify_token(token) is not None
        one.enrolment.move("d1", groups=("beta",))
        claims = two.verify_token(token)
        assert claims is not None and claims.groups == ("beta",)
        one.forget_device("d1")
        assert two.verify_token(token) is None


@pytest.mark.parametrize(
    "arguments",
    [{"uses": 0}, {"uses": 10**9}, {"seconds": 1}, {"seconds": 1e12}, {"groups": ("..",)}, {"region": "a/b"}],
)
def test_codes_beyond_the_rules_are_not_made(hub: Hub, arguments: dict[str, Any]) -> None:
    """Names are names, and nothing lasts for ever."""
    with pytest.raises(ConfigError):
        hub.enrolment.invite(**arguments)
    assert hub.enrolment.invites() == []


@pytest.mark.parametrize("invite_id", ["i99", "99", "i0", "", "i1; DROP TABLE invites", "i" + "9" * 50])
def test_only_codes_that_are_there_are_revoked(hub: Hub, invite_id: str) -> None:
    """Whatever the text, it is a 404."""
    with pytest.raises(NotFoundError):
        hub.enrolment.revoke_invite(invite_id)


def seed(hub: Hub, clock: Any) -> None:
    """Five devices: three registered, one of them never seen; one on trial."""
    for number, group in enumerate(("staff", "staff_x", "staff")):
        region = "cn-east" if number else "eu"
        hub.enrolment.register(RegistrationRequest(f"reg{number}", groups=(group,), region=region))
    for device, version in (("reg0", "v1.2"), ("reg1", "v1.3"), ("free0", "v1.2"), ("free1", None)):
        clock.now += 1
        hub.check(UpdateRequest(device, version))
        hub.fleet.list()
    hub.record(EventBatch("reg0", (Event("e1", 1, "TRIAL", "progress"),)))


def ids(hub: Hub, **query: Any) -> list[str]:
    return [device.device_id for device in hub.fleet.list(FleetQuery(**query)).devices]


def test_devices_are_listed_by_what_they_are(hub: Hub, clock: Any) -> None:
    """Each filter narrows; a group is a whole name; those never seen come last."""
    seed(hub, clock)
    assert ids(hub)[-1] == "reg2" and len(ids(hub)) == 5
    assert ids(hub, group="staff") == ["reg0", "reg2"]
    assert ids(hub, group="staff", region="eu") == ["reg0"]
    assert ids(hub, group="sta%") == ids(hub, group='s"f') == []
    assert set(ids(hub, version="v1.2")) == {"reg0", "free0"}
    assert ids(hub, state="TRIAL") == ["reg0"]
    assert ids(hub, state=UNSEEN) == ["reg2"]


def test_pages_of_devices_follow_on(hub: Hub, clock: Any) -> None:
    """Every device is on exactly one page, and the total is on each."""
    seed(hub, clock)
    found, after = [], None
    while True:
        page = hub.fleet.list(FleetQuery(limit=2, after=after))
        assert page.total == 5
        found += [device.device_id for device in page.devices]
        after = page.next
        if after is None:
            break
    assert found == ids(hub)
    with pytest.raises(ConfigError, match="after"):
        hub.fleet.list(FleetQuery(after="nonsense"))


def test_one_device_is_shown_with_its_events(hub: Hub, clock: Any) -> None:
    """Registration, what it runs, and what it reported."""
    seed(hub, clock)
    device, events = hub.fleet.show("reg0")
    assert (device.groups, device.version, device.registered_by) == (("staff",), "v1.2", "local")
    assert events[0]["state"] == "TRIAL"
    with pytest.raises(NotFoundError):
        hub.fleet.show("nobody")


def test_a_code_is_read_however_it_was_typed(hub: Hub) -> None:
    """Case, spaces, hyphens and look-alikes make no difference; a wrong character does."""
    code, _ = hub.enrolment.invite(uses=10)
    typed = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert enrol(hub, "d1", typed).token
    wrong = code[:-6] + ("2" if code[-6] != "2" else "3") + code[-5:]
    with pytest.raises(AutoGLMError, match="mistyped"):
        enrol(hub, "d2", wrong)

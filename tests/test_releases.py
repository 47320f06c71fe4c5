"""Manifests and wire messages: what is right survives a round trip, what is wrong is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoglm.errors import AutoGLMError, IntegrityError, ManifestError, MessageError
from autoglm.releases import (
    Event,
    EventAnswer,
    EventBatch,
    HealthCheck,
    HealthPrompt,
    Manifest,
    ReleaseFile,
    UpdateAnswer,
    UpdateRequest,
)

MANIFEST = Manifest(
    model="autoglm-phone-9b",
    variant="nano-int8",
    name="autoglm-phone-nano",
    version="v1.2",
    counter=12,
    files=(ReleaseFile("config.json", 2, "0" * 64),),
)
OFFER = UpdateAnswer(
    need_update=True,
    target_version="v1.3",
    download_url="/v1/model/packages/x.wpatch",
    kind="patch",
    manifest_sha256="1" * 64,
    counter=13,
    sha256="2" * 64,
    size=10,
    header_length=5,
    header_sha256="3" * 64,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def make_release(directory: Path) -> Manifest:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    manifest = Manifest.of_directory(
        directory, model="m", variant="int8", name="nano", version="v1.2", counter=12
    )
    (directory / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def test_a_manifest_survives_the_round_trip() -> None:
    """Writing and reading a manifest gives the same one, and one byte form."""
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST
    assert Manifest.from_bytes(MANIFEST.to_bytes()).sha256 == MANIFEST.sha256
    assert MANIFEST.folder == "autoglm-phone-nano-v1.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "../v1"}, "version"),
        ({"version": 7}, "version"),
        ({"counter": 0}, "counter"),
        ({"counter": True}, "counter"),
        ({"min_counter": 13}, "min_counter"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"files": {}}, "files"),
        ({"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]}, "path"),
        ({"files": [{"path": "manifest.json", "size": 1, "sha256": "0" * 64}]}, "path"),
        ({"files": [{"path": "x", "size": -1, "sha256": "0" * 64}]}, "size"),
        ({"files": [{"path": "x", "size": 1 << 60, "sha256": "0" * 64}]}, "size"),
        ({"files": [{"path": "x", "size": 1, "sha256": "0" * 63}]}, "sha256"),
        ({"files": [{"path": "x", "size": 1, "sha256": "0" * 64}] * 2}, "twice"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(change: dict[str, object], message: str) -> None:
    """The error names the field at fault."""
    body = json.loads(MANIFEST.to_bytes()) | change
    with pytest.raises(ManifestError, match=message):
        Manifest.from_bytes(json.dumps(body).encode())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"]
)
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    """Not JSON, not an object, too deep, too long: one typed error."""
    with pytest.raises(ManifestError):
        Manifest.from_bytes(content)


def test_verify_accepts_the_release_and_nothing_else(tmp_path: Path) -> None:
    """Altered, missing and foreign files are each found."""
    directory = tmp_path / "release"
    manifest = make_release(directory)
    manifest.verify(directory)
    assert Manifest.read(directory) == manifest
    (directory / "foreign").write_bytes(b"")
    with pytest.raises(IntegrityError, match="belong"):
        manifest.verify(directory)
    (directory / "foreign").unlink()
    (directory / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(IntegrityError, match="sha256"):
        manifest.verify(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        manifest.verify(directory)


def test_reading_a_manifest_that_is_not_there_is_a_manifest_error(tmp_path: Path) -> None:
    """A directory without a manifest is no release."""
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_the_articles_request_is_understood() -> None:
    """The two fields of the article are enough."""
    request = UpdateRequest.from_json({"device_id": "dev_12345", "current_version": "v1.2"})
    assert (request.device_id, request.current_version, request.failed) == ("dev_12345", "v1.2", ())


def test_a_full_request_survives_the_round_trip() -> None:
    """All optional fields come back; unknown ones are ignored for the sake of later versions."""
    body = {
        "device_id": "d1",
        "current_version": "v1.2",
        "current_sha256": "a" * 64,
        "model": "autoglm-phone-9b",
        "variant": "nano-int8",
        "accept": ["wpatch-1"],
        "env": {"free_bytes": 9_000_000_000, "net": "wifi", "charging": True, "battery": 80},
        "failed": ["v1.2.9"],
    }
    request = UpdateRequest.from_json(body | {"from_the_future": 1})
    assert json.loads(json.dumps(request.to_json())) == body


@pytest.mark.parametrize(
    "change",
    [
        {"device_id": None},
        {"device_id": ""},
        {"device_id": "a b"},
        {"device_id": "x" * 129},
        {"device_id": 5},
        {"current_version": 1.2},
        {"current_version": "v" * 65},
        {"current_version": "\ud800"},
        {"current_version": "v\0"},
        {"current_sha256": "zz"},
        {"accept": "wpatch-1"},
        {"failed": [1]},
        {"failed": ["v"] * 33},
        {"env": []},
        {"env": {"battery": 101}},
        {"env": {"charging": "yes"}},
        {"env": {"free_bytes": -1}},
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    """Wrong types and ranges never get past the reader."""
    with pytest.raises(MessageError):
        UpdateRequest.from_json({"device_id": "d1", "current_version": "v1.2"} | change)


def test_an_answer_always_has_the_three_keys_of_the_contract() -> None:
    """They are null where unused, and all other unset fields stay away."""
    assert UpdateAnswer(False).to_json() == {
        "need_update": False,
        "target_version": None,
        "download_url": None,
    }
    assert UpdateAnswer.from_json(OFFER.to_json()) == OFFER


@pytest.mark.parametrize(
    "missing", ["target_version", "download_url", "sha256", "size", "header_sha256", "kind"]
)
def test_an_offer_without_what_it_needs_is_refused(missing: str) -> None:
    """A device never starts an update that it could not verify."""
    body = OFFER.to_json()
    del body[missing]
    with pytest.raises(MessageError):
        UpdateAnswer.from_json(body)


def test_events_use_from_and_to_on_the_wire() -> None:
    """The names of the protocol, which Python reserves, are mapped at the edge."""
    event = Event("e1", 17, "TRIAL", "fail", from_version="v1.2", to_version="v1.3", code="E_HEALTH")
    assert event.to_json()["from"] == "v1.2"
    batch = EventBatch("d1", (event,))
    assert EventBatch.from_json(json.loads(json.dumps(batch.to_json()))) == batch
    answer = EventAnswer(("e1",), "cancel")
    assert EventAnswer.from_bytes(json.dumps(answer.to_json()).encode()) == answer


def test_a_health_check_survives_the_round_trip() -> None:
    """Prompts, expectations and the speed floor come back."""
    prompt = HealthPrompt(({"role": "user", "content": "你是谁?"},), "AutoGLM", True, 80)
    check = HealthCheck((prompt,), 1.5)
    assert HealthCheck.from_bytes(check.to_bytes()) == check


def one_prompt(**fields: object) -> dict[str, object]:
    """Return a self-test with one prompt, some of its fields replaced."""
    return {"prompts": [{"messages": [{"role": "user", "content": "x"}], "expect": ""} | fields]}


@pytest.mark.parametrize(
    "change",
    [
        {"script": "rm"},
        {"min_tokens_per_s": -1},
        {"min_tokens_per_s": "fast"},
        {"prompts": {}},
        {"prompts": [{}]},
        one_prompt(messages=[]),
        one_prompt(messages=[{"role": "root", "content": "x"}]),
        one_prompt(enable_thinking=0),
        one_prompt(expect=None),
        one_prompt(max_tokens=10**9),
        one_prompt(script="rm"),
    ],
)
def test_a_self_test_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    """A self-test that could run for ever or is malformed never reaches a model."""
    with pytest.raises(ManifestError, match=r"health\.json"):
        HealthCheck.from_bytes(json.dumps({"prompts": []} | change).encode())


@given(json_values)
def test_no_json_value_breaks_a_reader(value: object) -> None:
    """Whatever arrives, the answer is a message or a typed error."""
    for reader in (
        UpdateRequest.from_json,
        UpdateAnswer.from_json,
        Event.from_json,
        EventBatch.from_json,
        ReleaseFile.from_json,
    ):
        try:
            reader(value)
        except AutoGLMError:
            continue


@given(st.binary(max_size=200))
def test_no_bytes_break_a_reader(content: bytes) -> None:
    """The same for readers of raw bytes."""
    for message in (Manifest, UpdateAnswer, EventAnswer, HealthCheck):
        try:
            message.from_bytes(content)
        except AutoGLMError:
            continue

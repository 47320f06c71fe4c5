"""Publishing and roll-outs from the command line, against a running service."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from service.tiny import write_tiny


def data_of(service: Any) -> Path:
    return service.state.settings.data_path


def test_a_package_is_published_and_offered(autoglm: Any, cli_service: Any, cli_store: Path) -> None:
    """The README's command: the shipped patch, to everyone, found by the data directory alone."""
    data = data_of(cli_service)
    result = autoglm("publish", cli_store / "v1.3.wpatch", "--percent", "100", "--data", data)
    assert result.status == 0, result.error
    assert "published v1.3" in result.output
    assert "100 % of all devices" in result.output
    listed = autoglm("release", "list", "--data", data, "--json").json
    assert [release["version"] for release in listed["releases"]] == ["v1.2", "v1.3"]
    assert {"from": "v1.2", "to": "v1.3"}.items() <= listed["packages"][1].items()
    assert "v1.3" in autoglm("release", "list", "--data", data).output


def test_a_publication_says_what_to_do_next(
    autoglm: Any, cli_service: Any, cli_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a share nobody is offered it, and the output says how to change that."""
    token = cli_service.token
    options = ("--hub", cli_service.url, "--token", token)
    result = autoglm("publish", cli_store / "v1.3.wpatch", *options)
    assert "autoglm rollout create v1.3" in result.output
    again = autoglm("publish", cli_store / "v1.3.wpatch", *options, "--json")
    assert again.json["created"] is False
    monkeypatch.setenv("AUTOGLM_TOKEN", token)
    assert autoglm("rollout", "status", "--hub", cli_service.url).status == 0


def test_publishing_again_says_who_is_offered_it(autoglm: Any, cli_service: Any, cli_store: Path) -> None:
    """A release that is there already names the roll-out it is in; an aborted one offers it to nobody."""
    data, package = data_of(cli_service), cli_store / "v1.3.wpatch"
    autoglm("publish", package, "--percent", "100", "--data", data)
    again = autoglm("publish", package, "--data", data)
    assert "100 % of all devices, active" in again.output
    assert "nobody" not in again.output
    rollout = autoglm("rollout", "status", "--data", data, "--json").json["rollouts"][-1]["id"]
    autoglm("rollout", "abort", rollout, "--data", data)
    assert "nobody is offered it" in autoglm("publish", package, "--data", data).output


def test_a_token_for_releases_alone_publishes_again(autoglm: Any, cli_service: Any, cli_store: Path) -> None:
    """What it may not see of roll-outs is said, and is no failure."""
    data, package = data_of(cli_service), cli_store / "v1.3.wpatch"
    made = autoglm(
        "token", "create", "ci", "--role", "publisher", "--scope", "releases:write", "--data", data
    )
    options = ("--hub", cli_service.url, "--token", made.output.strip())
    assert autoglm("publish", package, *options).status == 0
    again = autoglm("publish", package, *options)
    assert again.status == 0, again.error
    assert "was published already" in again.output and "lacks rollouts:read" in again.output


def test_folders_are_packed_on_the_way(
    autoglm: Any, cli_service: Any, cli_store: Path, tmp_path: Path
) -> None:
    """A release folder is packed as it is; one without a manifest gets its names and the next counter."""
    data = data_of(cli_service)
    assert autoglm("publish", cli_store.parent / "v1.3", "--data", data).status == 0

    bare = tmp_path / "weights"
    shutil.copytree(write_tiny(tmp_path / "made", "v0", 1), bare)
    (bare / "manifest.json").unlink()
    missing = autoglm("publish", bare, "--data", data)
    assert missing.status == 1
    assert "--version" in missing.error
    published = autoglm("publish", bare, "--version", "v1.4", "--data", data, "--json").json
    assert (published["version"], published["counter"]) == ("v1.4", 14)
    assert not (bare / "manifest.json").exists()


def test_what_is_no_release_is_refused(
    autoglm: Any, cli_service: Any, cli_store: Path, tmp_path: Path
) -> None:
    """A missing path, another kind of file, a broken package and a hostile .pt are one line each."""
    data = data_of(cli_service)
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.wpatch").write_bytes((cli_store / "v1.3.wpatch").read_bytes()[:-9])
    (tmp_path / "empty").mkdir()
    torch.save({"weights": Path("x")}, tmp_path / "c.pt")
    for arguments in (
        ("none",),
        ("a.txt",),
        ("b.wpatch",),
        ("empty", "--version", "v2"),
        ("c.pt", "--version", "v2"),
    ):
        result = autoglm("publish", *arguments, "--data", data)
        assert result.status == 1, result
        assert len(result.error.splitlines()) == 1
    assert [r.manifest.version for r in cli_service.state.hub.releases()] == ["v1.2"]


def test_a_rollout_is_made_paused_resumed_and_ended(autoglm: Any, cli_service: Any, cli_store: Path) -> None:
    """create, pause, resume, abort and status, each with the token that the data directory holds."""
    data = data_of(cli_service)
    autoglm("publish", cli_store / "v1.3.wpatch", "--data", data)
    made = autoglm(
        "rollout", "create", "v1.3", "--group", "staff", "--percent", "5", "--data", data, "--json"
    )
    rollout = made.json["id"]
    assert (made.json["groups"], made.json["percent"]) == (["staff"], 5)
    for verb, state in (("pause", "paused"), ("resume", "active"), ("abort", "aborted")):
        assert autoglm("rollout", verb, rollout, "--data", data, "--json").json["state"] == state
    assert rollout in autoglm("rollout", "status", "--data", data).output
    assert autoglm("rollout", "create", "v9", "--data", data).status == 1
    assert autoglm("rollout", "pause", "../x", "--data", data).status == 1


def test_a_wrong_token_is_refused(autoglm: Any, cli_service: Any) -> None:
    """The service's own words reach the user."""
    result = autoglm("rollout", "status", "--hub", cli_service.url, "--token", "wrong")
    assert result.status == 1
    assert "mistyped or cut off" in result.error


def test_chat_streams_an_answer(autoglm: Any, cli_service: Any) -> None:
    """A question on the command line or on standard input is answered as the API answers it."""
    text = cli_service.chat(max_tokens=20).json()["choices"][0]["message"]["content"]
    options = ("--url", cli_service.url, "--max-tokens", "20")
    said = autoglm("chat", "hi", *options)
    assert said.status == 0, said.error
    assert said.output == f"{text}\n"
    assert autoglm("chat", *options, text="hi").output == said.output


def test_chat_shows_the_thought_and_sends_media(autoglm: Any, cli_service: Any, tmp_path: Path) -> None:
    """--think prints what the model thinks; --image and --audio attach files; what is no image is said."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with wave.open(str(tmp_path / "a.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(bytes(8_000))
    options = ("--url", cli_service.url, "--max-tokens", "5")
    said = autoglm("chat", "hi", *options, "--think", "--image", "a.png", "--audio", "a.wav")
    assert said.status == 0, said.error
    assert said.output.strip()
    (tmp_path / "b.png").write_text("no image")
    refused = autoglm("chat", "hi", *options, "--image", "b.png")
    assert refused.status == 1
    assert "b.png does not open as an image" in refused.error
    assert autoglm("chat", "hi", *options, "--audio", "b.png").status == 1


def test_doctor_finds_the_running_service(autoglm: Any, cli_service: Any, cli_store: Path) -> None:
    """Everything that the service needs is there, and the service itself answers."""
    directory = cli_service.state.settings.directory
    (directory / "config.yaml").write_text(f"model: {{store: {cli_store}}}\n")
    result = autoglm("doctor", "--config", directory / "config.yaml", "--json")
    found = {finding["what"]: finding for finding in result.json["findings"]}
    assert result.status == 0, result.output
    assert found["service"]["state"] == "ok"
    assert found["admin token"]["state"] == "ok"
    assert found["torch"]["state"] == "ok"
    assert found["decoding"]["text"].startswith("native core")
    assert found["model in memory"]["state"] == "ok"
    assert "weights" in found["model in memory"]["text"] and "KV cache" in found["model in memory"]["text"]


def test_doctor_notes_that_torch_must_decode(
    autoglm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without its native core an engine works, but slower: a note, and no failure."""
    monkeypatch.setattr("autoglm.model.core.library", lambda: None)
    result = autoglm("doctor", "--data", tmp_path, "--json")
    found = {finding["what"]: finding for finding in result.json["findings"]}
    assert found["decoding"]["state"] == "note"
    assert "torch decodes" in found["decoding"]["text"]


def test_doctor_adds_up_what_the_model_needs(
    cli_service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum, a note where no second release fits, a failure with the sum where not even one does."""
    from autoglm.cli.model_memory import model_memory
    from autoglm.engine import devices

    settings = cli_service.state.settings
    count = lambda: model_memory(settings, settings.data_path, is_running=False)  # noqa: E731
    assert count()[0] == "ok"
    monkeypatch.setattr(devices, "free_bytes", lambda _: 0)
    state, text = count()
    assert state == "fail" and "does not fit: weights" in text and "free: 0.00 GiB" in text
    running, _ = model_memory(settings, settings.data_path, is_running=True)
    assert running == "note"
    assert model_memory(settings, tmp_path, is_running=False)[0] == "note"
    assert model_memory(None, tmp_path, is_running=False)[0] == "note"


def test_doctor_fails_where_something_is_wrong(autoglm: Any, tmp_path: Path) -> None:
    """A missing store and an open admin token are failures, and the exit status says so."""
    (tmp_path / "c.yaml").write_text("model: {store: nowhere}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin.token").write_text("t")
    (tmp_path / "data" / "admin.token").chmod(0o644)
    result = autoglm("doctor", "--config", "c.yaml", "--json")
    states = {finding["what"]: finding["state"] for finding in result.json["findings"]}
    assert result.status == 1
    assert (states["configuration"], states["admin token"]) == ("fail", "fail")

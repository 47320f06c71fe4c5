"""config.yaml: every key known and typed, mistakes named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoglm import device
from autoglm.errors import ConfigError
from autoglm.service.settings import MAX_CONFIG_BYTES, Settings, load_settings, parse_settings, setting_keys


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested sections under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def test_the_shipped_file_lists_every_key_with_its_default(project_root: Path) -> None:
    """config.yaml holds all keys, none besides, and each has the value it has when left out."""
    path = project_root / "config.yaml"
    written = flat(yaml.safe_load(path.read_text()))
    assert sorted(written) == sorted(setting_keys())
    assert load_settings(path) == Settings(directory=path.parent)


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    """Whatever directory the service is started from, the paths mean the same."""
    (tmp_path / "c.yaml").write_text("data_dir: here\nlog_path: logs/a.log\n")
    settings = load_settings(tmp_path / "c.yaml")
    assert settings.data_path == tmp_path / "here"
    assert settings.log_file == tmp_path / "logs" / "a.log"
    assert settings.path("/abs") == Path("/abs")


def test_a_link_to_the_file_means_the_file(tmp_path: Path) -> None:
    """A link in /usr/local/bin leads to the data beside the file itself, not beside the link."""
    for name in ("project", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "project" / "config.yaml").write_text("data_dir: data\n")
    (tmp_path / "bin" / "config.yaml").symlink_to(tmp_path / "project" / "config.yaml")
    assert load_settings(tmp_path / "bin" / "config.yaml").data_path == tmp_path / "project" / "data"


def test_the_log_follows_the_data_directory(tmp_path: Path) -> None:
    """Without log_path the log lies in the data directory, also when the command line moves that."""
    (tmp_path / "c.yaml").write_text("data_dir: here\n")
    settings = load_settings(tmp_path / "c.yaml", data_dir=str(tmp_path / "there"))
    assert settings.log_file == tmp_path / "there" / "autoglm.log"


def test_absent_options_override_nothing(tmp_path: Path) -> None:
    """Options that were not given leave the file's values alone; those given win."""
    (tmp_path / "c.yaml").write_text("port: 9000\nhost: 127.0.0.1\n")
    settings = load_settings(tmp_path / "c.yaml", port=9001, host=None)
    assert (settings.port, settings.host) == (9001, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot: 1", ["prot", "unknown key"]),
        ("model: {nam: x}", ["model.nam", "unknown key"]),
        ("directory: /x", ["directory", "unknown key"]),
        ("port: '80'", ["port", "integer"]),
        ("port: yes", ["port", "integer"]),
        ("port: 70000", ["port", "65535"]),
        ("auth: {required: 'yes'}", ["auth.required", "boolean"]),
        ("model: 5", ["model"]),
        ("model: {device: tpu}", ["model.device", "cuda:0"]),
        ("model: {device: []}", ["model.device"]),
        ("model: {aliases: [autoglm-phone-9b]}", ["model.aliases", "twice"]),
        ("model: {name: 'a b'}", ["model.name"]),
        ("update: {every: soon}", ["update.every", "6h"]),
        ("update: {trial_minutes: .nan}", ["update.trial_minutes"]),
        ("update: {trial_minutes: 10081}", ["update.trial_minutes", "10080"]),
        ("update: {trial_answers: 10001}", ["update.trial_answers", "10000"]),
        ("update: {tries: 0}", ["update.tries"]),
        ("update: {tries: 101}", ["update.tries", "100"]),
        ("update: {every: 367d}", ["update.every", "366d"]),
        ("limits: {body_mb: 0}", ["limits.body_mb"]),
        ("tls: {cert: a.pem}", ["tls", "together"]),
        ("public_url: ftp://x", ["public_url"]),
        ("trusted_proxies: [somewhere]", ["trusted_proxies"]),
        ("log_level: LOUD", ["log_level"]),
        ("model: {in_flight: abort}", ["model.in_flight", "pin", "drain"]),
        ("model: {drain_seconds: -1}", ["model.drain_seconds"]),
        ("update: {automatic: 1}", ["update.automatic"]),
        ("hub: {storage_url: 'ftp://b'}", ["hub.storage_url", "s3://"]),
        ("hub: {database_url: 'mysql://h/d'}", ["hub.database_url", "postgresql"]),
        ("update: {channel: beta}", ["update.channel", "not available"]),
        ("backend: {kind: sglang}", ["backend.kind", "vllm"]),
        ("backend: {url: 'http://127.0.0.1:1'}", ["backend.kind", "vllm"]),
        ("backend: {kind: vllm, url: 'ftp://x'}", ["backend.url", "http://"]),
        ("backend: {kind: vllm, url: 'http://10.0.0.2:8001'}", ["backend.admin_url", "10.0.0.2"]),
        ("backend: {kind: vllm, url: 'http://localhost.x:1'}", ["backend.admin_url", "loopback"]),
        (
            "backend: {kind: vllm, url: 'http://8.8.8.8', admin_url: 'http://8.8.8.8'}",
            ["backend.admin_url", "private"],
        ),
        ("backend: {kind: vllm, url: 'http://127.0.0.1', update: restart}", ["backend.update"]),
        ("backend: {kind: vllm, admin_url: 'http://127.0.0.1'}", ["backend.admin_url", "each"]),
        ("backend: {kind: vllm, environment: [{}, {}]}", ["backend.environment"]),
        (
            "backend: {kind: vllm, url: 'http://127.0.0.1', servers: 2}",
            ["backend.servers", "backend.url"],
        ),
        (
            "backend: {kind: vllm, url: 'http://127.0.0.1', command: [x]}",
            ["backend.command", "backend.url"],
        ),
        ("backend: {kind: vllm, checkpoints_there: /m}", ["backend.checkpoints_there", "backend.url"]),
        ("{role: hub, backend: {kind: vllm}}", ["role", "backend.kind"]),
        ("backend: {kind: vllm, servers: 3}", ["backend.servers"]),
        ("backend: {kind: vllm, command: []}", ["backend.command"]),
        ("backend: {kind: vllm, idle_seconds: 0}", ["backend.idle_seconds"]),
        ("- a list", ["keys and values"]),
        ("{", ["YAML"]),
        ("1: 2", ["c.yaml"]),
        ("port: !!python/object/apply:os.system [ls]", ["YAML"]),
    ],
)
def test_a_mistake_names_the_key_and_the_file(tmp_path: Path, text: str, names: list[str]) -> None:
    """Each mistake is a ConfigError of one line with the file, the key and what would be right."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for name in names:
        assert name in message


def test_what_the_settings_accept_the_device_accepts(tmp_path: Path) -> None:
    """The outermost values of the update section are fine for the SDK too: nothing is refused later."""
    for every, answers, minutes, tries in (("0.1s", 0, 0, 1), ("366d", 10_000, 10_080, 100)):
        values = {"every": every, "trial_answers": answers, "trial_minutes": minutes, "tries": tries}
        chosen = parse_settings({"update": values}, where="here", directory=tmp_path).update
        device.UpdateSettings(
            every=chosen.every,
            trial_answers=chosen.trial_answers,
            trial_minutes=chosen.trial_minutes,
            tries=chosen.tries,
        )


def test_unreadable_and_absurd_files_are_refused(tmp_path: Path) -> None:
    """A missing, a binary and a huge file are ConfigErrors too."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ConfigError, match="YAML"):
        load_settings(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger"):
        load_settings(tmp_path / "huge")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """Nothing set means nothing changed."""
    (tmp_path / "c.yaml").write_text("")
    assert load_settings(tmp_path / "c.yaml") == parse_settings({}, where="here", directory=tmp_path)

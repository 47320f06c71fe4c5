"""Hub and engine as two processes: what each has, and an update from one to the other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import requests

from authority import Authority
from autoglm.errors import ConfigError
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.service.access import read_keys, read_token
from autoglm.service.app import create_app
from autoglm.service.settings import Settings, load_settings, parse_settings
from autoglm.service.state import ServiceState
from service.running import running_service, tiny_settings

TIMEOUT_S = 120


class Process:
    """``autoglm serve`` in a directory of its own; its lines are kept as they come."""

    def __init__(self, directory: Path, settings: dict[str, Any], *arguments: str) -> None:
        directory.mkdir()
        (directory / "c.yaml").write_text(json.dumps(settings))  # JSON is YAML
        self.directory, self.lines = directory, list[str]()
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autoglm.cli", "serve", "--config", "c.yaml", *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Return the first group of the first line that fits."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._changed:
            seen = self._changed.wait_for(lambda: found() or not self._reader.is_alive(), TIMEOUT_S)
            match = found()
        assert seen and match, "\n".join(self.lines)
        return match.group(1) if match.groups() else match.group()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def launch(tmp_path: Path) -> Generator[Callable[..., Process]]:
    running: list[Process] = []

    def start(name: str, settings: dict[str, Any], *arguments: str) -> Process:
        running.append(Process(tmp_path / name, settings, *arguments))
        return running[-1]

    yield start
    for process in running:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def ask(url: str, **more: Any) -> requests.Response:
    body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return requests.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT_S, **more)


def test_an_update_goes_from_a_hub_process_to_an_engine_process(
    launch: Callable[..., Process], store: Path, tmp_path: Path
) -> None:
    """Over https, with a token: v1.3 is published at the one, and the answers of the other switch to it.

    The hub has no model's libraries in memory; each end is in order; /health and /ready are there in both.
    """
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    common = {"host": "127.0.0.1", "port": 0}
    hub = launch(
        "hub",
        common
        | {
            "model": {"store": str(store)},
            "auth": {"required": True},
            "tls": {"cert": str(issued.cert), "key": str(issued.key)},
        },
        "--hub-only",
    )
    hub_url = hub.wait_for(r"Server listening on (https://\S+)")
    hub.wait_for("Hot-update endpoint available at /v1/model/update")
    assert not any("Loading model" in line for line in hub.lines)
    assert "torch" not in Path(f"/proc/{hub.process.pid}/maps").read_text()
    with Hub.open(HubConfig(hub.directory / "data")) as opened:
        token = opened.issue_token(Claims("device", "engine-1", device_id="engine-1"))
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "keys").write_text("# for people\nopen-sesame\n")
    engine = launch(
        "engine",
        common
        | {
            "model": {"device": "cpu", "threads": 1},
            "auth": {"required": True, "keys_file": str(tmp_path / "keys")},
            "update": {
                "hub_url": hub_url,
                "token_file": str(tmp_path / "token"),
                "device_id": "engine-1",
                "ca_file": str(authority.pem),
                "pins": [issued.pin],
                "root": str(hub.directory / "data" / "trust" / "root.json"),
                "every": "1s",
                "trial_minutes": 0.0,
            },
        },
        "--engine-only",
    )
    engine_url = engine.wait_for(r"Server listening on (http://\S+)")
    assert engine.wait_for(r"Following the hub at (\S+)") == hub_url
    key = {"authorization": "Bearer open-sesame"}
    tls = {"verify": str(authority.pem)}
    assert ask(engine_url, headers=key).headers["x-autoglm-version"] == "v1.2"
    assert ask(engine_url).status_code == 401
    assert requests.get(f"{engine_url}/ready", timeout=TIMEOUT_S).json() == {
        "status": "ready",
        "version": "v1.2",
    }
    assert requests.get(f"{engine_url}/v1/admin/engine", timeout=TIMEOUT_S).status_code == 404
    assert requests.get(f"{hub_url}/ready", timeout=TIMEOUT_S, **tls).json() == {"status": "ready"}
    assert requests.get(f"{hub_url}/health", timeout=TIMEOUT_S, **tls).json() == {"status": "ok"}

    admin = {"authorization": f"Bearer {(hub.directory / 'data' / 'admin.token').read_text().strip()}"}
    content = (store / "v1.3.wpatch").read_bytes()
    published = requests.post(
        f"{hub_url}/v1/admin/releases?percent=100", data=content, headers=admin, timeout=TIMEOUT_S, **tls
    )
    assert published.status_code == 201, published.text
    still = threading.Event()
    for _ in range(TIMEOUT_S * 4):
        if ask(engine_url, headers=key).headers["x-autoglm-version"] == "v1.3":
            break
        still.wait(0.25)
    else:
        pytest.fail("\n".join(engine.lines))
    devices = requests.get(f"{hub_url}/v1/admin/devices", headers=admin, timeout=TIMEOUT_S, **tls).json()
    assert [device["device_id"] for device in devices["devices"]] == ["engine-1"]
    assert (engine.end(), hub.end()) == (0, 0)


def test_a_hub_only_has_the_hubs_routes_alone(store: Path, tmp_path: Path) -> None:
    """Inference is 404, the engine's administration 409, all else is there; a roll-out needs no engine."""
    settings = tiny_settings(store, tmp_path, role="hub")
    with running_service(settings) as service:
        assert service.state.engine is None
        assert service.chat().status_code == 404
        assert service.get("/v1/model/info").status_code == 404
        assert service.get("/v1/models").status_code == 404
        for method, path in (("GET", "/engine"), ("POST", "/engine/update"), ("POST", "/engine/rollback")):
            assert service.admin(method, path).status_code == 409
        assert service.post("/v1/model/update", {"device_id": "d"}).json()["target_version"] == "v1.2"
        assert service.admin("GET", "/releases").status_code == 200
        assert service.admin("POST", "/rollouts", json={"version": "v1.2", "percent": 50}).status_code == 201
        assert service.get("/ready").json() == {"status": "ready"}
        paths = service.get("/openapi.json").json()["paths"]
        assert "/v1/chat/completions" not in paths and "/v1/admin/releases" in paths
        assert service.get("/docs").status_code == 200


def test_the_hubs_modules_import_no_model(project_root: Path) -> None:
    """What a hub-only process imports leaves torch, tokenizers and the engine alone."""
    program = (
        "import sys, autoglm.service.serve, autoglm.service.server, autoglm.service.store; "
        "heavy = ('torch', 'tokenizers', 'safetensors', 'autoglm.engine', 'autoglm.model'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"role": "engine"}, "update.hub_url"),
        ({"role": "both"}, "role"),
        ({"update": {"hub_url": "https://hub.example"}}, "update.hub_url"),
        ({"role": "hub", "update": {"token_file": "t"}}, "update.token_file"),
        ({"role": "engine", "update": {"hub_url": "ftp://hub"}}, "update.hub_url"),
        ({"role": "engine", "update": {"hub_url": "https://h", "pins": ["x"]}}, "update.pins"),
        (
            {"role": "engine", "update": {"hub_url": "https://h"}, "auth": {"required": True}},
            "auth.keys_file",
        ),
        ({"auth": {"keys_file": "keys"}}, "auth.keys_file"),
        ({"hub": {"accel_redirect": "/packages"}}, "hub.accel_redirect"),
        ({"hub": {"accel_redirect": "packages"}, "trusted_proxies": ["127.0.0.1"]}, "hub.accel_redirect"),
        ({"limits": {"connections": 1}}, "limits.connections"),
        ({"limits": {"slow_seconds": 0}}, "limits.slow_seconds"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    values: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """Nothing is silently ignored: a key without its feature, or a role without its keys, ends the start."""
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_settings(values, where="config.yaml", directory=tmp_path)


def test_an_option_completes_the_file(tmp_path: Path) -> None:
    """A file may hold what only --engine-only makes complete; rules between keys are checked at the end."""
    path = tmp_path / "c.yaml"
    path.write_text("update: {hub_url: 'https://hub.example'}\n")
    assert load_settings(path, role="engine").role == "engine"
    with pytest.raises(ConfigError, match=r"c\.yaml: update\.hub_url"):
        load_settings(path)


def test_keys_are_read_plain_or_hashed(tmp_path: Path) -> None:
    """Comments and empty lines do not count; a file without a key is a ConfigError with its name."""
    import hashlib

    digest = hashlib.sha256(b"two").hexdigest()
    path = tmp_path / "keys"
    path.write_text(f"# people\n\none\nsha256:{digest.upper()}\n")
    assert read_keys(path) == {hashlib.sha256(b"one").hexdigest(), digest}
    assert read_token(path) == "one"
    path.write_text("# none\n")
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=wrong.name):
            read_keys(wrong)


def test_a_device_process_has_no_hub_routes() -> None:
    """Without a hub there is inference, info and health, and no administration."""
    state = ServiceState(Settings(), object(), object())  # type: ignore[arg-type]
    paths = set(create_app(state).openapi()["paths"])
    assert {"/v1/chat/completions", "/v1/model/info", "/health", "/ready"} <= paths
    assert not any(path.startswith(("/v1/admin", "/v1/model/update")) for path in paths)

"""``autoglm worker`` and ``autoglm keys raise``: what runs beside a hub, or after its restore."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autoglm.files import directory_lock
from autoglm.hub import Hub, HubConfig

PATIENCE_S = 90.0


def test_workers_build_for_a_shared_hub(
    postgres_url: str, bucket_url: str, cli_store: Path, tmp_path: Path
) -> None:
    """Two processes of one command build what a hub elsewhere wants, and end on SIGTERM."""
    config = HubConfig(tmp_path / "hub", postgres_url, storage_url=bucket_url, keys=tmp_path / "keys")
    with Hub.open(config) as hub:
        hub.publish(cli_store / "v1.2.wpatch", percent=100)
        hub.publish(cli_store / "v1.3.wpatch", percent=100)
        places = ["--data", str(tmp_path / "work"), "--keys", str(tmp_path / "keys")]
        urls = {"AUTOGLM_DATABASE_URL": postgres_url, "AUTOGLM_STORAGE_URL": bucket_url}
        command = [sys.executable, "-m", "autoglm.cli", "worker", *places, "--concurrency", "2"]
        child = subprocess.Popen(command, env=os.environ | urls, stdout=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while any(row.state != "stored" for row in hub.packages()):
                assert time.monotonic() < deadline and child.poll() is None, "nothing was built"
                time.sleep(0.05)
        finally:
            child.send_signal(signal.SIGTERM)
            output = child.communicate(timeout=PATIENCE_S)[0]
    assert child.returncode == 0 and "2 at a time" in output


def test_a_worker_that_cannot_start_says_why(autoglm: Any, tmp_path: Path) -> None:
    """One line and status 1: several builds without PostgreSQL, a second worker, a wrong address."""
    several = autoglm("worker", "--data", tmp_path / "hub", "--concurrency", "2")
    assert several.status == 1 and "PostgreSQL" in several.error
    with directory_lock(tmp_path / "hub" / "worker"):
        second = autoglm("worker", "--data", tmp_path / "hub")
    assert second.status == 1 and "another process" in second.error
    wrong = autoglm("worker", "--data", tmp_path / "hub", "--database-url", "mysql://h/d")
    assert wrong.status == 1 and "database_url" in wrong.error


def test_versions_are_raised_on_the_hubs_machine(autoglm: Any, tmp_path: Path) -> None:
    """After a restore one command signs everything anew; what only other keys can sign is named."""
    config = HubConfig(tmp_path / "hub")
    with Hub.open(config) as hub:
        before = hub.trust.repository.read("timestamp.json")
    raised = autoglm("keys", "raise", "--data", tmp_path / "hub")
    assert raised.status == 0 and "publish and revoke again" in raised.output
    with Hub.open(config) as hub:
        assert hub.trust.repository.read("timestamp.json") != before
    for key in (tmp_path / "hub" / "trust" / "keys").glob("releases-*.pem"):
        key.unlink()
    assert autoglm("keys", "raise", "--data", tmp_path / "hub", "--json").json == {"not_signed": ["releases"]}


def test_doctor_notices_an_old_backup(autoglm: Any, cli_service: Any, tmp_path: Path) -> None:
    """Metadata that is older than what the service's own engine has seen is a finding with advice."""
    data = tmp_path / "copy"  # the service goes on writing its own
    shutil.copytree(cli_service.state.settings.data_path, data)
    find = lambda: {f["what"]: f for f in autoglm("doctor", "--data", data, "--json").json["findings"]}  # noqa: E731
    assert find()["signed metadata"]["state"] == "ok"
    (data / "device" / "floor.json").write_text(
        '{"marks":{"timestamp":[2000000000,"k"]},"counter":0,"min_counter":0,"revoked":[]}'
    )
    found = find()["signed metadata"]
    assert found["state"] == "fail" and "keys raise" in found["text"]

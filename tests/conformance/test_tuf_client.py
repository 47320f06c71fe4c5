"""The client for the public TUF conformance suite runs as that suite runs it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from autoglm.trust import documents
from autoglm.trust.keys import KeyRing, make_key

CLIENT = Path(__file__).with_name("tuf_client")
CONTENT = b"an artifact"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a directory without a log."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A plain repository of one artifact, over plain HTTP on loopback."""
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    keys, metadata = tmp_path / "keys", tmp_path / "site" / "metadata"
    metadata.mkdir(parents=True)
    key = make_key("all", keys)
    signers = KeyRing([keys]).signers([key.keyid])
    root = documents.Root(1, expires=until, consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(key, role)
    targets = documents.Targets(1, expires=until)
    targets.targets["some/file.txt"] = target = TargetFile.from_data("some/file.txt", CONTENT, ["sha256"])
    snapshot = documents.new_snapshot(1, {"targets": 1}, until)
    timestamp = documents.new_timestamp(1, 1, until, datetime.now(UTC))
    for name, signed in (("1.root", root), ("1.targets", targets), ("1.snapshot", snapshot)):
        (metadata / f"{name}.json").write_bytes(documents.sign(signed, signers))
    (metadata / "timestamp.json").write_bytes(documents.sign(timestamp, signers))
    artifact = tmp_path / "site" / "targets" / "some" / f"{target.hashes['sha256']}.file.txt"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(*arguments: str | Path) -> int:
    command = [sys.executable, str(CLIENT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_init_refresh_and_download(address: str, tmp_path: Path) -> None:
    """The three commands of the suite's protocol, with its names for files and its exit codes."""
    directory, downloads = tmp_path / "client", tmp_path / "downloads"
    directory.mkdir()
    downloads.mkdir()
    base = ("--metadata-dir", directory, "--metadata-url", f"{address}/metadata")
    assert run("--metadata-dir", directory, "init", tmp_path / "site" / "metadata" / "1.root.json") == 0
    assert run(*base, "refresh") == 0
    names = {path.name for path in directory.glob("*.json")}
    assert names == {"root.json", "timestamp.json", "snapshot.json", "targets.json"}
    target = ("--target-dir", downloads, "--target-base-url", f"{address}/targets")
    assert run(*base, *target, "--target-name", "some/file.txt", "download") == 0
    assert [path.read_bytes() for path in downloads.iterdir()] == [CONTENT]
    twice = ("--target-name", "some/file.txt", "--target-name", "some/other.txt")
    assert run(*base, *target, *twice, "download") == 1
    (tmp_path / "site" / "metadata" / "timestamp.json").write_bytes(b"{}")
    assert run(*base, "refresh") == 1

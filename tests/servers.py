"""Real servers for tests: a PostgreSQL and an S3-compatible store, each started once and removed at the end.

Fixtures: ``postgres_url`` (a database of the test's own, with the hub's empty tables),
``empty_postgres_url`` (without tables), ``bucket_url`` (an empty bucket of its own). ``tests/conftest.py``
imports them, so any test may ask for them. The servers listen on a socket in a directory of theirs and on a
free port of this machine; they end with the test run, also when that is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

PATIENCE_S = 60.0
_SERVER_USER = "postgres"
_numbers = itertools.count(1)


class Postgres:
    """A PostgreSQL server of this test run.

    Attributes:
        directory: its data and its socket.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make an empty cluster and start it."""
        if os.geteuid() == 0:
            shutil.chown(self.directory, _SERVER_USER, _SERVER_USER)
        made = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        command = self._command("initdb", "-D", str(self.directory / "data"), *made)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.directory)
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        # Nothing of a test outlives the machine, so nothing is synced.
        careless = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
        options = [word for each in (*careless, "listen_addresses=") for word in ("-c", each)]
        place = ["-D", str(self.directory / "data"), "-k", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", *place, *options), stdout=log, stderr=log, cwd=self.directory
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self._plain("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL never answered"
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once; what it had committed is there after the next start."""
        if self._process is not None:
            self._process.send_signal(2)
            self._process.wait(PATIENCE_S)

    @staticmethod
    def _command(program: str, *arguments: str) -> list[str]:
        """Return a command that runs as a common user and ends with this process."""
        found = shutil.which(program) or str(_postgres_programs() / program)
        user = ["--reuid", _SERVER_USER, "--regid", _SERVER_USER, "--clear-groups"]
        return ["setpriv", *(user if os.geteuid() == 0 else []), "--pdeathsig", "INT", found, *arguments]

    def _plain(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.directory}"

    def new_database(self, template: str = "template0", name: str | None = None) -> str:
        """Return the URL of a fresh database."""
        name = name or f"test_{next(_numbers)}"
        with psycopg.connect(self._plain("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return self._plain(name).replace("postgresql://", "postgresql+psycopg://")

    def drop(self, url: str) -> None:
        """Remove a database, with whoever is still connected to it."""
        name = name_of(url)
        with psycopg.connect(self._plain("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


def name_of(url: str) -> str:
    """Return the name of the database that a URL of this server leads to."""
    return url.rpartition("?")[0].rpartition("/")[2]


def _postgres_programs() -> Path:
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    found = sorted(versions, key=lambda path: int(path.parent.name))
    if not found:
        pytest.skip("this machine has no PostgreSQL")
    return found[-1]


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server in a directory of its own for the length of the block."""
    # Not below pytest's directory: a socket's path may have 107 bytes, and the server's user must reach it.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    server = Postgres(directory)
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres: Postgres) -> str:
    """The name of a database with the hub's tables, to copy: faster than making them each time."""
    from autoglm.hub.database import Database

    url = postgres.new_database()
    Database(url).close()
    return name_of(url)


@pytest.fixture
def postgres_url(postgres: Postgres, _template: str) -> Iterator[str]:
    """The URL of a database of the test's own, with the hub's empty tables."""
    url = postgres.new_database(_template)
    yield url
    postgres.drop(url)


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a database of the test's own, without tables."""
    url = postgres.new_database()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3-compatible store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "moto.server", "-H", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5) as answer:
                    json.load(answer)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, "the store never answered"
                time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def bucket_url(s3_endpoint: str) -> str:
    """The ``hub.storage_url`` of an empty bucket of the test's own."""
    name = f"bucket-{next(_numbers)}"
    request = urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    # moto takes any signature; without one it takes the request for an anonymous one.
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=t/20260101/us-east-1/s3/aws4_request")
    urllib.request.urlopen(request, timeout=10).close()
    return f"s3://{name}/hub?endpoint={s3_endpoint}&region=us-east-1&access_key_id=t&secret_access_key=t"

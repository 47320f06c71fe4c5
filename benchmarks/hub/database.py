"""A PostgreSQL to measure with: the one that is given, or one of this machine's, started for the run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from sqlalchemy.engine import URL, make_url

_USER = "postgres"
_PATIENCE_S = 60.0
_NO_DATABASE = "PostgreSQL is not installed: only SQLite is measured"


class Databases:
    """Makes databases to measure with, each used by one part alone, and drops them at the end.

    Args:
        url: of a PostgreSQL server, None where there is none.
    """

    def __init__(self, url: str | None) -> None:
        self._url = None if url is None else make_url(url)
        self._made: list[str] = []

    def fresh(self) -> dict[str, str | None]:
        """Return addresses by name; SQLite, which every hub has for itself, is None."""
        if self._url is None:
            return {"SQLite": None}
        name = f"bench_{os.getpid()}_{len(self._made)}"
        self._execute(f"CREATE DATABASE {name}")
        self._made.append(name)
        url = self._url.set(drivername="postgresql+psycopg", database=name)
        return {"SQLite": None, "PostgreSQL": url.render_as_string(hide_password=False)}

    def drop(self) -> None:
        """Remove what was made."""
        for name in self._made:
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        import psycopg

        plain = cast("URL", self._url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def databases(url: str | None) -> Iterator[Databases]:
    """Give databases on the server of an address, else on one of this machine's, started for the run."""
    with contextlib.ExitStack() as stack:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if url is None and programs:
            url = stack.enter_context(_server(programs[-1].parent))
        if url is None:
            print(_NO_DATABASE, file=sys.stderr)
        made = Databases(url)
        stack.callback(made.drop)
        yield made


@contextlib.contextmanager
def _server(programs: Path) -> Iterator[str]:
    """Run a server with its defaults, on a socket in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="bench-pg-"))
    as_user = ["setpriv", "--reuid", _USER, "--regid", _USER, "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(directory, _USER, _USER)
    data = str(directory / "data")
    try:
        _quietly([*as_user, str(programs / "initdb"), "-D", data, "-U", _USER, "--auth=trust"], directory)
        options = ["-c", "listen_addresses=", "-k", str(directory)]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*as_user, str(programs / "postgres"), "-D", data, *options],
                stdout=log,
                stderr=log,
                cwd=directory,
            )
        try:
            _await([*as_user, str(programs / "pg_isready"), "-q", "-h", str(directory)], directory)
            yield f"postgresql+psycopg://{_USER}@/postgres?host={directory}"
        finally:
            process.terminate()
            process.wait(_PATIENCE_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _quietly(command: Sequence[str], directory: Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=directory)


def _await(command: Sequence[str], directory: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while subprocess.run(command, check=False, cwd=directory).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError("PostgreSQL never answered")
        time.sleep(0.1)

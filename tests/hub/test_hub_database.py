"""The database and the store beneath the hub."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, select, update

import autoglm.hub.database as database_module
from autoglm.errors import ConfigError, NotFoundError, StorageError, UnstorableError
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.hub.database import HEAD, Database
from autoglm.hub.guard import describe
from autoglm.hub.history import entries, look_back
from autoglm.hub.rollouts import GUARD, move
from autoglm.hub.store import Store
from autoglm.hub.tables import Base, RevisionRow, RolloutRow

World = Any


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.sqlite'}"
    return request.getfixturevalue("empty_postgres_url")


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


REVISIONS = [step.revision for step in ScriptDirectory.from_config(alembic_config()).walk_revisions()]


def test_the_migrations_make_the_tables(database_url: str) -> None:
    """What a migrated database holds is what the table definitions say, and HEAD is the last migration."""
    Database(database_url).close()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_older_database_is_brought_up_to_date(database_url: str, revision: str) -> None:
    """From each version of the tables there ever was, one start makes today's, and keeps what is in them."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
        connection.exec_driver_sql(
            "INSERT INTO devices (model, variant, device_id, first_seen_at, seen_at, last_seq)"
            " VALUES ('m', 'v', 'd', 0, 0, 0)"
        )
    database = Database(database_url)
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT device_id FROM devices").scalar() == "d"
    database.close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """An older program does not touch what it cannot understand."""
    url = f"sqlite:///{tmp_path / 'hub.sqlite'}"
    Database(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.sqlite")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    with pytest.raises(StorageError, match="newer version"):
        Database(url)


def test_a_damaged_database_is_a_typed_error(config: HubConfig) -> None:
    """Bytes that are no database are refused with advice, and are not overwritten."""
    config.directory.mkdir()
    (config.directory / "hub.sqlite").write_bytes(b"this is not a database, and never was one" * 100)
    with pytest.raises(StorageError, match="backup"):
        Hub.open(config)
    assert (config.directory / "hub.sqlite").read_bytes().startswith(b"this is not")


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+pg8000://host/db", "mysql://host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_only_two_kinds_of_databases_are_accepted(tmp_path: Path, url: str) -> None:
    """A URL that this version cannot serve is a setting error that names the key."""
    with pytest.raises(ConfigError, match="database_url"):
        Hub.open(HubConfig(tmp_path / "hub", database_url=url))


def test_the_database_may_lie_elsewhere(tmp_path: Path) -> None:
    """``database_url`` moves the database out of the directory."""
    url = f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
    with Hub.open(HubConfig(tmp_path / "hub", database_url=url)) as hub:
        hub.issue_token(Claims("viewer", name="x"))
    assert (tmp_path / "elsewhere.sqlite").exists() and not (tmp_path / "hub" / "hub.sqlite").exists()


@pytest.mark.parametrize("change", [{"model": "../x"}, {"variant": ""}, {"retry_after_s": 0}])
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    """Settings are checked where they are made."""
    with pytest.raises(ConfigError, match=next(iter(change))):
        HubConfig(tmp_path, **change)


def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    """A file in the way is said, not raised as an OSError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Hub.open(HubConfig(tmp_path / "file" / "hub"))


def test_a_lock_that_cannot_be_taken_is_a_typed_error(config: HubConfig) -> None:
    """What stands where the lock should be is said, not raised as an OSError."""
    (config.directory / "store.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="opening the hub"):
        Hub.open(config)


def test_an_exception_undoes_a_transaction(database_url: str) -> None:
    """Nothing of a failed block is kept, and the revision stays."""
    database = Database(database_url)
    with database.read() as session:
        before = Database.revision(session)
    with pytest.raises(RuntimeError), database.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO devices (model, variant, device_id, first_seen_at,"
            " seen_at, last_seq) VALUES ('m', 'v', 'd', 0, 0, 0)"
        )
        raise RuntimeError
    with database.read() as session:
        assert Database.revision(session) == before
        assert session.connection().exec_driver_sql("SELECT count(*) FROM devices").scalar() == 0
    database.close()


def test_writers_take_turns(database_url: str) -> None:
    """Of many who read a number and write it back plus one, none undoes another."""
    database = Database(database_url)

    def add() -> None:
        for _ in range(10):
            with database.write(decides=False) as session:
                found = session.scalars(select(RevisionRow.number)).one()
                session.execute(update(RevisionRow).values(number=found + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert Database.revision(session) == 41
    database.close()


def test_a_reader_sees_one_moment(database_url: str) -> None:
    """What is committed while a reader reads is not in its view, and is in the next one."""
    database = Database(database_url)
    with database.read() as session:
        before = Database.revision(session)
        with database.write():
            pass
        assert Database.revision(session) == before
    with database.read() as session:
        assert Database.revision(session) == before + 1
    database.close()


def test_a_value_that_does_not_fit_is_no_fault_of_the_database(empty_postgres_url: str) -> None:
    """Such a value is never tried again: it would keep all that waits behind it waiting for ever."""
    database = Database(empty_postgres_url)
    with pytest.raises(UnstorableError, match="cannot be stored"), database.write() as session:
        session.execute(update(RevisionRow).values(number=2**70))
    database.close()


OPEN = """
import sys
import threading
from pathlib import Path
from autoglm.hub import Claims, Hub, HubConfig
print("ready", flush=True)
sys.stdin.readline()
with Hub.open(HubConfig(Path(sys.argv[1]))) as hub:
    print(hub.admin_token)
"""


def test_two_processes_may_make_the_hub_at_once(config: HubConfig) -> None:
    """Both first opens succeed and agree on the admin token."""
    command = [sys.executable, "-c", OPEN, str(config.directory)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    tokens = {child.communicate()[0] for child in children}
    assert len(tokens) == 1 and len(tokens.pop()) > 40


def test_a_sweep_spares_the_workspaces_of_the_living(tmp_path: Path) -> None:
    """What somebody works on stays; what nobody holds goes."""
    store = Store(tmp_path / "hub")
    (store.uploads / "abandoned").mkdir()
    (store.uploads / "abandoned" / "part").write_text("x")
    (store.uploads / "stray").write_text("x")
    (store.objects / ("a" * 64)).write_text("x")
    with store.workspace() as work:
        (work / "part").write_text("x")
        with store.lock():
            store.sweep((), ())
        assert (work / "part").exists()
        assert [path.name for path in store.uploads.iterdir()] == [work.name]
    assert not list(store.uploads.iterdir()) and not list(store.objects.iterdir())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", ".", "A" * 64, "g" * 64])
def test_only_hashes_name_objects(tmp_path: Path, name: str) -> None:
    """No text leads out of the objects directory."""
    with pytest.raises(NotFoundError):
        Store(tmp_path / "hub").object_path(name)


def test_a_rotten_object_is_replaced_by_a_good_one(hub: Hub, config: HubConfig, world: World) -> None:
    """An object whose bytes changed on disk is not trusted when the same content comes again."""
    hub.publish(world.full["v1.2"])
    shared = next(file for file in world.manifest("v1.2").files if file.path == "config.json")
    rotten = config.directory / "objects" / shared.sha256
    rotten.chmod(0o644)
    rotten.write_text("[]")
    hub.publish(world.full["v1.3"])
    assert rotten.read_text() == "{}"


def test_a_database_of_the_first_version_keeps_what_it_counted(tmp_path: Path) -> None:
    """Roll-outs, offers and results of schema 0001 are there after the upgrade; new states are allowed."""
    path = tmp_path / "hub.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
        for statement in OLD_ROWS:
            connection.exec_driver_sql(statement)
    engine.dispose()
    database = Database(f"sqlite:///{path}")
    with database.read() as session:
        row = session.get_one(RolloutRow, 1)
        found = describe(session, row, 100.0)
        assert (found.offered, found.began, found.succeeded, found.failed) == (3, 2, 1, 1)
        assert (found.state, found.stages, found.percent, row.stage_at) == ("active", (), 50.0, 5.0)
        assert [entry.act for entry in entries(session, 1)] == ["found"]
        assert look_back(session, "m", "v", 1000.0, None, 10).versions == {"v1": 1}
    with database.write() as session:
        assert move(session, session.get_one(RolloutRow, 1), "halt", GUARD, 101.0, reason="seen")
    database.close()


OLD_ROWS = (
    "INSERT INTO releases VALUES (1, 'm', 'v', 'v1', 1, 'f', 'a', x'7b7d', 1.0)",
    "INSERT INTO rollouts VALUES (1, 1, 5000, 's', '[]', '[]', 'active', 5.0, 6.0)",
    "INSERT INTO offers VALUES (1, 'd1', 'a1', 10.0), (1, 'd2', 'a2', 10.0), (1, 'd3', 'a3', 10.0)",
    "INSERT INTO devices (model, variant, device_id, version, first_seen_at, seen_at, last_seq)"
    " VALUES ('m', 'v', 'd1', 'v1', 9.0, 20.0, 3)",
    "INSERT INTO events (device_id, event_id, seq, rollout_id, state, result, stats, received_at) VALUES"
    " ('d1', 'e1', 1, 1, 'FAILED', 'fail', '{}', 11.0),"
    " ('d1', 'e2', 2, 1, 'CONFIRMED', 'ok', '{}', 12.0),"
    " ('d2', 'e3', 5, 1, 'FAILED', 'fail', '{}', 13.0),"
    " ('d2', 'e4', 4, 1, 'CONFIRMED', 'ok', '{}', 14.0)",
)

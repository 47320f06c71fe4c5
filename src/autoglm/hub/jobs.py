"""Builds on any number of machines: tickets in a queue (Procrastinate) on the hub's PostgreSQL.

The ledger row is the truth; a ticket only says that somebody should look at a row. Tickets are made from the
ledger by every worker, lost ones are made again, and two for one row do no harm: the first worker claims it.
A worker that stops giving signs of life loses its row to the others, and what it finishes afterwards
changes nothing. The queue's tables lie in a schema of their own and hold nothing that the ledger does not.

    >>> QueueWorker(config).run(threading.Event())                     # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import procrastinate
import psycopg
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Status
from procrastinate.schema import SchemaManager
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import make_url

from autoglm.errors import ConfigError, StorageError
from autoglm.hub.building import Builder
from autoglm.hub.ledger import Job, Ledger, Wanted
from autoglm.hub.parts import database_url, opened
from autoglm.hub.postgres import lock_key
from autoglm.hub.records import HubConfig
from autoglm.hub.upkeep import Upkeep

_log = logging.getLogger(__name__)

SCHEMA = "autoglm_jobs"
QUEUE = "packages"
TAKE_OVER_S = 30.0
POLL_S = 0.5
_LOOK_EVERY = 10
_MAX_PRIORITY = 2**31 - 1


def connection_string(url: str) -> str:
    """Return a database URL as PostgreSQL's own programs take it, with the queue's tables in sight."""
    parsed = make_url(url).set(drivername="postgresql")
    own = parsed.query.get("options", "")
    options = f"{own if isinstance(own, str) else ' '.join(own)} -c search_path={SCHEMA}".strip()
    plain = parsed.difference_update_query(["options"]).render_as_string(hide_password=False)
    return make_conninfo(plain, options=options)


def prepare_queue(url: str) -> None:
    """Make the queue's tables, or make them anew for a newer version of the queue's library.

    Raises:
        ConfigError: a newer version of the library has made them.
        StorageError: the database refused.
    """
    try:
        with psycopg.connect(connection_string(url)) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("jobs"),))
            found = connection.execute(
                "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (SCHEMA,)
            ).fetchone()
            if found is None or _is_older(found[0] or "0"):
                _make_tables(connection, is_first=found is None)
    except psycopg.Error as error:
        raise StorageError(f"the queue of builds cannot be made: {str(error).strip()}") from error


def _is_older(version: str) -> bool:
    """Tell whether tables of a library's version have to be made anew for the installed one."""
    made, installed = _numbers(version), _numbers(procrastinate.__version__)
    if made > installed:
        raise ConfigError(
            f"the queue of builds was made by procrastinate {version}, this machine has "
            f"{procrastinate.__version__}: install the newer one here"
        )
    return made < installed


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2] if part.isdecimal()]


def _make_tables(connection: psycopg.Connection[Any], *, is_first: bool) -> None:
    if not is_first:  # nothing is lost: tickets are made again from the ledger
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        connection.execute(
            "UPDATE public.packages SET state = 'pending', worker = NULL WHERE state = 'running'"
        )
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    connection.execute(cast("Any", SchemaManager.get_schema()))
    connection.execute(cast("Any", f"COMMENT ON SCHEMA {SCHEMA} IS '{procrastinate.__version__}'"))


class QueueWorker:
    """Builds what the ledger of a shared database wants, beside any number of others."""

    def __init__(
        self,
        config: HubConfig,
        *,
        threads: int = 1,
        take_over_s: float = TAKE_OVER_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Connect.

        Args:
            config: the hub's settings; the directory is this machine's room to work in.
            threads: how many the codec may use.
            take_over_s: after this long without a sign of life a worker is dead.
            clock: seconds since 1970.

        Raises:
            ConfigError: a setting is wrong.
            StorageError: the directory or the database cannot be used.
        """
        self._url, self._take_over_s, self._clock = database_url(config), take_over_s, clock
        with opened(config, clock) as parts:
            self._database = parts.database
            self._builder, self._upkeep = Builder(parts, threads), Upkeep(parts, clock)
        try:
            prepare_queue(self._url)
        except BaseException:
            self._database.close()
            raise
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._ledger = Ledger(self._database, self._name, clock)
        self._building: tuple[Ledger, Job] | None = None

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def run(self, stop: threading.Event) -> None:
        """Build until ``stop`` is set; a build in progress is finished first.

        Raises:
            StorageError: the database refused.
        """
        try:
            asyncio.run(self._run(stop))
        except (ConnectorException, psycopg.Error) as error:
            raise StorageError(f"the queue of builds refused: {error.__cause__ or error}") from error

    async def _run(self, stop: threading.Event) -> None:
        connector = procrastinate.PsycopgConnector(
            conninfo=connection_string(self._url), min_size=1, max_size=3, timeout=10
        )
        app = procrastinate.App(connector=connector)
        app.task(name="build", queue=QUEUE, pass_context=True)(self._build)
        async with app.open_async():
            working = asyncio.create_task(self._work(app))
            keeping = asyncio.create_task(self._keep(app, stop))
            try:
                await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (keeping, working):
                    task.cancel()
                results = await asyncio.gather(working, keeping, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            if not stop.is_set():
                raise StorageError("the queue of builds was lost: it is taken up again")

    async def _work(self, app: procrastinate.App) -> None:
        await app.run_worker_async(
            queues=[QUEUE],
            name=self._name,
            concurrency=1,
            install_signal_handlers=False,
            delete_jobs="always",
            fetch_job_polling_interval=5.0,
            update_heartbeat_interval=self._take_over_s / 3,
            stalled_worker_timeout=self._take_over_s,
        )

    def _build(self, context: procrastinate.JobContext, row: int) -> None:
        """Do the build that a ticket is about, if it is still to be done; on a thread of its own."""
        ledger = Ledger(self._database, f"{self._name}/{context.job.id}", self._clock)
        if (job := ledger.claim(row)) is None:
            return
        self._building = ledger, job
        try:
            self._builder.build(ledger, job)
        finally:
            self._building = None

    def abandon(self) -> None:
        """Leave the build in progress, if any, to others; for the moment before this process ends.

        Raises:
            StorageError: the database refused; the others find out by themselves.
        """
        if (building := self._building) is not None:
            ledger, job = building
            ledger.put_back(job)

    # -- tickets ------------------------------------------------------------------------------------

    async def _keep(self, app: procrastinate.App, stop: threading.Event) -> None:
        """Make tickets for what is wanted, and take over from the dead, until told to stop."""
        mark, rounds = -1, 0
        while not stop.is_set():
            seen = self._database.change_mark()
            if seen != mark or rounds % _LOOK_EVERY == 0:
                mark = seen
                await self._take_over(app)
                await self._make_tickets(app)
            if rounds % _LOOK_EVERY == 0:
                await asyncio.to_thread(self._upkeep.run)
            rounds += 1
            await asyncio.sleep(POLL_S)

    async def _make_tickets(self, app: procrastinate.App) -> None:
        wanted = await asyncio.to_thread(self._ledger.wanted)
        waiting = await app.job_manager.list_jobs_async(queue=QUEUE, status="todo")
        known = {cast("int", job.task_kwargs["row"]) for job in waiting}
        for each in wanted:
            if each.id not in known:
                with contextlib.suppress(AlreadyEnqueued):
                    options: Any = {"priority": _priority(each), "queueing_lock": f"build {each.id}"}
                    await app.configure_task("build", queue=QUEUE, **options).defer_async(row=each.id)

    async def _take_over(self, app: procrastinate.App) -> None:
        """Put back the builds of workers that gave no sign of life."""
        running = await asyncio.to_thread(self._ledger.running)
        # In this order: a build that began after the first look is not in it.
        doing = await app.job_manager.list_jobs_async(queue=QUEUE, status="doing")
        stalled = await app.job_manager.get_stalled_jobs(
            queue=QUEUE, seconds_since_heartbeat=cast("int", self._take_over_s)
        )
        dead = {job.id for job in stalled}
        alive = {str(job.id) for job in doing if job.id not in dead}
        left = [(row, worker) for row, worker in running if worker.rpartition("/")[2] not in alive]
        if left and (taken := await asyncio.to_thread(self._ledger.take_back, left)):
            _log.warning("Taking over %d builds of workers that gave no sign of life", taken)
        for job in _keys(dead):
            with contextlib.suppress(ConnectorException):  # another worker has removed it
                await app.job_manager.finish_job_by_id_async(job, Status.FAILED, delete_job=True)


def _priority(wanted: Wanted) -> int:
    """Full packages first, then patches for most devices."""
    return _MAX_PRIORITY if wanted.is_full else min(wanted.devices, _MAX_PRIORITY - 1)


def _keys(jobs: set[int | None]) -> Iterator[int]:
    yield from (job for job in jobs if job is not None)

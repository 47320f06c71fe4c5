"""Kill a publication on PostgreSQL and a bucket at every step it takes. Run as a script by the tests.

Each attempt is a forked process on a copy of the database; the bucket is shared, as it would be in life.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import obstore
from publish_killer import Killer, in_child
from sqlalchemy import event
from sqlalchemy.engine import Engine

from autoglm.hub import Hub, HubConfig
from autoglm.releases import UpdateRequest
from servers import Postgres, name_of


class SharedKiller(Killer):
    """Counts writes to the bucket and to the database as well."""

    def arm(self) -> None:
        super().arm()
        obstore.put = self._around(obstore.put)
        event.listen(Engine, "before_cursor_execute", self._before_statement)

    def _around(self, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.step()
            result = function(*arguments, **options)
            self.step()
            return result

        return counted

    def _before_statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            self.step()


def publish(config: HubConfig, package: Path, at: int) -> int:
    hub = Hub.open(config)
    killer = SharedKiller(at)
    killer.arm()
    hub.publish(package, percent=100)
    os._exit(0)


def judge(config: HubConfig, package: Path) -> int:
    """Return 10 when the release is absent, 11 when it is there, whole; 1 to 9 when something is wrong."""
    with Hub.open(config) as hub:
        versions = [release.manifest.version for release in hub.releases()]
        if versions not in (["v1.2"], ["v1.2", "v1.3"]):
            return 1
        here = len(versions) == 2
        if len(hub.rollouts()) != len(versions):
            return 2
        for release in hub.releases():
            release.manifest.verify(hub._store.release_path(release.manifest))
        again = hub.publish(package, percent=100)
        if again.created is here:
            return 3
        answer = hub.check(UpdateRequest("d1"))
        if answer.target_version != "v1.3" or answer.sha256 is None:
            return 4
        if hub.package_path(answer.sha256).read_bytes() != package.read_bytes():
            return 5
    return 11 if here else 10


def main(template: str, scratch: Path, server: Path, bucket: str, package: Path, stride: int) -> None:
    """Publish into copies of a hub over and over, killed at every stride-th step."""
    postgres, seen = Postgres(server), {10: 0, 11: 0}
    for at in range(1, 1000, stride):
        url = postgres.new_database(name_of(template), f"killed_{at}")
        directory = scratch / str(at)
        shutil.copytree(scratch / "base", directory)
        config = HubConfig(directory, url, storage_url=bucket)
        status = in_child(lambda config=config, at=at: publish(config, package, at))
        verdict = in_child(lambda config=config: judge(config, package))
        postgres.drop(url)
        shutil.rmtree(directory)
        if verdict not in seen:
            raise SystemExit(f"killed at step {at}: verdict {verdict}")
        seen[verdict] += 1
        if status != -signal.SIGKILL:
            break
    print(seen[10], seen[11])


if __name__ == "__main__":
    template, scratch, server, bucket, package, stride = sys.argv[1:]
    main(template, Path(scratch), Path(server), bucket, Path(package), int(stride))

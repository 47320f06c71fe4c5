"""Files of the data directory damaged in every way: the device starts, holds a whole release, and goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import FileRuntime
from autoglm.errors import RollbackError
from autoglm.releases import Manifest
from device.lives import copy_tree

# Stands for a number too long for the usual functions, which are not to fall over it either.
HUGE = "<huge>"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 99, 1.5, float("nan"), 2**70, HUGE),
    *("", "v1.2", "TRIAL", "x" * 1000, "../..", "0" * 64, "\0", "2026-01-01T00:00:00", "\ud800"),
    *([], [1], {}, {"a": {}}),
)
MOMENTS = ("downloading", "applying", "trial", "confirmed")


def bring(lab: Any, hub: Any, moment: str) -> None:
    """Bring the device to a moment of its update from v1.2 to v1.3, and end its process."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    steps = iter([None] * 5)

    def gate() -> str | None:
        state = updater.status().state
        if moment == "downloading" and state == "DOWNLOADING":
            return next(steps, "not now")
        return "not now" if moment == "applying" and state == "APPLYING" else None

    updater.update(FileRuntime(), gate=gate)
    if moment == "confirmed":
        lab.prove(updater)
    expected = "IDLE" if moment == "confirmed" else moment.upper()
    assert updater.status().state == expected
    updater.close(in_order=False)


def require_goes_on(lab: Any, hub: Any, what: str) -> None:
    """Start a few times: each time a whole release or none, never an unforeseen error; v1.4 arrives."""
    hub.target = "v1.4"
    for _ in range(4):
        updater = lab.open()
        if updater.active is not None:
            Manifest.read(updater.active).verify(updater.active)
        result = updater.update(FileRuntime())
        lab.prove(updater)
        status = updater.status()
        if result.code == RollbackError.code and what.startswith("floor.json"):
            return  # a floor that was raised is believed: it forbids, and never allows
        if (status.current, status.confirmed, status.state) == ("v1.4", True, "IDLE"):
            return
    pytest.fail(f"{what}: {status}")


def broken(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Yield what may become of a file's bytes; None stands for a file that is gone."""
    yield "gone", None
    yield "empty", b""
    yield "zeroed", bytes(len(content))
    yield "half", content[: len(content) // 2]
    yield "doubled", content * 2
    yield "noise", chance.randbytes(len(content))
    yield "brackets", b"[" * 100_000
    for _ in range(4):
        place = chance.randrange(len(content)) if content else 0
        flipped = bytes([content[place] ^ (1 << chance.randrange(8))]) if content else b"?"
        yield f"a bit of byte {place}", content[:place] + flipped + content[place + 1 :]


def twisted(
    value: Any, put: Callable[[Any], Any] = lambda new: new, path: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield a JSON value with each of its parts replaced by each of the values that it should not have."""
    for wrong in VALUES:
        yield f"{path} = {str(wrong)[:30]!r}", put(wrong)
    for key, part in value.items() if isinstance(value, dict) else ():
        yield f"{path}.{key} missing", put({name: value[name] for name in value if name != key})
        yield from twisted(part, lambda new, key=key: put(value | {key: new}), f"{path}.{key}")
    if isinstance(value, list) and value:
        yield from twisted(value[0], lambda new: put([new, *value[1:]]), f"{path}[0]")


def damages(root: Path, chance: random.Random) -> Iterator[tuple[str, Path, bytes | None]]:
    """Yield all damage to the device's own files: what it is, where, and the bytes afterwards."""
    held = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in held:
        name = path.relative_to(root)
        if name.parts[0] in ("objects", "releases", "lock"):
            continue
        content = path.read_bytes()
        for what, bytes_after in broken(content, chance):
            yield f"{name}: {what}", path, bytes_after
        if len(name.parts) == 1 and name.suffix == ".json":
            for what, value in twisted(json.loads(content)):
                yield f"{name}: {what}", path, _text(value).encode(errors="surrogatepass")


def _text(value: Any) -> str:
    return json.dumps(value).replace(json.dumps(HUGE), "1" + "0" * 5000)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.long)])
def test_damage_to_any_file_stops_nothing_for_good(lab: Any, hub: Any, moment: str, stride: int) -> None:
    """Missing, empty, zeroed, torn, flipped, or well-formed nonsense in any part of any file of its own."""
    lab.settings = replace(lab.settings, chunk_bytes=1024)
    bring(lab, hub, moment)
    template = lab.root.with_name("template")
    lab.root.rename(template)
    cases = list(damages(template, random.Random(moment)))
    assert len(cases) > 300
    wrong: list[str] = []
    now = lab.clock.seconds
    for what, path, content in cases[random.Random(moment).randrange(stride) :: stride]:
        copy_tree(template, lab.root)
        lab.clock.seconds = now  # or what is signed would expire on the way
        place = lab.root / path.relative_to(template)
        place.unlink()
        if content is not None:
            place.write_bytes(content)
        try:
            require_goes_on(lab, hub, what)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it is, it is wrong
            wrong.append(f"{what}: {error!r}")
        for updater in lab.opened:
            updater.close()
        lab.opened.clear()
        shutil.rmtree(lab.root)
    assert not wrong, "\n".join(wrong)

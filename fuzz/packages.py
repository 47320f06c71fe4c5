"""Fuzzing of whole packages: hostile headers and blocks through ``patch.apply`` and ``patch.inspect``.

    python fuzz/packages.py --runs 1000000      goes on where the last run ended

Real packages of every mode are taken apart into the fields of their headers and their blocks; some of these
are changed, and the whole is put together again with right lengths, check bytes and hashes, so that what is
wrong gets as far as it can. Whatever comes of it, the promises are: a verified output or an error of ours,
nothing left beside, the base untouched, no more memory and no more output than the format allows, and an end.

Input ``i`` depends on nothing but ``i`` and the seeds, so a number is all that is needed to repeat it:
``python fuzz/packages.py --first 4711 --runs 1``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seeds import ROOT, Seed, make_seeds

from autoglm import patch
from autoglm.errors import AutoGLMError
from autoglm.patch import header as headers
from autoglm.patch import zstd

MEMORY_BYTES = 192 << 20
OUTPUT_BYTES = 64 << 20
SECONDS_EACH = 20
_EDGES = (0, 1, 2, 3, 7, 8, 16, 31, 63, 64, 65, 127, 128, 255, 256, 639, 640, 2047, 2048, 32767, 65535)
_LARGE = (1 << 19, (1 << 19) + 1, 1 << 22, 1 << 23, 1 << 28, (1 << 31) - 1, 1 << 32, 1 << 44, (1 << 44) + 1)


# ---- hostile packages


def number_bytes(value: int) -> bytes:
    """Return a number as the format writes it."""
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def _value(piece: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(piece))


@dataclass
class Draft:
    """A package while it is being changed."""

    rng: random.Random
    seed: Seed
    pieces: list[bytes]
    blocks: list[bytes]

    def change_number(self) -> None:
        """Make a number another one: a limit, a neighbour, another field's, or any."""
        at = self.rng.choice(self.seed.numbers[self.rng.choice([*self.seed.numbers])])
        value, way = _value(self.pieces[at]), self.rng.random()
        if way < 0.35:
            made = max(0, value + self.rng.choice((-2, -1, 1, 2, 64, -64)))
        elif way < 0.7:
            made = self.rng.choice(_EDGES if way < 0.6 else _LARGE)
        elif way < 0.9:
            made = self.rng.getrandbits(self.rng.randrange(1, 63))
        else:
            self.pieces[at] = number_bytes(value)[:-1] + bytes((value & 0x7F | 0x80, 0))
            return
        self.pieces[at] = number_bytes(made)

    def swap_numbers(self) -> None:
        """Exchange two numbers of a kind, such as frequencies of a table, whose sum stays."""
        places = self.seed.numbers[self.rng.choice([*self.seed.numbers])]
        first = self.rng.randrange(len(places))
        second = (first + self.rng.randrange(1, 30)) % len(places)
        a, b = places[first], places[second]
        self.pieces[a], self.pieces[b] = self.pieces[b], self.pieces[a]

    def change_bytes(self) -> None:
        """Change a byte of any field: a name, a hash, an entry of a map."""
        at = self.rng.randrange(len(self.pieces))
        if self.pieces[at]:
            self.pieces[at] = _flipped(self.rng, self.pieces[at])

    def move_pieces(self) -> None:
        """Leave out, repeat or move a run of fields."""
        start = self.rng.randrange(len(self.pieces))
        run = self.pieces[start : start + self.rng.choice((1, 1, 2, 5, 20))]
        if self.rng.random() < 0.6:
            del self.pieces[start : start + len(run)]
        if self.rng.random() < 0.6:
            place = self.rng.randrange(len(self.pieces) + 1)
            self.pieces[place:place] = run

    def change_block(self) -> None:
        """Damage a block, and tell the header its hash and length as if it were meant."""
        if not self.blocks or len(self.pieces) != len(self.seed.pieces):
            return
        number = self.rng.randrange(len(self.blocks))
        block = _flipped(self.rng, self.blocks[number])
        way = self.rng.random()
        if way < 0.15:
            block = block[: self.rng.randrange(1, len(block) + 1)]
        elif way < 0.3:
            block += self.rng.randbytes(self.rng.randrange(1, 400))
        elif way < 0.4:
            block = block[:132] + self.rng.randbytes(self.rng.randrange(1, 3000))
        self.blocks[number] = block
        count = len(self.blocks)
        self.pieces[number - 3 * count] = number_bytes(len(block))
        self.pieces[number - count] = hashlib.sha256(block).digest()

    def assembled(self) -> bytes:
        """Return the package, with everything that follows from the rest made right."""
        body = b"".join(self.pieces)
        stored = zstd.compress(body, level=1)
        check = hashlib.sha256(stored).digest()[:8]
        head = headers.PREAMBLE.pack(headers.MAGIC, headers.VERSION, 0, len(stored), len(body), check)
        return head + stored + b"".join(self.blocks)


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def hostile(seed: Seed, rng: random.Random) -> bytes:
    """Return a changed package."""
    draft = Draft(rng, seed, list(seed.pieces), list(seed.blocks))
    ways = (draft.change_number, draft.swap_numbers, draft.change_bytes)
    if rng.random() < 0.4:
        draft.change_block()
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            rng.choices(ways, (6, 2, 2))[0]()
        if rng.random() < 0.15:
            draft.move_pieces()
    package = draft.assembled()
    if rng.random() < 0.05:
        package = _flipped(rng, package)
    if rng.random() < 0.03:
        package = package[: rng.randrange(len(package))] + rng.randbytes(rng.choice((0, 0, 40)))
    return package


# ---- promises


class BrokenPromiseError(Exception):
    """What a hostile package must never bring about."""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(*_: object) -> None:
        raise BrokenPromiseError(f"no end after {SECONDS_EACH} seconds")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def attempt(seed: Seed, content: bytes, rng: random.Random, directory: Path) -> str:
    """Inspect and apply a package; return what came of it, in few words.

    Raises:
        BrokenPromiseError: something that must not be.
    """
    package, place = directory / "p", directory / "out"
    package.write_bytes(content)
    pin = _pin(content) if rng.random() < 0.2 else None
    partial = directory / "partial" if rng.random() < 0.05 else None
    threads = 2 if rng.random() < 0.01 else 1
    try:
        with _deadline():
            if rng.random() < 0.1:
                patch.inspect(package)
            report = patch.apply(
                seed.base, package, place / "x", header=pin, partial=partial, threads=threads
            )
        outcome, expected = "applied", ["x"]
        if _size(place / "x") != report.output_bytes:
            raise BrokenPromiseError("the output is not as long as announced")
    except AutoGLMError as error:
        words = re.sub(r"['\"/.\w-]*[\d/'\"][^ ]*", "_", str(error))
        outcome, expected = f"{type(error).__name__}: {' '.join(words.split()[:9])}", []
    left = [path.name for path in place.iterdir()]
    if left != expected:
        raise BrokenPromiseError(f"left behind: {left}")
    for path in (place / "x", directory / "partial"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return outcome


def _size(path: Path) -> int:
    return sum(
        file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
    )


def _pin(content: bytes) -> patch.HeaderPin:
    """Return the pin of a package as it is: what a signer would sign who was deceived."""
    stored = headers.PREAMBLE.unpack(content[: headers.PREAMBLE.size])[3] if len(content) > 28 else 0
    head = content[: headers.PREAMBLE.size + stored]
    return patch.HeaderPin(len(head), hashlib.sha256(head).hexdigest())


def _limit_resources() -> None:
    """Bound memory above what is in use, and every file that is written."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES,) * 2)


def run(first: int, runs: int, seconds: float, directory: Path) -> tuple[int, Counter[str]]:
    """Try inputs from number ``first`` on; return how many there were, and what came of them.

    Raises:
        BrokenPromiseError: with the input's number; the package lies in ``build/fuzz/found``.
    """
    seeds = make_seeds(directory)
    (directory / "out").mkdir()
    before = _fingerprint(seeds)
    _limit_resources()
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    done = 0
    while done < runs and time.monotonic() < end:
        rng = random.Random(first + done)
        seed = seeds[rng.randrange(len(seeds))]
        content = hostile(seed, rng)
        try:
            outcomes[attempt(seed, content, rng, directory)] += 1
        except Exception as error:
            found = ROOT / "build" / "fuzz" / "found"
            found.mkdir(parents=True, exist_ok=True)
            (found / f"package-{first + done}.wpatch").write_bytes(content)
            raise BrokenPromiseError(f"input {first + done}: {traceback.format_exc()}") from error
        done += 1
    if _fingerprint(seeds) != before:
        raise BrokenPromiseError("a base was written to")
    return done, outcomes


def _fingerprint(seeds: list[Seed]) -> list[str]:
    paths = [path for seed in seeds if seed.base for path in (seed.base, *sorted(seed.base.rglob("*")))]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]


def main() -> None:
    """Read the command line, go on where the last run ended, and print what came of the inputs."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--first", type=int, help="number of the first input; by default the one after the last"
    )
    given = parser.parse_args()
    state_path = ROOT / "build" / "fuzz" / "packages.json"
    state = json.loads(state_path.read_text()) if given.first is None and state_path.exists() else {}
    first = given.first if given.first is not None else state.get("next", 0)
    start = time.monotonic()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        try:
            done, outcomes = run(first, given.runs, given.seconds, Path(directory))
        except BrokenPromiseError as error:
            sys.exit(str(error))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    seconds = round(time.monotonic() - start)
    if given.first is None:
        outcomes.update(state.get("outcomes", {}))
        seconds += state.get("seconds", 0)
        state_path.parent.mkdir(parents=True, exist_ok=True)
        state = {"next": first + done, "seconds": seconds, "outcomes": dict(outcomes.most_common())}
        state_path.write_text(json.dumps(state, indent=1))
    for outcome, count in outcomes.most_common():
        print(f"{count:8} {outcome}")
    print(f"{outcomes.total()} packages in {seconds} s, peak memory {peak} MB")


if __name__ == "__main__":
    main()

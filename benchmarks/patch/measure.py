"""Measure every codec on every pair: sizes, times and memory, each act in a process of its own.

Within a pair the codecs take turns, round after round, so that a busy machine slows all alike; times are
medians of the rounds. Making that takes longer than ``PATIENCE_SECONDS`` is done once. An act that outlives
its budget is killed, and the result says so.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import entropy
import peers
from peers import Peer

PATIENCE_SECONDS = 2.0
_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Act:
    """One process: seconds of the act alone, of the whole process, and its peak memory."""

    seconds: float
    process_seconds: float
    peak_kib: int


@dataclass
class Result:
    """One codec on one pair; times are medians in seconds, memory is MiB over a bare interpreter.

    Attributes:
        note: why figures are missing, "" when all are there.
        over_entropy: of our own package, how much it is above its bound.
    """

    pair: str
    width: str
    codec: str
    has_base: bool
    new_bytes: int
    bytes: int = 0
    make_s: float = 0.0
    apply_s: float = 0.0
    apply_process_s: float = 0.0
    make_mib: float = 0.0
    apply_mib: float = 0.0
    over_entropy: float | None = None
    note: str = ""

    @property
    def share(self) -> float:
        """Package bytes over bytes of the new file."""
        return self.bytes / self.new_bytes


@dataclass(frozen=True)
class Files:
    """A pair on the disk."""

    pair: str
    width: str
    old: Path
    new: Path


@dataclass
class _Contest:
    """The codecs of one pair while they take turns."""

    files: Files
    scratch: Path
    threads: int
    budget: float
    bare_kib: int
    made: dict[str, list[Act]] = field(default_factory=dict)
    applied: dict[str, list[Act]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def delta(self, codec: str) -> Path:
        source = peers.ZSTD_19 if codec == peers.ZSTD_PROGRAM else codec
        return self.scratch / f"{source.replace(' ', '_')}.delta"

    def act(self, codec: str, what: str) -> Act | None:
        """Run one act; None, with the reason noted, when it does not come to its end."""
        result = self.scratch / "result"
        result.unlink(missing_ok=True)
        paths = (self.files.old, self.files.new, self.delta(codec), result)
        command = [sys.executable, str(_CHILD), codec, what, str(self.threads), *map(str, paths)]
        start = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.budget, check=True)
        except subprocess.TimeoutExpired:
            self.failed[codec] = f"{what} takes over {self.budget:.0f} s"
            return None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["killed"])[-1]
            self.failed[codec] = f"{what} failed: {last[:120]}"
            return None
        seconds = time.perf_counter() - start
        if what == "apply" and codec not in ("nothing", "sha256") and not self._same(result):
            raise SystemExit(f"{codec} did not restore {self.files.width} {self.files.pair}")
        said = json.loads(done.stdout)
        return Act(said["seconds"], seconds, said["peak_kib"])

    def _same(self, result: Path) -> bool:
        return result.read_bytes() == self.files.new.read_bytes()

    def take_turn(self, codec: str) -> None:
        """Make unless that was slow, then apply."""
        if codec in self.failed:
            return
        before = self.made.setdefault(codec, [])
        if codec not in ("nothing", "sha256", peers.ZSTD_PROGRAM) and (
            not before or before[0].seconds < PATIENCE_SECONDS
        ):
            act = self.act(codec, "make")
            if act is None:
                return
            before.append(act)
        act = self.act(codec, "apply")
        if act is not None:
            self.applied.setdefault(codec, []).append(act)

    def result(self, peer: Peer) -> Result:
        files = self.files
        result = Result(files.pair, files.width, peer.name, peer.has_base, files.new.stat().st_size)
        result.note = self.failed.get(peer.name, "")
        made, applied = self.made.get(peer.name, []), self.applied.get(peer.name, [])
        if made:
            result.bytes = self.delta(peer.name).stat().st_size
            result.make_s = statistics.median(act.seconds for act in made)
            result.make_mib = self._mib(made)
        if applied:
            result.apply_s = statistics.median(act.seconds for act in applied)
            result.apply_process_s = statistics.median(act.process_seconds for act in applied)
            result.apply_mib = self._mib(applied)
        if made and peer.name == peers.OURS:
            result.over_entropy = entropy.distance(self.delta(peer.name)).share
        return result

    def _mib(self, acts: list[Act]) -> float:
        return max(0, max(act.peak_kib for act in acts) - self.bare_kib) / 1024


def bare_interpreter() -> int:
    """Return the peak memory of an interpreter that does nothing, in KiB."""
    command = [sys.executable, str(_CHILD), "nothing", "apply", "1", ".", ".", ".", "."]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["peak_kib"]


def measure_pair(
    files: Files, codecs: Sequence[Peer], *, threads: int, budget: float, rounds: int
) -> Iterator[Result]:
    """Yield each codec's result on one pair, the decoders that are measured beside them last.

    Args:
        files: the pair.
        codecs: which.
        threads: for our codec.
        budget: seconds that one act may take.
        rounds: how often the codecs take turns.
    """
    hashing = Peer("sha256", (), lambda: (_nothing, _nothing), has_base=False)
    decoder = peers.program_decoder()
    with tempfile.TemporaryDirectory() as scratch:
        contest = _Contest(files, Path(scratch), threads, budget, bare_interpreter())
        able = [peer for peer in codecs if not _reason(peer, files.pair)]
        extra = [hashing]
        if not decoder.missing() and any(peer.name == peers.ZSTD_19 for peer in able):
            extra.append(decoder)
        for _ in range(rounds):
            for peer in (*able, *extra):
                contest.take_turn(peer.name)
        for peer in codecs:
            reason = _reason(peer, files.pair)
            if reason:
                size = files.new.stat().st_size
                yield Result(files.pair, files.width, peer.name, peer.has_base, size, note=reason)
            else:
                yield contest.result(peer)
        for peer in extra:
            yield contest.result(peer)


def _nothing(*_: Path) -> None: ...


def _reason(peer: Peer, pair: str) -> str:
    return peer.missing() or ("" if peer.knows(pair) else "does not know this type")


def as_json(results: Sequence[Result]) -> str:
    """Return the results as a JSON list."""
    return json.dumps([asdict(result) for result in results], indent=1)

"""What a hot swap costs: the pause against a decode step, and staging's effect on the time between tokens.

Two releases of the nano's size answer a steady load of streams of different lengths. In turn the other
release is staged and examined, swapped in, and rolled back. Every stream is compared with what its release
answers alone, so a torn or truncated one would be counted. The time between tokens is that of each stream, on
the engine's thread: of two tokens that both came while staging, or both while nothing else went on.

    python benchmarks/swap.py [--streams 8] [--repeats 10] [--tokens 64 128] [--old DIR --new DIR] [--json]

Without directories, two releases with random weights are made; sizes, and so times, are the same. With
``--cores 0`` the process keeps to one core, with ``--cores 0,1`` to two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from autoglm.engine import Engine, GenerationRequest, Sampling
from autoglm.engine.sequence import Sequence
from autoglm.model.checkpoint import write_release
from autoglm.model.config import CONFIGS
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Message
from autoglm.model.tokenizer import CONTROLS
from autoglm.releases import HealthCheck, HealthPrompt

PROMPTS = [f"question number {number}: what is on the screen?" for number in range(16)]


@dataclass(frozen=True)
class Figures:
    """The result; times in milliseconds.

    Attributes:
        gap_ms: median time between two tokens of a stream under the load.
        swap_pause_ms: median time that a swap or rollback held the engine's thread.
        swap_pause_max_ms: the longest.
        pause_share: the median pause over the median time between two tokens.
        p99_ms: 99th percentile of the time between tokens, nothing else going on; median of the rounds.
        staging_p99_ms: the same while a release is staged and examined.
        loading_p99_ms, examining_p99_ms: its parts.
        staging_ratio: the staging percentile over the quiet one of the same round; median of the rounds.
        staging_ratio_max: the largest.
        stage_ms: median time to stage.
        examine_ms: median time of the self-test.
        swaps: commits made.
        streams: streams completed.
        torn: of these, streams that were truncated or differ from their release's own answer.
    """

    gap_ms: float
    swap_pause_ms: float
    swap_pause_max_ms: float
    pause_share: float
    p99_ms: float
    staging_p99_ms: float
    loading_p99_ms: float
    examining_p99_ms: float
    staging_ratio: float
    staging_ratio_max: float
    stage_ms: float
    examine_ms: float
    swaps: int
    streams: int
    torn: int


def make_release(directory: Path, version: str, seed: int) -> Path:
    """Write a release of the nano's size with random weights that never end an answer."""
    names = [*CONTROLS, *sorted(ByteLevel.alphabet())]
    backend = Backend(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    torch.manual_seed(seed)
    state = PhoneModel(CONFIGS["nano"]).state_dict()
    state["table.weight"][: len(CONTROLS)] = 0.0
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect="", max_tokens=32)
    write_release(
        directory / version, config=CONFIGS["nano"], tokenizer=backend.to_str(), state=state,
        health=HealthCheck((prompt,)), model="autoglm-phone-9b", variant="random", name="random",
        version=version, counter=seed,
    )  # fmt: skip
    return directory / version


Span = tuple[float, float]


class Clock:
    """The time before each token of every live stream, taken on the engine's thread when it is handed out."""

    def __init__(self) -> None:
        self._gaps: list[Span] = []  # (when, seconds since the stream's last token)
        since = Sequence.since_last_token

        def timed(sequence: Sequence) -> tuple[float, bool]:
            seconds, is_first = since(sequence)
            if not is_first and threading.current_thread().name == "autoglm-engine":
                self._gaps.append((time.perf_counter(), seconds))
            return seconds, is_first

        Sequence.since_last_token = timed  # type: ignore[method-assign]

    def gaps_ms(self, span: Span) -> list[float]:
        """Return the times between two tokens that both came within the span."""
        start, end = span
        return [seconds * 1e3 for at, seconds in self._gaps if start <= at - seconds and at <= end]


@dataclass(frozen=True)
class Round:
    """When the parts of one round began and ended."""

    quiet: Span
    loading: Span
    examining: Span

    @property
    def staging(self) -> Span:
        """Both parts of staging."""
        return self.loading[0], self.examining[1]


class Load:
    """Streams that run until told to stop, each compared with its release's own answer."""

    def __init__(
        self, engine: Engine, references: dict[str, list[tuple[int, ...]]], tokens: tuple[int, int]
    ) -> None:
        self.done = self.torn = 0
        self._engine, self._references, self._tokens = engine, references, tokens
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def running(self, streams: int) -> Iterator[None]:
        """Keep this many streams going for the length of the block."""
        clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(streams)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self._stop.set()
            for client in clients:
                client.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)  # lengths differ, so that streams do not begin all at once
        while not self._stop.is_set():
            number, length = chance.randrange(len(PROMPTS)), chance.randint(*self._tokens)
            generation = self._engine.submit(request(PROMPTS[number], length))
            alone = self._references[generation.release][number][:length]
            whole = generation.result().token_ids == alone
            with self._lock:
                self.done += 1
                self.torn += not whole


def request(prompt: str, length: int) -> GenerationRequest:
    """Return a greedy request of so many tokens."""
    return GenerationRequest([Message("user", prompt)], sampling=Sampling(), max_tokens=length)


def answers_alone(
    directory: Path, threads: int, tokens: tuple[int, int]
) -> tuple[str, list[tuple[int, ...]]]:
    """Return a release's version and its answer to each prompt, asked one by one."""
    with Engine.load(directory, devices="cpu", threads=threads, max_batch=1) as engine:
        answers = [engine.submit(request(prompt, tokens[1])).result().token_ids for prompt in PROMPTS]
        return engine.active_version, answers


def measure(
    old: Path, new: Path, *, streams: int, repeats: int, threads: int, tokens: tuple[int, int]
) -> Figures:
    """Run the load and the swaps."""
    references = dict(answers_alone(directory, threads, tokens) for directory in (old, new))
    pauses: list[float] = []
    rounds: list[Round] = []
    clock = Clock()
    with Engine.load(old, devices="cpu", threads=threads, max_batch=streams) as engine:
        load = Load(engine, references, tokens)
        with load.running(streams):
            wait_for_streams(load, streams)
            for _ in range(repeats):
                began = time.perf_counter()
                wait_for_streams(load, 3 * streams)
                middle = time.perf_counter()
                staged = engine.stage(new)
                loaded = time.perf_counter()
                if not engine.self_test(staged).ok:
                    raise SystemExit(f"{new} fails its self-test")
                rounds.append(Round((began, middle), (middle, loaded), (loaded, time.perf_counter())))
                pauses.append(engine.swap(staged).pause_s * 1e3)
                wait_for_streams(load, 2 * streams)
                pauses.append(engine.rollback().pause_s * 1e3)
                wait_for_streams(load, 2 * streams)  # those of the other release end
        swaps = engine.stats().swaps
    return figures(clock, rounds, pauses, swaps, load)


def figures(clock: Clock, rounds: list[Round], pauses: list[float], swaps: int, load: Load) -> Figures:
    """Return what was measured."""
    quiet = [percentile(clock.gaps_ms(each.quiet), 99) for each in rounds]
    staging = [percentile(clock.gaps_ms(each.staging), 99) for each in rounds]
    ratios = [busy / idle for busy, idle in zip(staging, quiet, strict=True)]
    gap = statistics.median(gap for each in rounds for gap in clock.gaps_ms(each.quiet))
    return Figures(
        gap_ms=gap,
        swap_pause_ms=statistics.median(pauses),
        swap_pause_max_ms=max(pauses),
        pause_share=statistics.median(pauses) / gap,
        p99_ms=statistics.median(quiet),
        staging_p99_ms=statistics.median(staging),
        loading_p99_ms=statistics.median(percentile(clock.gaps_ms(each.loading), 99) for each in rounds),
        examining_p99_ms=statistics.median(percentile(clock.gaps_ms(each.examining), 99) for each in rounds),
        staging_ratio=statistics.median(ratios),
        staging_ratio_max=max(ratios),
        stage_ms=statistics.median((each.loading[1] - each.loading[0]) * 1e3 for each in rounds),
        examine_ms=statistics.median((each.examining[1] - each.examining[0]) * 1e3 for each in rounds),
        swaps=swaps,
        streams=load.done,
        torn=load.torn,
    )


def wait_for_streams(load: Load, count: int) -> None:
    """Let ``count`` further streams complete."""
    wanted = load.done + count
    while load.done < wanted:
        time.sleep(0.01)


def percentile(values: list[float], rank: int) -> float:
    """Return the ``rank``-th percentile, 0 of fewer than two values."""
    return 0.0 if len(values) < 2 else statistics.quantiles(values, n=100)[rank - 1]


def table(figures: Figures) -> str:
    """Return the figures as a Markdown table."""
    rows = (f"| {name} | {value:.3f} |" for name, value in asdict(figures).items())
    return "\n".join(("| what | value |", "|---|---|", *rows))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs=2, default=(64, 128), help="shortest and longest answer")
    parser.add_argument("--cores", help="keep to these, such as 0 or 0,1")
    parser.add_argument("--old", type=Path, help="release directory that serves first")
    parser.add_argument("--new", type=Path, help="release directory to swap in")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    with tempfile.TemporaryDirectory() as scratch:
        old = options.old or make_release(Path(scratch), "v1.2", 12)
        new = options.new or make_release(Path(scratch), "v1.3", 13)
        found = measure(
            old, new, streams=options.streams, repeats=options.repeats, threads=options.threads,
            tokens=(options.tokens[0], options.tokens[1]),
        )  # fmt: skip
    print(json.dumps(asdict(found)) if options.json else table(found))


if __name__ == "__main__":
    main()

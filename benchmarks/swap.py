"""What a hot swap costs: the pause against a decode step, and staging's effect on the time between tokens.

Two releases of the nano's size answer a steady load of streams. In turn the other release is staged and
examined, swapped in, and rolled back. Every stream is compared with what its release answers alone, so a
torn or truncated one would be counted.

    python benchmarks/swap.py [--streams 8] [--repeats 10] [--threads 1] [--old DIR --new DIR] [--json]

Without directories, two releases with random weights are made; sizes, and so times, are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from autoglm.engine import Engine, GenerationRequest, Sampling
from autoglm.model.checkpoint import write_release
from autoglm.model.config import CONFIGS
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Message
from autoglm.model.tokenizer import CONTROLS
from autoglm.releases import HealthCheck, HealthPrompt

ANSWER_TOKENS = 96
PROMPTS = [f"question number {number}: what is on the screen?" for number in range(16)]


@dataclass(frozen=True)
class Figures:
    """The result; times in milliseconds.

    Attributes:
        decode_step_ms: median time between two tokens of a stream under the load.
        swap_pause_ms: median time that a swap or rollback held the engine's thread.
        swap_pause_max_ms: the longest.
        pause_share: the median pause over the median decode step.
        p99_ms: 99th percentile of the time between tokens, nothing else going on.
        staging_p99_ms: the same while a release is staged and examined.
        stage_ms: median time to stage and examine.
        swaps: commits made.
        streams: streams completed.
        torn: of these, streams that were truncated or differ from their release's own answer.
    """

    decode_step_ms: float
    swap_pause_ms: float
    swap_pause_max_ms: float
    pause_share: float
    p99_ms: float
    staging_p99_ms: float
    stage_ms: float
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


class Clock:
    """The times at which a model finished a decode step, taken on the engine's thread."""

    def __init__(self, engine: Engine) -> None:
        self.times: list[float] = []
        model, decode = engine.active.model, engine.active.model.decode

        def timed(*arguments: Any) -> torch.Tensor:
            hidden = decode(*arguments)
            self.times.append(time.perf_counter())
            return hidden

        model.decode = timed  # type: ignore[method-assign]

    def gaps_ms(self, spans: list[tuple[float, float]]) -> list[float]:
        """Return the times between steps that lie wholly inside one of the spans."""
        return [
            (later - earlier) * 1e3
            for earlier, later in zip(self.times, self.times[1:], strict=False)
            if any(start <= earlier and later <= end for start, end in spans)
        ]


class Load:
    """Streams that run until told to stop, each compared with its release's own answer."""

    def __init__(self, engine: Engine, references: dict[str, list[tuple[int, ...]]]) -> None:
        self.done = self.torn = 0
        self._engine, self._references = engine, references
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
        while not self._stop.is_set():
            number = (number + 1) % len(PROMPTS)
            generation = self._engine.submit(request(PROMPTS[number]))
            whole = generation.result().token_ids == self._references[generation.release][number]
            with self._lock:
                self.done += 1
                self.torn += not whole


def request(prompt: str) -> GenerationRequest:
    """Return a greedy request of fixed length."""
    return GenerationRequest([Message("user", prompt)], sampling=Sampling(), max_tokens=ANSWER_TOKENS)


def answers_alone(directory: Path, threads: int) -> tuple[str, list[tuple[int, ...]]]:
    """Return a release's version and its answer to each prompt, asked one by one."""
    with Engine.load(directory, devices="cpu", threads=threads, max_batch=1) as engine:
        answers = [engine.submit(request(prompt)).result().token_ids for prompt in PROMPTS]
        return engine.active_version, answers


def measure(old: Path, new: Path, *, streams: int, repeats: int, threads: int) -> Figures:
    """Run the load and the swaps."""
    references = dict(answers_alone(directory, threads) for directory in (old, new))
    pauses: list[float] = []
    quiet: list[tuple[float, float]] = []
    staging: list[tuple[float, float]] = []
    with Engine.load(old, devices="cpu", threads=threads, max_batch=streams) as engine:
        clock, load = Clock(engine), Load(engine, references)
        with load.running(streams):
            for _ in range(repeats):
                began = time.perf_counter()
                wait_for_streams(load, streams)
                quiet.append((began, time.perf_counter()))
                staged = engine.stage(new)
                if not engine.self_test(staged).ok:
                    raise SystemExit(f"{new} fails its self-test")
                staging.append((quiet[-1][1], time.perf_counter()))
                pauses.append(engine.swap(staged).pause_s * 1e3)
                wait_for_streams(load, streams)
                pauses.append(engine.rollback().pause_s * 1e3)
        swaps = engine.stats().swaps
    gaps, staging_gaps = clock.gaps_ms(quiet), clock.gaps_ms(staging)
    step = statistics.median(gaps)
    return Figures(
        decode_step_ms=step,
        swap_pause_ms=statistics.median(pauses),
        swap_pause_max_ms=max(pauses),
        pause_share=statistics.median(pauses) / step,
        p99_ms=percentile(gaps, 99),
        staging_p99_ms=percentile(staging_gaps, 99),
        stage_ms=statistics.median((end - start) * 1e3 for start, end in staging),
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
    """Return the ``rank``-th percentile."""
    return statistics.quantiles(values, n=100)[rank - 1]


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
    parser.add_argument("--old", type=Path, help="release directory that serves first")
    parser.add_argument("--new", type=Path, help="release directory to swap in")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        old = options.old or make_release(Path(scratch), "v1.2", 12)
        new = options.new or make_release(Path(scratch), "v1.3", 13)
        figures = measure(old, new, streams=options.streams, repeats=options.repeats, threads=options.threads)
    print(json.dumps(asdict(figures)) if options.json else table(figures))


if __name__ == "__main__":
    main()

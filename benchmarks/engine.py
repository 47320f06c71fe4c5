"""What the engine's cache and scheduler are worth, on the shipped model.

    python benchmarks/engine.py [--threads 1] [--cancelled 10000] [--json]

``dialogue``
    a phone agent's steps, each with all the screenshots before it: seconds to the first token with the cache
    of the steps before, and from an empty one.
``long prompt``
    the longest pause between two tokens of four running answers while a prompt of about 1,900 tokens is let
    in: in pieces, and whole.
``cancelled``
    resident memory after requests were given up at every stage, one after another, against that after the
    first thousand; and pages that were not given back.

Answers with and without the cache are compared, token for token.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autoglm import patch
from autoglm.engine import Engine, GenerationRequest, Sampling
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.model.prompt import ImagePart, Message, Part, TextPart

PACKAGE = Path(__file__).resolve().parents[1] / "models" / "autoglm-phone-nano" / "v1.2.wpatch"
ON = Sampling(logit_bias={2: -100.0, 10: -100.0})  # never the tokens that end a turn


def screenshot(seed: int) -> Image.Image:
    """Return a picture of a phone's size."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2400, 1080, 3), dtype=np.uint8))


def dialogue(num_steps: int) -> list[GenerationRequest]:
    """Return the requests of an agent's dialogue."""
    messages, requests = [Message("system", "You operate a phone. " * 10)], list[GenerationRequest]()
    for step in range(num_steps):
        seen: list[Part] = [ImagePart(screenshot(step)), TextPart(f"open the chat, step {step}")]
        messages.append(Message("user", seen))
        requests.append(GenerationRequest(list(messages), max_tokens=8))
        messages.append(Message("assistant", 'do(action="Launch", app="WeChat")'))
    return requests


def measure_dialogue(directory: Path, threads: int, num_steps: int = 6) -> dict[str, Any]:
    """Ask every step with what is cached of the steps before, then each from an empty cache."""
    requests = dialogue(num_steps)
    with Engine.load(directory, devices="cpu", threads=threads) as engine:
        warm = [engine.submit(request).result() for request in requests]
        stats = engine.stats()
    cold: list[Any] = []
    for request in requests:
        with Engine.load(directory, devices="cpu", threads=threads) as engine:
            cold.append(engine.submit(request).result())
    pairs = zip(warm, cold, strict=True)
    return {
        "first_token_ms": [round(1e3 * c.finished.first_token_s, 1) for c in warm],
        "first_token_cold_ms": [round(1e3 * c.finished.first_token_s, 1) for c in cold],
        "reused": round(stats.reused_tokens / stats.prompt_tokens, 3),
        "answers_that_differ": sum(a.token_ids != b.token_ids for a, b in pairs),
    }


def measure_pause(resident: Resident, prefill_tokens: int) -> float:
    """Return the longest pause in ms between two tokens of four answers while a long prompt comes in."""
    scheduler = Scheduler(WaitingQueue(8), Limits(8, prefill_tokens), lambda sequence, ending: None)
    with torch.inference_mode():
        running = [
            Sequence(GenerationRequest([Message("user", f"{i} hello")], sampling=ON), resident)
            for i in range(4)
        ]
        for sequence in running:
            scheduler.waiting.put(sequence)
        while not all(len(sequence.token_ids) > 5 for sequence in running):
            scheduler.step()
        long = Sequence(GenerationRequest([Message("user", "热更新 tap Maps " * 190)], sampling=ON), resident)
        scheduler.waiting.put(long)
        ends = [time.perf_counter()]
        while not long.token_ids:
            scheduler.step()
            ends.append(time.perf_counter())
        for sequence in (*running, long):
            sequence.generation.cancel()
        scheduler.step()
    return 1e3 * max(later - before for before, later in itertools.pairwise(ends))


def resident_mib() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def measure_cancelled(directory: Path, threads: int, count: int) -> dict[str, Any]:
    """Give up ``count`` requests at random stages; return memory after the first thousand and at the end."""
    chance, after_first = random.Random(1), 0.0
    with Engine.load(directory, devices="cpu", threads=threads, max_batch=4, queue=64) as engine:
        for number in range(count):
            text = f"{number} " + "hello " * chance.randrange(60)
            generation = engine.submit(GenerationRequest([Message("user", text)], sampling=ON))
            for _ in itertools.islice(generation, chance.randrange(3)):
                pass
            generation.cancel()
            if number == min(1000, count) - 1:
                after_first = resident_mib()
        engine.submit(GenerationRequest([Message("user", "the last one")], max_tokens=1)).result()
        while engine.stats().running:  # the last answer is told before its step has ended
            time.sleep(0.01)
        stats, at_end = engine.stats(), resident_mib()
    return {
        "cancelled": stats.cancelled,
        "after_1000_mib": round(after_first, 1),
        "at_end_mib": round(at_end, 1),
        "pages_not_given_back": stats.pages - stats.free_pages,
    }


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description="Measure the engine's cache and scheduler.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cancelled", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as room:
        directory = Path(room) / "v1.2"
        patch.apply(None, PACKAGE, directory)
        figures: dict[str, Any] = {"dialogue": measure_dialogue(directory, arguments.threads)}
        with torch.inference_mode():
            resident = load_resident(directory, Placement())
        pauses: dict[str, list[float]] = {"pieces": [], "whole": []}
        for _ in range(5):
            for name, tokens in (("pieces", Limits().prefill_tokens), ("whole", 1 << 20)):
                resident.pages.forget_all()
                pauses[name].append(measure_pause(resident, tokens))
        figures["long prompt"] = {name: round(statistics.median(times), 1) for name, times in pauses.items()}
        figures["cancelled"] = measure_cancelled(directory, arguments.threads, arguments.cancelled)
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, values in figures.items():
            print(name, *(f"{key}={value}" for key, value in values.items()), sep="\n    ")


if __name__ == "__main__":
    main()

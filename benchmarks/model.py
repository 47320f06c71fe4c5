"""Time the model from end to end, and say what a 9B would take.

    python benchmarks/model.py                           # what this machine can measure
    python benchmarks/model.py latency --requests 100
    python benchmarks/model.py quality --run runs/v1.2   # INT8 against bf16, item by item

``latency``
    A real service on two CPU cores (fewer where there are no two), one client on the same machine. Each
    request sends another screenshot, a PNG of 1080 x 2400 as a data URL, with a question, and gets exactly
    ``--tokens`` tokens back. Time runs from the first byte sent to the last byte read: base64, PNG, resize,
    prefill, decode, JSON. Bar: 95 of 100 within 800 ms.
``estimate``
    Not a measurement: what a 9B recipe would take for the same request on machines of a stated memory
    bandwidth and arithmetic. Decode moves all weights and the cache once a token; prefill computes
    2 operations a weight and token. Both at a stated share of the machine's limit.
``quality``
    ``autoglm model eval`` of a release beside the float weights of its run, rounded to bfloat16.
``gpu``
    Only with a GPU: a 9B with random weights in bfloat16, tokens a second, memory, and the share that is
    reached of the bandwidth that a large copy reaches on the same machine.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
import yaml
from PIL import Image

from autoglm.model.config import CONFIGS
from autoglm.model.image import target_size
from autoglm.model.sizes import size_table
from autoglm.training.screens import render
from shipped import PACKAGES

BAR_MS = 800
SIZE = (1080, 2400)
QUESTION = "屏幕上有设置吗?"
RECIPES = ("9b-int8-pruned", "9b-int4-pruned")
TEXT_TOKENS = 32  # of the question and the template around it


@dataclass(frozen=True)
class Machine:
    """What an estimate is made for: bandwidth in GB/s, arithmetic in tera-operations a second, both as sold.

    ``reached`` is the share of both that is assumed.
    """

    name: str
    bandwidth: float
    operations: float
    reached: float = 0.6


MACHINES = (
    Machine("phone, LPDDR5X 77 GB/s", 77, 40),
    Machine("laptop GPU, 400 GB/s", 400, 80),
    Machine("RTX 4090, 1,008 GB/s", 1008, 330),
    Machine("H100, 3,350 GB/s", 3350, 990),
)


# Latency


@contextmanager
def service(cores: list[int]) -> Iterator[str]:
    """Run the service on some cores, its data in a directory that is deleted; give its address."""
    with tempfile.TemporaryDirectory(prefix="autoglm-latency-") as scratch:
        config = Path(scratch) / "config.yaml"
        settings: dict[str, Any] = {
            "host": "127.0.0.1", "port": 0, "data_dir": str(Path(scratch) / "data"),
            "model": {"store": str(PACKAGES), "device": "cpu"},
            "hub": {"worker": False},
        }  # fmt: skip
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "autoglm.cli", "serve", "--config", str(config)]
        with (Path(scratch) / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, cores)
            )
            try:
                yield address(Path(scratch) / "data" / "service.json", process)
            finally:
                process.terminate()
                process.wait(60)


def address(place: Path, process: subprocess.Popen[bytes], patience_seconds: float = 300) -> str:
    """Wait until the service has written down its address and answers, and return it."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            url = json.loads(place.read_text())["url"]
            if requests.get(f"{url}/v1/models", timeout=5).ok:
                return url
        except (OSError, ValueError, KeyError, requests.RequestException):
            pass
        time.sleep(0.2)
    sys.exit("error: the service did not start")


def screenshots(count: int) -> list[str]:
    """Return screenshots as data URLs, all different: drawn screens at the size of a phone's."""
    rng = random.Random("latency")
    urls: list[str] = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(render(rng).image).resize(SIZE, Image.Resampling.BICUBIC).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


def ask(url: str, picture: str, tokens: int) -> float:
    """Send one request, its end token forbidden so that all answers are as long; return milliseconds."""
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    body = {
        "model": "autoglm-phone-9b", "messages": [{"role": "user", "content": parts}],
        "temperature": 0, "max_tokens": tokens, "logit_bias": {"2": -100},
    }  # fmt: skip
    start = time.perf_counter()
    answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    milliseconds = 1e3 * (time.perf_counter() - start)
    if not answer.ok or answer.json()["usage"]["completion_tokens"] != tokens:
        sys.exit(f"error: the service answered {answer.status_code}: {answer.text[:300]}")
    return milliseconds


def latency(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure requests one after the other, after five that do not count."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    pictures = screenshots(arguments.requests + 5)
    with service(cores) as url:
        times = sorted([ask(url, picture, arguments.tokens) for picture in pictures][5:])
    return {
        "cores": len(cores), "requests": len(times), "tokens": arguments.tokens,
        "load": round(os.getloadavg()[0], 1),
        "median_ms": round(statistics.median(times)), "p95_ms": round(times[int(0.95 * (len(times) - 1))]),
        "worst_ms": round(times[-1]), "bar_ms": BAR_MS,
    }  # fmt: skip


# Estimate


def estimate(recipe: str, machine: Machine, tokens: int) -> dict[str, Any]:
    """Return the milliseconds that a request like the measured one would take, by bytes and operations."""
    config, report = CONFIGS[recipe], size_table(recipe)
    width, height = target_size(*SIZE, config.image)
    prompt = width * height // config.image.patch**2 + TEXT_TOKENS
    blocks = [part for part in report.parts if part.name in ("blocks", "norm", "head")]
    moved = sum(part.bytes for part in blocks) + prompt * report.cache_bytes_per_token
    computed = 2 * prompt * sum(part.parameters for part in blocks if part.name == "blocks")
    prefill = 1e3 * computed / (machine.operations * 1e12 * machine.reached)
    token = 1e3 * moved / (machine.bandwidth * 1e9 * machine.reached)
    return {
        "recipe": recipe, "machine": machine.name, "prompt_tokens": prompt, "prefill_ms": round(prefill),
        "token_ms": round(token, 1), "total_ms": round(prefill + tokens * token),
    }  # fmt: skip


# Printing


def show_latency(found: dict[str, Any]) -> None:
    """Print the measured latency."""
    print(
        f"nano, {found['cores']} cores, load {found['load']}: PNG 1080 x 2400 in, "
        f"{found['tokens']} tokens out, {found['requests']} requests\n"
        f"  median {found['median_ms']} ms, p95 {found['p95_ms']} ms, worst {found['worst_ms']} ms "
        f"(bar: p95 < {found['bar_ms']} ms)",
        flush=True,
    )


def show_estimates(lines: list[dict[str, Any]], tokens: int) -> None:
    """Print the estimates as a table."""
    print(f"estimate, not measured: the same request, {tokens} tokens out, at 60 % of the machine's limits")
    print(f"{'recipe':>16} {'machine':>24} {'prompt':>7} {'prefill':>9} {'a token':>9} {'in all':>9}")
    for line in lines:
        print(
            f"{line['recipe']:>16} {line['machine']:>24} {line['prompt_tokens']:>7} "
            f"{line['prefill_ms']:>6} ms {line['token_ms']:>6} ms {line['total_ms']:>6} ms"
        )


def quality(arguments: argparse.Namespace) -> None:
    """Score a release beside the float weights that it was quantised from."""
    if arguments.run is None:
        print("quality: name the run that the release was quantised from with --run, and --release")
        return
    command = [sys.executable, "-m", "autoglm.cli", "model", "eval", str(arguments.release)]
    command += ["--against", str(arguments.run), "--only", arguments.only]
    command += [] if arguments.items is None else ["--items", str(arguments.items)]
    subprocess.run(command, check=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time the model from end to end.")
    names = ("latency", "estimate", "quality", "gpu")
    parser.add_argument("parts", nargs="*", choices=(*names, []), help="what to do; all if nothing is named")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--release", type=Path, default=PACKAGES / "v1.2.wpatch", help="for quality")
    parser.add_argument("--run", type=Path, help="for quality: the release's run")
    parser.add_argument("--only", default="identity,topics,commands,grammar,screens,speech")
    parser.add_argument("--items", type=int, help="for quality: about how many items of a kind")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or names
    return arguments


def main() -> None:
    """Run what was asked for."""
    arguments = parse()
    if "latency" in arguments.parts:
        show_latency(latency(arguments))
    if "estimate" in arguments.parts:
        lines = [estimate(recipe, machine, arguments.tokens) for recipe in RECIPES for machine in MACHINES]
        show_estimates(lines, arguments.tokens)
    if "quality" in arguments.parts:
        quality(arguments)
    if "gpu" in arguments.parts:
        if not torch.cuda.is_available():
            print("gpu: none here, not run")
            return
        from model_gpu import show_gpu

        show_gpu()


if __name__ == "__main__":
    main()

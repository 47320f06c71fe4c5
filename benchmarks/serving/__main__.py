"""How a service does under load that does not wait for it.

    python benchmarks/serving                                     its own service on the shipped model
    python benchmarks/serving --rate 0.5 --mix agent --tokens 48  one screenshot every two seconds
    python benchmarks/serving --url http://server:8000 --model NAME --key K    any server of OpenAI's API

For each rate, requests arrive as a Poisson process, of the kinds and shares of ``--mix``; latency counts from
the moment at which a request was due. Reported are the time to the first token, between two pieces and to the
end (p50, p95, p99), tokens a second, answers within the goal (goodput), refusals and failures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from load import Outcome, arrivals, run_load
from prompts import KINDS, bodies, parse_mix
from report import Goal, figures, plot, rows

ROOT = Path(__file__).resolve().parents[2]
MIX = "chat=5,agent=2,voice=1,long=1,schema=1"
_END_TOKENS = (2, 10)  # the shipped tokenizer's, for --tokens


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="an address with or without /v1; a service is started without it")
    parser.add_argument("--key", default=os.environ.get("OPENAI_API_KEY", "EMPTY"), help="the API key")
    parser.add_argument("--model", default="autoglm-phone-9b")
    parser.add_argument("--rate", default="0.5,1,2,4", help="requests a second; several, with commas")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds for each rate")
    parser.add_argument("--mix", default=MIX, help=f"shares of {', '.join(KINDS)}")
    parser.add_argument("--max-tokens", type=int, default=48, help="bound on each answer")
    parser.add_argument("--tokens", type=int, help="exactly so many tokens an answer (the shipped tokenizer)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds until a request is given up")
    parser.add_argument("--goal-first-ms", type=float, default=500.0, help="goodput: to the first token")
    parser.add_argument(
        "--goal-gap-ms", type=float, default=100.0, help="goodput: between pieces, on average"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--plot", type=Path, help="an .svg or .png to draw")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def own_service() -> Generator[str]:
    """Run a service on the shipped model in a process of its own."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "autoglm.cli", "serve", "--config", str(ROOT / "config.yaml"),
                   "--host", "127.0.0.1", "--port", "0", "--data", data]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield _listening(process)
        finally:
            process.terminate()
            process.communicate()


def _listening(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said, url = "", ""
    for line in process.stdout:
        said += line
        if found := re.search(r"Server listening on (http://\S+)", line):
            url = found[1]
        if "Hot-update endpoint" in line:
            return url
    sys.exit(f"error: the service did not start:\n{said}")


@contextlib.contextmanager
def progress(what: str, total: int) -> Generator[Callable[[Outcome], None]]:
    """Count answers on a terminal's stderr."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda _: bar.advance(task)


def common_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that every request has."""
    fields: dict[str, Any] = {"model": options.model, "stream": True, "temperature": 0}
    fields |= {"stream_options": {"include_usage": True}, "max_tokens": options.tokens or options.max_tokens}
    if options.tokens:
        fields["logit_bias"] = {str(token): -100 for token in _END_TOKENS}
    return fields


def measure(url: str, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Offer one rate and return the figures, of all requests and by kind."""
    mix, goal = parse_mix(options.mix), Goal(options.goal_first_ms / 1e3, options.goal_gap_ms / 1e3)
    due = arrivals(rate, options.duration, options.seed)
    made = bodies(mix, len(due), options.seed, common_fields(options))
    with progress(f"{rate:g} a second", len(due)) as done:
        outcomes = asyncio.run(run_load(url, options.key, due, made, options.timeout, done))
    kinds = {"all": outcomes} | {kind: [o for o in outcomes if o.kind == kind] for kind in mix}
    errors = sorted({outcome.error for outcome in outcomes if outcome.error})
    return {
        "rate": rate,
        "kinds": {kind: figures(each, options.duration, goal) for kind, each in kinds.items() if each},
        "errors": errors[:5],
    }


def warm_up(url: str, options: argparse.Namespace) -> None:
    """Ask each kind twice, other words than later: what is made at first use is no part of the figures."""
    made = [
        bodies({kind: 1.0}, 2, options.seed + 1_000_003, common_fields(options))
        for kind in parse_mix(options.mix)
    ]
    flat = [body for each in made for body in each]
    asyncio.run(run_load(url, options.key, [0.0] * len(flat), flat, options.timeout, lambda _: None))


def main() -> None:
    """Measure and print."""
    options = parse()
    rates = [float(rate) for rate in options.rate.split(",")]
    with contextlib.nullcontext(options.url) if options.url else own_service() as address:
        url = address.rstrip("/").removesuffix("/v1")
        warm_up(url, options)
        load = os.getloadavg()[0]
        runs = [measure(url, rate, options) for rate in rates]
    if options.plot:
        plot(runs, options.plot)
    if options.json:
        print(json.dumps({"load_before": load, "mix": options.mix, "runs": runs}, indent=1))
        return
    print(f"mix {options.mix}; {options.duration:g} s a rate; ms from the due moment; load {load:.1f} before")
    print(*rows(runs), sep="\n")
    for run in runs:
        for error in run["errors"]:
            print(f"at {run['rate']:g} a second: {error}")


if __name__ == "__main__":
    main()

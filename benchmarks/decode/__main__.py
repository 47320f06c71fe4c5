"""Decoding on a CPU beside llama.cpp and ``transformers``, at equal layer sizes and random weights.

    python benchmarks/decode [--shapes nano,half-b,9b] [--threads 1,2] [--rounds 5] [--no-transformers]

``beside``
    one sequence. llama.cpp at Q8_0 (8.5 bits a weight); ours as the engine holds the weights, all for the
    native core, all for torch's INT8 kernel, and as floats; ``generate`` in float32 and bfloat16.
``batch``
    ours at 1 to 16 sequences: milliseconds a step and tokens a second.

Engines take turns, a run of steps each, in processes of their own that keep their model loaded; a figure is
the median of all steps after the first third. With one thread the CPU's time is taken: a neighbour on the
machine stretches it less than the clock's. With more, the clock's, on a machine that must be quiet. Peers
live in environments under ``build/decode`` that the first run makes; llama.cpp is compiled there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import ROOT, python_of
from shapes import SHAPES, Shape

HERE = Path(__file__).resolve().parent
STEPS = 96
BATCHES = (1, 2, 4, 8, 16)
LIMIT = 1.2  # times llama.cpp's time, the bar


@dataclass(frozen=True)
class Engine:
    """One way to decode: a name for the table, the peer that runs it, and how it holds weights."""

    name: str
    peer: str
    weights: str = ""
    batch: int = 1


LLAMA = Engine("llama.cpp Q8_0", "llama")
OURS = Engine("ours", "ours", "rule")
BESIDE = (
    LLAMA,
    OURS,
    Engine("ours, native core", "ours", "core"),
    Engine("ours, torch INT8", "ours", "int8"),
    Engine("ours, floats", "ours", "float"),
)
GENERATE = (
    Engine("transformers float32", "transformers", "float32"),
    Engine("transformers bfloat16", "transformers", "bfloat16"),
)


class Child:
    """A process that decodes when told to."""

    def __init__(self, engine: Engine, shape: Shape, threads: int) -> None:
        python = Path(sys.executable) if engine.peer == "ours" else python_of(engine.peer)
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(HERE / f"{engine.peer}_peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        gguf = ROOT / "build" / "decode" / f"{shape.name}.gguf"
        gguf.parent.mkdir(parents=True, exist_ok=True)
        job = {"shape": shape.to_dict(), "threads": threads, "steps": STEPS, "file": str(gguf)}
        self._ask(job | {"weights": engine.weights, "batch": engine.batch})

    def run(self, *, by_cpu: bool) -> float:
        """Return the median milliseconds of a step, once warm."""
        steps = json.loads(self._ask({}))[STEPS // 3 :]
        return statistics.median(cpu if by_cpu else wall for wall, cpu in steps)

    def _ask(self, message: dict[str, Any]) -> str:
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            sys.exit("error: a process without pipes")
        sink.write(json.dumps(message) + "\n")
        sink.flush()
        answer = source.readline()
        if not answer:
            sys.exit("error: an engine ended; see above")
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def measure(engines: tuple[Engine, ...], shape: Shape, threads: int, rounds: int) -> dict[str, float]:
    """Let engines take turns; return each one's median milliseconds a step."""
    children = {engine.name: Child(engine, shape, threads) for engine in engines}
    times: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            times[name].append(child.run(by_cpu=threads == 1))
    for child in children.values():
        child.close()
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def beside(shape: Shape, threads: int, rounds: int, engines: tuple[Engine, ...]) -> dict[str, Any]:
    """Compare engines on one sequence."""
    times = measure(engines, shape, threads, rounds)
    ratio = round(times[OURS.name] / times[LLAMA.name], 2)
    return {"threads": threads, "ms_a_step": times, "ours_to_llama.cpp": ratio, "holds": ratio <= LIMIT}


def batch(shape: Shape, rounds: int) -> dict[int, dict[str, float]]:
    """Measure ours at growing batches, one thread."""
    engines = tuple(Engine(str(size), "ours", "rule", size) for size in BATCHES)
    times = measure(engines, shape, 1, rounds)
    speeds = ((size, times[str(size)]) for size in BATCHES)
    return {size: {"ms": ms, "tokens_s": round(1e3 * size / ms)} for size, ms in speeds}


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of one shape."""
    for table in figures["beside"]:
        print(f"\n{name}, {table['threads']} thread(s), batch 1")
        for engine, ms in table["ms_a_step"].items():
            print(f"  {engine:24}{ms:10.3f} ms {1e3 / ms:10.1f} tokens/s")
        verdict = "holds" if table["holds"] else "DOES NOT HOLD"
        print(f"  ours / llama.cpp: {table['ours_to_llama.cpp']} (bar {LIMIT}: {verdict})")
    print(f"\n{name}, 1 thread, ours by batch")
    for size, row in figures["batch"].items():
        print(f"  {size:>4}{row['ms']:10.3f} ms a step {row['tokens_s']:10} tokens/s")


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description="Measure decoding on a CPU beside other engines.")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which sizes")
    parser.add_argument("--threads", default="1,2", help="threads, one table each")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--no-transformers", action="store_true", help="llama.cpp alone")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    arguments = parser.parse_args()
    engines = BESIDE if arguments.no_transformers else (*BESIDE, *GENERATE)
    figures: dict[str, Any] = {}
    for name in arguments.shapes.split(","):
        shape = SHAPES[name]
        tables = [beside(shape, int(n), arguments.rounds, engines) for n in arguments.threads.split(",")]
        figures[name] = {"weights": shape.weights, "beside": tables, "batch": batch(shape, arguments.rounds)}
        if not arguments.json:
            show(name, figures[name])
    if arguments.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

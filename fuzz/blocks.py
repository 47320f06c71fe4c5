"""Coverage-guided fuzzing of the C core: build the targets, run them, keep what they found.

    python fuzz/blocks.py run decode --runs 1000000     needs clang with libFuzzer
    python fuzz/blocks.py replay decode --rounds 3000   any C compiler with sanitizers will do
    python fuzz/blocks.py replay decode --memory        looks for memory read before it is written; clang
    python fuzz/blocks.py save decode                   the smallest corpus of the same coverage
    python fuzz/blocks.py add decode FILE...            inputs, such as those of crashes, into the corpus

Everything but the corpus in ``fuzz/corpus`` lies under ``build/fuzz``: the targets, the corpus at work, from
which an interrupted run goes on, inputs that broke a promise, and a log of all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "fuzz"
NATIVE = ROOT / "src" / "autoglm" / "patch" / "native"
TARGETS = ("decode", "round_trip")
MAX_INPUT_BYTES = 512
CORPUS_BYTES = 120_000

_COMMON = ("-std=c99", "-D_DEFAULT_SOURCE", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra")
_CHECKS = "address,undefined"
# The core's comparisons are of no use to the fuzzer: there are no magic numbers in a block.
_GUIDED = ("-fsanitize=fuzzer-no-link", "-fno-sanitize-coverage=trace-cmp")


class FuzzError(Exception):
    """A target could not be built, or broke a promise."""


def find_clang() -> str | None:
    """Return a clang that has libFuzzer, or None."""
    for name in ("clang", *(f"clang-{version}" for version in range(22, 13, -1))):
        if shutil.which(name):
            runtime = _output(name, "-print-runtime-dir")
            if next(Path(runtime).glob("libclang_rt.fuzzer*"), None) if runtime else None:
                return name
    return None


def build(target: str, directory: Path, compiler: str, *, guided: bool, checks: str = _CHECKS) -> Path:
    """Compile the core with sanitizers and link it to a target.

    Args:
        target: one of ``TARGETS``.
        directory: for objects and the program.
        compiler: its command.
        guided: with libFuzzer, else with a plain ``main`` that replays inputs.
        checks: the sanitizers.

    Raises:
        FuzzError: the compiler refused.
    """
    directory.mkdir(parents=True, exist_ok=True)
    common = (compiler, *_COMMON, f"-I{HARNESS}", f"-I{NATIVE}", "-fno-sanitize-recover=all")
    core = (*common, "-O1", f"-fsanitize={checks}", "-include", HARNESS / "levels.h")
    core += _GUIDED if guided else ()
    light = checks.replace(",undefined", "")
    objects = [_compiled(source, directory, *core) for source in sorted(NATIVE.glob("*.c"))]
    for name in ("input", "scene", target, *(() if guided else ("replay",))):
        objects.append(_compiled(HARNESS / f"{name}.c", directory, *common, "-O2", f"-fsanitize={light}"))
    program = directory / target
    _run(compiler, f"-fsanitize={'fuzzer,' if guided else ''}{checks}", *objects, "-o", program)
    return program


def _compiled(source: Path, directory: Path, *command: str | Path) -> Path:
    """Compile one source, unless nothing that it may include has changed since."""
    made = directory / f"{source.parent.name}-{source.stem}.o"
    depends = (source, *NATIVE.glob("*.h"), *HARNESS.glob("*.h"))
    if not made.exists() or made.stat().st_mtime < max(path.stat().st_mtime for path in depends):
        _run(*command, "-c", source, "-o", made)
    return made


def unpack(target: str, directory: Path) -> Path:
    """Put the kept corpus of a target into a directory, as a file an input."""
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(HARNESS / "corpus" / f"{target}.zip") as archive:
        for name in archive.namelist():
            (directory / Path(name).name).write_bytes(archive.read(name))
    return directory


def pack(target: str, inputs: list[bytes]) -> Path:
    """Keep these inputs, in an order and with names that depend on nothing else."""
    path = HARNESS / "corpus" / f"{target}.zip"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for content in sorted(set(inputs), key=lambda content: (len(content), content)):
            info = zipfile.ZipInfo(hashlib.sha256(content).hexdigest()[:12])
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def replay(target: str, directory: Path, rounds: int, *, memory: bool = False) -> str:
    """Run the kept corpus and so many changed inputs under sanitizers, without libFuzzer.

    With ``memory``, clang's MemorySanitizer takes the place of the others.

    Raises:
        FuzzError: a sanitizer or the target found something; the message has its report.
    """
    if memory:
        program = build(target, directory / "memory", _clang(), guided=False, checks="memory")
    else:
        program = build(target, directory / "replay", "cc", guided=False)
    inputs = sorted(unpack(target, directory / "inputs" / target).iterdir())
    return _run(program, str(rounds), *inputs)


def run(target: str, runs: int, seconds: int) -> dict[str, float]:
    """Fuzz until so many executions or seconds are over; return what libFuzzer counted.

    Raises:
        FuzzError: there is no clang with libFuzzer, or a promise was broken; ``build/fuzz/found`` has the
            input.
    """
    program = _guided(target)
    work, found = _work(target), ROOT / "build" / "fuzz" / "found"
    found.mkdir(parents=True, exist_ok=True)
    options = (f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}")
    more = ("-print_final_stats=1", "-entropic=0", "-len_control=20", f"-artifact_prefix={found}/{target}-")
    start = time.monotonic()
    done = subprocess.run([program, *options, *more, work], stderr=subprocess.PIPE, text=True, check=False)
    counts = _counts(done.stderr) | {"seconds": round(time.monotonic() - start)}
    with (ROOT / "build" / "fuzz" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"target": target, "failed": done.returncode != 0, **counts}) + "\n")
    if done.returncode:
        raise FuzzError(done.stderr[-6000:])
    return counts


def save(target: str) -> Path:
    """Replace the kept corpus by the fewest inputs at work with the same coverage; small ones come first."""
    smaller = ROOT / "build" / "fuzz" / "minimised" / target
    shutil.rmtree(smaller, ignore_errors=True)
    smaller.mkdir(parents=True)
    options = ("-merge=1", "-set_cover_merge=1", f"-max_len={MAX_INPUT_BYTES}")
    _run(_guided(target), *options, smaller, _work(target))
    inputs = sorted((path.read_bytes() for path in smaller.iterdir()), key=len)
    while sum(map(len, inputs)) > CORPUS_BYTES:
        inputs.pop()
    return pack(target, inputs)


def add(target: str, files: list[Path]) -> Path:
    """Add inputs to the kept corpus."""
    kept = unpack(target, ROOT / "build" / "fuzz" / "inputs" / target)
    return pack(target, [path.read_bytes() for path in (*kept.iterdir(), *files)])


def _clang() -> str:
    if clang := find_clang():
        return clang
    raise FuzzError("clang with libFuzzer is missing: on Debian, install clang and libclang-rt-14-dev")


def _guided(target: str) -> Path:
    return build(target, ROOT / "build" / "fuzz" / "guided", _clang(), guided=True)


def _work(target: str) -> Path:
    directory = ROOT / "build" / "fuzz" / "corpus" / target
    if (HARNESS / "corpus" / f"{target}.zip").exists():
        return unpack(target, directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _counts(output: str) -> dict[str, float]:
    """Read executions and coverage from libFuzzer's last lines."""
    executions = re.findall(r"stat::number_of_executed_units:\s*(\d+)", output) or [0]
    edges, features = (re.findall(r"cov: (\d+) ft: (\d+)", output) or [(0, 0)])[-1]
    return {"executions": int(executions[-1]), "edges": int(edges), "features": int(features)}


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(*command: str | Path) -> str:
    environment = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, check=False
    )
    if done.returncode:
        raise FuzzError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    return done.stdout


def main() -> None:
    """Read the command line and do what it says."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("command", choices=("run", "replay", "save", "add"))
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=-1, help="executions; without it only --seconds counts")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3000, help="replay: changed inputs after the corpus")
    parser.add_argument("--memory", action="store_true", help="replay: with MemorySanitizer")
    given = parser.parse_args()
    try:
        if given.command == "run":
            print(json.dumps(run(given.target, given.runs, given.seconds)))
        elif given.command == "replay":
            print(replay(given.target, ROOT / "build" / "fuzz", given.rounds, memory=given.memory), end="")
        else:
            print(save(given.target) if given.command == "save" else add(given.target, given.files))
    except FuzzError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

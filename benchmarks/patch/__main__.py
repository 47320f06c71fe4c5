"""Weight patches beside every peer, on pairs that were really trained.

    python benchmarks/patch                                   # every pair there is, every codec, one thread
    python benchmarks/patch --width narrow --pairs bf16-1e-5 int8-kept --no-slow
    python benchmarks/patch --old OLD.safetensors --new NEW.safetensors
    python benchmarks/patch --markdown table.md --plot sizes.svg --save results.json

On every pair this takes hours, most of them in bsdiff, HDiffPatch and zstd -19; ``--no-slow`` takes minutes.
Pairs that are missing are made first, which takes half an hour of one core once (see ``pairs.py``);
``release`` is the shipped v1.2 -> v1.3. Every patch is applied and compared with the new file; a codec that
does not restore it stops the run. On a terminal the tables are drawn; elsewhere they are Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pairs
import peers
import report
from measure import Files, Result, as_json, measure_pair
from shipped import unpack

RELEASE = "release"


def shipped(scratch: Path) -> Files:
    """Return the weights of the shipped pair, unpacked."""
    old, new = unpack(scratch)
    return Files(RELEASE, "nano", old / "model.safetensors", new / "model.safetensors")


def given(old: Path, new: Path) -> Files:
    """Return a pair named on the command line: two files, or two releases."""
    old, new = (path / "model.safetensors" if path.is_dir() else path for path in (old, new))
    return Files(new.parent.name, "given", old, new)


def found(options: argparse.Namespace, scratch: Path) -> Iterator[Files]:
    """Yield what is to be measured, made first where it is missing."""
    if options.old and options.new:
        yield given(options.old, options.new)
        return
    if options.pairs is None or RELEASE in options.pairs:
        yield shipped(scratch)
    wanted = [pair for pair in pairs.PAIRS if options.pairs is None or pair.name in options.pairs]
    for width in options.width:
        directory = options.directory / width
        pairs.make_pairs(directory, pairs.SHAPES[width], wanted)
        for pair in wanted:
            old, new = (directory / pair.name / f"{side}{pair.suffix}" for side in ("old", "new"))
            if new.exists():  # a pair that could not be made was said to be so
                yield Files(pair.name, width, old, new)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [RELEASE, *(pair.name for pair in pairs.PAIRS)]
    parser.add_argument("--pairs", nargs="*", choices=known, help="only these")
    parser.add_argument("--width", nargs="*", choices=[*pairs.SHAPES], default=[*pairs.SHAPES])
    parser.add_argument("--old", type=Path, help="a release or a model file of your own")
    parser.add_argument("--new", type=Path, help="its successor")
    parser.add_argument("--directory", type=Path, default=pairs.DIRECTORY, help="where pairs are kept")
    parser.add_argument("--no-slow", action="store_true", help="leave out the peers that take minutes")
    parser.add_argument("--peers", nargs="*", help="only these codecs, by name")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds a peer may take for one act")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each codec takes")
    parser.add_argument("--threads", type=int, default=1, help="for wpatch; the peers have one")
    parser.add_argument("--times", action="store_true", help="also a table of every codec's times and memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=Path, help="keep the results as JSON here, after every pair")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--plot", type=Path, help="draw the sizes here, PNG or SVG")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[peers.Peer]:
    """Return the codecs to run; ours always."""
    return [
        peer
        for peer in peers.codecs(options.threads)
        if peer.name == peers.OURS
        or (not (options.no_slow and peer.is_slow) and (not options.peers or peer.name in options.peers))
    ]


def left_out(options: argparse.Namespace) -> list[str]:
    """Return a line that names the codecs that were not asked for, none when all were."""
    run = {peer.name for peer in chosen(options)}
    absent = [peer.name for peer in peers.codecs() if peer.name not in run]
    return [f"Not run: {', '.join(absent)}."] if absent else []


def main() -> None:
    """Parse, measure, print."""
    options = parse()
    console = Console(stderr=True)
    measured: list[list[Result]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for files in found(options, Path(scratch)):
            console.print(f"{files.width} {files.pair} ...")
            limits = {"threads": options.threads, "budget": options.budget, "rounds": options.rounds}
            measured.append(list(measure_pair(files, chosen(options), **limits)))
            if options.save:
                options.save.write_text(as_json([result for pair in measured for result in pair]))
    publish(options, measured)


def publish(options: argparse.Namespace, measured: list[list[Result]]) -> None:
    """Print the results and write what was asked for."""
    standings = [s for results in measured if (s := report.standing(results, options.budget))]
    tables = {
        "Size of the patch, % of the new file": report.sizes(measured),
        "wpatch against its bars": report.standings(standings),
    }
    if options.times:
        tables["Every codec"] = report.times(measured)
    text = "\n\n".join(report.markdown(rows) for rows in tables.values())
    remarks = "\n".join([*report.notes(measured), *left_out(options)])
    if options.markdown:
        options.markdown.write_text(f"{text}\n\n{remarks}\n")
    if options.plot:
        report.plot(options.plot, standings)
    if options.json:
        print(as_json([result for pair in measured for result in pair]))
    elif sys.stdout.isatty():
        for title, rows in tables.items():
            report.show(Console(), title, rows)
        print(remarks)
    else:
        print(f"{text}\n\n{remarks}")


if __name__ == "__main__":
    main()

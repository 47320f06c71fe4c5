"""Results as tables and as a plot: what each codec takes, how ours stands to its bars.

Ratios to hashing and to ``zstd -d --patch-from`` are given twice: of the act alone, between files and with
our syncing and verifying, and of whole processes, our interpreter's start included (zstd's is its own
program). The bars are held against the first: on a few megabytes the second measures the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import bars
import peers
from measure import Result

_REFERENCES = ("sha256", peers.ZSTD_PROGRAM)
_SHORT = {
    peers.OURS: "wpatch",
    peers.FULL: "wpatch, full",
    "zstd -3 patch-from": "zstd -3",
    peers.ZSTD_19: "zstd -19",
    "HDiffPatch (zstd)": "HDiff",
    "pcodec, difference": "pcodec",
    "XOR, planes, zstd -19": "XOR",
    "OpenZL, ulp difference": "OpenZL",
    "zstd -19, no base": "zstd full",
    "ZipNN, no base": "ZipNN full",
    "z4ai max, no base": "z4ai full",
}


@dataclass(frozen=True)
class Times:
    """A ratio, 0 for none; ``at_least`` when the peer was stopped at its budget, which then counts."""

    ratio: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥ ' if self.at_least else ''}{self.ratio:.0f}" if self.ratio else "–"


@dataclass(frozen=True)
class Standing:
    """Our codec on one pair beside its peers.

    Attributes:
        ours: its result.
        best: the smallest peer, None when no peer ran.
        of_best: our bytes over the best peer's.
        bar: what ``of_best`` must not exceed.
        over_zstd, over_bsdiff: how many times faster we make.
        over_sha256, over_zstd_d: how many times slower we apply: (act, whole process).
        failed: the bars that are missed, in words.
    """

    ours: Result
    best: Result | None
    of_best: float
    bar: bars.Bar
    over_zstd: Times
    over_bsdiff: Times
    over_sha256: tuple[float, float]
    over_zstd_d: tuple[float, float]

    @property
    def failed(self) -> list[str]:
        ours, bar = self.ours, self.bar
        entropy = ours.over_entropy or 0.0
        checks = {
            "size": self.best is not None and self.of_best > bar.of_best_peer,
            "share": bar.of_file is not None and ours.share > bar.of_file,
            "make": 0 < self.over_zstd.ratio < bars.MAKE_OVER_ZSTD
            or 0 < self.over_bsdiff.ratio < bars.MAKE_OVER_BSDIFF,
            "apply": self.over_sha256[0] > bar.apply_over_sha256 or self.over_zstd_d[0] > 1,
            "memory": ours.apply_mib > bars.MAX_APPLY_MIB,
            "entropy": ours.width == bars.WIDE and entropy > bars.MAX_OVER_ENTROPY,
        }
        return [name for name, missed in checks.items() if missed]


def standing(results: Sequence[Result], budget: float) -> Standing | None:
    """Compare our result with the others of one pair; None when ours failed."""
    by_name = {result.codec: result for result in results}
    ours = by_name.get(peers.OURS)
    if ours is None or not ours.bytes:
        return None
    others = [r for r in results if r.bytes and r.codec not in (peers.OURS, peers.FULL, *_REFERENCES)]
    best = min(others, key=lambda r: r.bytes, default=None)

    def faster(codec: str) -> Times:
        peer = by_name.get(codec)
        if peer is None:
            return Times(0.0)
        stopped = peer.note.startswith("make takes over")
        return Times(_ratio(budget if stopped else peer.make_s, ours.make_s), at_least=stopped)

    def seconds(codec: str) -> tuple[float, float]:
        peer = by_name.get(codec)
        return (peer.apply_s, peer.apply_process_s) if peer else (0.0, 0.0)

    hashing, decoding, program = seconds("sha256"), seconds(peers.ZSTD_19), seconds(peers.ZSTD_PROGRAM)

    return Standing(
        ours,
        best,
        ours.bytes / best.bytes if best else 0.0,
        bars.bar(ours.pair, ours.width),
        faster(peers.ZSTD_19),
        faster(peers.BSDIFF),
        (_ratio(ours.apply_s, hashing[0]), _ratio(ours.apply_process_s, hashing[1])),
        # the program's act is its whole process
        (_ratio(ours.apply_s, decoding[0]), _ratio(ours.apply_process_s, program[0])),
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


def _both(ratios: tuple[float, float]) -> str:
    return " / ".join(f"{ratio:.1f}" if ratio else "–" for ratio in ratios)


Rows = list[list[str]]


def sizes(pairs: Iterable[Sequence[Result]]) -> Rows:
    """Return the table of sizes, in % of the new file: a pair a row, a codec a column; * the best."""
    rows: Rows = []
    for results in pairs:
        shown = [result for result in results if result.codec not in _REFERENCES]
        if not rows:
            rows.append(["pair", "MB", *(_SHORT.get(r.codec, r.codec) for r in shown)])
        least = min((r.bytes for r in shown if r.bytes), default=0)
        cells = [f"{100 * r.share:.2f}{'*' * (r.bytes == least)}" if r.bytes else "–" for r in shown]
        rows.append([f"{results[0].width} {results[0].pair}", f"{results[0].new_bytes / 1e6:.1f}", *cells])
    return rows


def standings(found: Iterable[Standing]) -> Rows:
    """Return the table of our codec against its bars."""
    head = ["pair", "bytes", "%", "best peer", "of it", "bar", "make s", "× zstd -19", "× bsdiff", "apply s"]
    rows = [[*head, "÷ sha256", "÷ zstd -d", "make MiB", "apply MiB", "over entropy", "missed"]]
    for s in found:
        ours, best = s.ours, s.best
        of_file = f", {100 * s.bar.of_file:.1f} %" if s.bar.of_file is not None else ""
        rows.append(
            [
                f"{ours.width} {ours.pair}",
                f"{ours.bytes:,}",
                f"{100 * ours.share:.2f}",
                _SHORT.get(best.codec, best.codec) if best else "–",
                f"{s.of_best:.3f}",
                f"{s.bar.of_best_peer:.2f}{of_file}".removeprefix("inf, "),
                f"{ours.make_s:.2f}",
                str(s.over_zstd),
                str(s.over_bsdiff),
                f"{ours.apply_s:.3f}",
                _both(s.over_sha256),
                _both(s.over_zstd_d),
                f"{ours.make_mib:.0f}",
                f"{ours.apply_mib:.0f}",
                "–" if ours.over_entropy is None else f"{100 * ours.over_entropy:.1f} %",
                ", ".join(s.failed) or "none",
            ]
        )
    return rows


def times(pairs: Iterable[Sequence[Result]]) -> Rows:
    """Return the table of every codec's times and memory."""
    head = ["pair", "codec", "bytes", "%", "make s", "apply s", "process s", "make MiB", "apply MiB", "note"]
    rows = [head]
    for results in pairs:
        for r in results:
            figures = (r.make_s, r.apply_s, r.apply_process_s)
            rows.append(
                [
                    f"{r.width} {r.pair}",
                    r.codec,
                    f"{r.bytes:,}" if r.bytes else "–",
                    f"{100 * r.share:.2f}" if r.bytes else "–",
                    *(f"{value:.3f}" if value else "–" for value in figures),
                    *(f"{value:.0f}" if value else "–" for value in (r.make_mib, r.apply_mib)),
                    r.note,
                ]
            )
    return rows


def notes(pairs: Iterable[Sequence[Result]]) -> list[str]:
    """Return why figures are missing, a line for each codec and reason."""
    found: dict[str, list[str]] = {}
    for results in pairs:
        for r in results:
            if r.note:
                found.setdefault(f"{r.codec}: {r.note}", []).append(f"{r.width} {r.pair}")
    return [f"{reason} ({', '.join(where)})" for reason, where in sorted(found.items())]


def markdown(rows: Rows) -> str:
    """Return rows, the first a head, as a Markdown table."""
    head, *body = rows
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def show(console: Console, title: str, rows: Rows) -> None:
    """Print rows as a table for people."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def plot(path: Path, found: Sequence[Standing]) -> None:
    """Draw our share and the best peer's for every pair; the suffix of ``path`` says PNG or SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [s for s in found if s.best]
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(shown) + 1.2), layout="constrained")
    places = range(len(shown))
    theirs, ours = [100 * s.best.share for s in shown if s.best], [100 * s.ours.share for s in shown]
    axes.barh([p + 0.2 for p in places], theirs, 0.4, label="best peer")
    axes.barh([p - 0.2 for p in places], ours, 0.4, label="wpatch")
    names = [f"{s.ours.width} {s.ours.pair} ({s.best.codec})" for s in shown if s.best]
    axes.set_yticks(list(places), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("patch, % of the new file")
    axes.legend()
    figure.savefig(path)

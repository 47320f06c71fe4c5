"""Do one thing in a process of its own and say how long it took and how much memory it held.

    python child.py CODEC make|apply THREADS OLD NEW DELTA MADE

prints ``{"seconds": ..., "peak_kib": ...}``. ``nothing`` in place of a codec does nothing: an interpreter's
own time and memory; ``sha256`` hashes NEW. Whatever a codec imports is imported before the clock starts, and
counts in the memory and in the time of the whole process, which the caller takes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def peak_kib() -> int:
    """Return the peak resident memory of this process or of its largest child.

    Linux hands ``ru_maxrss`` on from the process that started this one, so its status file is read instead.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return max(own, children)


def action(codec: str, what: str, threads: int, paths: list[Path]) -> Callable[[], object]:
    """Import what is needed and return what shall be timed."""
    old, new, delta, made = paths
    if codec == "nothing":
        return lambda: None
    if codec == "sha256":
        import hashlib

        return lambda: hashlib.sha256(new.read_bytes()).digest()
    import peers

    known = {peer.name: peer for peer in (*peers.codecs(threads), peers.program_decoder())}
    make, apply = known[codec].load()
    if what == "make":
        return lambda: make(old, new, delta)
    return lambda: apply(old, delta, made)


def main() -> None:
    """Parse, run, print."""
    codec, what, threads, *paths = sys.argv[1:]
    run = action(codec, what, int(threads), [Path(path) for path in paths])
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_kib": peak_kib()}))


if __name__ == "__main__":
    main()

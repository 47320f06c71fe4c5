"""How much memory this process may still take: what the machine has left, and every limit set on it.

What it guarantees: the smallest of the limits that it can read; a limit that cannot be read counts as none.
It measures and promises nothing: another process may take the memory first.

    >>> free_bytes() > 0
    True
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# A cgroup without a limit of version 1 says a number near 2**63.
_NO_LIMIT = 1 << 60


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may still take.

    Args:
        proc, cgroups: where the kernel says so.
    """
    return max(0, min([_available(proc), *_below_cgroups(proc, cgroups), *_below_limits(proc)]))


def _available(proc: Path) -> int:
    """Return the machine's available memory: what can be had without swapping (Linux 3.14 and later)."""
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no /proc: assume all is available
    except (OSError, ValueError):
        return _NO_LIMIT


def _below_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the room below the limit of each control group around this process, of both versions.

    In a container the group's own path is often not mounted, and the root is the group itself.
    """
    for version_1, path in sorted(_groups(proc) | {(False, "/"), (True, "/")}):
        inner = PurePosixPath(path)
        for group in (inner, *inner.parents):
            directory = cgroups / ("memory" if version_1 else "") / group.relative_to("/")
            limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version_1 else _NAMES
            found, taken = _number(directory / limit), _number(directory / used)
            if found is not None and taken is not None and found < _NO_LIMIT:
                yield max(0, found - taken + _reclaimable(directory / "memory.stat"))


_NAMES = ("memory.max", "memory.current")


def _groups(proc: Path) -> set[tuple[bool, str]]:
    """Return (is version 1, path) of the groups that count this process's memory."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return set()
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    found = {(bool(names), path) for _, names, path in parts if names == "" or "memory" in names.split(",")}
    return {(version_1, path) for version_1, path in found if path.startswith("/") and ".." not in path}


def _reclaimable(stat: Path) -> int:
    """Return the file pages that count as used in a group but give way when memory is asked for."""
    try:
        entries = dict(line.split() for line in stat.read_text().splitlines())
        return int(entries.get("total_inactive_file", entries["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return 0


def _below_limits(proc: Path) -> Iterator[int]:
    """Yield the room below the limits set on this process (``ulimit -v``, ``ulimit -d``)."""
    try:
        import resource
    except ImportError:  # some phones' Python has none
        return
    for kind, line in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit, used = resource.getrlimit(kind)[0], _status(proc / "self/status", line)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield max(0, limit - used)


def _status(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

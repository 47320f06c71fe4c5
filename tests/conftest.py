"""What every test may use, and the rule for tests that need what a machine may lack.

A test marked ``needs("espeak-ng")`` is deselected, and listed at the end, where that program is missing.
`run_tests.sh` installs all of them as root, so nothing is deselected there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from servers import _template, bucket_url, empty_postgres_url, postgres, postgres_url, s3_endpoint

# Fixtures of every test; see servers.py.
__all__ = ["_template", "bucket_url", "empty_postgres_url", "postgres", "postgres_url", "s3_endpoint"]

# One thread a process: the machine's cores are shared, and threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_missing: dict[str, list[str]] = {}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_pty() -> bool:
    try:
        ends = os.openpty()
    except OSError:
        return False
    for end in ends:
        os.close(end)
    return True


def _has(need: str) -> bool:
    if need == "root":
        return os.geteuid() == 0
    if need == "gpu":
        return _has_cuda()
    if need == "pty":
        return _has_pty()
    if need == "dejavu":
        return any(Path("/usr/share/fonts").rglob("DejaVuSansCondensed.ttf"))
    if need == "wqy-zenhei":
        return any(Path("/usr/share/fonts").rglob("wqy-zenhei*"))
    return shutil.which(need) is not None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*what): programs or rights that the test cannot do without")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        needs = [need for mark in item.iter_markers("needs") for need in mark.args]
        absent = [need for need in needs if not _has(need)]
        (dropped if absent else kept).append(item)
        for need in absent:
            _missing.setdefault(need, []).append(item.nodeid)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for need, nodes in sorted(_missing.items()):
        terminalreporter.section(f"deselected: this machine has no {need}")
        for node in nodes:
            terminalreporter.line(f"  {node}")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent

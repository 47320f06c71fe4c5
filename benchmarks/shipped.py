"""The shipped releases, unpacked: what the benchmarks measure first."""

from __future__ import annotations

from pathlib import Path

from autoglm import patch

PACKAGES = Path(__file__).resolve().parent.parent / "models" / "autoglm-phone-nano"


def unpack(directory: Path) -> tuple[Path, Path]:
    """Unpack v1.2 and v1.3 into ``directory`` and return their release directories."""
    old, new = directory / "v1.2", directory / "v1.3"
    patch.apply(None, PACKAGES / "v1.2.wpatch", old)
    patch.apply(old, PACKAGES / "v1.3.wpatch", new)
    return old, new

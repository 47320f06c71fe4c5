"""The fonts that screens are drawn with, all from Debian: fonts-wqy-zenhei (Chinese) and fonts-dejavu."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont

from autoglm.errors import ConfigError

CHINESE = "wqy-zenhei.ttc"
LATIN: tuple[str, ...] = (
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansCondensed.ttf", "DejaVuSansCondensed-Bold.ttf"),
    *("DejaVuSerif.ttf", "DejaVuSansMono.ttf"),
)
_ROOTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


@functools.cache
def font_path(file: str = CHINESE) -> Path:
    """Find an installed font file.

    Raises:
        ConfigError: it is not installed.
    """
    for root in _ROOTS:
        for path in sorted(Path(root).expanduser().rglob(file)):
            return path
    package = "fonts-wqy-zenhei" if file == CHINESE else "fonts-dejavu"
    raise ConfigError(f"the font {file} is missing: install the package {package}")


@functools.lru_cache(maxsize=512)
def font(file: str, pixels: int) -> ImageFont.FreeTypeFont:
    """Return a font at a size in pixels."""
    return ImageFont.truetype(str(font_path(file)), pixels)

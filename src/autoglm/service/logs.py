"""The service's log lines: ``[INFO] text`` on the console and in the log file, or one JSON object a line.

While the service starts, only its own start-up lines and warnings are written, so that what is documented
about a start is exactly what is seen; :func:`open_up` then lets every part speak at the configured level.
Other libraries are heard from warnings up.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.service.settings import Settings

STARTUP = "autoglm.service.start"
_PACKAGE = "autoglm"


class _TextFormatter(logging.Formatter):
    """``[LEVEL] message``, as in the documentation."""

    def __init__(self) -> None:
        super().__init__("[%(levelname)s] %(message)s")


class _JSONFormatter(logging.Formatter):
    """One JSON object a line: ``ts`` (RFC 3339), ``level``, ``logger``, ``message``, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(settings: Settings) -> None:
    """Write to the console and to the log file from now on; the start-up lines first.

    Raises:
        ConfigError: the log file cannot be written.
    """
    formatter = _JSONFormatter() if settings.log_format == "json" else _TextFormatter()
    root = logging.getLogger()
    close_logging()
    for handler in (logging.StreamHandler(sys.stdout), _open_log(settings.log_file)):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_PACKAGE).setLevel(max(logging.WARNING, _level(settings)))
    logging.getLogger(STARTUP).setLevel(_level(settings))
    logging.captureWarnings(True)


def open_up(settings: Settings) -> None:
    """Let every part of the package log at the configured level: the service has started."""
    logging.getLogger(_PACKAGE).setLevel(_level(settings))


def close_logging() -> None:
    """Flush and close what :func:`set_up_logging` opened."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler.formatter, _TextFormatter | _JSONFormatter):
            root.removeHandler(handler)
            handler.close()


def _level(settings: Settings) -> int:
    return logging.getLevelNamesMapping()[settings.log_level]


def _open_log(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"log_path: cannot write {path}: {error.strerror}; choose another file") from error

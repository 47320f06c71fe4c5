"""``autoglm doctor``: is this machine ready, and if not, what is missing."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from autoglm.cli.model_memory import model_memory
from autoglm.errors import AutoGLMError

if TYPE_CHECKING:
    from autoglm.service.settings import Settings

MIN_FREE_BYTES = 2 << 30
MIN_MEMORY_BYTES = 2 << 30
_FONTS = ("/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc", "/usr/share/fonts/wqy-zenhei/wqy-zenhei.ttc")

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: the thing checked.
        state: ``ok``; ``note``, something works less well or not at all without it; ``fail``, the service
            cannot run.
        text: what was found, and what to do.
    """

    what: str
    state: State
    text: str


def command(
    config: Annotated[
        Path | None, typer.Option(help="The configuration file.", show_default="config.yaml")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data directory.", show_default="data")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: driver, Python, torch, memory, disk, keys, permissions. Exit status 1 if one fails.

    The memory that the installed model needs is added up, with room for its next release.

    Examples:

      autoglm doctor

      autoglm doctor --json
    """
    from autoglm.cli.output import print_json, print_table

    findings = examine(config, data)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_table(("check", "", "found"), [(f.what, f.state, f.text) for f in findings], empty="")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def examine(config: Path | None, data: Path | None) -> list[Finding]:
    """Make every check; none of them raises."""
    findings = [
        _python(),
        _core(),
        _decode_core(),
        _packages("torch", "torch", "engine"),
        _driver(),
        _packages("fastapi, uvicorn, SQLAlchemy", "fastapi", "service"),
        _memory(),
    ]
    settings, directory, finding = _configuration(config, data)
    findings.append(finding)
    findings += [_disk(directory), _writable(directory), _token(directory), _keys(directory)]
    findings.append(_restored(directory))
    service = _service(directory)
    findings.append(_model_memory(settings, directory, is_running=service.state == "ok"))
    return [*findings, service, _font(), _espeak()]


def _python() -> Finding:
    text = f"{platform.python_version()} ({sys.executable})"
    return Finding("Python", "ok" if sys.version_info >= (3, 11) else "fail", text)


def _core() -> Finding:
    """Load the codec's native core the way every patch does."""
    try:
        found = version("autoglm-phone")
        path = importlib.import_module("autoglm.patch.core").find_library()
        ctypes.CDLL(str(path))
    except (AutoGLMError, ImportError, OSError) as error:
        return Finding(
            "autoglm", "fail", f"the native core does not load: {error}; install the package again"
        )
    return Finding("autoglm", "ok", f"{found}, native core loaded")


_INSTRUCTIONS = ("portable C", "AVX2", "AVX-512", "NEON")  # by wdecode_level()


def _decode_core() -> Finding:
    """Load the core of decoding, without which an engine works, but slower."""
    try:
        library = importlib.import_module("autoglm.model.core").library()
    except ImportError:
        return Finding("decoding", "note", "torch is not installed: this machine cannot run a model")
    if library is None:
        return Finding("decoding", "note", "no native core: torch decodes, slower; install the package again")
    return Finding("decoding", "ok", f"native core, {_INSTRUCTIONS[library.wdecode_level()]}")


def _packages(what: str, module: str, extra: str) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(what, "ok", version(module))
    except (ImportError, PackageNotFoundError):
        return Finding(what, "fail", f"not installed: pip install 'autoglm-phone[{extra}]'")
    except OSError as error:
        return Finding(what, "fail", f"{module} does not load: {error}")


def _driver() -> Finding:
    """Ask the driver itself; torch may be a build without CUDA."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU driver", "note", "no NVIDIA driver: the model runs on the CPU")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU driver", "note", f"nvidia-smi does not answer: {error}")
    return Finding("GPU driver", "ok", "; ".join(done.stdout.strip().splitlines()))


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    state: State = "ok" if total >= MIN_MEMORY_BYTES else "note"
    return Finding("memory", state, f"{total / 1e9:.1f} GB, {os.cpu_count()} cores")


def _model_memory(settings: Settings | None, directory: Path, *, is_running: bool) -> Finding:
    state, text = model_memory(settings, directory, is_running=is_running)
    return Finding("model in memory", cast("State", state), text)


def _configuration(config: Path | None, data: Path | None) -> tuple[Settings | None, Path, Finding]:
    from autoglm.cli.places import find_config

    fallback = (data or Path("data")).absolute()
    try:
        found = find_config(config)
        from autoglm.service.settings import load_settings

        settings = load_settings(found, data_dir=None if data is None else str(data.absolute()))
    except AutoGLMError as error:
        return None, fallback, Finding("configuration", "fail", str(error))
    except ImportError as error:
        return None, fallback, Finding("configuration", "note", f"not read, {error.name} is not installed")
    store = settings.path(settings.model.store)
    if not store.is_dir():
        return (
            settings,
            settings.data_path,
            Finding("configuration", "fail", f"model.store: there is no {store}"),
        )
    return settings, settings.data_path, Finding("configuration", "ok", str(found or "the defaults, no file"))


def _nearest(directory: Path) -> Path:
    return next(each for each in (directory, *directory.parents) if each.exists())


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(_nearest(directory)).free
    state: State = "ok" if free >= MIN_FREE_BYTES else "note"
    return Finding("disk", state, f"{free / 1e9:.1f} GB free for {directory}")


def _writable(directory: Path) -> Finding:
    place = _nearest(directory)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding("data directory", "ok", f"{directory} can be written")
    return Finding("data directory", "fail", f"{place} cannot be written by this user: change its owner")


def _token(directory: Path) -> Finding:
    """Look at the admin token, the one key that this version keeps on the machine."""
    path = directory / "admin.token"
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return Finding("admin token", "note", "none yet: it is made on the first start")
    except OSError as error:
        return Finding("admin token", "fail", f"{path}: {error.strerror}")
    if mode & 0o077:
        return Finding("admin token", "fail", f"{path} may be read by others: chmod 600 {path}")
    return Finding("admin token", "ok", f"{path}, for its owner only")


def _keys(directory: Path) -> Finding:
    """Look at the private keys that sign what devices install."""
    folder = directory / "trust"
    try:
        found = sorted(folder.glob("*/*.pem"))
        opened = [path for path in found if path.stat().st_mode & 0o077]
    except OSError as error:
        return Finding("signing keys", "fail", f"{folder}: {error.strerror}")
    if not found:
        return Finding("signing keys", "note", "none yet: they are made on the first start")
    if opened:
        return Finding("signing keys", "fail", f"{opened[0]} may be read by others: chmod 600 {opened[0]}")
    if any(path.parent.name == "keys" for path in found):
        return Finding("signing keys", "note", f"all are in {folder}: fine for one machine (autoglm keys)")
    return Finding("signing keys", "ok", f"{folder} holds those of the hub only")


def _restored(directory: Path) -> Finding:
    """Compare the signed metadata with what the service's own engine has seen of it."""
    from autoglm.trust.floor import read_floor
    from autoglm.trust.roles import TIMESTAMP
    from autoglm.trust.shelf import Picture, Shelf

    shelf, floor = Shelf(directory / "trust" / "metadata"), directory / "device" / "floor.json"
    try:
        if shelf.mark() is None or not floor.is_file():
            return Finding("signed metadata", "note", "none here yet, or it is in the hub's database")
        signed = Picture.published(shelf).versions[TIMESTAMP]
    except AutoGLMError as error:
        return Finding("signed metadata", "fail", str(error))
    seen = read_floor(floor).marks.get(TIMESTAMP)
    if seen is not None and seen.version > signed:
        text = f"version {signed}, devices have seen {seen.version}: an old backup; run: autoglm keys raise"
        return Finding("signed metadata", "fail", text)
    return Finding("signed metadata", "ok", f"version {signed}, not older than what was seen")


def _service(directory: Path) -> Finding:
    from autoglm.cli.client import ServiceClient
    from autoglm.cli.places import read_service_address

    address = read_service_address(directory)
    if address is None:
        return Finding("service", "note", "none runs on this data directory")
    try:
        answer = ServiceClient(address.url, certificate=address.certificate).get("/ready")
    except AutoGLMError as error:
        return Finding("service", "note", str(error))
    return Finding("service", "ok", f"{address.url}, {answer.get('version')}")


def _font() -> Finding:
    found = next((path for path in _FONTS if Path(path).is_file()), None)
    if found is not None:
        return Finding("font", "ok", found)
    return Finding("font", "note", "training needs one with Chinese: apt install fonts-wqy-zenhei")


def _espeak() -> Finding:
    tool = shutil.which("espeak-ng")
    if tool is not None:
        return Finding("espeak-ng", "ok", tool)
    return Finding("espeak-ng", "note", "training speech needs it: apt install espeak-ng")

"""The model store: what a service begins with before anything was published to it.

A store is a directory of packages (``v1.2.wpatch``: the lowest version that needs no base is the baseline)
or of checkpoints (``autoglm-phone-9b-v1.2.pt``, read without ever executing anything in them and
converted once). The baseline is published to everybody on the first start; what else lies there waits for
``autoglm publish``.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from autoglm import patch
from autoglm.errors import ConfigError, FormatError, HubError, TrustError
from autoglm.hub import Hub
from autoglm.service.settings import Settings

_CHECKPOINT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*?)-(?P<version>v?\d[A-Za-z0-9.]*)\.pt")
_NUMBER = re.compile(r"\d+")


def import_baseline(hub: Hub, settings: Settings) -> None:
    """Publish the store's baseline to everybody, if the hub has no release yet.

    Raises:
        ConfigError: the store is missing, or holds no release that stands alone.
        AutoGLMError: the release is broken; nothing was published.
    """
    if hub.releases():
        return
    store = settings.path(settings.model.store)
    if not store.is_dir():
        raise ConfigError(f"model.store: there is no directory {store}")
    package = find_baseline(store)
    if package is not None:
        _publish_package(hub, package)
        return
    checkpoint = _find_checkpoint(store)
    if checkpoint is None:
        raise ConfigError(
            f"model.store: {store} holds neither a full package (.wpatch) nor a checkpoint (.pt)"
        )
    _publish_checkpoint(hub, checkpoint, settings)


def _publish_package(hub: Hub, package: Path) -> None:
    try:
        hub.publish(package, percent=100)
    except (FormatError, TrustError, HubError) as error:
        raise ConfigError(f"model.store: {package} cannot be used: {error}") from error


def find_baseline(store: Path) -> Path | None:
    """Return the package of the lowest version in ``store`` that needs no base, None without one."""
    for path in sorted(store.glob("*.wpatch"), key=_version_key):
        try:
            if patch.inspect(path).kind == "full":
                return path
        except FormatError as error:
            raise type(error)(f"{path}: {error}") from error
    return None


def _version_key(path: Path) -> tuple[list[int], str]:
    """Order ``v1.9`` before ``v1.10``."""
    return [int(number) for number in _NUMBER.findall(path.stem)], path.stem


def _find_checkpoint(store: Path) -> Path | None:
    named = [path for path in store.glob("*.pt") if _CHECKPOINT.fullmatch(path.name)]
    return min(named, key=_version_key, default=None)


def _publish_checkpoint(hub: Hub, checkpoint: Path, settings: Settings) -> None:
    from autoglm.model.checkpoint import convert_checkpoint

    found = _CHECKPOINT.fullmatch(checkpoint.name)
    if found is None:
        raise ConfigError(f"model.store: {checkpoint.name} must be named NAME-VERSION.pt")
    with hub.upload() as package, tempfile.TemporaryDirectory(dir=package.parent) as work:
        release = Path(work) / "release"
        convert_checkpoint(
            checkpoint,
            release,
            model=settings.model.name,
            variant=settings.model.variant,
            name=found["name"],
            version=found["version"],
            counter=1,
        )
        patch.diff(None, release, package)
        hub.publish(package, percent=100)

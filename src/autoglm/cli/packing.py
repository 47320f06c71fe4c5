"""Make the package that a publication sends, out of whatever the publisher has."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from autoglm import patch
from autoglm.cli.client import ServiceClient
from autoglm.cli.output import progress_bar
from autoglm.errors import ConfigError
from autoglm.files import link_file
from autoglm.releases import MANIFEST_NAME, Manifest


@contextlib.contextmanager
def packed(path: Path, version: str | None, client: ServiceClient, *, quiet: bool) -> Generator[Path]:
    """Give a ``.wpatch`` of ``path``; what had to be made is removed after the block.

    Args:
        path: a package, a release folder with or without a manifest, or a ``.pt`` checkpoint.
        version: what to call it, when ``path`` does not say.
        client: asked for the model's names and the next counter.
        quiet: draw no progress.

    Raises:
        ConfigError: ``path`` is none of these, or the version is missing or contradicts it.
        AutoGLMError: the content is broken.
    """
    if path.is_file() and path.suffix == ".wpatch":
        if version is not None:
            raise ConfigError(f"{path.name} names its version itself: leave --version out")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="autoglm-publish-") as work:
        release = _release(path, version, client, Path(work) / "release")
        package = Path(work) / f"{Manifest.read(release).version}.wpatch"
        with progress_bar(f"packing {path.name}", quiet=quiet) as progress:
            patch.diff(None, release, package, progress=progress)
        yield package


def _release(path: Path, version: str | None, client: ServiceClient, target: Path) -> Path:
    """Return a release directory with a manifest, made at ``target`` if need be."""
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file() and version in (None, Manifest.read(path).version):
            return path
        return _with_manifest(path, _names(version, client), target)
    if path.is_file() and path.suffix == ".pt":
        from autoglm.model.checkpoint import convert_checkpoint

        convert_checkpoint(path, target, **_names(version, client))
        return target
    if not path.exists():
        raise ConfigError(f"there is no {path}")
    raise ConfigError(f"{path} is no .wpatch package, no release folder and no .pt checkpoint")


def _names(version: str | None, client: ServiceClient) -> dict[str, Any]:
    """Return the names of a new release of the hub's model: the next counter, all else as it is now."""
    if version is None:
        raise ConfigError("this needs --version, such as --version v1.4")
    listing = client.get("/v1/admin/releases")
    newest = max(listing["releases"], key=lambda release: release["counter"], default=None)
    if newest is None or "name" not in newest:  # no release yet, or an older hub: its engine knows
        same, counter = client.get("/v1/model/info"), 0 if newest is None else newest["counter"]
    else:  # a hub without an engine can tell as well
        same, counter = listing["hub"] | newest, newest["counter"]
    names = {key: same[key] for key in ("model", "variant", "name", "channel")}
    return names | {"version": version, "counter": counter + 1}


def _with_manifest(path: Path, names: dict[str, Any], target: Path) -> Path:
    """Link a folder's files to ``target`` and describe them there; the folder itself is not touched."""
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        relative = file.relative_to(path)
        if relative.as_posix() != MANIFEST_NAME:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            link_file(file.resolve(), target / relative)
    if not target.is_dir():
        raise ConfigError(f"{path} holds no files")
    manifest = Manifest.of_directory(target, **names)
    (target / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return target

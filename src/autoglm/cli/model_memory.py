"""What the served model needs in memory, for ``autoglm doctor``: the sum that the start would refuse by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autoglm.errors import AutoGLMError

if TYPE_CHECKING:
    from autoglm.service.settings import Settings

# (state, text) of a finding.
State = tuple[str, str]


def model_memory(settings: Settings | None, directory: Path, *, is_running: bool) -> State:
    """Add up what the installed release needs where the settings put it; nothing is loaded.

    Args:
        settings: of the service; None: they could not be read.
        directory: its data directory.
        is_running: whether a service holds the release already, so that only the next one needs room.
    """
    if settings is None:
        return "note", "not counted: the configuration was not read"
    if settings.backend.kind != "native":
        return "note", f"not counted here: {settings.backend.kind} holds the model"
    try:
        from autoglm.device.slots import read_current

        current = read_current(directory / "device")
        if current is None or current.current is None:
            return "note", "not counted: no release is installed before the first start"
        release = directory / "device" / "releases" / current.current.folder
        return _counted(settings, release, is_running=is_running)
    except AutoGLMError as error:
        return "fail", str(error)
    except ImportError as error:
        return "note", f"not counted, {error.name} is not installed"


def _counted(settings: Settings, release: Path, *, is_running: bool) -> State:
    from autoglm.engine.devices import pick_devices
    from autoglm.engine.release import Placement, plan_release

    model = settings.model
    placement = Placement(
        pick_devices(model.device), model.max_batch, model.max_context or None, model.cache_tokens or None
    )
    plan = plan_release(release, placement, staging=not is_running)
    if not is_running:
        plan_release(release, placement).require_room(release.name)
    what = "for a next release" if is_running else "with room for a next release"
    if plan.needed_bytes > plan.free:
        return "note", f"{what} that changes every weight it is short, and updates make requests wait: {plan}"
    return "ok", f"{what} that changes every weight: {plan}"

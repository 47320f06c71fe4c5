"""The hub: releases, the patches between them, and who gets which.

Publishing is atomic, the store immutable and content-addressed, packages are built by a separate worker
process, and the decision for a device is a pure function in memory. SQLAlchemy is used nowhere else.
It serves no HTTP: the service does. It signs packages with its online keys, and verifies releases, which are
signed elsewhere; only a hub that made all keys on this machine signs those too.

    >>> from autoglm.hub import Hub, HubConfig, WorkerProcess
    >>> with Hub.open(HubConfig(Path("data/hub"))) as hub, WorkerProcess(hub.config):   # doctest: +SKIP
    ...     hub.publish(Path("v1.2.wpatch"), percent=100)
"""

from autoglm.hub.audit import LOCAL, Actor
from autoglm.hub.decision import Choice, Snapshot, decide
from autoglm.hub.hub import PACKAGE_PATH, Hub
from autoglm.hub.parts import TRUST_FOLDER, raise_versions
from autoglm.hub.records import (
    Audience,
    Claims,
    Device,
    HubConfig,
    HubInfo,
    PackageRecord,
    Publication,
    Release,
    Rollout,
)
from autoglm.hub.rollout_control import RolloutControl, Wanted
from autoglm.hub.stages import DEFAULT_STAGES
from autoglm.hub.supervision import WorkerProcess, check_worker
from autoglm.hub.timer import GuardTimer

__all__ = [
    "DEFAULT_STAGES",
    "LOCAL",
    "PACKAGE_PATH",
    "TRUST_FOLDER",
    "Actor",
    "Audience",
    "Choice",
    "Claims",
    "Device",
    "GuardTimer",
    "Hub",
    "HubConfig",
    "HubInfo",
    "PackageRecord",
    "Publication",
    "Release",
    "Rollout",
    "RolloutControl",
    "Snapshot",
    "Wanted",
    "WorkerProcess",
    "check_worker",
    "decide",
    "raise_versions",
]

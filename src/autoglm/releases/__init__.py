"""Releases, manifests and wire messages: the only definition of the protocol, used by both sides.

A *release* is one immutable set of files under a model, a variant and a version. Its ``manifest.json``
pins every other file by size and SHA-256, so the hash of the manifest is the identity of the release.
The wire messages are what a device and the hub say to each other; the fixed part of the contract
(``device_id``, ``current_version`` -> ``need_update``, ``target_version``, ``download_url``) never changes,
every other field may be missing.

Everything here is strict about what it reads: bounded, typed, and refused with
:class:`~autoglm.errors.ManifestError` or :class:`~autoglm.errors.MessageError`. Fields of a *message* that
this version does not know are ignored, so that old devices and new hubs understand each other; in a
manifest they are refused.

    >>> UpdateRequest.from_json({"device_id": "dev_12345", "current_version": "v1.2"}).current_version
    'v1.2'
"""

from autoglm.releases.health import HEALTH_NAME, HealthCheck, HealthPrompt
from autoglm.releases.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ReleaseFile,
)
from autoglm.releases.messages import (
    MAX_EVENTS,
    MAX_MESSAGE_BYTES,
    PACKAGE_FORMAT,
    Control,
    DeviceEnvironment,
    Event,
    EventAnswer,
    EventBatch,
    UpdateAnswer,
    UpdateRequest,
)
from autoglm.releases.reading import MAX_FILE_BYTES, canonical_json, is_device_id, is_name
from autoglm.releases.registration import RegistrationAnswer, RegistrationRequest

__all__ = [
    "HEALTH_NAME",
    "MANIFEST_NAME",
    "MAX_EVENTS",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_MESSAGE_BYTES",
    "PACKAGE_FORMAT",
    "Control",
    "DeviceEnvironment",
    "Event",
    "EventAnswer",
    "EventBatch",
    "HealthCheck",
    "HealthPrompt",
    "Manifest",
    "RegistrationAnswer",
    "RegistrationRequest",
    "ReleaseFile",
    "UpdateAnswer",
    "UpdateRequest",
    "canonical_json",
    "is_device_id",
    "is_name",
]

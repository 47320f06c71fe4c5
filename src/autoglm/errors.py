"""Every exception that a caller of this package may meet.

One tree; its first level is what callers handle differently::

    AutoGLMError
    ├── TrustError            the bytes are not what was promised: install nothing, keep what runs
    │   ├── IntegrityError        a hash or a size differs
    │   ├── NoRootError           nothing to begin trust with: give the device its trusted root
    │   ├── SignatureError        not signed by enough of the keys that are trusted for it
    │   ├── MetadataError         signed metadata that does not parse, is too large or contradicts itself
    │   ├── ExpiredError          signed metadata, or this machine's clock, is too old or too far ahead
    │   ├── RollbackError         older than what was seen before
    │   └── RevokedError          a release that its publisher has called back
    ├── NetworkError          not reached, or broke off: try again later
    │   ├── CertificateError      reached, but it did not prove to be who it should be
    │   └── ProtocolError         reached, but the answer breaks the protocol
    ├── StorageError          the disk refused
    │   ├── DiskFullError         no room: free some, nothing was lost
    │   └── LockedError           another process holds the directory
    ├── FormatError           bytes that do not parse, or that break a limit
    │   ├── ManifestError         a release manifest
    │   ├── MessageError          a wire message
    │   ├── PackageError          a .wpatch package
    │   └── BaseMismatchError     a package made against other bytes than those given
    ├── EngineError           the model could not be loaded or run
    │   ├── RequestError          this request can never be served as it stands
    │   ├── OverloadedError       not now: the queue is full
    │   ├── OutOfMemoryError      not now: the model does not fit into what is free
    │   ├── BackendError          the server that computes the answers was not reached or broke off
    │   │   └── BackendTimeoutError   it took longer than it was given
    │   └── HealthError           a release failed its own self-test
    ├── HubError              the hub refuses
    │   ├── NotFoundError         no such release, package or roll-out
    │   ├── ConflictError         it exists already and differs
    │   ├── UnstorableError       a value that the database cannot hold
    │   └── PermissionDeniedError the token does not allow it
    │       └── LinkError             a download link that is expired, changed or another device's
    └── ConfigError           a setting or an argument is wrong: the message names it

Each class has a ``code``, the stable word for it in events, API answers and logs. Messages say what
happened and what to do. Foreign exceptions are translated once, at the edge, with ``raise ... from``.
"""

from __future__ import annotations

from typing import ClassVar


class AutoGLMError(Exception):
    """Root of all errors raised on purpose by this package."""

    code: ClassVar[str] = "E_UNKNOWN"


class TrustError(AutoGLMError):
    """Bytes are not what was promised; they are not used."""

    code = "E_TRUST"


class IntegrityError(TrustError):
    """A hash or a size differs from the promised one."""

    code = "E_INTEGRITY"


class NoRootError(TrustError):
    """There is no trusted root to begin with, so nothing that is signed can be believed."""

    code = "E_NO_ROOT"


class SignatureError(TrustError):
    """Metadata or a release is not signed by as many trusted keys as its role demands."""

    code = "E_SIGNATURE"


class MetadataError(TrustError):
    """Signed metadata that does not parse, breaks a limit, or contradicts other signed metadata."""

    code = "E_METADATA"


class ExpiredError(TrustError):
    """Signed metadata has expired by this machine's clock: keep running, install nothing."""

    code = "E_EXPIRED"


class RollbackError(TrustError):
    """Older metadata, or an older release, than this machine has seen before."""

    code = "E_REPLAY"


class RevokedError(TrustError):
    """The publisher has revoked this release."""

    code = "E_REVOKED"


class NetworkError(AutoGLMError):
    """The other side was not reached or broke off; trying again later is right."""

    code = "E_NETWORK"


class CertificateError(NetworkError):
    """The other side's certificate is not trusted, expired, of another name, or not the pinned one."""

    code = "E_CERTIFICATE"


class ProtocolError(NetworkError):
    """The other side answered in a way that the protocol does not allow."""

    code = "E_PROTOCOL"


class StorageError(AutoGLMError):
    """The disk refused an operation."""

    code = "E_STORAGE"


class DiskFullError(StorageError):
    """There is no room.

    Attributes:
        needed_bytes: what the operation needs, 0 when not known.
        free_bytes: what there was, 0 when not known.
    """

    code = "E_DISK_FULL"

    def __init__(self, message: str, *, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class LockedError(StorageError):
    """Another process holds the directory."""

    code = "E_LOCKED"


class FormatError(AutoGLMError):
    """Bytes that do not parse, or that break a stated limit."""

    code = "E_FORMAT"


class ManifestError(FormatError):
    """A release manifest that breaks its rules."""

    code = "E_MANIFEST"


class MessageError(FormatError):
    """A wire message that breaks its rules."""

    code = "E_MESSAGE"


class PackageError(FormatError):
    """A ``.wpatch`` package that breaks its format."""

    code = "E_PACKAGE"


class BaseMismatchError(FormatError):
    """A package was made against other bytes than those it is applied to."""

    code = "E_BASE"


class EngineError(AutoGLMError):
    """The model could not be loaded or run."""

    code = "E_ENGINE"


class RequestError(EngineError):
    """A request that can never be served as it stands.

    Attributes:
        param: the request field at fault, when there is one.
    """

    code = "E_REQUEST"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class OverloadedError(EngineError):
    """The engine's queue is full; the same request may be served later.

    Attributes:
        retry_after_s: seconds after which another try makes sense.
    """

    code = "E_OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutOfMemoryError(EngineError):
    """The model does not fit into the memory that is free; the message holds the sum."""

    code = "E_MEMORY"


class BackendError(EngineError):
    """The server that computes the answers was not reached, broke off, or answered nonsense.

    Attributes:
        retry_after_s: seconds after which another try makes sense.
    """

    code = "E_BACKEND"

    def __init__(self, message: str, *, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BackendTimeoutError(BackendError):
    """The server that computes the answers took longer than it was given."""

    code = "E_BACKEND_TIMEOUT"


class HealthError(EngineError):
    """A release failed its own self-test; it is not used."""

    code = "E_HEALTH"


class HubError(AutoGLMError):
    """The hub refuses a request."""

    code = "E_HUB"


class NotFoundError(HubError):
    """There is no such release, package or roll-out."""

    code = "E_NOT_FOUND"


class ConflictError(HubError):
    """It exists already and differs, or its state does not allow this."""

    code = "E_CONFLICT"


class UnstorableError(HubError):
    """A value that the hub's database cannot hold, such as text with a NUL; trying again does not help."""

    code = "E_UNSTORABLE"


class PermissionDeniedError(HubError):
    """The token is missing, wrong, or does not allow this."""

    code = "E_PERMISSION"


class LinkError(PermissionDeniedError):
    """A download link that has expired, was changed, or was made for another device: ask for a new one.

    Attributes:
        forged: whether no hub has made it as it is.
    """

    code = "E_LINK"

    def __init__(self, message: str, *, forged: bool = False) -> None:
        super().__init__(message)
        self.forged = forged


class ConfigError(AutoGLMError):
    """A setting or an argument is wrong; the message names it."""

    code = "E_CONFIG"

"""Who a device is towards its hub: its name, its token, and the code with which it gets one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.errors import ConfigError

if TYPE_CHECKING:
    from autoglm.device import TokenStore

TokenOption = Annotated[str | None, typer.Option("--token", help="The device's token, where it needs one.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="The file that holds the token, and gets it by --enrol.",
        show_default="device.token in the device's directory",
    ),
]
DeviceIdOption = Annotated[
    str | None, typer.Option("--device-id", help="The device's name; kept once given.", show_default="kept")
]
EnrolOption = Annotated[
    str | None, typer.Option("--enrol", metavar="CODE", help="Get the token with this enrolment code, once.")
]


@dataclass(frozen=True)
class Identity:
    """The options that say who the device is."""

    token: str | None = None
    token_file: Path | None = None
    device_id: str | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigError: they do.
        """
        if self.token is not None and (self.token_file is not None or self.code is not None):
            raise ConfigError("--token is the token itself: give it, or --token-file and --enrol, not both")

    def store(self, root: Path) -> TokenStore:
        """Return where the token of the device in ``root`` is kept."""
        from autoglm.device import FileTokenStore
        from autoglm.device.enrolment import TOKEN_NAME

        return FileTokenStore(self.token_file or root / TOKEN_NAME)

    def enrol(self, root: Path, url: str, **link: Any) -> None:
        """Get the token with the enrolment code, if one was given and has not done so before.

        Args:
            root: the device's directory.
            url: the hub's address.
            link: what the transport to it is made with.

        Raises:
            AutoGLMError: the hub refuses the code, or is not reached.
        """
        from autoglm.device import HttpTransport, enrol

        if self.code is None:
            return
        transport = HttpTransport(url, **link)
        try:
            enrol(root, transport, self.code, device_id=self.device_id, store=self.store(root))
        finally:
            transport.close()

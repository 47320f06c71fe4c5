"""How a device reaches its hub: over which protocol, believing whose certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

AllowHTTPOption = Annotated[
    bool, typer.Option("--allow-http", help="Accept plain http to another machine: for closed networks only.")
]
CAOption = Annotated[Path | None, typer.Option("--ca-file", help="Trust only this CA (PEM).")]
PinOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pin", metavar="sha256/BASE64", help="And only a certificate with this key; may be repeated."
    ),
]


@dataclass(frozen=True)
class Link:
    """The options that say what is believed on the way to the hub."""

    allow_http: bool
    ca_file: Path | None
    pins: tuple[str, ...]

    @classmethod
    def of(cls, allow_http: bool, ca_file: Path | None, pins: list[str] | None) -> Link:
        """Return what the options of a command say."""
        return cls(allow_http, ca_file, tuple(pins or ()))

    def options(self, own_certificate: Path | None = None) -> dict[str, Any]:
        """Return the arguments of :class:`~autoglm.device.HttpTransport` and ``Updater``.

        Args:
            own_certificate: of a hub on this machine, believed where no CA was named.
        """
        ca_file = self.ca_file or own_certificate
        return {"allow_http": self.allow_http, "ca_file": ca_file, "pins": self.pins}

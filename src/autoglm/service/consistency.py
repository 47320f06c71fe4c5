"""Rules of the settings that need more than a type: texts of a form, and keys that belong together.

>>> location_text("/packages")
'/packages/'
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autoglm.device.certificates import read_pin
from autoglm.errors import ConfigError

if TYPE_CHECKING:
    from autoglm.service.settings import Settings

_REMOTE = ("hub_url", "token_file", "device_id", "ca_file", "pins", "allow_http")


def pin_text(text: str) -> str:
    """Check the pin of a certificate.

    Raises:
        ValueError: it is none.
    """
    try:
        read_pin(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


def location_text(text: str) -> str:
    """Check a location of a proxy, and let it end in a slash.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"/[A-Za-z0-9/_.-]{0,200}", text):
        raise ValueError("must be a location of the proxy such as /packages/")
    return text.rstrip("/") + "/"


def require_consistent(settings: Settings, where: str) -> None:
    """Refuse keys that contradict each other.

    Raises:
        ConfigError: names one of them, and ``where`` it was read.
    """
    rules = (*_of_the_role(settings), *_of_any_role(settings), *settings.backend.contradictions())
    for is_wrong, message in rules:
        if is_wrong:
            raise ConfigError(f"{where}: {message}")


def _of_the_role(settings: Settings) -> list[tuple[bool, str]]:
    is_engine, update, auth = settings.role == "engine", settings.update, settings.auth
    spare = [name for name in _REMOTE if getattr(update, name)]
    return [
        (
            is_engine and update.hub_url is None,
            "update.hub_url: an engine without a hub needs the address of one to follow",
        ),
        (
            not is_engine and bool(spare),
            f"update.{''.join(spare[:1])}: only role: engine follows a hub elsewhere; remove it",
        ),
        (
            is_engine and auth.required and auth.keys_file is None,
            "auth.keys_file: an engine without a hub cannot look tokens up; name a file with its keys",
        ),
        (
            not is_engine and auth.keys_file is not None,
            "auth.keys_file: only for role: engine; a hub keeps its tokens itself",
        ),
        (
            settings.role == "hub" and settings.backend.kind == "vllm",
            "backend.kind: role: hub answers no requests, so it needs no vLLM servers; remove one",
        ),
    ]


def _of_any_role(settings: Settings) -> list[tuple[bool, str]]:
    names = [settings.model.name, *settings.model.aliases]
    return [
        (
            (settings.tls.cert is None) != (settings.tls.key is None),
            "tls: cert and key belong together; set both or neither",
        ),
        (len(set(names)) != len(names), "model.aliases: a name is listed twice"),
        (
            settings.hub.accel_redirect is not None and not settings.trusted_proxies,
            "hub.accel_redirect: only a proxy in trusted_proxies is left to send packages; name it there",
        ),
    ]

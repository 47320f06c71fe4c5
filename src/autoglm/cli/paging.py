"""Read lists that the hub gives a page at a time."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from autoglm.cli.client import ServiceClient

PAGE = 1000


def read_pages(
    client: ServiceClient,
    path: str,
    name: str,
    query: dict[str, Any],
    limit: int,
    cursor: str = "after",
) -> dict[str, Any]:
    """Return the first ``limit`` entries of a list, over as many pages as it takes.

    Args:
        client: the hub.
        path: of the list.
        name: the key under which an answer holds the entries.
        query: what narrows the list; None values are left out.
        limit: how many entries are wanted.
        cursor: the parameter that the ``next`` of a page becomes.

    Returns:
        The last page's answer with the entries of all pages.

    Raises:
        NetworkError: not reached.
        HubError: the hub refuses.
    """
    asked = {key: value for key, value in query.items() if value is not None}
    entries: list[Any] = []
    while True:
        asked["limit"] = min(PAGE, limit - len(entries))
        answer = client.get(f"{path}?{urlencode(asked)}")
        entries += answer[name]
        if answer["next"] is None or len(entries) >= limit:
            return answer | {name: entries}
        asked[cursor] = answer["next"]

"""What ``autoglm device`` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoglm.cli.output import as_bytes

if TYPE_CHECKING:
    from autoglm.device import Status, UpdateResult


def explain(result: UpdateResult) -> None:
    """Print what came of an update that did not fail."""
    if result.kind == "updated":
        before = result.from_version or "nothing"
        print(f"installed {result.to_version} over {before}: {as_bytes(result.wire_bytes)} over the network")
    elif result.kind == "held":
        print(f"held back: {result.message}")
    else:
        print("nothing newer")


def show(found: Status) -> None:
    """Print the status."""
    trial = "" if found.confirmed or found.current is None else f", on trial, {found.tries_left} starts left"
    error = found.last_error
    rows: list[tuple[str, object]] = [
        ("device", found.device_id),
        ("model", found.model),
        ("release", f"{found.current}{trial}" if found.current else "none yet"),
        ("directory", found.current_directory),
        ("previous", found.previous),
        ("state", found.state if found.target is None else f"{found.state}, to {found.target}"),
        ("paused", "until: autoglm device resume" if found.paused else None),
        ("damaged", "files changed on the disk; they are fetched again" if found.damaged else None),
        ("failed here", ", ".join(found.quarantined) or None),
        ("called back", ", ".join(found.revoked) or None),
        ("last error", f"{error['at']} {error['code']}: {error['message']}" if error else None),
        ("reports waiting", found.queued_events),
        ("network traffic", as_bytes(found.wire_bytes_total)),
    ]
    for name, value in rows:
        print(f"{name:16} {'-' if value is None else value}")

"""``autoglm audit``: what was done at a hub, and by whom."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption
from autoglm.errors import AutoGLMError, ConfigError

app = typer.Typer(help="What was done at a hub, and by whom.", no_args_is_help=True)


@app.command("list")
def list_entries(
    since: Annotated[
        str | None, typer.Option(help="From this time on, or this long ago, such as 24h.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time, such as 2026-11-22T18:00.")] = None,
    who: Annotated[str | None, typer.Option(help="Only by this token's name.")] = None,
    what: Annotated[
        str | None, typer.Option(help="Only this act, such as token.revoke, or all of a kind, such as token.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 100,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """List what was done, newest first.

    Examples:

      autoglm audit list --since 24h

      autoglm audit list --who alice --what rollout --json
    """
    from autoglm.cli.output import as_time, print_json, print_table
    from autoglm.cli.paging import read_pages
    from autoglm.cli.places import admin_client

    wanted = {
        "since": _moment(since, "--since"),
        "until": _moment(until, "--until"),
        "who": who,
        "what": what,
        "subject": subject,
    }
    client = admin_client(hub, token, data)
    answer = read_pages(client, "/v1/admin/audit", "entries", wanted, limit, cursor="before")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("number", "at", "who", "role", "from", "what", "on", "details"),
        [
            (
                each["number"],
                as_time(each["at"]),
                each["who"],
                each["role"],
                each["address"],
                each["what"],
                each["subject"],
                ", ".join(f"{key}={value}" for key, value in each["details"].items()) or None,
            )
            for each in answer["entries"]
        ],
        empty="nothing of that kind was done",
    )


@app.command()
def verify(
    anchor: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:HASH", help="An entry noted before, which must still be there."),
    ] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """See that no entry was changed, removed or put in; print the anchor for the next time.

    Example:

      autoglm audit verify
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    query = "" if anchor is None else f"?{urlencode({'anchor': anchor})}"
    verdict = admin_client(hub, token, data).get(f"/v1/admin/audit/verify{query}")
    if as_json:
        print_json(verdict)
    elif verdict["whole"]:
        print(f"whole: {verdict['entries']} entries; anchor {verdict['entries']}:{verdict['hash']}")
    if not verdict["whole"]:
        raise AutoGLMError(f"the audit log is not whole: {verdict['problem']}")


def _moment(text: str | None, option: str) -> float | None:
    """Return a time, or a time so long ago, as seconds since 1970."""
    from autoglm.device import parse_every

    if text is None:
        return None
    try:
        if re.fullmatch(r"[\d.]+\s*[smhd]", text.strip()):
            return time.time() - parse_every(text)
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{option} {text!r}: write 24h, 2026-11-22 or 2026-11-22T18:00") from error

"""``autoglm publish``: bring a release into a hub, and offer it if asked to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption

if TYPE_CHECKING:
    from autoglm.cli.client import ServiceClient


def command(
    path: Annotated[Path, typer.Argument(help="A .wpatch package, a release folder, or a .pt checkpoint.")],
    version: Annotated[
        str | None, typer.Option(help="The version, such as v1.4, where PATH does not say it.")
    ] = None,
    percent: Annotated[
        float | None, typer.Option(help="Offer it to this share of the devices.", min=0, max=100)
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="Offer it to this group (repeatable).")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Offer it to this region (repeatable).")] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    keys: Annotated[
        Path | None, typer.Option(help="Sign it with the release key in this directory of 'autoglm keys'.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="With --keys: the release folder that a patch was made against.")
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for the release key's passphrase.")
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Publish a release; it is offered to nobody until --percent, --group, --region or a roll-out says so.

    Examples:

      autoglm publish models/autoglm-phone-nano/v1.3.wpatch --percent 100

      autoglm publish ./my-weights --version v1.4

      autoglm publish v1.3.wpatch --group staff --percent 5 --hub https://hub.example.com --token T

      autoglm publish v1.3.wpatch --keys ceremony --base v1.2 --hub https://hub.example.com --token T
    """
    from autoglm.cli.output import print_json, progress_bar
    from autoglm.cli.packing import packed
    from autoglm.cli.places import admin_client

    client = admin_client(hub, token, data)
    offer: dict[str, Any] = {"group": group or [], "region": region or []}
    if percent is not None:
        offer["percent"] = percent
    with packed(path, version, client, quiet=as_json) as package:
        if keys is not None:
            from autoglm.cli.keyroom import KeyRoom
            from autoglm.cli.keys import read_passphrase

            KeyRoom(keys.absolute(), [keys], read_passphrase(passphrase)).sign_package(package, base, client)
        with progress_bar(f"publishing {package.name}", quiet=as_json) as progress:
            publication = client.upload("/v1/admin/releases", package, offer, progress)
        size = package.stat().st_size
    if as_json:
        print_json(publication)
    else:
        _explain(client, publication, size)


def _explain(client: ServiceClient, publication: dict[str, Any], size: int) -> None:
    """Say what was done and what happens next."""
    from autoglm.cli.output import as_bytes, show_rollout

    version = publication["version"]
    done = "published" if publication["created"] else "was published already:"
    print(f"{done} {version} (counter {publication['counter']}, {as_bytes(size)} sent)")
    if (rollout := publication["rollout"]) is not None:
        print(f"offered as roll-out {show_rollout(rollout)}; devices get it at their next check")
    elif (rollouts := _rollouts_of(client, publication)) is None:
        print("whether it is offered is not shown to this token, which lacks rollouts:read")
    elif rollouts:
        for each in rollouts:
            print(f"it is in roll-out {show_rollout(each)}")
    else:
        print(f"nobody is offered it yet; next: autoglm rollout create {version} --percent 5")
    rows = client.get("/v1/admin/packages")["packages"]
    waiting = [row for row in rows if row["to"] == version and row["state"] in ("pending", "running")]
    if waiting:
        print(f"packages being built in the background: {len(waiting)}; see: autoglm release list")


def _rollouts_of(client: ServiceClient, publication: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the roll-outs that a release published before is in; an aborted one is over.

    Returns:
        None where the token may not see roll-outs.
    """
    from autoglm.errors import PermissionDeniedError

    if publication["created"]:
        return []
    try:
        rollouts = client.get("/v1/admin/rollouts")["rollouts"]
    except PermissionDeniedError:
        return None
    version = publication["version"]
    return [each for each in rollouts if each["version"] == version and each["state"] != "aborted"]

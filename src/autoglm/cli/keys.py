"""``autoglm keys``: the keys that say what devices may install."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.cli.hub_options import JSONOption, TokenOption
from autoglm.cli.raising import command as raise_command
from autoglm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from autoglm.cli.client import ServiceClient
    from autoglm.cli.keyroom import KeyRoom
    from autoglm.trust.authority import Authority, Documents

app = typer.Typer(help="The keys that say what devices may install.", no_args_is_help=True)
app.command("raise")(raise_command)

DirectoryArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[DIR]", help="Keys and metadata; else those of the hub on this machine."),
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--dir", help="Keys and metadata; else those of the hub on this machine.")
]
KeyOption = Annotated[
    list[Path] | None, typer.Option("--key", help="A key file, or a directory with some (repeatable).")
]
HubOption = Annotated[str | None, typer.Option("--hub", help="Fetch from this hub first, and send to it.")]
PassphraseOption = Annotated[
    bool, typer.Option("--passphrase", help="Ask for the passphrase of the keys; else AUTOGLM_PASSPHRASE.")
]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made; must not hold keys yet.")],
    passphrase: PassphraseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Make the keys of all roles and the first signed metadata, for a hub that is to be set up.

    Example:

      autoglm keys init ceremony --passphrase
    """
    from autoglm.cli.output import print_json
    from autoglm.trust.authority import establish

    room = _room(directory, None, read_passphrase(passphrase, twice=True))
    establish(room.shelf, room.keys, room.online, datetime.now(UTC), room.ring.passphrase)
    room.publish_root()
    if as_json:
        print_json({"directory": str(directory.absolute()), "roles": _roles(room)})
        return
    print(f"made {directory}/keys (5 root, 3 targets, 1 release key), online (3 keys) and metadata")
    print(f"1. sign the hub's first release: autoglm keys sign FIRST.wpatch --dir {directory}")
    print(f"2. for the hub, before its first start: autoglm keys export {directory} --to-hub DATA_DIR")
    print(f"3. for apps and devices: {directory}/root.json")
    print(f"4. move the files of {directory}/keys apart, to where each is kept; 3 of 5 and 2 of 3 must agree")


@app.command()
def status(
    directory: DirectoryArgument = None,
    key: KeyOption = None,
    hub: HubOption = None,
    token: TokenOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show every role: its version, until when it is believed, its keys, and which of them are here.

    Examples:

      autoglm keys status

      autoglm keys status ceremony --key /media/alice --hub https://hub.example.com --token T
    """
    from autoglm.cli.output import print_json, print_table

    room = _room(directory, key, None)
    if (client := _client(hub, token)) is not None:
        room.fetch(client)
    roles = _roles(room)
    if as_json:
        print_json({"directory": str(room.directory.absolute()), "roles": roles})
        return
    print_table(
        ("role", "version", "expires", "sign", "keys here", "all keys"),
        [
            (
                role["role"],
                role["version"],
                role["expires"],
                f"{role['threshold']} of {len(role['keys'])}",
                sum(each["file"] is not None for each in role["keys"]),
                ", ".join(each["id"][:16] for each in role["keys"]),
            )
            for role in roles
        ],
        empty="there are no roles",
    )


@app.command()
def rotate(
    role: Annotated[str, typer.Argument(help="root, targets, releases, snapshot, timestamp or patches.")],
    directory: DirectoryOption = None,
    key: KeyOption = None,
    to: Annotated[Path | None, typer.Option(help="Where the new private keys go.")] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    passphrase: PassphraseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Give a role new keys in place of all its old ones.

    Examples:

      autoglm keys rotate timestamp

      autoglm keys rotate root --dir ceremony --key /media/alice --key /media/bob --key /media/carol
    """
    room = _room(directory, key, read_passphrase(passphrase))
    place = to or _place(room, role)
    _act(room, hub, token, lambda authority: authority.replace_keys(role, place), as_json, place)


@app.command()
def revoke(
    keyid: Annotated[str, typer.Argument(metavar="KEY", help="The first digits of the key's id.")],
    directory: DirectoryOption = None,
    key: KeyOption = None,
    to: Annotated[Path | None, typer.Option(help="Where the new private key goes.")] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    passphrase: PassphraseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Revoke one key, and make a new one in its place; the role's other keys stay.

    Example:

      autoglm keys revoke 40c323909b0e143a --dir ceremony --key /media/alice --key /media/bob
    """
    from autoglm.trust.authority import Authority

    room = _room(directory, key, read_passphrase(passphrase))
    client = _client(hub, token)
    if client is not None:
        room.fetch(client)
    role, found = Authority(room.picture(), room.ring, datetime.now(UTC)).role_of_key(keyid)
    place = to or _place(room, role)
    _act(
        room, hub, token, lambda authority: authority.replace_keys(role, place, drop=[found]), as_json, place
    )


@app.command()
def renew(
    roles: Annotated[list[str] | None, typer.Argument(metavar="[ROLE]...", help="Else what is due.")] = None,
    directory: DirectoryOption = None,
    key: KeyOption = None,
    hub: HubOption = None,
    token: TokenOption = None,
    passphrase: PassphraseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Sign root, targets or releases again before they expire; the hub renews the other roles by itself.

    Example:

      autoglm keys renew --dir ceremony --key /media/alice --hub https://hub.example.com --token T
    """
    room = _room(directory, key, read_passphrase(passphrase))

    def make(authority: Authority) -> Documents:
        return authority.renew(_expanded(roles, room) if roles else authority.due())

    _act(room, hub, token, make, as_json, None)


@app.command()
def sign(
    package: Annotated[Path, typer.Argument(help="A .wpatch package.")],
    directory: DirectoryOption = None,
    base: Annotated[
        Path | None, typer.Option(help="The release folder that a patch was made against.")
    ] = None,
    key: KeyOption = None,
    passphrase: PassphraseOption = False,
    as_json: JSONOption = False,
) -> None:
    """Sign the release that a package makes, without a hub: for a hub's first release, or an offline machine.

    Example:

      autoglm keys sign models/autoglm-phone-nano/v1.2.wpatch --dir ceremony
    """
    from autoglm.cli.output import print_json

    if not package.is_file():
        raise ConfigError(f"there is no package {package}")
    room = _room(directory, key, read_passphrase(passphrase))
    made = room.sign_package(package, base)
    print_json({"signed": sorted(made)}) if as_json else print(_listed(made))


@app.command()
def upload(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What was signed offline.")],
    hub: Annotated[str | None, typer.Option("--hub", help="The hub's address.")] = None,
    token: TokenOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data directory of a service on this machine.")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Send what was signed on a machine without a network to the hub.

    Example:

      autoglm keys upload ceremony --hub https://hub.example.com --token T
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    room, client = _room(directory, None, None), admin_client(hub, token, data)
    made = room.unsent(client)
    if made:
        room.send(made, client)
    print_json({"sent": sorted(made)}) if as_json else print(_listed(made))


@app.command()
def export(
    directory: DirectoryArgument = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the root here.")] = None,
    to_hub: Annotated[
        Path | None, typer.Option(help="Give a new hub's data directory its metadata and online keys.")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Write the trusted root for apps, or what a new hub needs; never a key that stays offline.

    Examples:

      autoglm keys export -o root.json

      autoglm keys export ceremony --to-hub /srv/autoglm/data
    """
    from autoglm.cli.output import print_json
    from autoglm.files import write_durably

    room = _room(directory, None, None)
    room.picture()
    root = (room.directory / "root.json").read_bytes()
    written: list[Path] = []
    if output is not None:
        write_durably(output.absolute(), root)
        written.append(output)
    if to_hub is not None:
        written += _give_to_hub(room, to_hub.absolute() / "trust")
    if as_json:
        print_json({"written": [str(path) for path in written]})
    elif written:
        print("\n".join(f"wrote {path}" for path in written))
    else:
        print(root.decode())


# What the verbs share.


def _room(directory: Path | None, key: list[Path] | None, passphrase: bytes | None) -> KeyRoom:
    from autoglm.cli.keyroom import KeyRoom
    from autoglm.cli.places import configured_data

    for place in key or ():
        if not place.exists():
            raise ConfigError(f"--key: there is no {place}")
    return KeyRoom((directory or configured_data() / "trust").absolute(), list(key or ()), passphrase)


def read_passphrase(asked: bool, *, twice: bool = False) -> bytes | None:
    """Return the passphrase of the keys, asked for or from the environment; None without one."""
    import os

    if asked:
        return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=twice, err=True)).encode()
    return os.environ.get("AUTOGLM_PASSPHRASE", "").encode() or None


def _client(hub: str | None, token: str | None) -> ServiceClient | None:
    from autoglm.cli.places import admin_client

    return None if hub is None else admin_client(hub, token, None)


def _place(room: KeyRoom, role: str) -> Path:
    from autoglm.trust.roles import ONLINE

    return room.online if role in ONLINE else room.keys


def _expanded(roles: list[str], room: KeyRoom) -> list[str]:
    """Return the roles with the bins of releases, which expire with it."""
    from autoglm.trust.roles import OFFLINE, RELEASES

    for role in roles:
        if role not in OFFLINE:
            raise ConfigError(f"{role!r}: root, targets and releases are renewed here, the hub does the rest")
    return [*roles, *(room.picture().bins(RELEASES) if RELEASES in roles else ())]


def _act(
    room: KeyRoom,
    hub: str | None,
    token: str | None,
    make: Callable[[Authority], Documents],
    as_json: bool,
    place: Path | None,
) -> None:
    from autoglm.cli.output import print_json
    from autoglm.errors import ConflictError

    client = _client(hub, token)
    if client is not None:
        room.fetch(client)
    try:
        made = room.act(make, client)
    except ConflictError as error:
        if client is None:
            raise
        raise ConflictError(
            f"{error}; what was signed is kept: autoglm keys upload {room.directory}"
        ) from error
    if as_json:
        print_json({"signed": sorted(made), "keys": None if place is None else str(place)})
        return
    print(_listed(made))
    if place is not None:
        print(f"the new private keys are in {place}: move those of offline roles to where each is kept")
    if made and client is None and not room.is_hub:
        print(f"next, where the hub can be reached: autoglm keys upload {room.directory} --hub URL --token T")


def _listed(made: Documents) -> str:
    return f"signed {', '.join(sorted(made))}" if made else "nothing is new"


def _roles(room: KeyRoom) -> list[dict[str, Any]]:
    from autoglm.trust import documents
    from autoglm.trust.roles import RULES
    from autoglm.trust.shelf import Picture

    picture = room.picture()
    if not room.is_hub and (room.shelf.directory / "timestamp.json").exists():
        picture.expires = Picture.published(room.shelf).expires
    found: list[dict[str, Any]] = []
    for role in RULES:
        keys = documents.role_of(picture.root, picture.targets, role)
        files = {keyid: room.ring.find(keyid) for keyid in keys.keyids}
        found.append(
            {
                "role": role,
                "version": picture.versions.get(role),
                "expires": f"{picture.expiry_of(role):%Y-%m-%d}",
                "threshold": keys.threshold,
                "keys": [{"id": keyid, "file": path and str(path)} for keyid, path in files.items()],
            }
        )
    return found


def _give_to_hub(room: KeyRoom, target: Path) -> list[Path]:
    """Copy public metadata and online keys to a hub that has none yet."""
    import time

    from autoglm.files import make_directory, write_durably
    from autoglm.trust.repository import Repository

    if (target / "metadata").exists():
        raise ConfigError(f"{target} holds metadata already: a hub's own is changed by rotate and upload")
    written: list[Path] = []
    for part, mode in (("online", 0o600), ("metadata", 0o644)):
        make_directory(target / part)
        if part == "online":
            (target / part).chmod(0o700)
        for path in sorted((room.directory / part).iterdir()):
            write_durably(target / part / path.name, path.read_bytes(), mode=mode)
        written.append(target / part)
    Repository(target, time.time).adopt()
    return written

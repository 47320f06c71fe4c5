"""``autoglm fleet``: the devices of a hub, as its operator sees them, by files of verbs."""

from __future__ import annotations

import typer

from autoglm.cli import fleet_devices, fleet_explain, fleet_simulate

app = typer.Typer(
    help="The devices of a hub: list, register, invite, move, explain, simulate.", no_args_is_help=True
)
fleet_devices.register(app)
fleet_explain.register(app)
fleet_simulate.register(app)

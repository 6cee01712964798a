"""``meterkit schema``: the JSON Schema of plans files."""

from __future__ import annotations

import typer

from meterkit.catalog import json_schema
from meterkit.cli.output import print_json
from meterkit.cli.session import Session, command

__all__ = ["commands"]

commands = typer.Typer()


@command(commands, unused=("plans", "redis", "json"))
def schema(_: Session) -> None:
    """Print the JSON Schema of plans files, for editors."""
    print_json(json_schema())

"""``meterkit schema``: the JSON Schema of plans files."""

from __future__ import annotations

import typer

from meterkit.catalog import json_schema
from meterkit.cli.options import Command, UnusedJsonOption, UnusedPlansOption, UnusedRedisOption
from meterkit.cli.output import print_json

__all__ = ["commands"]

commands = typer.Typer()


@commands.command(cls=Command)
def schema(
    *, plans: UnusedPlansOption = None, redis: UnusedRedisOption = None, json: UnusedJsonOption = False
) -> None:
    """Print the JSON Schema of plans files, for editors."""
    del plans, redis, json
    print_json(json_schema())

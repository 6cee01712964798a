"""``meterkit schema``: the JSON Schema of plans files."""

from __future__ import annotations

import typer

from meterkit.catalog import json_schema
from meterkit.cli.options import JsonOption, PlansOption, RedisOption
from meterkit.cli.output import print_json

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def schema(*, plans: PlansOption = None, redis: RedisOption = None, json: JsonOption = False) -> None:
    """Print the JSON Schema of plans files, for editors."""
    del plans, redis, json
    print_json(json_schema())

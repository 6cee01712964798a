"""``meterkit check``: whether a plans file is right."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from meterkit.catalog import load
from meterkit.cli.options import JsonOption, PlansOption, RedisOption
from meterkit.cli.output import print_json
from meterkit.errors import PlansError

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def check(
    file: Annotated[str | None, typer.Argument(metavar="PLANS", help="The plans file.")] = None,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Check a plans file and name everything that is wrong with it. Nothing is connected to."""
    del redis
    if file is not None and plans is not None and file != plans:
        raise typer.BadParameter(f"PLANS is {file!r} and --plans is {plans!r}; name one file")
    path = file or plans or os.environ.get("METERKIT_PLANS") or "plans.yaml"
    try:
        catalog = load(path)
    except PlansError as error:
        if not json:
            raise
        print_json({"ok": False, "problems": [_problem(problem) for problem in error.problems]})
        raise typer.Exit(1) from None
    found = {
        "meters": list(catalog.meters),
        "plans": list(catalog.plans),
        "routes": [route.match for route in catalog.routes],
    }
    if json:
        print_json({"ok": True, "plans_file": path, "content_hash": catalog.content_hash, **found})
        return
    counts = ", ".join(
        f"{len(names)} {what.removesuffix('s') if len(names) == 1 else what}" for what, names in found.items()
    )
    typer.echo(f"{path}: right ({counts})")


def _problem(problem: object) -> dict[str, object]:
    return {name: getattr(problem, name) for name in ("file", "line", "column", "path", "message")}

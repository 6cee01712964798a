"""``meterkit check`` and ``meterkit schema``: whether a plans file is right, and what it may hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from meterkit.catalog import json_schema, load
from meterkit.cli.options import plans_path
from meterkit.cli.output import echo, print_json
from meterkit.cli.session import Session, command
from meterkit.errors import PlansError

commands = typer.Typer()

SHOWN_MAX: Final = 50


@command(commands, unused=("redis",))
def check(
    session: Session,
    file: Annotated[
        str | None,
        typer.Argument(metavar="PLANS", help="The plans file, in place of --plans."),
    ] = None,
) -> None:
    """Check a plans file and name all that is wrong with it.

    It connects to nothing.
    """
    if file is not None and session.plans is not None and file != session.plans:
        raise typer.BadParameter(f"PLANS is {file!r} and --plans is {session.plans!r}; name one file")
    path = plans_path(file or session.plans)
    try:
        catalog = load(path)
    except PlansError as error:
        if not session.json:
            raise
        shown = [asdict(problem) for problem in error.problems[:SHOWN_MAX]]
        print_json({"ok": False, "problems": shown, "more": len(error.problems) - len(shown)})
        raise typer.Exit(1) from None
    found = {
        "meters": list(catalog.meters),
        "plans": list(catalog.plans),
        "routes": [route.match for route in catalog.routes],
    }
    if session.json:
        notes = [asdict(note) for note in catalog.notes]
        hashed = catalog.content_hash
        print_json({"ok": True, "plans_file": path, "content_hash": hashed, **found, "notes": notes})
        return
    counts = ", ".join(
        f"{len(names)} {what.removesuffix('s') if len(names) == 1 else what}" for what, names in found.items()
    )
    echo(f"{path}: valid ({counts})")
    for note in catalog.notes[:SHOWN_MAX]:
        echo(f"note: {note}")
    if len(catalog.notes) > SHOWN_MAX:
        echo(f"and {len(catalog.notes) - SHOWN_MAX} more notes; --json shows all")


@command(commands, unused=("plans", "redis", "json"))
def schema(_: Session) -> None:
    """Print the JSON Schema of plans files, for editors."""
    print_json(json_schema())

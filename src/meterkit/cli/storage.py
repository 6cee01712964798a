"""``meterkit storage``: correct stored bytes by listings of the buckets."""

from __future__ import annotations

from typing import Annotated

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.options import note_unknown
from meterkit.cli.output import print_note, print_records
from meterkit.cli.session import Session, command

commands = command_group("storage", "Recalculate bytes in object stores.")


@command(commands)
async def recalculate(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Only this customer. Default: all.")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the drift, and change nothing.")] = False,
) -> None:
    """Correct the stored bytes by listing the buckets.

    Prints the drift of each customer; it is positive if the bucket has more. `meterkit worker` does this
    every hour.
    """
    async with session.kit(reads=dry_run) as kit:
        if customer is not None:
            await note_unknown(kit, customer, shown="")
        drift = await kit.storage.recalculate(customer, dry_run=dry_run)
    rows = [{"customer": name, "drift_bytes": by} for name, by in drift.items()]
    session.show(dict(drift), lambda: print_records(rows, empty="all stored bytes are correct"))
    if drift and dry_run:
        print_note("nothing was corrected: --dry-run")

"""``meterkit storage``: compare what customers store with a listing of the buckets."""

from __future__ import annotations

from typing import Annotated

import typer

from meterkit.cli.output import print_note, print_records
from meterkit.cli.session import Session, command

commands = typer.Typer(
    name="storage", help="Recalculate what customers store in object stores.", no_args_is_help=True
)


@command(commands)
async def recalculate(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Only this customer. Default: all.")
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show by how much the levels are wrong.")
    ] = False,
) -> None:
    """List the buckets and correct the bytes that customers store.

    Prints the drift of each customer whose bytes were wrong: above 0 where the bucket has more. `meterkit
    worker` does this every hour.
    """
    async with session.kit(reads=dry_run) as kit:
        drift = await kit.storage.recalculate(customer, dry_run=dry_run)
    rows = [{"customer": name, "drift_bytes": by} for name, by in drift.items()]
    session.show(dict(drift), lambda: print_records(rows, empty="all levels are right"))
    if drift and dry_run:
        print_note("nothing is corrected (--dry-run)")

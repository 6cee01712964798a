"""``meterkit webhooks``: Stripe customers whose events could not be worked off."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.decisions.periods import from_ms

commands = typer.Typer(
    name="webhooks",
    help="See to webhooks that could not be worked off.",
    no_args_is_help=True,
)


@command(commands, "list")
async def list_all(session: Session) -> None:
    """List the Stripe customers that are given up.

    Each with its reason. Exits 1 if there are any. A note has the number of waiting syncs, and what alarms
    there were.
    """
    async with session.kit(reads=True) as kit:
        dead, backlog = await kit.webhooks.dead(), await kit.webhooks.backlog()
    rows = [
        {
            "stripe customer": entry.stripe_customer,
            "since": from_ms(entry.at_ms),
            "why": entry.why,
        }
        for entry in dead
    ]
    session.show(
        {
            "dead": [asdict(entry) for entry in dead],
            "waiting": backlog.entries,
            "alarms": dict(backlog.alarms),
        },
        lambda: print_records(rows, empty="no sync was given up"),
    )
    if not session.json:
        print_note(f"waiting syncs: {backlog.entries}")
        for kind, count in sorted(backlog.alarms.items()):
            print_note(f"usage that Stripe did not bill, in 400 days: {count} of {kind}")
    if dead:
        raise typer.Exit(1)


@command(commands)
async def redrive(
    session: Session,
    stripe_customers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STRIPE_CUSTOMER]...", help="Such as cus_123; none: all that are given up."),
    ] = None,
) -> None:
    """Have what was given up tried again."""
    async with session.kit() as kit:
        count = await kit.webhooks.redrive(*(stripe_customers or ()))
    session.show({"redriven": count}, lambda: echo(f"looked at again: {count}"))
    if stripe_customers and count < len(set(stripe_customers)):
        print_note(f"not given up: {len(set(stripe_customers)) - count} of those")
        raise typer.Exit(1)

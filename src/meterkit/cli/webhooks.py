"""``meterkit webhooks``: list and retry failed syncs after Stripe webhooks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from meterkit.cli.help_pages import command_group
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.decisions.periods import from_ms

commands = command_group("webhooks", "List and retry failed webhooks.")


@command(commands, "list")
async def list_all(session: Session) -> None:
    """List Stripe customers whose sync is dead, with the reason.

    A webhook makes meterkit fetch (sync) a customer. A sync is dead when meterkit has stopped trying. Also
    prints the number of waiting syncs, and alarms about unbilled usage. Exits 1 if a sync is dead.
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
        lambda: print_records(rows, empty=f"No sync is dead; {_describe_backlog(backlog.entries)}."),
    )
    if not session.json:
        if dead:
            print_note(_describe_backlog(backlog.entries))
        for kind, count in sorted(backlog.alarms.items()):
            print_note(f"usage that Stripe did not bill in 400 days: {count} of {kind}")
    if dead:
        raise typer.Exit(1)


def _describe_backlog(waiting: int) -> str:
    return f"{waiting:,} {'is' if waiting == 1 else 'are'} waiting" if waiting else "none is waiting"


@command(commands)
async def redrive(
    session: Session,
    stripe_customers: Annotated[
        list[str] | None,
        typer.Argument(metavar="STRIPE_CUSTOMER", help="Such as cus_123. Default: all whose sync is dead."),
    ] = None,
) -> None:
    """Retry dead syncs."""
    async with session.kit() as kit:
        count = await kit.webhooks.redrive(*(stripe_customers or ()))
    session.show({"redriven": count}, lambda: echo(f"retried: {count}"))
    if stripe_customers and count < len(set(stripe_customers)):
        print_note(f"not dead, so not retried: {len(set(stripe_customers)) - count}")
        raise typer.Exit(1)

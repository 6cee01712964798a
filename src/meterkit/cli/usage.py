"""``meterkit usage``: what a customer has used in this period."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import typer

from meterkit.cli.known import note_unknown
from meterkit.cli.options import Command, CustomerArgument, JsonOption, PlansOption, RedisOption
from meterkit.cli.output import iso, note_missing_plan, print_json, print_table
from meterkit.cli.session import open_kit

if TYPE_CHECKING:
    from meterkit.store.usage import CustomerUsage, MeterUsage

__all__ = ["commands"]

commands = typer.Typer()

_RARE: Final = frozenset({"held", "granted", "price", "late", "parked", "dead"})
"""Columns that are shown where there is something in them."""


@commands.command(cls=Command)
def usage(
    customer: CustomerArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a customer has used and what is left.

    And what Stripe has of it.
    """
    found, currency = asyncio.run(_usage(customer, plans=plans, redis=redis))
    if json:
        print_json(found)
        return
    period = found["period"]
    status = found["status"] or "none"
    typer.echo(f"customer {customer}: plan {found['plan']}, status {status}, access {found['access']}")
    typer.echo(f"period {iso(period['start'])} to {iso(period['end'])}")
    if found["features"]:
        typer.echo(f"features {', '.join(found['features'])}")
    if found["balance"]:
        balance = (f"{credit} {quantity:,}" for credit, quantity in found["balance"].items())
        typer.echo(f"credits {', '.join(balance)}")
    rows = [_row(name, meter, currency) for name, meter in found["meters"].items()]
    columns = [column for column in rows[0] if column not in _RARE or any(row[column] for row in rows)]
    print_table(columns, ([row[column] for column in columns] for row in rows))


async def _usage(customer: str, *, plans: str | None, redis: str | None) -> tuple[CustomerUsage, str]:
    async with open_kit(plans=plans, redis=redis) as kit:
        note_missing_plan(await kit.customers.get(customer), plans=kit.catalog.source)
        await note_unknown(kit, customer)
        return await kit.usage(customer), kit.catalog.currency


def _row(name: str, meter: MeterUsage, currency: str) -> dict[str, object]:
    cents = meter["overage_cents"]
    return {
        "meter": name,
        "used": meter["used"],
        "held": meter["held"],
        "included": meter["included"],
        "granted": meter["granted"],
        "remaining": meter["remaining"],
        "overage": meter["overage"],
        "price": "" if cents is None else f"{cents:,} {currency} cents",
        "to send": meter["pending"] + meter["unlinked"] + meter["queued"] + meter["leased"],
        "delivered": meter["delivered"],
        "late": meter["late"],
        "parked": meter["parked"],
        "dead": meter["dead"],
    }

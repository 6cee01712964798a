"""``meterkit usage``: what a customer has used in this period."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import typer

from meterkit.cli.options import CustomerArgument, JsonOption, PlansOption, RedisOption
from meterkit.cli.output import iso, print_json, print_table
from meterkit.cli.session import open_kit

if TYPE_CHECKING:
    from meterkit.store.usage import CustomerUsage, MeterUsage

__all__ = ["commands"]

commands = typer.Typer()

_COLUMNS: Final = (
    *("meter", "used", "included", "remaining", "overage"),
    *("to send", "delivered", "late", "parked", "dead"),
)
_RARE: Final = (9, 8, 7)
"""Columns that are shown where there is something in them, the last one first."""


@commands.command()
def usage(
    customer: CustomerArgument,
    *,
    plans: PlansOption = None,
    redis: RedisOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a customer has used, what is left, and what Stripe has of it."""
    found = asyncio.run(_usage(customer, plans=plans, redis=redis))
    if json:
        print_json(found)
        return
    period = found["period"]
    typer.echo(
        f"customer {customer}: plan {found['plan']}, status {found['status']}, access {found['access']}"
    )
    typer.echo(f"period {iso(period['start'])} to {iso(period['end'])}")
    if found["features"]:
        typer.echo(f"features {', '.join(found['features'])}")
    columns = list(_COLUMNS)
    rows = [_row(name, meter) for name, meter in found["meters"].items()]
    for rare in _RARE:
        if not any(row[rare] for row in rows):
            del columns[rare]
            for row in rows:
                del row[rare]
    print_table(columns, rows)


async def _usage(customer: str, *, plans: str | None, redis: str | None) -> CustomerUsage:
    async with open_kit(plans=plans, redis=redis) as kit:
        return await kit.usage(customer)


def _row(name: str, meter: MeterUsage) -> list[object]:
    to_send = meter["pending"] + meter["unlinked"] + meter["queued"] + meter["leased"]
    return [
        *(name, meter["used"], meter["included"], meter["remaining"], meter["overage"]),
        *(to_send, meter["delivered"], meter["late"], meter["parked"], meter["dead"]),
    ]

"""``meterkit usage``: what a customer has used in this period."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from meterkit.cli.options import CustomerArgument
from meterkit.cli.output import iso, print_records
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import note_unknown

if TYPE_CHECKING:
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage

__all__ = ["commands"]

commands = typer.Typer()

_RARE: Final = frozenset({"held", "granted", "price", "late", "parked", "dead"})
"""Columns that are shown where there is something in them."""


@command(commands)
async def usage(session: Session, customer: CustomerArgument) -> None:
    """Show what a customer has used and what is left.

    And how much of it Stripe has.
    """
    async with session.kit(customer) as kit:
        await note_unknown(kit, customer)
        found = await kit.usage(customer)
    session.show(found, lambda: _tell(found, kit.catalog.currency))


def _tell(found: CustomerUsage, currency: str) -> None:
    period = found["period"]
    status = found["status"] or "none"
    typer.echo(
        f"customer {found['customer']}: plan {found['plan']}, status {status}, access {found['access']}"
    )
    typer.echo(f"period {iso(period['start'])} to {iso(period['end'])}")
    if found["features"]:
        typer.echo(f"features {', '.join(found['features'])}")
    if found["balance"]:
        balance = (f"{credit} {quantity:,}" for credit, quantity in found["balance"].items())
        typer.echo(f"credits {', '.join(balance)}")
    rows = [_row(name, meter, currency) for name, meter in found["meters"].items()]
    print_records(rows, rare=_RARE)


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

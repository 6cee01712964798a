"""``meterkit reconcile``: our books against Stripe's."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog.amount_texts import date_and_time
from meterkit.cli.options import PeriodOption
from meterkit.cli.output import print_note, print_records
from meterkit.cli.progress import shown_steps
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import note_unknown

if TYPE_CHECKING:
    from meterkit import Reconciled

commands = typer.Typer()

RARE: Final = frozenset(
    {"waiting", "parked", "taking_back", "invoiced", "mispriced", "late", "dead", "advice"}
)


@command(commands)
async def reconcile(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer. Default: all.")
    ] = None,
    *,
    period: PeriodOption = None,
    show_all: Annotated[bool, typer.Option("--all", help="Print what agrees, too.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Do what is unambiguous about what Stripe may have.")
    ] = False,
) -> None:
    """Compare deliveries with what Stripe has counted.

    And with what it has invoiced; to the unit, for each customer and meter. Of a period that is over this is
    its close report. Prints what differs, or all of one CUSTOMER. Exits 1 where there is a difference, or
    something is parked.
    """
    async with session.kit(reads=not repair) as kit:
        if customer is not None:
            await note_unknown(kit, customer, shown="")
        with shown_steps() as steps:
            progress = steps.of("comparing customers")
            found = await kit.reconcile(customer, at=period, repair=repair, progress=progress)
    differing = [one for one in found if not one.agrees]
    is_whole = show_all or customer is not None
    rows = [row_of(one) for one in found if is_whole or one.advice or not one.agrees]
    session.show(
        [{**asdict(one), "agrees": one.agrees} for one in found],
        lambda: print_records(rows, rare=RARE) if rows else None,
    )
    if not session.json:
        print_note(_summary(len(differing), len(found)))
    raise typer.Exit(int(bool(differing)))


def _summary(differing: int, compared: int) -> str:
    if not compared:
        return "nothing of this period goes to Stripe"
    if differing:
        return f"{differing:,} of {compared:,} do not agree with Stripe"
    return f"all {compared:,} agree with Stripe"


def row_of(one: Reconciled) -> dict[str, object]:
    """A row of the table."""
    return {
        "customer": one.customer,
        "meter": one.meter,
        "period": f"{date_and_time(one.period_start)}{'' if one.is_closed else ', open'}",
        "recorded": one.recorded,
        "waiting": one.waiting,
        "parked": one.parked,
        "taking_back": one.taking_back,
        "delivered": one.delivered,
        "confirmed": "unknown" if one.confirmed is None else one.confirmed,
        "difference": "unknown" if one.difference is None else one.difference,
        # A column of rare values is left out where all are 0.
        "invoiced": 0 if not one.invoice else "unknown" if one.invoiced is None else one.invoiced,
        "mispriced": one.mispriced,
        "late": one.late,
        "dead": one.dead,
        "advice": one.advice,
    }

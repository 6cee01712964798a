"""``meterkit reconcile``: our books against Stripe's."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meterkit.catalog.amount_texts import date_and_time
from meterkit.cli.options import PeriodOption
from meterkit.cli.output import JsonArray, print_note, print_records
from meterkit.cli.progress import shown_steps
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import note_unknown
from meterkit.delivery.reconciling import Reconciler
from meterkit.insights.audit.calls import audit_database_of
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from meterkit import Reconciled
    from meterkit.cli.progress import Steps

commands = typer.Typer()

_ROWS_AT_ONCE: Final = 1_000

RARE: Final = frozenset(
    {"waiting", "parked", "taking_back", "invoiced", "mispriced", "late", "by_item", "dead", "advice"}
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
    is_whole = show_all or customer is not None
    differing = compared = 0
    async with session.kit(reads=not repair) as kit, AsyncExitStack() as stack:
        if customer is not None:
            await note_unknown(kit, customer, shown="")
        api = StripeApi(kit.settings)
        stack.push_async_callback(api.close)
        reconciler = Reconciler(kit.store, lambda: api, audit_database_of(kit.settings))
        steps = stack.enter_context(shown_steps())
        printed = _Printed(steps, as_json=session.json)
        progress = steps.of("comparing customers")
        pages = reconciler.pages(customer, at=period, repair=repair, progress=progress)
        async for page in await stack.enter_async_context(aclosing(pages)):
            for one in page:
                compared, differing = compared + 1, differing + (not one.agrees)
                if session.json or is_whole or not one.agrees:
                    printed.add(one)
    printed.end()
    if not session.json:
        print_note(_summary(differing, compared))
    raise typer.Exit(int(bool(differing)))


class _Printed:
    """Prints a table for each thousand rows, or one JSON array: there may be more than fit into memory."""

    def __init__(self, steps: Steps, *, as_json: bool) -> None:
        self._steps = steps
        self._array = JsonArray() if as_json else None
        self._rows: list[dict[str, object]] = []

    def add(self, one: Reconciled) -> None:
        """Print a comparison, or keep its row until there are a thousand."""
        if self._array is not None:
            self._end_bars()
            self._array.add({**asdict(one), "agrees": one.agrees})
            return
        self._rows.append(row_of(one))
        if len(self._rows) == _ROWS_AT_ONCE:
            self._end_bars()
            self._flush()

    def end(self) -> None:
        """Print the rest."""
        if self._array is not None:
            self._array.end()
        self._flush()

    def _end_bars(self) -> None:
        if sys.stdout.isatty():
            self._steps.end()

    def _flush(self) -> None:
        if self._rows:
            print_records(self._rows, rare=RARE)
        self._rows = []


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
        "by_item": one.by_item,
        "dead": one.dead,
        "advice": one.advice,
    }

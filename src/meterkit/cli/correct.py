"""``meterkit correct``: take recorded units back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from meterkit.cli.grants import quantities_of
from meterkit.cli.options import CustomerArgument
from meterkit.cli.outbox import operator
from meterkit.cli.output import print_note
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import check_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit import Corrected

__all__ = ["commands"]

commands = typer.Typer()


@command(commands)
async def correct(
    session: Session,
    customer: CustomerArgument,
    quantities: Annotated[
        list[str],
        typer.Argument(
            metavar="METER=QUANTITY", help="A meter of the plans file, and the units: tokens=1_200."
        ),
    ],
    *,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Required: why, for the ledger of the customer."),
    ] = None,
    correction_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="Required: your own name of this correction, such as a ticket's. The same one corrects"
            " once.",
        ),
    ] = None,
) -> None:
    """Take back units that were recorded in this billing period.

    Exits 1 where something is to be credited by hand, or was never recorded.
    """
    if not reason or not correction_id:
        raise typer.BadParameter(
            "give --reason TEXT and --id ID: the one is entered into the customer's ledger, and with the"
            " other a command that is repeated does not correct twice"
        )
    given = quantities_of(quantities)
    async with session.kit(customer) as kit:
        await check_known(kit, customer)
        found = await kit.correct(customer, given, reason=reason, correction_id=correction_id, by=operator())
        currency = kit.catalog.currency
    session.show([asdict(one) for one in found], lambda: _tell(found, correction_id, currency))
    if any(one.by_hand or one.beyond for one in found):
        raise typer.Exit(1)


def _tell(found: Sequence[Corrected], correction_id: str, currency: str) -> None:
    for one in found:
        if one.is_repeated:
            print_note(f"{correction_id} was corrected before; nothing has changed")
        for line in _lines(one, currency):
            typer.echo(f"{one.meter}: {line}")


def _lines(one: Corrected, currency: str) -> Iterator[str]:
    classes = {name: getattr(one, name) for name in ("overage", "credited", "granted", "included")}
    parts = ", ".join(f"{units:,} {name}" for name, units in classes.items() if units)
    yield f"{one.taken_back:,} of {one.asked:,} taken back" + (f": {parts}" if parts else "")
    if one.sent_back:
        yield f"{one.sent_back:,} of them Stripe has: a meter event of so many less is on its way"
    if one.granted_next:
        yield f"{one.granted_next:,} were sent to Stripe: there is a grant for them from the next period on"
    if one.by_hand:
        cents = one.by_hand_cents
        sum_of = "" if cents is None else f", {cents // 100}.{cents % 100:02d} {currency.upper()} as overage"
        yield f"{one.by_hand:,} were sent to Stripe: credit them by hand{sum_of}"
    if one.never_billed:
        yield f"{one.never_billed:,} stay recorded and cost nothing: not accepted by Stripe, or included"
    if one.beyond:
        yield f"{one.beyond:,} were not recorded in this period, or corrected before"

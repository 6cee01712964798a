"""``meterkit grants``: grant customers quantities in addition to their plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from meterkit.catalog.meters import MICRO_USD
from meterkit.catalog.value_parsers import micro_money
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import (
    WHEN,
    CustomerArgument,
    WrongUsageError,
    check_known,
    date_or_instant,
    integer_between,
    new_customer_note,
    note_unknown,
    parse_quantities,
)
from meterkit.cli.output import print_note, print_records, print_table
from meterkit.cli.session import Session, command
from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import iso

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog.credit_values import Credit
    from meterkit.customers.grant_ledger import Grant, LedgerEntry
    from meterkit.kit import MeterKit

commands = command_group("grants", "Give customers quantities beyond their plan.")

_PriorityOption = Annotated[
    int,
    typer.Option(
        "--priority",
        parser=integer_between(0, 1000),
        metavar="N",
        help="From 0 to 1000; the lowest is used first.",
    ),
]


@command(commands)
async def add(
    session: Session,
    customer: CustomerArgument,
    quantities: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=QUANTITY",
            help="A meter or credit of the plans file, and a quantity: ai=500 pages=10_000.",
        ),
    ],
    *,
    grant_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            "--grant-id",
            metavar="ID",
            help="Required: your own id of this grant, such as an invoice id. A repeated id grants once.",
        ),
    ] = None,
    priority: _PriorityOption = 50,
    effective: Annotated[
        str | None,
        typer.Option("--effective", metavar="WHEN", help=f"Start of the grant: {WHEN}. Default: now."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="WHEN",
            help="End of the grant, in the same format. Default: never.",
        ),
    ] = None,
) -> None:
    """Grant a customer quantities of meters or credits.

    They pay for usage beyond the included quantities.
    """
    if grant_id is None:
        raise WrongUsageError(
            "give --id ID, your own id of this grant, such as an invoice id, so that repeating the command"
            " does not grant twice"
        )
    given = parse_quantities(quantities)
    effective_at, expires_at = (
        date_or_instant("--effective", effective),
        date_or_instant("--expires", expires),
    )
    async with session.kit(customer) as kit:
        hint = await new_customer_note(kit, customer)
        before = {grant.name for grant in await _grants_with_id(kit, customer, grant_id)}
        await kit.grants.add(
            customer,
            given,
            grant_id=grant_id,
            priority=priority,
            effective_at=effective_at,
            expires_at=expires_at,
        )
        if hint:
            print_note(hint)
        for repeated in sorted(before & given.keys()):
            print_note(f"{repeated}: {grant_id} was granted before; nothing has changed")
        _show_grants(session, kit, customer, await _grants_with_id(kit, customer, grant_id))


@command(commands, "list")
async def list_all(session: Session, customer: CustomerArgument) -> None:
    """List a customer's grants in the order in which they are used.

    Includes the plan's own grants.
    """
    async with session.kit(customer, reads=True) as kit:
        await note_unknown(kit, customer)
        _show_grants(session, kit, customer, await kit.grants.list(customer))


@command(commands)
async def void(
    session: Session,
    customer: CustomerArgument,
    grant_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the grant.")],
) -> None:
    """Take back what is left of a grant.

    Usage that it paid for stays paid. Repeating the command changes nothing.
    """
    async with session.kit(customer) as kit:
        await check_known(kit, customer)
        await kit.grants.void(customer, grant_id)
        _show_grants(session, kit, customer, await _grants_with_id(kit, customer, grant_id))


@command(commands)
async def ledger(session: Session, customer: CustomerArgument) -> None:
    """Show the history of each grant.

    With --json, credits are in millionths of a credit.
    """
    async with session.kit(customer, reads=True) as kit:
        await note_unknown(kit, customer)
        found = await kit.grants.ledger(customer)
    session.show([asdict(entry) for entry in found], lambda: _print_ledger(customer, found))


def _print_ledger(customer: str, found: Sequence[LedgerEntry]) -> None:
    print_table(
        ("grant", "of", "entry", "quantity", "meter", "period"),
        (
            (
                entry.grant_id,
                entry.name,
                entry.entry,
                _exact_quantity(entry),
                entry.meter,
                entry.period_start,
            )
            for entry in sorted(found, key=_sort_key)
        ),
        empty=f"customer {customer} has no grants",
    )


async def _grants_with_id(kit: MeterKit, customer: str, grant_id: str) -> Sequence[Grant]:
    """Read the app's grants with an id: one per meter or credit."""
    every = await kit.grants.list(customer)
    return [grant for grant in every if (grant.source, grant.grant_id) == ("app", grant_id)]


def _show_grants(session: Session, kit: MeterKit, customer: str, found: Sequence[Grant]) -> None:
    rows = [_row(grant, kit.catalog.credits) for grant in found]
    if all(grant.source == "app" for grant in found):
        for row in rows:
            del row["by"]  # The column is shown only if some grants are the plan's.
    empty = f"customer {customer} has no grants"
    session.show([asdict(grant) for grant in found], lambda: print_records(rows, empty=empty))


def _row(grant: Grant, credits_: Mapping[str, Credit]) -> dict[str, object]:
    quantities: dict[str, object] = {"quantity": grant.quantity, "remaining": grant.remaining}
    credit = None if grant.kind == "meter" else credits_.get(grant.name)
    if credit is not None and credit.is_money:
        exact = {"quantity": grant.quantity_micros, "remaining": grant.remaining_micros}
        quantities = {name: micro_money(micros or 0, MICRO_USD) for name, micros in exact.items()}
    return {
        "grant": grant.grant_id,
        "of": grant.name,
        **quantities,
        "priority": grant.priority,
        "effective": grant.effective_at,
        "expires": grant.expires_at or "never",
        "by": grant.source,
        "status": grant.status,
    }


def _sort_key(entry: LedgerEntry) -> tuple[str, str, int, str, str]:
    """Sort key of a ledger line: its grant, then the order of events."""
    order = ("grant", "adjustment", "burn", "debt", "repayment", "rollover", "expire", "void", "refund")
    period = "" if entry.period_start is None else iso(entry.period_start)
    return entry.name, entry.grant_id, order.index(entry.entry), period, entry.meter or ""


def _exact_quantity(entry: LedgerEntry) -> str:
    """Format units of a meter, or credits with all decimals."""
    if entry.kind == "meter":
        return f"{entry.quantity:,}"
    whole, micro = divmod(abs(entry.quantity), MICRO)
    sign = "-" if entry.quantity < 0 else ""
    return f"{sign}{whole:,}" + (f".{micro:06d}".rstrip("0") if micro else "")

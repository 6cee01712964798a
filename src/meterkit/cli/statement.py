"""``meterkit statement``: the bill of a customer, each line with its events."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterkit.catalog.amount_texts import date_and_time, money
from meterkit.cli.options import PeriodOption
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.cli.unknown_customers import note_unknown
from meterkit.decisions.periods import iso

if TYPE_CHECKING:
    from meterkit import Statement

commands = typer.Typer()


@command(commands)
async def statement(
    session: Session,
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer.")],
    *,
    period: PeriodOption = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a row for each line and each event.")
    ] = False,
) -> None:
    """Show the bill of a period, and what each line rests on.

    The lines are those of the period's invoices; before there is one, those of the plans file. With --csv all
    events, with --json the first 100 of each line. Reads the audit log.
    """
    if as_csv and session.json:
        raise typer.BadParameter("give --csv or --json")
    async with session.kit(customer, reads=True) as kit:
        if as_csv:
            pages: Any = import_module("meterkit.pages.statement_csv")  # Pages take a while to import.
            async with aclosing(pages.csv_of(kit.statement, customer, period, line_end="\n")) as parts:
                async for part in parts:
                    echo(part, nl=False)
            return
        await note_unknown(kit, customer)
        found = await kit.statement(customer, period)
    session.show(asdict(found), lambda: _tell(found))


def _tell(found: Statement) -> None:
    echo(f"statement of {found.customer}, {iso(found.period_start)} to {iso(found.period_end)}")
    for invoice in found.invoices:
        root = f", audit root {invoice.audit_root}" if invoice.audit_root else ""
        total = money(invoice.total_cents, found.currency)
        if invoice.credit_notes_cents:
            total += f", less {money(invoice.credit_notes_cents, found.currency)} by credit notes"
        echo(f"invoice {invoice.number or invoice.id}: {invoice.status}, {total}{root}")
    rows: list[dict[str, object]] = [
        {
            "line": line.description or line.kind,
            "quantity": "" if line.quantity is None else line.quantity,
            "amount": money(line.amount_cents, found.currency),
            "events": line.event_count,
            "note": line.note,
        }
        for line in found.lines
    ]
    print_records(rows, rare=frozenset({"events", "note"}))
    echo(f"total {money(found.total_cents, found.currency)}")
    balance: list[dict[str, object]] = [
        {
            "balance": one.credit,
            "entry": one.entry,
            "grant": one.grant_id,
            "micros": one.amount_micros,
            "at": "" if one.at is None else date_and_time(one.at),
        }
        for one in found.balance
    ]
    if balance:
        echo()
        print_records(balance, rare=frozenset({"at"}))
    if not found.is_final:
        print_note("it is not final: an invoice is missing, or a draft")

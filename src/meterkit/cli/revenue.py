"""``meterkit revenue``: recurring revenue by day, and its changes."""

from __future__ import annotations

import re
from datetime import date
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterkit.catalog.value_parsers import money, rounded_cents
from meterkit.cli.help_pages import command_group
from meterkit.cli.options import WrongUsageError
from meterkit.cli.output import echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.csv_text import csv_text
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.insights.revenue.revenue import RevenueDay

commands = command_group("revenue", "Show recurring revenue by day.", has_default=True)

_MICRO: Final = 1_000_000
_MONEY: Final = (
    "mrr",
    "new",
    "expansion",
    "contraction",
    "churn",
    "reactivation",
    "usage_revenue",
    "arpa",
    "ltv",
    "forecast",
)
_SHARES: Final = ("nrr", "grr", "customer_churn", "gross_churn", "net_churn", "forecast_error")
_RARE: Final = frozenset({"cac", *_MONEY, *_SHARES} - {"mrr", "arpa"})


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r:.40}; allowed is a day such as 2026-10-01") from None


@command(commands, by_default=True)
async def revenue(
    session: Session,
    context: typer.Context,
    *,
    first: Annotated[
        date | None,
        typer.Option("--from", parser=_day, metavar="DAY", help="The first day. Default: only the last day."),
    ] = None,
    last: Annotated[
        date | None,
        typer.Option(
            "--to", parser=_day, metavar="DAY", help="The last day. Default: the day of the last snapshot."
        ),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one line for each day and currency.")
    ] = False,
) -> None:
    """Show recurring revenue by day.

    Monthly recurring revenue and its changes, from the daily snapshots (UTC) in the audit log's database.
    JSON and CSV have money in millionths of a cent.
    """
    if context.invoked_subcommand is not None:
        return
    if as_csv and session.json:
        raise WrongUsageError("give --csv or --json, not both")
    async with session.kit(reads=True) as kit:
        ends = await kit.revenue.at(last)
        days = [await kit.revenue.at(day) for day in await kit.revenue.days(first or ends.day, ends.day)]
        if not days:
            raise MeterkitError(f"revenue: found no snapshot from {first} to {ends.day}")
        currency = kit.catalog.currency
    rows = [row for day in days for row in _rows(day, currency)]
    if as_csv:
        _write_csv(rows)
    else:
        shown = [_shown(row, currency) for row in rows]
        session.show(rows, lambda: print_records(shown, rare=_RARE, empty="no subscription has revenue"))


@command(commands, unused=("json",))
async def spend(
    session: Session,
    spent: Annotated[
        list[str],
        typer.Argument(metavar="DAY=CENTS", help="A day and what you spent on it: 2026-10-01=150000."),
    ],
) -> None:
    """Record what you spent on a day to win customers.

    In cents of the plans file's first currency. `meterkit revenue` computes the cost of a new customer from
    it. A new value for a day replaces the old one.
    """
    given = [_spent(text) for text in spent]
    async with session.kit() as kit:
        for day, cents in given:
            await kit.revenue.spend(day, cents)
        currency = kit.catalog.currency
    for day, cents in given:
        print_note(f"{day}: {money(cents, currency)}")


def _spent(text: str) -> tuple[date, int]:
    day, equals, cents = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9](_?[0-9]){0,17}", cents):
        raise WrongUsageError(f"found {text!r:.60}; allowed is DAY=CENTS, such as 2026-10-01=150000")
    return _day(day), int(cents)


def _rows(found: RevenueDay, first: str) -> Iterator[dict[str, Any]]:
    """A row for each currency; the cost of a new customer is in the ``first`` one of the plans file."""
    for currency in sorted({*found.mrr, *found.usage_revenue}):
        yield {
            "day": found.day.isoformat(),
            "currency": currency,
            "customers": found.customers.get(currency, 0),
            **{name: getattr(found, name).get(currency) for name in (*_MONEY, *_SHARES)},
            "cac_cents": found.cac if currency == first else None,
        }


def _shown(row: dict[str, Any], currency: str) -> dict[str, Any]:
    cents = {name: rounded_cents(Fraction(row[name] or 0, _MICRO)) for name in _MONEY}
    amounts = {name: money(amount, row["currency"]) if row[name] else "" for name, amount in cents.items()}
    shares = {name: "" if row[name] is None else f"{row[name]:.1%}" for name in _SHARES}
    cac = "" if row["cac_cents"] is None else money(row["cac_cents"], currency)
    return {"day": row["day"], "customers": row["customers"], **amounts, **shares, "cac": cac}


def _write_csv(rows: Sequence[dict[str, Any]]) -> None:
    names = ("day", "currency", "customers", *_MONEY, *_SHARES, "cac_cents")
    echo(csv_text(names, rows, head=True, line_end="\n"), nl=False)

"""``meterkit usage`` and ``meterkit statement``: the usage of customers, and what they were billed for."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from llm_usage.units import UNIT_OF
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.meters import MICRO_USD
from meterkit.catalog.overage_prices import is_row
from meterkit.catalog.value_parsers import (
    UNLIMITED,
    date_and_time,
    duration_text,
    is_money,
    micro_money,
    money,
)
from meterkit.cli.options import PeriodOption, WrongUsageError, note_unknown
from meterkit.cli.output import JsonArray, echo, print_note, print_records
from meterkit.cli.session import Session, command
from meterkit.csv_text import csv_text
from meterkit.customers.billed_usage import read_priced_usage, usage_of_all
from meterkit.decisions.periods import iso, to_ms
from meterkit.insights.statement.lines import ENTRY_WORDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from meterkit import Statement
    from meterkit.catalog import Catalog
    from meterkit.insights.by_model import EarnedAmounts, ModelUsage
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.subject_usage import SubjectUsage

commands = typer.Typer()

_MICRO_PER_CENT: Final = 10_000
_RARE: Final = frozenset({"held", "granted", "over cap", "cost", "late", "parked", "dead"})
_ON_THE_WAY: Final = frozenset({"to send", "delivered", "late", "parked", "dead"})
"""Columns that are hidden while empty."""
_SPANS: Final = {"1d": "day", "1h": "hour"}
_OF_EARNED: Final = ("cost", "revenue", "margin")
_CSV: Final = (
    "customer",
    "plan",
    "status",
    "access",
    "period_start",
    "period_end",
    "meter",
    "used",
    "included",
    "granted",
    "held",
    "remaining",
    "overage",
    "overage_cents",
    "over_cap",
    "recorded",
    "pending",
    "unlinked",
    "queued",
    "leased",
    "parked",
    "delivered",
    "late",
    "dead",
    "currency",
)


@command(commands)
async def usage(
    session: Session,
    customer: Annotated[
        str | None, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer.")
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Show every customer with usage, sorted by id.")
    ] = False,
    period: PeriodOption = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="KIND",
            help="Show cost, revenue and margin by model (--by model), or usage by user (--by user).",
        ),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one line for each customer and meter.")
    ] = False,
) -> None:
    """Show a customer's usage, what is left, and what Stripe has.

    Shows this billing period unless --period names another. --all exits 1 if it leaves out a customer whose
    stored data cannot be read.
    """
    if every == (customer is not None):
        raise WrongUsageError("give CUSTOMER or --all")
    if as_csv and session.json:
        raise WrongUsageError("give --csv or --json, not both")
    if by is not None and (every or as_csv):
        raise WrongUsageError("--by shows one customer; leave out --all and --csv")
    if by not in {None, "model"} and period is not None:
        raise WrongUsageError("--by KIND shows the current period; leave out --period")
    at_ms = None if period is None else to_ms(period)
    async with session.kit(customer, reads=True) as kit:
        if customer is not None and by == "model":
            await note_unknown(kit, customer)
            earned = await kit.usage(customer, by="model", period=period)
            session.show(earned, lambda: _print_models(earned, kit.catalog))
            return
        if customer is None:
            skipped: list[str] = []
            async with aclosing(usage_of_all(kit.store, at_ms=at_ms, skipped=skipped)) as pages:
                await _print_all(pages, session, kit.catalog, as_csv=as_csv)
            if skipped:
                raise typer.Exit(1)
            return
        await note_unknown(kit, customer)
        if by is not None:
            subjects = cast("Sequence[SubjectUsage]", await kit.usage(customer, by=by))
            catalog = kit.catalog.in_currency((await kit.usage(customer))["currency"])
            empty = f"no {by} of {customer} has usage in this period"
            session.show_rows(subjects, partial(_row_of_subject, catalog=catalog), empty=empty)
            return
        (found,) = await read_priced_usage(kit.store, [customer], at_ms=at_ms)
        rates = await kit.rates(customer) if at_ms is None else ()
    if as_csv:
        _write_csv([found], headed=True)
    else:
        catalog = kit.catalog.in_currency(found["currency"])
        session.show(found, lambda: _print_usage(found, rates, catalog))


def _print_models(found: ModelUsage, catalog: Catalog) -> None:
    period, currency = found["period"], found["currency"]
    echo(f"customer {found['customer']}, period {iso(period['start'])} to {iso(period['end'])}")
    counted = {UNIT_OF.get(name, name) for name in catalog.meters}
    rows: list[dict[str, object]] = []
    for model, of_model in found["models"].items():
        who: dict[str, object] = {"model": model or "(none)"}
        rows += [
            {
                **who,
                "meter": name,
                "recorded": _readable_amount(name, one["recorded"], catalog),
                **_earned(one, currency),
            }
            for name, one in of_model["meters"].items()
        ]
        # Units without a meter: their cost is on the meter that contains them.
        rows += [
            {**who, "meter": f"({unit})", "recorded": count, **dict.fromkeys(_OF_EARNED, "")}
            for unit, count in of_model["units"].items()
            if unit not in counted
        ]
    if not rows:
        print_note("the audit log has no usage of this customer in this period")
        return
    total = {"model": "total", "meter": "", "recorded": "", **_earned(found, currency)}
    print_records([*rows, total], rare=frozenset())
    if unknown := [model or "(none)" for model, one in found["models"].items() if one["cost_micros"] is None]:
        print_note(
            f"what the provider charges for {', '.join(unknown)} is not known: the price table lacks the"
            " model, or the extra `prices` is not installed; a balance in money can give it under `models`"
        )


def _readable_amount(meter: str, recorded: int, catalog: Catalog) -> object:
    """Format a quantity; money with its currency."""
    unit = catalog.meters[meter].unit if meter in catalog.meters else ""
    return micro_money(recorded, unit) if recorded and is_money(unit) else recorded


def _earned(one: EarnedAmounts, currency: str) -> dict[str, object]:
    cost, margin = one["cost_micros"], one["margin_micros"]
    return {
        "cost": "not known" if cost is None else micro_money(cost, BALANCE_CURRENCY),
        "revenue": micro_money(one["revenue_micros"], currency),
        "margin": "" if margin is None else micro_money(margin, currency),
    }


async def _print_all(
    pages: AsyncGenerator[Sequence[CustomerUsage]], session: Session, catalog: Catalog, *, as_csv: bool
) -> None:
    """Print page by page: there may be more customers than fit into memory."""
    count, array = 0, JsonArray()
    async for page in pages:
        if as_csv:
            _write_csv(page, headed=not count)
        elif session.json:
            for found in page:
                array.add(found)
        elif page:
            rows = [row for found in page for row in _rows_of_one(found, catalog)]
            print_records(rows, rare=_RARE)
        count += len(page)
    if as_csv and not count:
        _write_csv([], headed=True)
    elif session.json:
        array.end()
    elif not count:
        print_note("no customer has usage in this period")


def _row_of_subject(found: SubjectUsage, catalog: Catalog) -> dict[str, object]:
    """Make a row: meters in the order of the plans file, then the subject's budget."""
    row: dict[str, object] = {found.kind: found.subject}
    for name in catalog.meters:
        if name in found.meters:
            row[name] = _readable_amount(name, found.meters[name].recorded, catalog)
    if found.spent_micros is not None and found.limit_cents is not None and found.per is not None:
        row["spent"] = micro_money(found.spent_micros, catalog.currency)
        row["budget"] = f"{money(found.limit_cents, catalog.currency)} per {_SPANS.get(found.per, found.per)}"
    return row


def _rows_of_one(found: CustomerUsage, catalog: Catalog) -> list[dict[str, object]]:
    who, units = {"customer": found["customer"], "plan": found["plan"]}, _money_units(catalog, found)
    return [
        {**who, **_in_money(_meter_row(name, meter, found["currency"]), units.get(name))}
        for name, meter in found["meters"].items()
        if meter["used"] or meter["late"]
    ]


def _money_units(catalog: Catalog, found: CustomerUsage) -> dict[str, str]:
    """The units of the meters that count money, in a customer's currency."""
    meters = catalog.in_currency(found["currency"]).meters
    return {name: meter.unit for name, meter in meters.items() if is_money(meter.unit)}


def _write_csv(page: Sequence[CustomerUsage], *, headed: bool) -> None:
    rows: list[dict[str, object]] = []
    for found in page:
        period = found["period"]
        common: dict[str, object] = {
            **{name: found[name] for name in ("customer", "plan", "status", "access", "currency")},
            "period_start": iso(period["start"]),
            "period_end": iso(period["end"]),
        }
        for name, meter in found["meters"].items():
            rows.append({**dict.fromkeys(_CSV), **common, "meter": name, **meter})
    echo(csv_text(_CSV, rows, head=headed, line_end="\n"), nl=False)


def _print_usage(found: CustomerUsage, rates: Sequence[RateUsage], catalog: Catalog) -> None:
    period = found["period"]
    status = found["status"] or "none"
    echo(f"customer {found['customer']}: plan {found['plan']}, status {status}, access {found['access']}")
    provisional = ", provisional: the renewal is not known yet" if period["provisional"] else ""
    echo(f"period {iso(period['start'])} to {iso(period['end'])}{provisional}")
    if found["features"]:
        echo(f"features {', '.join(found['features'])}")
    if found["balance"]:
        balance = (
            money(found["balance_micros"][name] // _MICRO_PER_CENT, BALANCE_CURRENCY)
            if name in catalog.credits and catalog.credits[name].is_money
            else f"{name} {quantity:,}"
            for name, quantity in found["balance"].items()
        )
        echo(f"credits {', '.join(balance)}")
    meters = found["meters"].items()
    rows = [_meter_row(name, meter, catalog.currency) for name, meter in meters if _is_of_plan(name, meter)]
    units = _money_units(catalog, found)
    print_records([_in_money(row, units.get(str(row["meter"]))) for row in rows], rare=_RARE)
    if rates:
        echo()
        print_records([_in_money(_rate_row(rate), units.get(rate["meter"] or "")) for rate in rates])


def _is_of_plan(name: str, meter: MeterUsage) -> bool:
    """Whether to show a meter: one of another plan's prices by model only if it has counts.

    Such counts come from an earlier plan in the period.
    """
    limits = {"included", "remaining", "overage_cents"}
    is_other = is_row(name) and meter["included"] == UNLIMITED
    return not is_other or any(value for key, value in meter.items() if key not in limits)


def _in_money(row: dict[str, object], unit: str | None) -> dict[str, object]:
    """The row of a meter that counts money, in its currency."""
    if unit is None:
        return row
    return {
        name: micro_money(value, unit)
        if isinstance(value, int) and value and name not in _ON_THE_WAY
        else value
        for name, value in row.items()
    }


def _rate_row(rate: RateUsage) -> dict[str, object]:
    wait = rate["reset_after"]
    return {
        "rate": rate["policy"] if rate["route"] is None else f"{rate['policy']}, {rate['route']}",
        "limit": rate["limit"],
        "used": rate["used"],
        "remaining": rate["remaining"],
        "more": f"in {duration_text(wait)}" if wait else "",
    }


def _meter_row(name: str, meter: MeterUsage, currency: str) -> dict[str, object]:
    cents = meter["overage_cents"]
    return {
        "meter": name,
        "used": meter["used"],
        "held": meter["held"],
        "included": meter["included"],
        "granted": meter["granted"],
        "remaining": meter["remaining"],
        "overage": meter["overage"],
        "over cap": meter["over_cap"],
        "cost": "" if cents is None else money(cents, currency),
        "to send": meter["pending"] + meter["unlinked"] + meter["queued"] + meter["leased"],
        "delivered": meter["delivered"],
        "late": meter["late"],
        "parked": meter["parked"],
        "dead": meter["dead"],
    }


@command(commands)
async def statement(
    session: Session,
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="Your own id of the customer.")],
    *,
    period: PeriodOption = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one row for each line and each event.")
    ] = False,
) -> None:
    """Show the bill of a period, and the events behind it.

    The lines come from the period's invoices, or from the plans file while there is no invoice. --csv prints
    all events, --json the first 100 of each line. Reads the audit log.
    """
    if as_csv and session.json:
        raise WrongUsageError("give --csv or --json, not both")
    async with session.kit(customer, reads=True) as kit:
        if as_csv:
            pages: Any = import_module("meterkit.pages.statement")  # Pages take a while to import.
            async with aclosing(
                pages.csv_of(kit.statement, customer, period, kit.catalog, line_end="\n")
            ) as parts:
                async for part in parts:
                    echo(part, nl=False)
            return
        await note_unknown(kit, customer)
        found = await kit.statement(customer, period)
    session.show(asdict(found), lambda: _print_statement(found))


def _print_statement(found: Statement) -> None:
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
            "entry": ENTRY_WORDS.get(one.entry, one.entry),
            "grant": one.grant_id,
            "amount": micro_money(one.amount_micros, MICRO_USD),
            "at": "" if one.at is None else date_and_time(one.at),
        }
        for one in found.balance
    ]
    if balance:
        echo()
        print_records(balance, rare=frozenset({"at"}))
    if not found.is_final:
        print_note("not final: an invoice is missing, or is a draft")

"""``meterkit simulate``: replay the usage of a period under another plans file."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, replace
from fractions import Fraction
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from meterkit.catalog import load
from meterkit.catalog.value_parsers import money
from meterkit.cli.options import PeriodOption, WrongUsageError, note_unknown
from meterkit.cli.output import pick, print_note, print_records, shown_steps
from meterkit.cli.session import Session, command
from meterkit.decisions.periods import period_ms
from meterkit.errors import SettingsError
from meterkit.insights.audit.async_database import database_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.insights.simulation.simulation import SimulatedCustomer, Simulation

commands = typer.Typer()

_MOST_AFFECTED: Final = 100
_MARGINS: Final = ("margin now", "margin then")
"""Columns that --cost fills."""
_PER: Final = 1000
_MONTH_MS: Final = 31 * 86_400_000


@command(commands)
async def simulate(
    session: Session,
    *,
    period: PeriodOption = None,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="CUSTOMER", help="Only this customer. Default: all.")
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METER=CENTS",
            help="Your cost of 1000 units of a meter, in the file's first currency. May be repeated.",
        ),
    ] = None,
) -> None:
    """Replay the usage of a period under another plans file.

    Shows who would have been refused, and what each customer would have paid. Reads the audit log. --plans
    names the file to try; METERKIT_PLANS names the current one. Without --period it takes the periods that
    were open a month ago. Exits 1 if its two calculations, by sums and by scripts, disagree.
    """
    if session.plans is None:
        raise WrongUsageError("name the plans file to try: --plans next.yaml")
    catalog, costs = load(session.plans), dict(map(_cost, cost or ()))
    async with replace(session, plans=None).kit(reads=True) as kit:
        if kit.settings.audit_url is None:
            raise SettingsError(
                "audit_url", "simulating needs the audit log; set METERKIT_AUDIT_URL to its database"
            )
        for meter in costs:
            if meter not in kit.catalog.meters:
                raise WrongUsageError(f"--cost: the plans file has no meter {meter!r:.60}")
        database = database_at(kit.settings.audit_url.get_secret_value())
        simulation: Any = import_module("meterkit.insights.simulation.simulation")
        at_ms = kit.store.now_ms() - _MONTH_MS if period is None else period_ms(period)
        with shown_steps() as steps:
            found: Simulation = await simulation.simulate(
                kit.store,
                database,
                catalog,
                at_ms,
                customer=customer,
                costs=costs or None,
                progress=steps.of("replaying customers"),
            )
        if customer is not None:
            await note_unknown(kit, customer, shown="")
    session.show(_as_json(found), lambda: _print_simulation(found))
    if found.disagreeing:
        print_note(
            f"two calculations disagree about {', '.join(map(repr, found.disagreeing))}: please report this",
            level=logging.ERROR,
        )
        raise typer.Exit(1)


def _cost(text: str) -> tuple[str, Fraction]:
    meter, equals, cents = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9](_?[0-9]){0,11}(\.[0-9]{1,6})?", cents):
        raise WrongUsageError(f"found {text!r:.60}; allowed is METER=CENTS, such as output_tokens=40 or 0.5")
    return meter, Fraction(cents) / _PER


def _as_json(found: Simulation) -> dict[str, object]:
    return {
        "customers": [asdict(one) for one in found.customers],
        "totals": _totals(found.customers),
        "counts": _counts(found.customers),
        "plans": _by_plan(found.customers),
        **pick(found, "missing_meters", "missing_plans", "not_logged", "unpriced", "left_out"),
        **pick(found, "checked", "disagreeing"),
    }


def _totals(customers: Sequence[SimulatedCustomer]) -> dict[str, dict[str, int]]:
    """Sums of each currency by itself."""
    return {
        currency: {
            "now_cents": sum(one.now_cents for one in customers if one.currency == currency),
            "then_cents": sum(one.then_cents for one in customers if one.currency == currency),
        }
        for currency in sorted({one.currency for one in customers})
    }


def _counts(customers: Sequence[SimulatedCustomer]) -> dict[str, int]:
    return {
        "customers": len(customers),
        "refused": sum(bool(one.refused) for one in customers),
        "unprofitable": sum(_turns_unprofitable(one) for one in customers),
        "estimates": sum(bool(one.estimates) for one in customers),
    }


def _turns_unprofitable(one: SimulatedCustomer) -> bool:
    now, then = one.now_margin_cents, one.then_margin_cents
    return now is not None and then is not None and now >= 0 > then


def _by_plan(customers: Sequence[SimulatedCustomer]) -> dict[str, dict[str, object]]:
    plans: dict[str, list[SimulatedCustomer]] = {}
    for one in sorted(customers, key=lambda one: one.plan):
        plans.setdefault(one.plan, []).append(one)
    return {plan: {"totals": _totals(of), **_counts(of)} for plan, of in plans.items()}


def _print_simulation(found: Simulation) -> None:
    groups: dict[tuple[str, str], list[SimulatedCustomer]] = {}
    for one in sorted(found.customers, key=lambda one: (one.plan, one.currency)):
        groups.setdefault((one.plan, one.currency), []).append(one)
    rows = [_plan_row(plan, of, currency) for (plan, currency), of in groups.items()]
    print_records(
        rows, rare=frozenset({"unprofitable", "estimates", *_MARGINS}), empty="there are no customers"
    )
    affected = sorted(found.customers, key=lambda one: (-abs(one.then_cents - one.now_cents), one.customer))
    shown = [one for one in affected if one.then_cents != one.now_cents or one.refused][:_MOST_AFFECTED]
    if shown:
        print_records([_row(one) for one in shown], rare=frozenset({"refused", "first", "note", *_MARGINS}))
    for meter, quantity in found.missing_meters.items():
        print_note(f"the other plans file lacks the meter {meter!r}: {quantity:,} units are left out")
    for plan, count in found.missing_plans.items():
        print_note(
            f"the other plans file lacks the plan {plan!r} of {count:,} customers: its default plan is used"
        )
    for meter, quantity in found.not_logged.items():
        print_note(
            f"the audit log lacks {quantity:,} units of {meter!r} that the store has recorded: they are left"
            " out. Usage waits in the store until the app or `meterkit worker` writes it to the log; the log"
            " never has usage from before METERKIT_AUDIT_URL was set"
        )
    for meter in found.unpriced:
        print_note(f"{meter!r} has no overage price in one of the plans files: it is left out")
    for note in found.left_out:
        print_note(note)


def _plan_row(plan: str, of: Sequence[SimulatedCustomer], currency: str) -> dict[str, object]:
    totals, counts = _totals(of)[currency], _counts(of)
    return {
        "plan": plan,
        "customers": counts["customers"],
        "now": money(totals["now_cents"], currency),
        "then": money(totals["then_cents"], currency),
        "difference": money(totals["then_cents"] - totals["now_cents"], currency),
        **_margins(of, currency),
        "refused": counts["refused"],
        "unprofitable": counts["unprofitable"],
        "estimates": counts["estimates"],
    }


def _margins(of: Sequence[SimulatedCustomer], currency: str) -> dict[str, object]:
    """Sums of the margins; empty without --cost, or in another currency than its costs."""
    now = [one.now_margin_cents for one in of if one.now_margin_cents is not None]
    then = [one.then_margin_cents for one in of if one.then_margin_cents is not None]
    cells = [money(sum(cents), currency) if cents else "" for cents in (now, then)]
    return dict(zip(_MARGINS, cells, strict=True))


def _row(one: SimulatedCustomer) -> dict[str, object]:
    notes = [*(["unprofitable then"] if _turns_unprofitable(one) else []), *one.estimates]
    return {
        "customer": one.customer,
        "plan": one.plan,
        "now": money(one.now_cents, one.currency),
        "then": money(one.then_cents, one.currency),
        **_margins([one], one.currency),
        "refused": ", ".join(f"{units:,} {meter}" for meter, units in one.refused.items()),
        "first": one.refused_first_at,
        "note": "; ".join(notes),
    }

"""``budget:`` of a plan: how much a customer may spend beyond the plan's price."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.currencies import BALANCE_CURRENCY, PerCurrency
from meterkit.catalog.errors import listed
from meterkit.catalog.models import QUANTITY_MAX, SPEND, Entitlement, Meter, Overage, Rate
from meterkit.catalog.value_parsers import (
    MICRO_UNIT,
    UNLIMITED,
    Unlimited,
    cents,
    micros_per_minor_unit,
    or_unlimited,
    percent,
)
from meterkit.catalog.value_shapes import Key, ListOf, Nullable, Table, WordChoice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.errors import FilePlace, Problems
    from meterkit.catalog.models import Plan

Per = Literal["period", "day", "hour"]
AtLimit = Literal["deny", "notify"]
_PERS: Final[WordChoice[Per]] = WordChoice(("period", "day", "hour"))
_AT_LIMITS: Final[WordChoice[AtLimit]] = WordChoice(("deny", "notify"))
WINDOWS: Final[Mapping[Per, tuple[int, str]]] = {"day": (86_400_000, "1d"), "hour": (3_600_000, "1h")}


class BudgetTable(Table, what="a budget", inheritable=True):
    """``budget:`` of a plan."""

    amount_cents: Key[int | Unlimited] = Key(
        PerCurrency(or_unlimited(cents()), common=UNLIMITED),
        "What may be spent on overage and from balances in money, in minor units of the currency.",
        required=True,
    )
    per: Key[Per] = Key(_PERS, "Its span: period (default); day or hour, of UTC.")
    warn_at = Key(
        ListOf(percent(least=1, most=1000), "percentages"),
        "Percentages of amount_cents at which usage.threshold is sent; with `at_limit: notify` default: 100.",
    )
    at_limit: Key[AtLimit] = Key(_AT_LIMITS, "What happens beyond it: deny (default), or notify.")


class LimitsTable(Table, what="spend limits"):
    """A customer's own limits, as they are stored."""

    period = Key(Nullable(cents()), "Per billing period, in minor units.")
    day = Key(Nullable(cents()), "Per day of UTC, in minor units.")
    hour = Key(Nullable(cents()), "Per hour, in minor units.")


NO_LIMIT: Final = Entitlement(
    meter=SPEND, rates=(), concurrency=None, included=None, overage=Overage(mode="deny"), warn_at=()
)


def build_budgets(
    budgets: Mapping[str, BudgetTable | None],
    meters: Mapping[str, Meter | None],
    plans: Mapping[str, Plan | None],
    currency: str,
    problems: Problems,
) -> tuple[dict[str, Meter | None], dict[str, Plan | None]]:
    """The meters with the one that counts what is spent, and the plans with what each gives of it.

    Args:
        budgets: those of the plans that have one, by the plan's key.
        meters: of the file.
        plans: of the file.
        currency: of the file.
        problems: the list to add to.
    """
    if SPEND in meters:
        place = next(values.node.place for values in budgets.values() if values is not None)
        message = (
            f"spending is counted on the meter {SPEND}, which this file declares itself; rename that meter"
        )
        problems.refuse(place, message)
    micros = micros_per_minor_unit(currency)
    built: dict[str, Plan | None] = {}
    for key, plan in plans.items():
        values = budgets.get(key)
        given = NO_LIMIT if values is None else _build_budget(values, micros)
        built[key] = plan and replace(plan, entitlements={**plan.entitlements, SPEND: given})
        if values is not None and plan is not None:
            _note_unpriced(plan, values.node.place, problems)
            note_balances_in_dollars(meters, values.node.place, problems)
    meter = Meter(
        name=SPEND,
        title="Spend",
        unit=f"{MICRO_UNIT}{currency.upper()}",
        kind="counter",
        stripe=None,
        source=None,
        where={},
        is_spend=True,
    )
    return {**meters, SPEND: meter}, built


def note_balances_in_dollars(
    meters: Mapping[str, Meter | None], place: FilePlace, problems: Problems
) -> None:
    """Say in which currencies a budget leaves out what is paid from a balance in money.

    Args:
        meters: of the file.
        place: where the budget stands.
        problems: the list to add to.
    """
    others = [code for code in problems.currencies if code not in {BALANCE_CURRENCY, ""}]
    if others and any(meter is not None and meter.charges is not None for meter in meters.values()):
        message = f"a balance in money is in US dollars: in {listed(others)} this budget counts overage only"
        problems.note(place, "informs", message)


def _build_budget(values: BudgetTable, micros: int) -> Entitlement:
    per, warn_at, notifies = values.per or "period", values.warn_at or (), values.at_limit == "notify"
    if len(set(warn_at)) < len(warn_at):
        values.refuse("warn_at", "a percentage is listed twice; keep one")
    if per != "period":
        for key in (*(("warn_at",) if warn_at else ()), *(("at_limit",) if notifies else ())):
            values.refuse(key, f"found `per: {per}`; this key needs `per: period`")
    amount = values.amount_cents
    return replace(
        _with_spend_limit(NO_LIMIT, per, None if amount == UNLIMITED else amount or 0, micros),
        overage=Overage(mode="bill" if notifies else "deny"),
        warn_at=tuple(sorted(set(warn_at))) or ((100,) if notifies else ()),
    )


def apply_spend_limits(given: Entitlement, limits: LimitsTable, currency: str) -> Entitlement:
    """Customer's budget: for each span the lower of the plan's budget and the customer's own limit.

    Args:
        given: the plan's.
        limits: the customer's own.
        currency: of the file.
    """
    micros = micros_per_minor_unit(currency)
    if limits.period is not None and given.overage.mode == "bill":
        given = replace(given, included=None, overage=Overage(mode="deny"))  # The plan's only notifies.
    given = _with_spend_limit(given, "period", limits.period, micros)
    given = _with_spend_limit(given, "day", limits.day, micros)
    return _with_spend_limit(given, "hour", limits.hour, micros)


def find_lower_budgets(given: Entitlement, own: Entitlement) -> dict[str, int]:
    """Budgets of a plan that are lower than a customer's limit of the same span, in micro-units by span.

    Args:
        given: the plan's entitlement of the meter of spending.
        own: likewise, by the customer's limits alone.
    """
    found = dict[str, int]()
    if given.included is not None and given.overage.mode == "deny" and own.included is not None:
        found |= {"period": given.included} if given.included < own.included else {}
    most = {rate.window_ms: rate.limit for rate in own.rates}
    spans = {window_ms: span for span, (window_ms, _) in WINDOWS.items()}
    lower = (rate for rate in given.rates if rate.limit < most.get(rate.window_ms, 0))
    return found | {spans[rate.window_ms]: rate.limit for rate in lower}


def _with_spend_limit(given: Entitlement, per: Per, amount_cents: int | None, micros: int) -> Entitlement:
    """Lower an entitlement to an amount in minor units per span; None leaves it unchanged."""
    if amount_cents is None:
        return given
    most = min(amount_cents * micros, QUANTITY_MAX)
    if per == "period":
        return replace(given, included=most if given.included is None else min(most, given.included))
    window_ms, window = WINDOWS[per]
    rates = {rate.window_ms: rate for rate in given.rates}
    most = min(most, rates[window_ms].limit) if window_ms in rates else most
    rates[window_ms] = Rate(
        limit=most, window_ms=window_ms, algorithm="fixed-window", burst=most, window=window
    )
    return replace(given, rates=tuple(rates.values()))


def _note_unpriced(plan: Plan, place: FilePlace, problems: Problems) -> None:
    """Say which overage a budget cannot count: its price is only at Stripe."""
    unpriced = [
        name
        for name, given in plan.entitlements.items()
        if given.overage.mode == "bill" and given.overage.amount_cents is None
    ]
    if unpriced:
        problems.note(
            place,
            "informs",
            f"overage of {', '.join(unpriced)} has a price at Stripe only, so the budget does not count it;"
            " write `overage: {bill: {per: N, amount_cents: M}}`",
        )

"""Cards of the usage page, each with its price: meters by urgency, spend limits, costs, invoices. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import (
    exact_money,
    micros_per_minor_unit,
    readable_per,
    rounded_cents,
)
from meterkit.insights.simulation.plan_costs import period_share
from meterkit.pages.forecast import credit_balances, payable_units
from meterkit.pages.usage_bar import UsageBar, limit_bar, share_bar
from meterkit.pages.usage_figures import PERIOD_BUDGET, beyond_included

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.catalog.model_prices import PriceRows
    from meterkit.pages.usage_bar import Level
    from meterkit.pages.usage_figures import BudgetFigures, PeriodCost, UsageFigures
    from meterkit.store.customer_usage import MeterUsage, OveragePrice

_MOST_URGENT_FIRST: Final[Sequence[Level]] = ("reached", "near", "enough")
_PERS: Final = (1, 1_000, 1_000_000)
_LISTED_MAX: Final = 4
_INVOICES_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCard:
    """The card of a meter.

    Attributes:
        meter: its name.
        used: of the available quantity, or beyond it once nothing is left.
        bar: None if the quantity is unlimited, or the plan includes none of it.
        available: included quantity, with that of grants and credits; None: unlimited.
        left: of the available quantity; None: unlimited.
        granted: available by grants of the meter.
        credited: available by credits, with usage that they have paid for.
        beyond: overage of a counter, excess of a gauge.
        is_billed: usage beyond the available quantity is billed.
        expected: the forecast; None: there is none.
        expected_used: the forecast less usage that the available quantity does not pay.
        price: the price of usage beyond the available quantity, as customers read it; None: unknown.
        is_refused: a limit refuses the meter now.
    """

    meter: str
    used: int
    bar: UsageBar | None = None
    available: int | None = None
    left: int | None = None
    granted: int
    credited: int = 0
    beyond: int = 0
    is_billed: bool
    expected: int | None
    expected_used: int | None = None
    price: str | None = None
    is_refused: bool = False

    @property
    def is_forecast_beyond(self) -> bool:
        """Whether the forecast reaches the available quantity, and usage has not yet."""
        available, expected = self.available, self.expected_used
        return available is not None and expected is not None and self.used < available <= expected


def meter_cards(
    catalog: Catalog, figures: UsageFigures, given: Mapping[str, Entitlement]
) -> Sequence[MeterCard]:
    """Make the cards of meters: those refused first, then those at a limit, near one, and the others.

    Meters of money are left out, as budget and balance have cards of their own; so are prices by model, and
    meters that the plans file no longer has.

    Args:
        catalog: in the customer's currency.
        figures: of the page.
        given: the customer's entitlements, overrides included.
    """
    forecast, meters = figures["forecast"], figures["usage"]["meters"]
    overage = {name: of.overage for name, of in given.items()}
    balances = credit_balances(catalog, figures["usage"]["balance_micros"])
    ends = {} if forecast is None else forecast["meters"]
    budgets = [one for one in figures["budgets"] if one["policy"] == PERIOD_BUDGET]
    is_spent = any(one["spent_micros"] >= one["limit_micros"] for one in budgets)
    found = [
        _make_card(
            name,
            counts,
            expected=ends[name].expected if name in ends else None,
            is_gauge=meter.kind == "gauge",
            is_billed=name in overage
            and overage[name].mode == "bill"
            and not (is_spent and "price" in counts and counts["included"]),
            has_credit=any(name in credit.costs for credit in catalog.credits.values()),
            payable=payable_units(balances, name),
            price=_price_text(name, overage[name].rows if name in overage else None, meters, meter.unit),
        )
        for name, counts in meters.items()
        if (meter := catalog.meters.get(name)) is not None
        and not (meter.is_row or meter.is_spend or meter.charges is not None)
    ]
    refused = {one.meter for one in figures["refused_now"]}
    return sorted(
        [replace(card, is_refused=card.meter in refused) for card in found],
        key=lambda card: (
            not card.is_refused,
            _MOST_URGENT_FIRST.index("enough" if card.bar is None else card.bar.level),
        ),
    )


def _make_card(
    name: str,
    counts: MeterUsage,
    *,
    expected: int | None,
    is_gauge: bool,
    is_billed: bool,
    has_credit: bool,
    payable: int,
    price: str | None,
) -> MeterCard:
    used, granted, overage = counts["used"], counts["granted"], counts["overage"]
    if counts["included"] == "unlimited":
        return MeterCard(
            meter=name, used=used, granted=granted, is_billed=is_billed, expected=expected, price=price
        )
    included, remaining = counts["included"], counts["remaining"]
    available = included + granted
    if has_credit:  # What credits have paid for stays available once they are used up.
        available = max(available, counts["recorded"] - overage - counts["over_cap"])
    if is_billed and payable:
        available = max(available + payable, used - overage)  # A hold may have taken some of the balance.
    # Of billed overage and of a gauge's tolerance, something may remain without any credit.
    if remaining != "unlimited" and not is_billed and not is_gauge and remaining > max(0, available - used):
        available = used + remaining
    left = max(0, available - (used - overage))  # A grant does not pay for earlier overage.
    paid = used - overage if left else used
    # A period with earlier overage ends with it, too.
    expected_used = None if expected is None else expected - (used - paid)
    bar = None
    if available:
        bar = UsageBar(
            used_percent=100 * paid // available,
            forecast_percent=(
                None if expected_used is None else min(100.0, round(100 * expected_used / available, 1))
            ),
            included_percent=round(100 * included / available, 1),
        )
    return MeterCard(
        meter=name,
        used=paid,
        bar=bar,
        available=available,
        left=left,
        granted=granted,
        credited=available - included - granted,
        beyond=beyond_included(counts) if is_gauge else overage,
        is_billed=is_billed,
        expected=expected,
        expected_used=expected_used,
        price=price,
    )


def _price_text(meter: str, rows: PriceRows | None, usage: Mapping[str, MeterUsage], unit: str) -> str | None:
    """Write the price of a meter's overage: ``$0.20 per 100 tokens``; None: not billed, or not known.

    Args:
        meter: the meter.
        rows: its prices by model on the customer's plan; None: it has one price.
        usage: of all meters, with the customer's prices.
        unit: of the meter.
    """
    if rows is None:
        own = usage[meter].get("price")
        return None if own is None else _format_prices([("", own)], unit)
    others = [("other models", rows.default)] if rows.has_default else []
    listed = [
        (name, price)
        for name, row in (*rows.models, *others)
        if row in usage and (price := usage[row].get("price")) is not None
    ]
    return _format_prices(listed, unit) if listed else None


def _format_prices(prices: Collection[tuple[str, OveragePrice]], unit: str) -> str:
    per = _common_per([price for _, price in prices])
    suffix = f"per {unit}" if per == 1 else f"per {per:,} {unit}s"
    amounts = [
        ((Decimal(price["amount_cents"] * per) / price["per"]).normalize(), price["currency"], name)
        for name, price in prices
    ]
    if len(amounts) > _LISTED_MAX:
        (least, currency, _), (most, _, _) = min(amounts), max(amounts)
        return f"{exact_money(least, currency)} to {exact_money(most, currency)} {suffix}, by model"
    shown = [f"{exact_money(of, currency)}{name and f' ({name})'}" for of, currency, name in amounts]
    *first, last = shown
    return f"{', '.join(first)}{' or ' if first else ''}{last} {suffix}"


def _common_per(prices: Collection[OveragePrice]) -> int:
    """Find the quantity to show prices for: 1, a thousand or a million, or a power of ten that is written."""
    pers = {price["per"] for price in prices}
    first = next(iter(pers))
    if len(pers) == 1 and not str(first).strip("0").removeprefix("1"):
        return readable_per(Fraction(min(price["amount_cents"] for price in prices)), first)
    exact = [Fraction(price["amount_cents"], price["per"]) for price in prices]
    fits = (per for per in _PERS if all((of * per).denominator == 1 for of in exact))
    return next(fits, first if len(pers) == 1 else _PERS[-1])


class BudgetCard(NamedTuple):
    """A budget on the card of spend limits.

    Attributes:
        left_cents: rest of the limit in minor units, rounded down.
    """

    figures: BudgetFigures
    left_cents: int
    bar: UsageBar


class StoredType(NamedTuple):
    """Bytes of a type of stored objects, with their share of all bytes."""

    name: str
    size: int
    bar: UsageBar


def budget_cards(budgets: Iterable[BudgetFigures], currency: str) -> Sequence[BudgetCard]:
    """Make the bars of budgets."""
    return [
        BudgetCard(
            one,
            max(0, one["limit_micros"] - one["spent_micros"]) // micros_per_minor_unit(currency),
            limit_bar(one["spent_micros"], one["limit_micros"]),
        )
        for one in budgets
    ]


def shown_invoices(invoices: Iterable[Mapping[str, object]] | None) -> Sequence[Mapping[str, object]]:
    """Pick the invoices of the card: open ones first, otherwise the newest first."""
    found = [one for one in invoices or () if one["status"] not in {"draft", "void"}]
    return sorted(found, key=lambda one: one["status"] != "open")[:_INVOICES_MAX]


def stored_types(types: Mapping[str, int]) -> Sequence[StoredType]:
    """Make the bars of stored types, the largest first."""
    whole = max(1, sum(types.values()))
    return [
        StoredType(name, size, share_bar(size, whole))
        for name, size in sorted(types.items(), key=lambda item: (-item[1], item[0]))
    ]


def total_so_far(cost: PeriodCost | None, plan: Plan | None) -> int | None:
    """Sum up the cost of a period so far, in minor units; of a yearly plan, the month's share of its price.

    None: there is no cost, or the plan's price has another currency.
    """
    if cost is not None and cost.get("is_free"):
        return 0
    if cost is None or "plan_currency" in cost:
        return None
    if plan is None:  # Without its plan, a cost has no fixed price.
        return cost["overage_cents"]
    addons_cents = sum(addon["cents"] for addon in cost.get("addons", ()))
    fixed = period_share(cost["plan_cents"] + cost["seats_cents"] + addons_cents, cost["interval"], plan)
    return rounded_cents(fixed + cost["overage_cents"])

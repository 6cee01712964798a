"""Cards of the usage page about spend limits, the cost so far, invoices and stored types. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import micros_per_minor_unit, rounded_cents
from meterkit.insights.simulation.plan_costs import period_share
from meterkit.pages.usage_bar import limit_bar, share_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Plan
    from meterkit.pages.usage_bar import UsageBar
    from meterkit.pages.usage_figures import BudgetFigures, PeriodCost

_INVOICES_MAX: Final = 3


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

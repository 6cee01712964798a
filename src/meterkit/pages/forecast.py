"""Forecast of a period: usage and cost at its end, by the price of each model, and from credits. Pure."""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import ceil, floor, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import rounded_cents
from meterkit.decisions.price_segments import unit_cents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from fractions import Fraction

    from meterkit.catalog import Catalog
    from meterkit.catalog.model_prices import PriceRows
    from meterkit.insights.simulation.plan_costs import TrialTerms
    from meterkit.store.customer_usage import MeterUsage

_LAST_DAYS: Final = 14
_SPREADS: Final = 1.28
"""Standard deviations around the mean that contain eight of ten values of a normal distribution."""


class ForecastRange(NamedTuple):
    """A forecast with the bounds of eight in ten periods, if days vary as before."""

    expected: int
    low: int
    high: int


class PeriodForecast(TypedDict):
    """Units by meter, and the cost in minor units, at the end of the period."""

    meters: dict[str, ForecastRange]
    cost_cents: ForecastRange


def forecast_usage(
    days: Mapping[str, Sequence[int]],
    usage: Mapping[str, MeterUsage],
    rest_days: float,
    terms: TrialTerms,
    balances: Sequence[CreditBalance] = (),
    overage_cents: int | None = None,
    budget_cents: Fraction | None = None,
) -> PeriodForecast:
    """Forecast the end of the period, by its last complete days, at most fourteen.

    Usage above a plan's ceiling that no grant or credit pays would be refused, and so would usage beyond the
    period's budget: the forecast leaves both out.

    Args:
        days: meter to the units of each complete day of the period.
        usage: of the meters so far.
        rest_days: the rest of the period.
        terms: of the plan.
        balances: of credits, which pay before overage is counted.
        overage_cents: cost of the overage so far, in minor units, also at earlier prices; None: its cost by
            ``terms``.
        budget_cents: what is left of the period's budget, in minor units; None: it has none.
    """
    found = {
        name: _forecast_meter(
            usage[name],
            of[-_LAST_DAYS:],
            rest_days,
            terms.ceilings.get(name),
            payable_units(balances, name),
            affordable_units(terms, name, budget_cents),
        )
        for name, of in days.items()
        if of and name in usage
    }
    by_terms = _expected_cost(usage, {}, terms, balances)
    counted = by_terms if overage_cents is None else terms.fixed_cents + overage_cents
    more = [
        _expected_cost(usage, {name: of[nth] for name, of in found.items()}, terms, balances) - by_terms
        for nth in range(len(ForecastRange._fields))
    ]
    costs = [counted + (of if budget_cents is None else min(of, budget_cents)) for of in more]
    return {"meters": found, "cost_cents": ForecastRange(*map(rounded_cents, costs))}


def _expected_cost(
    usage: Mapping[str, MeterUsage],
    ends: Mapping[str, int],
    terms: TrialTerms,
    balances: Sequence[CreditBalance],
) -> Fraction:
    """Compute the cost at the end of the period; of prices by model by the models of the overage so far."""
    rows = {row for of in terms.price_rows.values() for row in of.all}
    more = {name: _units_beyond(counts, ends.get(name)) for name, counts in usage.items() if name not in rows}
    unpaid = pay_by_credits(balances, more)
    expected = {
        name: usage[name]["overage"] + min(units, max(0, terms.caps[name] - usage[name]["overage"]))
        if name in terms.caps
        else usage[name]["overage"] + units
        for name, units in unpaid.items()
    }
    recorded = {name: counts["recorded"] for name, counts in usage.items()}
    split = split_by_model(
        split_by_parts(expected, terms.parts, recorded),
        terms.price_rows,
        {row: usage[row]["overage"] for row in rows if row in usage},
    )
    unknown = {terms.price_rows[name].default: units for name, units in split.unknown.items()}
    return terms.charge({**split.units, **unknown})


def _forecast_meter(
    counts: MeterUsage,
    days: Sequence[int],
    rest_days: float,
    ceiling: int | None,
    payable: int,
    affordable: int | None,
) -> ForecastRange:
    used, mean = counts["recorded"], fmean(days)
    more, spread = mean * rest_days, _SPREADS * (stdev(days) if len(days) > 1 else mean) * sqrt(rest_days)
    ends = (used + max(0, units) for units in (round(more), floor(more - spread), ceil(more + spread)))
    included, bounds = counts["included"], list[int]()
    if included != "unlimited":
        available = included + counts["granted"]
        credited = max(0, used - counts["overage"] - counts["over_cap"] - available)
        if ceiling is not None:
            bounds.append(ceiling + counts["granted"] + credited + payable)
        if affordable is not None:
            bounds.append(available + credited + payable + counts["overage"] + affordable)
    return ForecastRange(*(min([end, *(max(used, most) for most in bounds)]) for end in ends))


def _units_beyond(counts: MeterUsage, end: int | None) -> int:
    """Count the units until the end of the period that only credits can pay for."""
    included = counts["included"]
    if end is None or included == "unlimited":
        return 0
    paid = max(counts["recorded"] - counts["overage"], included + counts["granted"])
    return max(0, end - paid - counts["overage"])


class CreditBalance(NamedTuple):
    """The balance of a credit, in millionths of a credit.

    Attributes:
        costs: meter to its cost per unit, in the same.
    """

    micros: int
    costs: Mapping[str, int]

    def units_of(self, meter: str) -> int:
        """Count the units of a meter that it can pay for alone."""
        return max(0, self.micros) // self.costs[meter] if meter in self.costs else 0


def credit_balances(catalog: Catalog, balance_micros: Mapping[str, int]) -> Sequence[CreditBalance]:
    """List the balances of a customer, by the costs of the plans file."""
    known = catalog.credits
    return [
        CreditBalance(micros, known[name].costs) for name, micros in balance_micros.items() if name in known
    ]


def payable_units(balances: Iterable[CreditBalance], meter: str) -> int:
    """Count the units of a meter that balances can pay for, if no other meter uses them."""
    return sum(balance.units_of(meter) for balance in balances)


def affordable_units(terms: TrialTerms, meter: str, budget_cents: Fraction | None) -> int | None:
    """Count the units that a budget pays at their lowest price, if no other meter uses it; None: no bound."""
    if budget_cents is None:
        return None
    if meter == SPEND:
        return 0
    rows = terms.price_rows.get(meter)
    labels = [terms.labels.get(name, "") for name in ((meter,) if rows is None else rows.all)]
    prices = [unit_cents(label) for label in labels]
    known = [price for price in prices if price]
    return int(budget_cents / min(known)) if known and len(known) == len(prices) else None


def pay_by_credits(balances: Iterable[CreditBalance], units: Mapping[str, int]) -> dict[str, int]:
    """Return the units that balances leave unpaid, by meter."""
    left = dict(units)
    for balance in balances:
        rest = balance
        for meter in balance.costs:
            paid = min(left.get(meter, 0), rest.units_of(meter))
            rest = rest._replace(micros=rest.micros - paid * balance.costs[meter])
            if meter in left:
                left[meter] -= paid
    return left


def split_by_parts(
    overage: Mapping[str, int], parts: Mapping[str, tuple[str, ...]], recorded: Mapping[str, int]
) -> dict[str, int]:
    """Divide the overage of meters over the meters derived from them, in proportion to what was recorded.

    Args:
        overage: meter to its units, derived ones included.
        parts: meter to its derived meters that have events, and so prices, of their own.
        recorded: meter to its units so far.
    """
    found = dict(overage)
    for name, of in parts.items():
        whole = recorded.get(name, 0)
        shares = {part: overage.get(name, 0) * recorded.get(part, 0) // whole if whole else 0 for part in of}
        found |= {name: max(0, overage.get(name, 0) - sum(shares.values())), **shares}
    return found


class SplitOverage(NamedTuple):
    """Overage in which each unit stands on the meter of its price.

    Attributes:
        units: meter to its overage; a meter whose prices go by model has none.
        unknown: meters whose units may have any of their prices: no overage has been counted by them yet.
        is_estimated: units were more, or fewer, than counted, and divided in proportion.
    """

    units: Mapping[str, int]
    unknown: Mapping[str, int]
    is_estimated: bool


def split_by_model(
    overage: Mapping[str, int], price_rows: Mapping[str, PriceRows], counted: Mapping[str, int]
) -> SplitOverage:
    """Divide the overage of meters over their prices by model.

    Args:
        overage: meter to its units, without meters of prices by model.
        price_rows: meter to its prices by model.
        counted: the overage that was counted so far, by the meters of these prices.
    """
    units, unknown, is_estimated = dict[str, int](), dict[str, int](), False
    for name, beyond in overage.items():
        if name not in price_rows:
            units[name] = beyond
            continue
        shares = {row: found for row in price_rows[name].all if (found := counted.get(row, 0)) > 0}
        known = sum(shares.values())
        if beyond and not known:
            unknown[name] = beyond
        elif known:
            ends = (beyond * end // known for end in accumulate(shares.values(), initial=0))
            units |= {row: end - start for row, (start, end) in zip(shares, pairwise(ends), strict=True)}
            is_estimated = is_estimated or (beyond not in {0, known} and len(shares) > 1)
    return SplitOverage(units, unknown, is_estimated)

"""Budgets, and prices of units beyond what is included. Pure.

The scripts compute a customer's spend, and that of requests in flight, from the counts that they decide by;
see ``include/check_budgets.lua``.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd, isqrt
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.models import SPEND
from meterkit.catalog.value_parsers import micros_per_minor_unit
from meterkit.decisions.decision import Policy
from meterkit.decisions.grants import target_of
from meterkit.decisions.keys import meter_field, rate_field
from meterkit.decisions.packed import compact_json, merge_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement

UNCAPPED: Final = 8 * 10**15
"""Cap of a meter without a cap; included and this together stay exact in Lua."""
EXACT_MAX: Final = 9 * 10**15
"""Below 2^53: a Lua number counts so far exactly."""


class UnitPrice(NamedTuple):
    """Price of units beyond what is included and what grants and credits pay.

    Attributes:
        micros: price of ``per`` units, in micro-units of the currency.
        per: number of units.
        is_all: 1 if units that grants and credits pay count as spend, too: they are money; otherwise 0.
    """

    micros: int
    per: int
    is_all: int


def price_of(meter: str, entitlements: Mapping[str, Entitlement], catalog: Catalog) -> UnitPrice | None:
    """The price of a meter's units; None: they cost nothing, or at Stripe only."""
    given = entitlements[meter]
    if given.included is None:
        return None
    if catalog.meters[meter].charges is not None:
        # A balance stays in US dollars, and dollars are no part of what is spent in another currency.
        return UnitPrice(1, 1, is_all=1) if catalog.currency == BALANCE_CURRENCY else None
    per, amount_cents = given.overage.per, given.overage.amount_cents
    if given.overage.mode != "bill" or per is None or not amount_cents:
        return None
    micros = amount_cents * micros_per_minor_unit(catalog.currency)
    shared = gcd(micros, per)
    micros, per = micros // shared, per // shared
    if micros * per > EXACT_MAX:  # Rounded up, as finely as scripts count exactly.
        most = max(1, isqrt(EXACT_MAX * per // micros) - 1)
        micros, per = -(-micros * most // per), most
    return UnitPrice(micros, per, is_all=0)


def unit_price(
    meter: str, model: str | None, entitlements: Mapping[str, Entitlement], catalog: Catalog
) -> UnitPrice | None:
    """Price of a unit that a model used, beyond what is included; None: see :func:`price_of`.

    Args:
        meter: the meter.
        model: name of the model; None: no model; empty: an unknown one, at the highest price.
        entitlements: of every meter.
        catalog: what is sold.
    """
    rows = entitlements[meter].overage.rows
    whole = price_of(meter, entitlements, catalog)
    return whole if rows is None or whole is None else price_of(rows.of(model), entitlements, catalog)


class SpendBudget(NamedTuple):
    """Budget of a window or of the billing period.

    Attributes:
        window_ms: the window; 0: the billing period.
        field: counter field of its spend.
        micros: the budget.
        policy: its policy.
        unit: micro-units in a minor unit.
    """

    window_ms: int
    field: str
    micros: int
    policy: Policy
    unit: int


def budgets_of(entitlements: Mapping[str, Entitlement], catalog: Catalog) -> Sequence[SpendBudget]:
    """Budgets that refuse requests beyond them."""
    if not catalog.counts_spend:
        return ()
    given = entitlements[SPEND]
    found = list[SpendBudget]()
    if given.included is not None and given.overage.mode == "deny":
        found.append(budget_of(0, meter_field(SPEND), given.included, "period", catalog.currency))
    for rate in given.rates:
        field = rate_field(SPEND, rate.window_ms, rate.algorithm)
        found.append(budget_of(rate.window_ms, field, rate.limit, rate.window, catalog.currency))
    return found


def budget_of(window_ms: int, field: str, micros: int, span: str, currency: str) -> SpendBudget:
    """A budget of so many micro-units per window (ms; 0: the billing period), which ``span`` names."""
    unit = micros_per_minor_unit(currency)
    policy = Policy(
        name=f"{SPEND}-{span}",
        meter=SPEND,
        kind="rate" if window_ms else "period",
        quota=micros // unit,
        window_s=window_ms // 1000 or None,
        quota_unit="cents",
    )
    return SpendBudget(window_ms, field, micros, policy, unit)


class SpendingTerms(NamedTuple):
    """Budgets and prices of a decision that may spend something.

    Attributes:
        budgets: in the order of their policies.
        prices: priced meter to its price.
    """

    budgets: Sequence[SpendBudget]
    prices: Mapping[str, UnitPrice]

    @classmethod
    def of(
        cls, meters: Iterable[str], entitlements: Mapping[str, Entitlement], catalog: Catalog
    ) -> SpendingTerms:
        """Spending terms of a demand on some meters; empty if none has a price, or there is no budget."""
        budgets = budgets_of(entitlements, catalog)
        if not budgets:
            return UNBOUNDED
        prices = {
            name: price
            for name in catalog.meters
            if (price := price_of(name, entitlements, catalog)) is not None
        }
        return UNBOUNDED if prices.keys().isdisjoint(meters) else cls(budgets, prices)

    def add_to(
        self,
        fields: tuple[str, ...],
        behind: str,
        ceilings: Sequence[str],
        sharing: Sequence[str],
        entitlements: Mapping[str, Entitlement],
        catalog: Catalog,
        rows: Mapping[str, str],
    ) -> tuple[tuple[str, ...], str]:
        """Add the fields that budgets need, and the budgets' JSON terms.

        Args:
            fields: fields that the decision script reads so far; the first has position 2.
            behind: JSON terms so far.
            ceilings: requested meters with a ceiling.
            sharing: meters backed by credits, in the order of the terms.
            entitlements: of every meter.
            catalog: what is sold.
            rows: requested meter with a known price by model, to the meter that counts it.
        """
        if not self.budgets:
            return fields, behind
        wanted = (*map(meter_field, self.prices), *(budget.field for budget in self.budgets))
        fields += tuple(name for name in wanted if name not in fields)
        priced: list[tuple[object, ...]] = []
        for name, price in self.prices.items():
            if catalog.meters[name].is_row:
                continue  # Part of another one.
            backed = 0 if price.is_all or name not in sharing else sharing.index(name) + 1
            target = "" if price.is_all else target_of("meter", name)
            nth = ceilings.index(name) + 1 if name in ceilings else 0
            place, included = fields.index(meter_field(name)) + 2, entitlements[name].included or 0
            line = (place, included, price.micros, price.per, nth, target, backed)
            priced.append((*line, *self._row_prices(name, fields, entitlements, rows)))
        budgets = [
            (fields.index(budget.field) + 2, budget.window_ms, budget.micros, budget.unit)
            for budget in self.budgets
        ]
        return fields, merge_json(behind, compact_json({"spend": {"budgets": budgets, "priced": priced}}))

    def _row_prices(
        self,
        meter: str,
        fields: Sequence[str],
        entitlements: Mapping[str, Entitlement],
        chosen: Mapping[str, str],
    ) -> tuple[object, ...]:
        """Prices by model of a meter, the highest first; the position, from 1, of the requested one."""
        rows = entitlements[meter].overage.rows
        if rows is None:
            return ()
        known = {name: price for name in rows.all if (price := self.prices.get(name)) is not None}
        names = sorted(known, key=lambda name: Fraction(known[name].micros, known[name].per), reverse=True)
        lines = [(fields.index(meter_field(name)) + 2, known[name].micros, known[name].per) for name in names]
        row = chosen.get(meter, names[0])
        return lines, names.index(row) + 1


UNBOUNDED: Final = SpendingTerms((), {})


def counted_as_spent(
    meters: Sequence[str], windows: int, entitlements: Mapping[str, Entitlement], catalog: Catalog
) -> tuple[int, ...]:
    """Prices by which the settlement script counts spend; see ``include/count_spend.lua``.

    Args:
        meters: settled meters, in the order of the terms.
        windows: number of rates that count spend; they are the last ones.
        entitlements: of every meter.
        catalog: what is sold.
    """
    # The rows of prices by model count in place of their source.
    prices = [
        None if entitlements[name].overage.rows is not None else price_of(name, entitlements, catalog)
        for name in meters
    ]
    return windows, *(number for price in prices for number in price or (0, 1, 0))

"""What may be spent: budgets, and what units cost beyond what is included. Pure.

The scripts work out what a customer spends from the same counts that they decide by, and what requests in
flight may come to: see ``include/weigh_spend.lua``.
"""

from __future__ import annotations

import json
from fractions import Fraction
from math import gcd, isqrt
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.amount_texts import micros_per_minor_unit
from meterkit.catalog.models import SPEND
from meterkit.decisions.decision import Policy
from meterkit.decisions.grants import target_of
from meterkit.decisions.keys import meter_field, rate_field
from meterkit.decisions.packed import merge_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement

UNCAPPED: Final = 8 * 10**15
"""Stands for a cap where a meter has none; with what is included a number that Lua counts exactly."""
_EXACT: Final = 9 * 10**15


class UnitPrice(NamedTuple):
    """What units cost beyond what is included, and beyond what grants and credits pay.

    Attributes:
        micros: of so many units, in micro-units of the currency.
        per: so many units.
        is_all: 1 where what grants and credits pay is spent, too: they are money; else 0.
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
        return UnitPrice(1, 1, is_all=1)
    per, amount_cents = given.overage.per, given.overage.amount_cents
    if given.overage.mode != "bill" or per is None or not amount_cents:
        return None
    micros = amount_cents * micros_per_minor_unit(catalog.currency)
    shared = gcd(micros, per)
    micros, per = micros // shared, per // shared
    if micros * per > _EXACT:  # Rounded up, as finely as scripts count exactly.
        most = max(1, isqrt(_EXACT * per // micros) - 1)
        micros, per = -(-micros * most // per), most
    return UnitPrice(micros, per, is_all=0)


def unit_price(
    meter: str, model: str | None, entitlements: Mapping[str, Entitlement], catalog: Catalog
) -> UnitPrice | None:
    """What a unit of a meter that a model used costs beyond what is included; None: see :func:`price_of`.

    Args:
        meter: which.
        model: the model; None: no model; empty: one whose name is not known, which costs the most.
        entitlements: of every meter.
        catalog: what is sold.
    """
    rows = entitlements[meter].overage.rows
    whole = price_of(meter, entitlements, catalog)
    return whole if rows is None or whole is None else price_of(rows.of(model), entitlements, catalog)


class SpendBudget(NamedTuple):
    """How much may be spent in a span.

    Attributes:
        window_ms: the span; 0: the billing period.
        field: what counts it.
        micros: how much.
        policy: what stands for it among the policies.
        unit: micro-units in a minor unit.
    """

    window_ms: int
    field: str
    micros: int
    policy: Policy
    unit: int


def budgets_of(entitlements: Mapping[str, Entitlement], catalog: Catalog) -> Sequence[SpendBudget]:
    """The budgets that refuse what is beyond them."""
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
    """What a decision that may spend something looks at.

    Attributes:
        budgets: in the order of their policies.
        prices: every meter whose units cost something, to what they cost.
    """

    budgets: Sequence[SpendBudget]
    prices: Mapping[str, UnitPrice]

    @classmethod
    def of(
        cls, meters: Iterable[str], entitlements: Mapping[str, Entitlement], catalog: Catalog
    ) -> SpendingTerms:
        """What bounds a demand on some meters; nothing where no budget does, or they cost nothing."""
        budgets = budgets_of(entitlements, catalog)
        if not budgets:
            return _UNBOUNDED
        prices = {
            name: price
            for name in catalog.meters
            if (price := price_of(name, entitlements, catalog)) is not None
        }
        return _UNBOUNDED if prices.keys().isdisjoint(meters) else cls(budgets, prices)

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
        """The fields that the decision script reads, from 2 on, and its further terms, as JSON.

        Args:
            fields: what it reads anyway.
            behind: its further terms without budgets.
            ceilings: the requested meters with a ceiling.
            sharing: the meters that credits stand behind, in the order of the terms.
            entitlements: of every meter.
            catalog: what is sold.
            rows: of the requested meters with prices by model, those whose price is known, to what counts it.
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
        return fields, merge_json(behind, _json({"spend": {"budgets": budgets, "priced": priced}}))

    def _row_prices(
        self,
        meter: str,
        fields: Sequence[str],
        entitlements: Mapping[str, Entitlement],
        chosen: Mapping[str, str],
    ) -> tuple[object, ...]:
        """The prices by model of a meter, the highest first; the place, from 1 on, of the requested one."""
        rows = entitlements[meter].overage.rows
        if rows is None:
            return ()
        known = {name: price for name in rows.all if (price := self.prices.get(name)) is not None}
        names = sorted(known, key=lambda name: Fraction(known[name].micros, known[name].per), reverse=True)
        lines = [(fields.index(meter_field(name)) + 2, known[name].micros, known[name].per) for name in names]
        row = chosen.get(meter, names[0])
        return lines, names.index(row) + 1


_UNBOUNDED: Final = SpendingTerms((), {})


def counted_as_spent(
    meters: Sequence[str], windows: int, entitlements: Mapping[str, Entitlement], catalog: Catalog
) -> tuple[int, ...]:
    """What the settlement script adds up; see ``include/count_spend.lua``.

    Args:
        meters: those that are settled, in the order of the terms.
        windows: how many of the rates, the last, count what is spent.
        entitlements: of every meter.
        catalog: what is sold.
    """
    # The rows of prices by model count in place of their source.
    prices = [
        None if entitlements[name].overage.rows is not None else price_of(name, entitlements, catalog)
        for name in meters
    ]
    return windows, *(number for price in prices for number in price or (0, 1, 0))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))

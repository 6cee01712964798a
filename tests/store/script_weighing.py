"""What the model weighs a demand by: rates, ceilings with what grants and credits add, requests in flight."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from store.script_purse import Claims, credit_of, room, targets_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Entitlement, Rate
    from meterkit.decisions.asked import Demand
    from store.script_model import Customer
    from store.script_purse import Means

LimitFields = list[tuple[int, int, tuple[int, int, int]]]
"""Of each policy what is left, of how much, and the numbers that a refusal tells."""


class Asked:
    """Demands, each with what the customer gets of its meter."""

    def __init__(
        self,
        catalog: Catalog,
        entitlements: Mapping[str, Entitlement],
        demands: Mapping[str, Demand],
        *,
        costs: Mapping[str, int],
        rates_only: bool,
    ) -> None:
        self.catalog, self.entitlements, self.costs = catalog, entitlements, costs
        self.all = [(entitlements[meter], demand) for meter, demand in demands.items()]
        self.held = [] if rates_only else self.all
        self.capped = [asked for asked in self.held if ceiling_of(asked[0]) is not None]
        # Without a ceiling of their own, and paid with a credit that others share: what they hold claims it.
        self.unbounded = [
            (given, demand)
            for given, demand in self.held
            if ceiling_of(given) is None and given.included is not None and credit_of(catalog, given.meter)
        ]

    @property
    def reads_grants(self) -> bool:
        """Whether grants may matter."""
        return bool(self.capped) or any(demand.taken for _, demand in self.unbounded)


class Ceilings:
    """What each ceiling leaves but for its holds, the holds, and whether anything stood behind it.

    The demands of one decision claim a credit one after the other; a mere check claims nothing for what has a
    ceiling of its own.
    """

    def __init__(
        self, customer: Customer, asked: Asked, now: int, *, means: Means | None, takes: bool
    ) -> None:
        meters = asked.catalog.meters if means else ()
        held = Counter({meter: sum(customer.holds[meter].live(now)) for meter in meters})
        credit = Counter({meter: sum(customer.credit_holds[meter].live(now)) for meter in meters})
        claims = Claims(customer.included.__getitem__, held.__getitem__, credit.__getitem__)

        def claim(meter: str, quantity: int) -> None:
            held[meter] += quantity
            credit[meter] += quantity * asked.costs.get(meter, 0)

        for given, demand in asked.unbounded:
            claim(given.meter, demand.taken)
        self.left: list[int] = []
        self.had: list[int] = []
        for given, demand in asked.capped:
            left = own_of(given, customer.included[given.meter], customer.overage[given.meter])
            if means is not None:
                cost = asked.costs.get(given.meter)
                left += room(given.meter, means, asked.catalog, asked.entitlements, claims, cost)
                self.had.append(int(means.had(targets_of(asked.catalog, given.meter))))
            self.left.append(left)
            if takes:
                claim(given.meter, demand.taken)
        self.live = [customer.holds[given.meter].live(now) for given, _ in asked.capped]


def weigh(
    customer: Customer, asked: Asked, now: int, ceilings: Ceilings, *, taken: bool = False
) -> tuple[bool, LimitFields]:
    """Whether a demand is refused, and what each policy says, before or after the demands are taken."""
    refused, told = False, LimitFields()
    for given, demand in asked.all:
        for rate in given.rates:
            counted = customer.rate(given.meter, rate)
            left = rate.burst - counted.used(rate, now)
            refused |= demand.needed > left
            told.append((left, rate.burst, (*counted.numbers(rate, now), 0)))
    for (given, demand), left, live in zip(asked.capped, ceilings.left, ceilings.live, strict=True):
        free = left - sum(live)
        refused |= demand.needed > free
        told.append((free - demand.taken * taken, ceiling_of(given) or 0, (left, *live)))
    for given, _ in asked.held:
        if given.concurrency is not None:
            live = customer.concurrency[given.meter].live(now)
            refused |= sum(live) >= given.concurrency
            told.append((given.concurrency - sum(live), given.concurrency, (given.concurrency, *live)))
    return refused, told


def take(customer: Customer, asked: Asked, now: int, *, has_purse: bool) -> None:
    """Count into rates and hold."""
    for given, demand in asked.all:
        for rate in given.rates:
            customer.count(given.meter, rate, now, demand.taken)
    for given, demand in asked.capped + (asked.unbounded if has_purse else []):
        customer.holds[given.meter].take(now, demand.taken)
        if has_purse and given.meter in asked.costs:
            customer.credit_holds[given.meter].take(now, demand.taken * asked.costs[given.meter])
    for given, _ in asked.held:
        if given.concurrency is not None:
            customer.concurrency[given.meter].take(now, 1)


def own_of(given: Entitlement, covered: int, overage: int) -> int:
    """What a meter's own limits leave, for a meter that has any."""
    ceiling = ceiling_of(given)
    assert ceiling is not None
    assert given.included is not None
    left = max(0, given.included - covered)
    return left + max(0, ceiling - given.included - overage) if given.overage.mode == "bill" else left


def ceiling_of(given: Entitlement) -> int | None:
    """The most that a period admits but for grants and credits; None: no ceiling."""
    if given.included is None or given.overage.mode == "deny":
        return given.included
    cap = given.overage.cap
    return None if cap is None else min(given.included + cap, 10**15 - 1)


def span_ms(rate: Rate) -> int:
    """How long what a demand counts may matter."""
    return max(2 * rate.window_ms, ceil(Fraction(rate.burst * rate.window_ms, rate.limit)))

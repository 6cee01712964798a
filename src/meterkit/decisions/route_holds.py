"""Most that one request of a route may hold in money or credits, for `meterkit check`. Pure."""

from __future__ import annotations

from decimal import Decimal
from importlib.util import find_spec
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage.listed_models import providers_of
from llm_usage.units import UNITS
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.errors import listed
from meterkit.catalog.meters import CHARGED
from meterkit.catalog.model_prices import is_pattern
from meterkit.catalog.value_parsers import exact_money, money
from meterkit.decisions.model_charges import ModelCharges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog.model_prices import ProviderPrices
    from meterkit.catalog.models import Catalog, Route

_MILLION: Final = 10**6
_MICROS_PER_CENT: Final = 10_000
_NONE: Final[Mapping[str, Sequence[str]]] = {}


class RouteHold(NamedTuple):
    """Most that one request of a route holds of a balance or a budget.

    Attributes:
        route: its match.
        of: name of the credit, or `budget`.
        amount: as people write it: of what the route reserves.
        per_million_input: likewise, for a million tokens that go in; None: the route holds no more for them.
        unpriced: names of the route's models without a known price, which hold nothing; each with the
            providers to choose from where its price depends on the provider.
    """

    route: str
    of: str
    amount: str
    per_million_input: str | None = None
    unpriced: Mapping[str, Sequence[str]] = _NONE

    def __str__(self) -> str:
        """The line that `meterkit check` prints."""
        found = f"{self.route}: a request holds up to {self.amount} of {self.of}"
        if self.per_million_input is not None:
            found += f", and {self.per_million_input} for each million tokens of input"
        if self.unpriced:
            shown = ", ".join(map(_describe_model, self.unpriced.items()))
            found += f"; no price of {shown} is known, so it holds nothing"
        return found


def find_route_holds(catalog: Catalog, at: datetime) -> Iterator[RouteHold]:
    """Find the most that each route holds whose price depends on the model.

    Args:
        catalog: the plans file.
        at: now (aware): prices have dates.
    """
    for route in catalog.routes:
        ceilings = {reserve.meter: reserve.ceiling for reserve in route.reserve}
        if not ceilings:
            continue
        for name, meter in catalog.meters.items():
            charges = meter.charges
            is_held = "output_tokens" in ceilings and charges is not None and not charges.is_free
            if charges is not None and is_held and find_spec("genai_prices") is not None:
                yield _held_of_balance(route, ceilings, charges, name.removesuffix(CHARGED), at)
        for credit in catalog.credits.values():
            micros = sum(
                ceilings[meter] * table.most(route.own_models)
                for meter, table in credit.by_model.items()
                if meter in ceilings
            )
            if micros:
                yield RouteHold(route.match, "credits", f"{Decimal(micros) / _MILLION:,f} {credit.name}")
        budgeted = catalog.plans if catalog.counts_spend else ()
        cents = max((_cents_of_rows(catalog, plan, route, ceilings) for plan in budgeted), default=0)
        if cents:
            yield RouteHold(route.match, "a budget", money(cents, catalog.currency))


def _held_of_balance(
    route: Route, ceilings: Mapping[str, int], prices: ProviderPrices, credit: str, at: datetime
) -> RouteHold:
    charges = ModelCharges(prices)

    def hold(input_tokens: int) -> int:
        return charges.held(
            route.own_models,
            route.usage,
            input_tokens=input_tokens,
            output_tokens=ceilings["output_tokens"],
            at=at,
            provider=route.provider,
            is_listed=bool(route.own_models),
            context=None,
            others={meter: quantity for meter, quantity in ceilings.items() if meter in UNITS},
        )

    # The dearest tier of prices by the length of the input counts.
    million = hold(2 * _MILLION) - hold(_MILLION)
    rest = max(hold(0), hold(_MILLION) - million)
    reserved = ceilings.get("input_tokens")
    if reserved is not None:
        rest += ceil(reserved * million / _MILLION)
    unpriced = {
        name: providers_of(name)
        for name in route.own_models
        if not (is_pattern(name) or charges.has_price(name, route.usage, at, route.provider))
    }
    more = None if reserved is not None or not million else _shown(million)
    return RouteHold(route.match, credit, _shown(rest), more, unpriced)


def _describe_model(unpriced: tuple[str, Sequence[str]]) -> str:
    name, providers = unpriced
    return f"{name} (its `provider` may be: {listed(providers)})" if providers else name


def _shown(micros: int) -> str:
    """Money, to the cent where there is one."""
    if micros < _MICROS_PER_CENT:
        return exact_money(Decimal(micros) / _MICROS_PER_CENT, BALANCE_CURRENCY)
    return money(-(-micros // _MICROS_PER_CENT), BALANCE_CURRENCY)


def _cents_of_rows(catalog: Catalog, plan: str, route: Route, ceilings: Mapping[str, int]) -> int:
    """Price the reserved quantities at a plan's dearest prices by model, in minor units."""
    given, found = catalog.plans[plan].entitlements, 0
    for meter, quantity in ceilings.items():
        rows = given[meter].overage.rows if meter in given else None
        if rows is not None:
            names = rows.of_models(route.own_models) if route.own_models else rows.all
            found += ceil(quantity * max(given[name].overage.unit_price for name in names))
    return found

"""The price line of an audit entry: per meter its cost, and the price of the units that are paid for. Pure.

``VERSION TOKEN:COST:PRICE TOKEN:COST:PRICE``, for example
``plans/0a1b2c3d,genai-prices/0.2.3 a1b2:150:o40/1 c3d4::c1/1``. COST is in whole micro-units of US
dollars, or empty. PRICE is empty, or MICROS/PER after a letter: ``o`` for overage, ``c`` for units that
credits pay. The line has only ASCII. ``fold_audit.lua`` reads it, too.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.value_parsers import micros_per_minor_unit
from meterkit.decisions.keys import meter_field, meter_token

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement

_PAID: Final = {"o": "overage", "c": "credited"}


class PaidPrice(NamedTuple):
    """Price of the units that a customer pays for.

    Attributes:
        paid: ``o`` for overage, ``c`` for units that a money credit pays.
        micros: price of ``per`` units, in micro-units of the currency.
        per: number of units that ``micros`` buys.
    """

    paid: str
    micros: int
    per: int


class MeterTerms(NamedTuple):
    """Cost and price of one meter in an audit entry.

    Attributes:
        cost_micros: charge of the provider, in micro-units of US dollars; None: not known.
        price: None if no unit of the meter is paid for by itself.
    """

    cost_micros: int | None = None
    price: PaidPrice | None = None

    def columns(self, units: Mapping[str, int]) -> dict[str, Any]:
        """The columns of a row with these units by class."""
        found: dict[str, Any] = {"cost_micros": self.cost_micros}
        if self.price is not None:
            found["price_micros"], found["price_per"] = self.price.micros, self.price.per
            found["priced"] = units[_PAID[self.price.paid]]
        return found


def paid_price(
    meter: str, entitlements: Mapping[str, Entitlement], catalog: Catalog, *, is_trial: bool
) -> PaidPrice | None:
    """The price of a meter's units that are paid for; None: included, granted, or billed without a price.

    Units that a table prices by model have their price where they are counted by price. No invoice bills the
    overage of a trial; a credit in money pays in it, too.
    """
    if catalog.meters[meter].charges is not None:
        return PaidPrice("c", 1, 1)
    overage = entitlements[meter].overage
    if is_trial or overage.mode != "bill" or not overage.amount_cents or overage.rows is not None:
        return None
    return PaidPrice("o", overage.amount_cents * micros_per_minor_unit(catalog.currency), overage.per or 1)


def earned_micros(
    paid: str, entitlements: Mapping[str, Entitlement], catalog: Catalog, *, is_trial: bool
) -> Fraction:
    """Revenue of the paid units of a meter, in micro-units of the currency.

    What a balance in money pays is in US dollars, and no part of revenue in another currency.

    Args:
        paid: ``FIELD CREDITED OVERAGE``, as ``settle.lua`` returns it.
        entitlements: those of the settlement.
        catalog: that of the settlement.
        is_trial: whether its period is one of a trial.
    """
    field, credited, overage = paid.split(" ")
    meter = next(meter for meter in catalog.meters if meter_field(meter) == field)
    price = paid_price(meter, entitlements, catalog, is_trial=is_trial)
    is_dollars = price is not None and price.paid == "c"
    if price is None or (is_dollars and catalog.currency != BALANCE_CURRENCY):
        return Fraction(0)
    return Fraction(int(credited if price.paid == "c" else overage) * price.micros, price.per)


def price_line(
    version: str,
    costs: Mapping[str, Fraction | int],
    prices: Mapping[str, PaidPrice],
    *,
    meters: Sequence[str],
) -> str:
    """Write the price line of recorded usage; empty if neither cost nor price is known.

    Args:
        version: version of the plans file, and of the price table if it gave the costs; without spaces.
        costs: by meter.
        prices: by meter.
        meters: the recorded meters.
    """
    found = [
        f"{meter_token(meter)}:{costs.get(meter, '')}:{_format_price(prices.get(meter))}"
        for meter in meters
        if meter in costs or meter in prices
    ]
    return " ".join((version, *found)) if found else ""


def _format_price(price: PaidPrice | None) -> str:
    return "" if price is None else f"{price.paid}{price.micros}/{price.per}"


def read_price_line(line: str) -> tuple[str, Mapping[str, MeterTerms]]:
    """Read a price line: the version, and the terms by meter token.

    Raises:
        ValueError: another release wrote it.
    """
    version, *parts = line.split(" ")
    found: dict[str, MeterTerms] = {}
    for part in parts:
        token, cost, price = part.split(":")
        found[token] = MeterTerms(int(cost) if cost else None, _parse_price(price) if price else None)
    return version, found


def _parse_price(price: str) -> PaidPrice:
    micros, per = price[1:].split("/")
    if price[0] not in _PAID:
        raise ValueError(f"units of kind {price[0]!r}")
    return PaidPrice(price[0], int(micros), int(per))

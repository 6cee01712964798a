"""Price segments: spans of a period in which a meter's overage had one price; prices of audit entries.

The store keeps a line for each ended segment (``end_price_segment.lua``): the label of its price, and what
was sealed and recorded as overage from the period's beginning to the segment's end.

``VERSION TOKEN:COST:PRICE TOKEN:COST:PRICE``, for example
``plans/0a1b2c3d,genai-prices/0.2.3 a1b2:150:o40/1 c3d4::c1/1``. COST is in whole micro-units of US
dollars, or empty. PRICE is empty, or MICROS/PER after a letter: ``o`` for overage, ``c`` for units that
credits pay. The line has only ASCII. ``fold_audit.lua`` reads it, too.
"""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from math import gcd
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.value_parsers import micros_per_minor_unit, rounded_cents
from meterkit.decisions.keys import meter_field, meter_token

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Meter

_MICROS_END: Final = 2**63
NO_PRICE: Final = "-"
"""Label where no price is known."""
NOT_BILLED: Final = "0"
"""Label where overage is not billed: no unit of it goes to Stripe."""
_BY_MODEL: Final = "*"
_PAID: Final = {"o": "overage", "c": "credited"}


class PriceSegment(NamedTuple):
    """A part of a period at one price.

    Attributes:
        label: of the price: ``PER/AMOUNT_CENTS``; ``0`` where the plan bills no overage, or ``-`` where the
            plans file names no price; with ``*`` after it the default of prices by model, and the overage is
            counted by these.
        sealed: units that were sealed for Stripe in it.
        overage: units that were recorded as overage in it.
    """

    label: str
    sealed: int
    overage: int

    @property
    def unit_cents(self) -> Fraction | None:
        """Exact price of a unit in minor units; None: the plans file has no price."""
        return unit_cents(self.label)

    @property
    def is_by_model(self) -> bool:
        """Whether its overage has several prices, and is counted by these on meters of their own."""
        return self.label.endswith(_BY_MODEL)

    def outside_rows(self, overage: int, elsewhere: int) -> PriceSegment:
        """Part of a period's only segment that no meter of prices by model has counted.

        Args:
            overage: all units of it, late ones included.
            elsewhere: units that those meters have counted.
        """
        label = self.label.removesuffix(_BY_MODEL)
        units = overage if self.is_by_model else self.overage
        return self._replace(label=label, overage=max(0, units - elsewhere))


def label_of(entitlement: Entitlement) -> str:
    """The label of the price that overage of a meter has."""
    overage = entitlement.overage
    if overage.mode != "bill" or overage.amount_cents is None:
        return NO_PRICE
    by_model = "" if overage.rows is None else _BY_MODEL
    return f"{overage.per or 1}/{overage.amount_cents}{by_model}"


def shown_label(entitlement: Entitlement, meter: Meter) -> str:
    """The label of the price that overage of a meter is shown at.

    Overage on a plan that does not bill it stays overage, and costs nothing. Where Stripe is sent all units,
    its own price decides.
    """
    is_all_sent = meter.stripe is not None and meter.stripe.report == "usage"
    is_billed = entitlement.overage.mode == "bill" and entitlement.included is not None
    return label_of(entitlement) if is_billed or is_all_sent else NOT_BILLED


def is_split(meter: str, meters: Mapping[str, Meter]) -> bool:
    """Whether only a part of a meter's overage is sent under its own event: it is derived, or a source.

    Stripe gets a unit of both under the event of the derived meter only, if its source bills it.
    """
    own = meters[meter]
    if own.stripe is None or own.stripe.report != "overage" or own.is_row:
        return False
    return own.source is not None or bool(parts_of(meter, meters))


def parts_of(meter: str, meters: Mapping[str, Meter]) -> tuple[str, ...]:
    """The derived meters under whose own events Stripe gets units of a meter."""
    parts = (other for other in meters.values() if other.source == meter and not other.is_row)
    return tuple(part.name for part in parts if part.stripe is not None)


def sent_price(
    meter: str, entitlements: Mapping[str, Entitlement], meters: Mapping[str, Meter]
) -> tuple[str, str]:
    """The label of the price of a unit that is sent under a meter's event, and the meter that has the price.

    That is its own, else that of its source. The price of a row of prices by model is its own, too.
    """
    own = label_of(entitlements[meter]).removesuffix(_BY_MODEL)
    source = meters[meter].source
    if own != NO_PRICE or source is None or meters[meter].is_row:
        return own, meter
    return label_of(entitlements[source]).removesuffix(_BY_MODEL), source


def ended_marks(
    sold: Iterable[tuple[Fraction, int]], *, label: str, unsent: int, missed: Mapping[Fraction, int]
) -> str:
    """Segments as the store keeps them, of units whose prices have ended; empty: there are none.

    Args:
        sold: the exact price of a unit in minor units, and how many units had it, by price, the oldest first.
        label: of the price now.
        unsent: how many of these units are not for Stripe's meters any more.
        missed: the same by price, of others.
    """
    marks, till = "", 0
    for cents, units in sold:
        if units > 0 and cents != unit_cents(label):
            till += units
            unsent += missed.get(cents, 0)
            marks += f"{price_label(cents)} {max(0, till - unsent)} {till};"
    return marks


def price_label(cents: Fraction) -> str:
    """The label of a price by its exact amount for a unit, in minor units."""
    return f"{cents.denominator}/{cents.numerator}"


def is_same_price(one: str, other: str) -> bool:
    """Whether two labels name one price; a label that names none is like no other."""
    return unit_cents(one) is not None and unit_cents(one) == unit_cents(other)


def unit_cents(label: str) -> Fraction | None:
    """Exact price of a unit in minor units; None: the label has no price."""
    per, _, amount_cents = label.removesuffix(_BY_MODEL).partition("/")
    return Fraction(int(amount_cents), int(per)) if amount_cents.isdigit() else None


_LAST_PLACE: Final = Decimal("1e-12")
"""A unit amount has twelve decimals (https://docs.stripe.com/api/prices/object#price_object-unit_amount_decimal)."""


def unit_amount_decimal(label: str) -> Decimal:
    """The unit amount of a price for Stripe, in minor units: rounded down, so that nothing costs more."""
    cents = unit_cents(label) or Fraction(0)
    exact = (Decimal(cents.numerator) / cents.denominator).quantize(_LAST_PLACE, rounding=ROUND_FLOOR)
    return exact.normalize()


def item_segments(marks: str) -> list[PriceSegment]:
    """Units that invoice items bill, by their prices; see ``count_item_units.lua``."""
    lines = (line.split() for line in filter(None, marks.split(";")))
    return [PriceSegment(label, 0, int(units)) for label, units in lines]


def sent_label(meter: str, entitlements: Mapping[str, Entitlement], meters: Mapping[str, Meter]) -> str:
    """Label of the price of units sent under a meter's event: its own, otherwise that of its source."""
    overage, source = entitlements[meter].overage, meters[meter].source
    if source is not None and not meters[meter].is_row and overage.amount_cents is not None:
        return f"{overage.per or 1}/{overage.amount_cents}"  # Price of its item, even against the plan.
    own = label_of(entitlements[meter])
    return own if own != NO_PRICE or source is None else label_of(entitlements[source])


def sent_segments(marks: str, items: str = "", *, label: str, sent: int) -> list[PriceSegment]:
    """The segments of what is sent under a meter's event, priced unit by unit like overage.

    Args:
        marks: as the store keeps them.
        items: units that invoice items bill; see :func:`item_segments`.
        label: of the price now.
        sent: units that are sent by now, those of invoice items included.
    """
    by_item = item_segments(items)
    sealed = sent - sum(one.overage for one in by_item)
    found = segments_of(marks, label=label, sealed=sealed, overage=0)
    return [*by_item, *(PriceSegment(one.label, 0, one.sealed) for one in found)]


def ended_labels(
    before: Mapping[str, Entitlement], after: Mapping[str, Entitlement], catalog: Catalog
) -> dict[str, str]:
    """The labels of the prices that end where other entitlements follow, each by its meter's token.

    Args:
        before: what the customer gets of each meter until now.
        after: what it gets from now on.
        catalog: where the meters are.
    """
    if before is after:
        return {}
    old, new = (billed_labels(given, catalog) for given in (before, after))
    return {token: label for token, label in old.items() if label != new[token]}


def billed_labels(given: Mapping[str, Entitlement], catalog: Catalog) -> dict[str, str]:
    """The label of the price of each counter, by its token."""
    counters = (name for name, meter in catalog.meters.items() if meter.kind == "counter")
    return {meter_token(name): _billed_label(name, given, catalog.meters) for name in counters}


def _billed_label(meter: str, given: Mapping[str, Entitlement], meters: Mapping[str, Meter]) -> str:
    """The label of the price of a meter; a derived one that Stripe bills may have that of its source."""
    is_part = is_split(meter, meters)
    return sent_label(meter, given, meters) if is_part else shown_label(given[meter], meters[meter])


def segments_of(marks: str, *, label: str, sealed: int, overage: int) -> list[PriceSegment]:
    """The segments of a meter in a period, oldest first.

    A correction may have reduced an ended segment: its units are subtracted from the last ones.

    Args:
        marks: as the store keeps them.
        label: of the price now.
        sealed: what was sealed in the period by now.
        overage: what was recorded as overage in the period by now.
    """
    found: list[PriceSegment] = []
    sealed_before = overage_before = 0
    for line in filter(None, marks.split(";")):
        name, *numbers = line.split()
        sealed_then, overage_then = (int(number) for number in numbers)
        sealed_till = max(sealed_before, min(sealed_then, sealed))
        overage_till = max(overage_before, min(overage_then, overage))
        found.append(PriceSegment(name, sealed_till - sealed_before, overage_till - overage_before))
        sealed_before, overage_before = sealed_till, overage_till
    found.append(PriceSegment(label, max(0, sealed - sealed_before), max(0, overage - overage_before)))
    return found


def overage_cents(segments: Sequence[PriceSegment]) -> int | None:
    """Price of overage in minor units, by each segment's unit amount and rounded as its invoice line is.

    None if the price of a segment with overage is not known, or no segment has a price.
    """
    billed = [one for one in segments if not one.is_by_model and one.label != NOT_BILLED]
    used = [one for one in billed if one.overage]
    if not used and segments and segments[-1].unit_cents is None:
        return None
    if any(one.unit_cents is None for one in used):
        return None
    return sum(rounded_cents(one.overage * Fraction(unit_amount_decimal(one.label))) for one in used)


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
    micros, per = overage.amount_cents * micros_per_minor_unit(catalog.currency), overage.per or 1
    # No column holds a larger number. So many decimals has the price of an item, not that of the plans file.
    shared = gcd(micros, per) if micros >= _MICROS_END else 1
    return PaidPrice("o", micros // shared, per // shared)


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

"""Prices of a customer's own subscription items, as its state keeps them, by meter. Pure.

Stripe bills usage at the price of the subscription's item, not at the current one of the plans file.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.catalog.meters import billed_as, billed_meters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from decimal import Decimal

    from meterkit.catalog import Catalog, Entitlement, Meter, Overage, Plan
    from meterkit.catalog.model_prices import PriceRows

_UNKNOWN: Final = "?"
_LINE_PRICES_MOST: Final = 200


class ItemPrice(NamedTuple):
    """The price of one metered item.

    Attributes:
        meter: its name in the plans file when the price was made; empty: not known.
        event_name: of its meter at Stripe.
        label: ``PER/AMOUNT_CENTS``, exact; or ``?`` and the reason why no unit price applies.
        free: units of a first tier that costs nothing.
        is_dropped: whether the plans file bills it no more. Where invoice lines bill usage, it is kept: usage
            recorded at it may wait for its line, and the plans file may bill it again.
    """

    meter: str
    event_name: str
    label: str
    free: int = 0
    is_dropped: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the item has one unit price."""
        return not self.label.startswith(_UNKNOWN)

    @property
    def reason(self) -> str:
        """Reason why the item has no unit price; empty if it has one."""
        return "" if self.is_exact else self.label.removeprefix(_UNKNOWN)

    def apply_to(self, overage: Overage) -> Overage:
        """Overage at this price; the plans file's spelling stays if it is the same price."""
        per, amount_cents = map(int, self.label.split("/"))
        if overage.amount_cents is not None and overage.amount_cents * per == amount_cents * (
            overage.per or 1
        ):
            return overage
        return replace(overage, per=per, amount_cents=amount_cents)


ItemPrices = tuple[ItemPrice, ...]
"""Item prices as a state keeps them."""
NO_PRICES: Final[ItemPrices] = ()


def parse_item_prices(kept: Iterable[Iterable[Any]]) -> ItemPrices:
    """Item prices of stored JSON; those of a newer release are cut to what this one knows."""
    return _shared(tuple(tuple(one)[: len(ItemPrice._fields)] for one in kept))


@lru_cache(maxsize=1024)
def _shared(kept: tuple[tuple[Any, ...], ...]) -> ItemPrices:
    """Intern: one object for all customers with the same prices."""
    return tuple(ItemPrice(*one) for one in kept)


def dump_item_prices(prices: Iterable[ItemPrice]) -> list[list[str | int]]:
    """The inverse of :func:`parse_item_prices`, without defaults at the end."""
    return [[*one] if one.is_dropped else [*one[:4]] if one.free else [*one[:3]] for one in prices]


def with_known_meters(prices: ItemPrices, known: ItemPrices) -> ItemPrices:
    """Item prices with the names of their meters, as they are known by their event names.

    A price that a person or an override made names no meter: once the plans file has another event name for
    the meter, only an earlier reading tells whose it is.
    """
    names = {one.event_name: one.meter for one in known}
    return tuple(one if one.meter else one._replace(meter=names.get(one.event_name, "")) for one in prices)


def exact_label(unit_amount: Decimal) -> str:
    """The label of a price per unit in minor units, with as many decimals as Stripe shows."""
    exact = unit_amount.normalize()
    places = max(0, len(exact.as_tuple().digits) - exact.adjusted() - 1)
    return f"{10**places}/{int(exact.scaleb(places))}"


def unknown_label(reason: str) -> str:
    """The label of a price that no single price of a unit can say."""
    return f"{_UNKNOWN}{reason}"


def prices_by_meter(prices: ItemPrices, catalog: Catalog) -> dict[str, ItemPrice]:
    """Item prices by the meter of the plans file that they bill.

    The event name decides, so a renamed meter keeps its price. If the plans file has another event name for
    the meter by now, the meter's name decides.
    """
    if not prices:
        return {}
    events = {meter.stripe.event_name for meter in catalog.meters.values() if meter.stripe is not None}
    by_event = {one.event_name: one for one in prices}
    by_name = {one.meter: one for one in prices if one.event_name not in events}
    found: dict[str, ItemPrice] = {}
    for name, meter in catalog.meters.items():
        stripe = _stripe_of(meter, catalog)
        if stripe is None or stripe.report == "none":
            continue
        known = by_event.get(stripe.event_name) or by_name.get(name)
        if known is not None:
            found[name] = known
    return found


def line_prices(
    plan: Plan, catalog: Catalog, own: ItemPrices = NO_PRICES, *, has_new_models: bool = False
) -> ItemPrices:
    """List the prices at which lines bill a plan's usage: the customer's own, else those of the plans file.

    A price that the plans file does not bill any more is kept: usage recorded at it may wait for its line,
    and the plans file may bill it again.

    Args:
        plan: the plan.
        catalog: the plans file.
        own: prices that the customer had on the plan until now, each of one unit price.
        has_new_models: whether models whose price is newer than the default one of the customer have it.
    """
    known, found = prices_by_meter(own, catalog), list[ItemPrice]()
    rest = dict.fromkeys(own)
    for meter in billed_meters(catalog.meters, plan):
        given, kept = billed_as(plan, meter), known.get(meter.name)
        if given is None or meter.stripe is None:
            continue
        label = f"{given.overage.per or 1}/{given.overage.amount_cents}"
        if kept is not None:
            label = kept.label
            rest.pop(kept, None)
        elif given.overage.amount_cents is None or (
            meter.is_row and meter.source in known and not has_new_models
        ):
            continue
        found.append(ItemPrice(meter.name, meter.stripe.event_name, label))
    return (*found, *(one._replace(is_dropped=True) for one in rest))[:_LINE_PRICES_MOST]


def _stripe_of(meter: Meter, catalog: Catalog) -> Any:
    """The Stripe event that carries a meter's units; the default price by model has that of its source."""
    if meter.is_row and meter.stripe is None and meter.source is not None:
        return catalog.meters[meter.source].stripe
    return meter.stripe


def with_item_prices(
    given: Mapping[str, Entitlement], prices: ItemPrices, catalog: Catalog
) -> Mapping[str, Entitlement]:
    """Entitlements with overage at the prices of the customer's own items.

    A price with a free tier decides what is included, and that Stripe gets all units; a flat price, that it
    gets overage alone. So an edited ``report`` leaves present customers what they bought. A model that has no
    item of its own has the default price: its price in the plans file is newer than the subscription.
    """
    changed: dict[str, Entitlement] = {}
    known = prices_by_meter(prices, catalog)
    for name, price in known.items():
        own, meter, stripe = given[name], catalog.meters[name], catalog.meters[name].stripe
        if not price.is_exact:
            continue
        if own.overage.mode != "bill" or own.included is None:
            if meter.source is not None and not meter.is_row:  # Its source decides what is billed.
                changed[name] = replace(own, overage=price.apply_to(own.overage))
            continue
        included, has_tier = price.free or own.included, price.free > 0
        is_edited = stripe is not None and included > 0 and has_tier != (stripe.report == "usage")
        now = replace(
            own,
            overage=price.apply_to(own.overage),
            included=included,
            sends_included=has_tier if is_edited else None,
        )
        if now != own:
            changed[name] = now
    for name, own in ({**given, **changed} if known else {}).items():
        if own.overage.rows is not None:
            rows = _with_highest(_with_items(own.overage.rows, known), {**given, **changed})
            changed[name] = replace(own, overage=replace(own.overage, rows=rows))
    return {**given, **changed} if changed else given


def _with_items(rows: PriceRows, known: Mapping[str, ItemPrice]) -> PriceRows:
    """Prices by model without those that no item bills, if one bills the default."""
    if rows.default not in known:
        return rows
    return replace(rows, models=tuple(of for of in rows.models if of[1] in known))


def _with_highest(rows: PriceRows, given: Mapping[str, Entitlement]) -> PriceRows:
    """Prices by model with the highest one of the customer's own items."""
    prices = {row: given[row].overage.unit_price for row in rows.all}
    return replace(rows, highest=max(prices, key=prices.__getitem__))


_INTERVALS: Final[dict[str, Literal["month", "year"]]] = {"month": "month", "year": "year"}
_MONTH_MS: Final = 31 * 86_400_000


class FixedPrice(NamedTuple):
    """Price of one unit of a licensed item.

    Attributes:
        unit_amount: in minor units of the currency.
        currency: in lower case.
        interval: ``month``, ``year``, or a text such as ``3 months``.
    """

    unit_amount: Fraction
    currency: str
    interval: str

    def cents(self, quantity: int = 1) -> int:
        """The price of some units, rounded half up as a line of an invoice is."""
        return int(self.unit_amount * quantity + Fraction(1, 2))

    @classmethod
    def parse(cls, kept: str) -> FixedPrice | None:
        """Read ``AMOUNT CURRENCY INTERVAL``; None: not known."""
        if not kept:
            return None
        amount, currency, interval = kept.split(" ", 2)
        return cls(Fraction(amount), currency, interval)


class FixedPrices(NamedTuple):
    """Prices of a subscription's plan, of a seat and of add-ons, each as a state keeps it.

    Attributes:
        base: of the plan; empty: not known, or none.
        seat: of one seat; likewise.
        addons: of one of each add-on, by its key.
    """

    base: str = ""
    seat: str = ""
    addons: tuple[tuple[str, str], ...] = ()


NO_FIXED_PRICES: Final = FixedPrices()


def base_interval(base_price: str) -> Literal["month", "year"] | None:
    """The interval of a kept base price; None: not known, or another one."""
    return _INTERVALS.get(base_price.partition(" ")[2].partition(" ")[2])


def interval_of(start_ms: int, end_ms: int) -> Literal["month", "year"]:
    """The interval of a billing period, by its length."""
    return "month" if end_ms - start_ms <= _MONTH_MS else "year"

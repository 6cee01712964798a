"""Read the prices of a subscription's items: labels of metered prices, and the monthly amount (MRR)."""

from __future__ import annotations

import logging
from collections import Counter
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.decisions.item_prices import ItemPrice, exact_label, unknown_label
from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.subscriptions.stripe_objects import items_in, key_in, meter_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.stripe.api import StripeApi


_METERS: Final = "/v1/billing/meters"
_PRICES: Final = "/v1/prices"
_TIERED: Final = "tiered"
_LOGGED_MAX: Final = 100
_logger = logging.getLogger("meterkit.subscriptions")
_KEY_REFUSALS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class PriceFacts(NamedTuple):
    """Facts about metered prices that a subscription at Stripe does not show.

    Attributes:
        events: the event names of meters by their ids.
        tiered: prices with tiers by their ids.
    """

    events: Mapping[str, str]
    tiered: Mapping[str, Mapping[str, Any]]


NO_FACTS: Final = PriceFacts({}, {})


class PriceFactsReader:
    """Fetches the event names of meters, and prices with tiers, each once: they never change at Stripe.

    Args:
        api: makes the Stripe client on first use.
    """

    def __init__(self, api: Callable[[], StripeApi]) -> None:
        self._api = api
        self._events: dict[str, str] = {}
        self._tiered: dict[str, Mapping[str, Any]] = {}
        self._logged: set[ItemPrice] = set()

    async def fetch(self, found: Mapping[str, Any]) -> PriceFacts:
        """Fetch the facts about the metered items of a subscription and its schedule.

        If the key may not read prices or meters, there are none, and the prices of the items are unknown.

        Raises:
            StripeError: Stripe does not answer.
        """
        phases: list[Mapping[str, Any]] = part_of(found, "schedule").get("phases") or []
        prices = [price for of in (found, *phases) for price in _metered_prices(items_in(of))]
        try:
            if {_meter_of(price) for price in prices} - self._events.keys():
                listed = await self._api().list(_METERS)
                self._events |= {str(meter["id"]): str(meter["event_name"]) for meter in listed}
            for price in prices:
                name = text_in(price, "id")
                if price.get("billing_scheme") == _TIERED and name not in self._tiered:
                    self._tiered[name] = await self._api().get(f"{_PRICES}/{name}", {"expand": ["tiers"]})
        except StripeUnavailableError:
            raise
        except StripeError as error:
            if error.status not in _KEY_REFUSALS:
                raise
            return NO_FACTS
        return PriceFacts(self._events, self._tiered)

    def log_inexact(self, subscription: str, prices: ItemPrices) -> None:
        """Log once each price without a single unit price: usage shows that of the plans file then."""
        for price in prices:
            if not price.is_exact and price not in self._logged and len(self._logged) < _LOGGED_MAX:
                self._logged.add(price)
                _logger.warning(
                    "the price of %s in subscription %s cannot be computed for a unit: %s; usage, budgets"
                    " and statements use the price of the plans file, marked as estimated, until the"
                    " subscription has a unit price in the plans file's currency",
                    price.event_name,
                    subscription,
                    price.reason,
                )


class InexactPrice(NamedTuple):
    """A metered item without a single unit price.

    Attributes:
        meter: its name in the plans file; the event name if the file has none of it.
        price: its id at Stripe.
        reason: in words.
    """

    meter: str
    price: str
    reason: str


def inexact_prices(found: Mapping[str, Any], facts: PriceFacts, catalog: Catalog) -> Iterator[InexactPrice]:
    """Find the metered items of a subscription without a single unit price."""
    for shown in items_in(found):
        for one in item_prices([shown], facts, catalog, currency=text_in(found, "currency")):
            if not one.is_exact:
                yield InexactPrice(
                    one.meter or one.event_name, text_in(part_of(shown, "price"), "id"), one.reason
                )


def item_prices(
    items: Iterable[Mapping[str, Any]], facts: PriceFacts, catalog: Catalog, *, currency: str
) -> ItemPrices:
    """Read the prices of the metered items of a subscription, or of a phase of its schedule.

    Args:
        items: as Stripe shows them.
        facts: about their prices.
        catalog: names the meters and the currency.
        currency: of the subscription: a price with `currency_options` is shown in its default currency.
    """
    names = {
        meter.stripe.event_name: name for name, meter in catalog.meters.items() if meter.stripe is not None
    }
    found: list[ItemPrice] = []
    for shown in _metered_prices(items):
        price = facts.tiered.get(text_in(shown, "id"), shown)
        event_name = facts.events.get(_meter_of(price))
        if event_name is not None:
            meter = names.get(event_name) or meter_in(key_in(price))
            label, free = _label_of(price, catalog.currency, currency)
            found.append(ItemPrice(meter, event_name, label, free))
    of_event = Counter(one.event_name for one in found)
    twice = unknown_label("two items bill it")
    return tuple(
        sorted({one if of_event[one.event_name] == 1 else one._replace(label=twice, free=0) for one in found})
    )


def _metered_prices(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The prices of items that have a meter."""
    return [price for item in items if _meter_of(price := part_of(item, "price"))]


def _meter_of(price: Mapping[str, Any]) -> str:
    return text_in(part_of(price, "recurring"), "meter")


def _label_of(price: Mapping[str, Any], currency: str, billed_in: str) -> tuple[str, int]:
    """The label of a price, and the units of a free first tier."""
    tiers: list[Mapping[str, Any]] = price.get("tiers") or []
    for known in (billed_in or currency, text_in(price, "currency")):
        if known != currency:
            return unknown_label(f"it is in {known}"), 0
    if part_of(price, "transform_quantity"):
        return unknown_label("it is of packages of several units"), 0
    if not tiers and price.get("billing_scheme") != _TIERED:
        return _unit_label(price), 0
    if price.get("tiers_mode") != "graduated" or any(_has_flat_amount(tier) for tier in tiers):
        return unknown_label("it has tiers that are not graduated, or that cost a flat amount"), 0
    first, *others = (_unit_label(tier) for tier in tiers)
    if set(others) <= {first}:
        return first, 0
    if first == exact_label(Decimal(0)) and len(set(others)) == 1:
        return others[0], int(tiers[0]["up_to"])
    return unknown_label("it has several tiers that cost something"), 0


def _unit_label(priced: Mapping[str, Any]) -> str:
    """The label of the unit amount of a price or a tier."""
    shown = priced.get("unit_amount_decimal")
    try:
        amount = Decimal(str(priced.get("unit_amount") if shown is None else shown))
    except InvalidOperation:
        return unknown_label("it names no unit amount")
    return exact_label(amount) if amount.is_finite() else unknown_label("it names no unit amount")


def _has_flat_amount(tier: Mapping[str, Any]) -> bool:
    return bool(tier.get("flat_amount_decimal") or tier.get("flat_amount"))


COUPONS: Final = "discounts.source.coupon"
"""Part of a subscription that Stripe must expand."""
_MICRO: Final = 1_000_000
# A price has twelve digits before the point and twelve after it, at most
# (https://docs.stripe.com/api/prices/object#price_object-unit_amount_decimal).
_DIGITS_MAX: Final = 15
_INTERVALS_A_MONTH: Final[Mapping[str, Fraction]] = {
    "day": Fraction(365, 12),
    "week": Fraction(52, 12),
    "month": Fraction(1),
    "year": Fraction(1, 12),
}


class MonthlyAmount(NamedTuple):
    """The monthly price of a subscription.

    Attributes:
        micro_cents: in millionths of the currency's smallest unit.
        currency: in lower case; empty: nothing is paid.
    """

    micro_cents: int
    currency: str


NOTHING: Final = MonthlyAmount(0, "")


def monthly_amount_of(found: Mapping[str, Any]) -> MonthlyAmount:
    """Monthly amount of a subscription, regardless of its status, without taxes and usage.

    A price with tiers counts as 0: Stripe does not show its tiers in a subscription.

    Args:
        found: as Stripe shows it, with :data:`COUPONS` expanded, also those of its items.
    """
    items = list(_licensed(found))
    off, share = _discounts(found)
    paid = sum((amount * per_month for amount, per_month in items), Fraction(0))
    if items:
        # An amount is taken off each invoice, one an interval.
        paid -= off * items[0][1]
    paid *= share
    currency = text_in(found, "currency")
    return MonthlyAmount(round(paid * _MICRO), currency) if paid > 0 and currency else NOTHING


def _licensed(found: Mapping[str, Any]) -> Iterator[tuple[Fraction, Fraction]]:
    """Licensed items: cost per interval after own coupons (smallest units), intervals per month."""
    for item in cast("list[Mapping[str, Any]]", part_of(found, "items").get("data") or []):
        price = part_of(item, "price")
        recurring = part_of(price, "recurring")
        per_month = _INTERVALS_A_MONTH.get(text_in(recurring, "interval"))
        if per_month is not None and recurring.get("usage_type") != "metered":
            off, share = _discounts(item)
            amount = max(Fraction(0), _amount(item, price) - off) * share
            yield amount, per_month / max(1, _integer_of(recurring.get("interval_count"), 1))


def _amount(item: Mapping[str, Any], price: Mapping[str, Any]) -> Fraction:
    quantity, packed = _integer_of(item.get("quantity"), 1), part_of(price, "transform_quantity")
    if packed:
        size = max(1, _integer_of(packed.get("divide_by"), 1))
        quantity = (quantity + (size - 1) * (text_in(packed, "round") == "up")) // size
    return _fraction_of(price.get("unit_amount_decimal") or price.get("unit_amount")) * quantity


def _discounts(found: Mapping[str, Any]) -> tuple[Fraction, Fraction]:
    """Lasting coupons of a subscription or an item: amount off (smallest units), and the share left."""
    off, share = Fraction(0), Fraction(1)
    discounts: object = found.get("discounts")
    for discount in cast("list[object]", discounts) if isinstance(discounts, list) else []:
        if not isinstance(discount, dict):
            continue
        shown = cast("dict[str, Any]", discount)
        coupon = part_of(part_of(shown, "source"), "coupon") or part_of(shown, "coupon")
        if text_in(coupon, "duration") == "forever":
            off += _fraction_of(coupon.get("amount_off"))
            share *= 1 - _fraction_of(coupon.get("percent_off")) / 100
    return off, share


def _integer_of(found: object, default: int) -> int:
    return found if isinstance(found, int) and not isinstance(found, bool) else default


def _fraction_of(found: object) -> Fraction:
    """Read a number or its text; 0 if it is missing or implausible."""
    try:
        number = Decimal(str(found))
    except (InvalidOperation, ValueError):
        return Fraction(0)
    is_usual = number.is_finite() and abs(number.adjusted()) <= _DIGITS_MAX
    return Fraction(number) if is_usual else Fraction(0)

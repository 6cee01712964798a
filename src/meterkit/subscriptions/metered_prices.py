"""Prices of a subscription's usage as labels: of its metered items, or in its metadata; in its currency.

Where Stripe has no metered prices, nothing else at Stripe says at which prices a subscription was sold.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.decisions.item_prices import ItemPrice, exact_label, unknown_label
from meterkit.decisions.subscription import ENDED
from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.stripe.prices import OPTIONS, PRICES, fetch_price, has_flat_amount, shown_in
from meterkit.stripe.request import KEY_REFUSALS
from meterkit.subscriptions.stripe_objects import items_in, key_in, meter_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.stripe.api import StripeApi

_METERS: Final = "/v1/billing/meters"
_TIERED: Final = "tiered"
_LOGGED_MAX: Final = 100
_CURRENCIES_AGE_S: Final = 3_600.0
"""Stripe lets a price get further currencies, and other amounts in them."""
_NO_PRICES: Final[Mapping[str, Mapping[str, Any]]] = {}
_logger = logging.getLogger("meterkit.subscriptions")
PLAN_KEY: Final = "meterkit_line_plan"
"""Key in the metadata of a subscription: the plan of the prices."""
PRICES_KEY: Final = "meterkit_line_prices_"
"""Begins the keys in the metadata of a subscription for JSON objects: event name to label of the price."""
_VALUE_MAX: Final = 500
"""Longest value of metadata (https://docs.stripe.com/metadata)."""
_LABEL: Final = re.compile(r"[1-9]\d{0,17}/\d{1,18}")


class PriceFacts(NamedTuple):
    """Facts about prices that a subscription at Stripe does not show.

    Attributes:
        events: the event names of meters by their ids.
        tiered: prices with tiers by their ids.
        charged: prices with their amounts in all currencies by their ids, of subscriptions in another
            currency than the default one of the price.
    """

    events: Mapping[str, str]
    tiered: Mapping[str, Mapping[str, Any]]
    charged: Mapping[str, Mapping[str, Any]] = _NO_PRICES


NO_FACTS: Final = PriceFacts({}, {})


class PriceFactsReader:
    """Fetches the event names of meters, and prices with tiers, each once: they never change at Stripe.

    Prices with several currencies are fetched once an hour.

    Args:
        api: makes the Stripe client on first use.
    """

    def __init__(self, api: Callable[[], StripeApi]) -> None:
        self._api = api
        self._events: dict[str, str] = {}
        self._tiered: dict[str, Mapping[str, Any]] = {}
        self._charged: dict[str, Mapping[str, Any]] = {}
        self._charged_at_s: dict[str, float] = {}
        self._logged: set[ItemPrice] = set()

    async def fetch(self, found: Mapping[str, Any]) -> PriceFacts:
        """Fetch the facts about the items of a subscription and its schedule.

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
                    self._tiered[name] = await self._api().get(f"{PRICES}/{name}", {"expand": ["tiers"]})
            for name in prices_in_other_currencies(found):
                await self._fetch_charged(name)
        except StripeUnavailableError:
            raise
        except StripeError as error:
            if error.status not in KEY_REFUSALS:
                raise
            return NO_FACTS
        return PriceFacts(self._events, self._tiered, self._charged)

    async def _fetch_charged(self, price: str) -> None:
        """Fetch the amounts of a price in all of its currencies, unless they are known."""
        now_s = monotonic()
        if now_s < self._charged_at_s.get(price, -_CURRENCIES_AGE_S) + _CURRENCIES_AGE_S:
            return
        found = await fetch_price(self._api(), price)
        if found is not None:
            self._charged[price], self._charged_at_s[price] = found, now_s

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
    for shown in items_in(as_charged(found, facts.charged)):
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
        items: as Stripe shows them, with the amounts in the subscription's currency.
        facts: about their prices.
        catalog: names the meters and the currencies.
        currency: of the subscription: a price with `currency_options` is shown in its default currency where
            its other amounts are not known.
    """
    catalog = catalog.in_currency(currency)
    names = {
        meter.stripe.event_name: name for name, meter in catalog.meters.items() if meter.stripe is not None
    }
    found: list[ItemPrice] = []
    for shown in _metered_prices(items):
        price = shown if shown.get("tiers") else facts.tiered.get(text_in(shown, "id"), shown)
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
    if price.get("tiers_mode") != "graduated" or any(map(has_flat_amount, tiers)):
        return unknown_label("it has tiers that are not graduated, or that cost a flat amount"), 0
    # A tier has a unit amount, or a flat one alone, of 0 here.
    first, *others = (_unit_label(tier, missing=Decimal(0)) for tier in tiers)
    if set(others) <= {first}:
        return first, 0
    if first == exact_label(Decimal(0)) and len(set(others)) == 1:
        return others[0], int(tiers[0]["up_to"])
    return unknown_label("it has several tiers that cost something"), 0


def _unit_label(priced: Mapping[str, Any], missing: Decimal | None = None) -> str:
    """The label of the unit amount of a price or a tier; ``missing``: its amount where it names none."""
    shown = priced.get("unit_amount_decimal")
    shown = priced.get("unit_amount") if shown is None else shown
    try:
        amount = Decimal(str(missing if shown is None else shown))
    except InvalidOperation:
        return unknown_label("it names no unit amount")
    return exact_label(amount) if amount.is_finite() else unknown_label("it names no unit amount")


def read_line_prices(found: Mapping[str, Any], plan: str | None) -> dict[str, str]:
    """Read the prices at which a plan was sold: event name to label; what is damaged is left out.

    Args:
        found: the subscription as Stripe shows it.
        plan: its plan; the prices of an earlier one do not count.
    """
    metadata, prices = part_of(found, "metadata"), dict[str, str]()
    if plan is None or text_in(metadata, PLAN_KEY) != plan:
        return prices
    for name in metadata:
        if name.startswith(PRICES_KEY):
            prices |= _parse(text_in(metadata, name))
    return prices


def line_price_changes(found: Mapping[str, Any], subscription: SubscriptionState) -> dict[str, str]:
    """Changes of metadata that record the prices of a subscription; empty: it has them, or needs none.

    Args:
        found: the subscription as Stripe shows it.
        subscription: the same as it is stored.
    """
    plan = subscription.plan
    prices = {one.event_name: one.label for one in subscription.prices if one.is_exact}
    if plan is None or not prices or not subscription.by_lines or subscription.status in ENDED:
        return {}
    known = part_of(found, "metadata")
    stale = {name: "" for name in known if name.startswith(PRICES_KEY)}
    values = (f"{PRICES_KEY}{nth}" for nth in count(1))
    wanted = {**stale, PLAN_KEY: plan, **dict(zip(values, _values_of(prices), strict=False))}
    return {name: value for name, value in wanted.items() if text_in(known, name) != value}


def _values_of(prices: Mapping[str, str]) -> Iterator[str]:
    """Serialize prices into as many values as they need."""
    part: dict[str, str] = {}
    for event, label in prices.items():
        if part and len(_dump({**part, event: label})) > _VALUE_MAX:
            yield _dump(part)
            part = {}
        part[event] = label
    yield _dump(part)


def _dump(prices: Mapping[str, str]) -> str:
    return json.dumps(prices, ensure_ascii=False, separators=(",", ":"))


def _parse(value: str) -> dict[str, str]:
    try:
        found: object = json.loads(value)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    prices = cast("dict[str, object]", found)
    return {
        event: label for event, label in prices.items() if isinstance(label, str) and _LABEL.fullmatch(label)
    }


def prices_in_other_currencies(found: Mapping[str, Any]) -> Iterator[str]:
    """The ids of prices that a subscription, or a phase of its schedule, is not charged in as shown."""
    currency = text_in(found, "currency")
    for item in _items_of_all(found):
        price = part_of(item, "price")
        if currency and text_in(price, "id") and text_in(price, "currency") not in {"", currency}:
            yield text_in(price, "id")


def as_charged(found: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """A subscription whose items, and those of its schedule, show the amounts in its own currency.

    A price without a known amount stays as it is: its currency tells.

    Args:
        found: as Stripe shows it.
        known: prices with the amounts of their currencies, by id.
    """
    if not known or not any(prices_in_other_currencies(found)):
        return found
    currency = text_in(found, "currency")

    def convert(shown: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [_convert_item(item, currency, known) for item in shown]

    items = {**part_of(found, "items"), "data": convert(items_in(found))}
    converted: dict[str, Any] = {**found, "items": items}
    schedule = part_of(found, "schedule")
    if schedule:
        phases = cast("Sequence[Mapping[str, Any]]", schedule.get("phases") or [])
        later = [{**phase, "items": convert(items_in(phase))} for phase in phases]
        converted["schedule"] = {**schedule, "phases": later}
    return converted


def _convert_item(
    item: Mapping[str, Any], currency: str, known: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    price = part_of(item, "price")
    full = known.get(text_in(price, "id"))
    shown = None if full is None else shown_in({**price, OPTIONS: full.get(OPTIONS)}, currency)
    return item if shown is None else {**item, "price": shown}


def _items_of_all(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The items of a subscription and of all phases of its schedule."""
    for one in (found, *cast("list[Mapping[str, Any]]", part_of(found, "schedule").get("phases") or [])):
        yield from items_in(one)

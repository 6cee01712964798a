"""Amounts of a price at Stripe in its currencies (``currency_options``), and of a subscription in its own.

A price is shown in its default currency, wherever it is charged in another one. Its other amounts must be
expanded, and their tiers once more (https://docs.stripe.com/api/prices/object#price_object-currency_options).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.subscriptions.stripe_objects import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.stripe.api import StripeApi


PRICES: Final = "/v1/prices"
OPTIONS: Final = "currency_options"
"""Part of a price that Stripe must expand."""
_TIERED: Final = "tiered"


def currencies_of(price: Mapping[str, Any]) -> set[str]:
    """The currencies that a price has amounts in; needs :data:`OPTIONS` expanded."""
    return {text_in(price, "currency"), *part_of(price, OPTIONS)}


def shown_in(price: Mapping[str, Any], currency: str) -> Mapping[str, Any] | None:
    """A price as Stripe would show it if this was its default currency; None: its amount is not known.

    Args:
        price: as Stripe shows it, with :data:`OPTIONS` expanded.
        currency: in lower case; empty: the default one.
    """
    if text_in(price, "currency") in {"", currency} or not currency:
        return price
    option = part_of(part_of(price, OPTIONS), currency)
    is_tiered = price.get("billing_scheme") == _TIERED
    if not option or (is_tiered and not option.get("tiers")):
        return None
    amounts = {name: option.get(name) for name in ("unit_amount", "unit_amount_decimal")}
    return {**price, **amounts, **({"tiers": option["tiers"]} if is_tiered else {}), "currency": currency}


async def fetch_price(api: StripeApi, price: str) -> dict[str, Any] | None:
    """Fetch a price with its tiers and its amounts in all currencies; None: Stripe does not have it."""
    found = await api.find(f"{PRICES}/{price}", {"expand": ["tiers", OPTIONS]})
    return None if found is None else await with_option_tiers(api, found)


async def with_option_tiers(api: StripeApi, price: dict[str, Any]) -> dict[str, Any]:
    """Complete a listed price with the tiers of its other currencies.

    Args:
        api: the Stripe client.
        price: as Stripe shows it, with :data:`OPTIONS` expanded.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    options = part_of(price, OPTIONS)
    if price.get("billing_scheme") != _TIERED or not options:
        return price
    expand = ["tiers", OPTIONS, *(f"{OPTIONS}.{currency}.tiers" for currency in sorted(options))]
    return await api.get(f"{PRICES}/{price['id']}", {"expand": expand})


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

    items = part_of(found, "items")
    converted: dict[str, Any] = {**found, "items": {**items, "data": convert(items.get("data") or [])}}
    schedule = part_of(found, "schedule")
    if schedule:
        phases = cast("Sequence[Mapping[str, Any]]", schedule.get("phases") or [])
        later = [{**phase, "items": convert(phase.get("items") or [])} for phase in phases]
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
    yield from cast("list[Mapping[str, Any]]", part_of(found, "items").get("data") or [])
    for phase in cast("list[Mapping[str, Any]]", part_of(found, "schedule").get("phases") or []):
        yield from cast("list[Mapping[str, Any]]", phase.get("items") or [])

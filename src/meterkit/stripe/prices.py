"""Prices at Stripe and their amounts in each currency (``currency_options``), and the taxes of an invoice.

A price is shown in its default currency, wherever it is charged in another one. Its other amounts must be
expanded, and their tiers once more (https://docs.stripe.com/api/prices/object#price_object-currency_options).
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import StripeApi

PRICES: Final = "/v1/prices"
OPTIONS: Final = "currency_options"
"""Part of a price that Stripe must expand."""
_TIERED: Final = "tiered"


def currencies_of(price: Mapping[str, Any]) -> set[str]:
    """The currencies that a price has amounts in; needs :data:`OPTIONS` expanded."""
    return {price.get("currency") or "", *_options_of(price)}


def shown_in(price: Mapping[str, Any], currency: str) -> Mapping[str, Any] | None:
    """A price as Stripe would show it if this was its default currency; None: its amount is not known.

    Args:
        price: as Stripe shows it, with :data:`OPTIONS` expanded.
        currency: in lower case; empty: the default one.
    """
    if not currency or (price.get("currency") or currency) == currency:
        return price
    option = _options_of(price).get(currency)
    is_tiered = price.get("billing_scheme") == _TIERED
    if not option or (is_tiered and not option.get("tiers")):
        return None
    amounts = {name: option.get(name) for name in ("unit_amount", "unit_amount_decimal", "tax_behavior")}
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
    others = sorted(_options_of(price).keys() - {price.get("currency")})
    if price.get("billing_scheme") != _TIERED or not others:
        return price
    expand = ["tiers", OPTIONS, *(f"{OPTIONS}.{currency}.tiers" for currency in others)]
    return await api.get(f"{PRICES}/{price['id']}", {"expand": expand})


def _options_of(price: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return price.get(OPTIONS) or {}


def has_flat_amount(tier: Mapping[str, Any]) -> bool:
    """Whether a tier costs something to be reached; Stripe shows a flat amount of 0 that was given."""
    shown = tier.get("flat_amount_decimal")
    return bool(Decimal(shown) if shown is not None else tier.get("flat_amount"))


def taxes_on_top(invoice: Mapping[str, Any]) -> int:
    """The taxes that an invoice adds to its prices, in minor units; those within the prices are left out."""
    taxes = invoice.get("total_taxes") or ()
    return sum(int(one["amount"]) for one in taxes if one.get("tax_behavior") != "inclusive")

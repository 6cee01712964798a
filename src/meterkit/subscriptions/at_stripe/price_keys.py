"""Lookup keys of prices: which plan, and what of it, a price at Stripe charges. Pure.

``meterkit stripe sync`` gives each price a lookup key, and repeats it in the metadata. When a price is made
anew, the lookup key moves to the new one, and the metadata of the old one stays: its subscribers still belong
to the plan. https://docs.stripe.com/products-prices/manage-prices#lookup-keys
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.at_stripe.parts import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog

__all__ = ["MARK", "base_key", "is_metered_key", "key_in", "meter_key", "plan_of_price", "seat_key"]

MARK: Final = "meterkit"
"""The key of the metadata of prices and products under which their lookup key stands."""

_METER: Final = "meter"


def base_key(plan: str) -> str:
    """The lookup key of a plan's base price."""
    return f"{MARK}:{plan}:base"


def seat_key(plan: str) -> str:
    """The lookup key of the price of a plan's seats."""
    return f"{MARK}:{plan}:seats"


def meter_key(plan: str, meter: str) -> str:
    """The lookup key of a plan's price on a meter."""
    return f"{MARK}:{plan}:{_METER}:{meter}"


def is_metered_key(key: str, plan: str) -> bool:
    """Whether a key is that of one of the plan's prices on a meter."""
    return key.startswith(meter_key(plan, ""))


def key_in(price: Mapping[str, Any]) -> str:
    """The key of a price as Stripe shows it, of one that was replaced too; empty: it was made by hand."""
    key = text_in(price, "lookup_key")
    return key if key.startswith(f"{MARK}:") else text_in(part_of(price, "metadata"), MARK)


def plan_of_price(price: str, key: str, catalog: Catalog) -> str | None:
    """The plan whose base price this is; None: of none. An id in the plans file wins over a key."""
    named = (plan.key for plan in catalog.plans.values() if plan.price.stripe_price == price)
    keyed = (plan.key for plan in catalog.plans.values() if key == base_key(plan.key))
    return next(named, None) or next(keyed, None)

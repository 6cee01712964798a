"""How a subscription at Stripe differs from the plans file. Pure.

A person can change a subscription in Stripe's Dashboard, and a subscription may be older than the plans file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.subscriptions.at_stripe.items import items_of
from meterkit.subscriptions.at_stripe.parts import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.subscriptions.at_stripe.items import Item

__all__ = ["LIVE", "Drift", "DriftKind", "drift_of", "plans_in"]

DriftKind = Literal[
    "two_subscriptions",
    "unknown_price",
    "two_plans",
    "base_quantity",
    "currency",
    "interval",
    "billing_mode",
]

LIVE: Final = frozenset({"active", "trialing", "past_due", "unpaid", "paused"})
"""The statuses of a subscription that bills usage, or may do so again."""

_FOR_PEOPLE: Final[frozenset[DriftKind]] = frozenset(
    {"two_subscriptions", "unknown_price", "currency", "interval"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between a subscription at Stripe and the plans file.

    Attributes:
        subscription: ``sub_…``.
        kind: what differs.
        message: the difference in words, with what was found and what the plans file wants.
    """

    subscription: str
    kind: DriftKind
    message: str

    @property
    def is_for_people(self) -> bool:
        """Whether ``repair`` leaves it alone, because it would have to choose what a customer pays for."""
        return self.kind in _FOR_PEOPLE


def plans_in(items: Iterable[Item], catalog: Catalog) -> list[Plan]:
    """The plans whose base prices are among items, in the order of the plans file."""
    prices = {item.price for item in items}
    return [plan for plan in catalog.plans.values() if plan.price.stripe_price in prices]


def drift_of(found: Mapping[str, Any], catalog: Catalog) -> tuple[Drift, ...]:
    """All differences between a live subscription and the plans file; empty: it is as the file says.

    Args:
        found: the subscription as Stripe shows it, with all of its items.
        catalog: what is sold.
    """
    subscription = text_in(found, "id")
    return tuple(
        Drift(subscription=subscription, kind=kind, message=message)
        for kind, message in _differences(found, catalog)
    )


def _differences(found: Mapping[str, Any], catalog: Catalog) -> Iterator[tuple[DriftKind, str]]:
    items = items_of(found)
    plans = plans_in(items, catalog)
    if not plans:
        yield "unknown_price", f"no plan of the plans file has a base price among {_prices(items)}"
        return
    if len(plans) > 1:
        names = ", ".join(plan.key for plan in plans)
        yield "two_plans", f"it has the base prices of several plans: {names}"
    for item in items:
        if item.price in {plan.price.stripe_price for plan in plans} and item.quantity != 1:
            message = f"the base price {item.price} has quantity {item.quantity}; the plans file sells 1"
            yield "base_quantity", message
    currency = text_in(found, "currency") or catalog.currency
    if currency != catalog.currency:
        yield "currency", f"it is billed in {currency}; the plans file has {catalog.currency}"
    yield from _intervals(found, plans)
    if part_of(found, "billing_mode").get("type") == "classic":
        yield (
            "billing_mode",
            "its billing mode is classic: a metered price that changes would lose the usage before",
        )


def _intervals(found: Mapping[str, Any], plans: Iterable[Plan]) -> Iterator[tuple[DriftKind, str]]:
    wanted = {plan.price.stripe_price: plan.price.interval for plan in plans}
    for item in found["items"]["data"]:
        price = item["price"]
        recurring = part_of(price, "recurring")
        every, count = text_in(recurring, "interval"), recurring.get("interval_count", 1)
        if price["id"] in wanted and (every, count) != (wanted[price["id"]], 1):
            message = f"{price['id']} is paid every {count} {every}; the plans file has {wanted[price['id']]}"
            yield "interval", message


def _prices(items: Iterable[Item]) -> str:
    return ", ".join(item.price for item in items) or "no items"

"""The items of a subscription: which a plan with its seats has, and what brings one to the other. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.subscriptions.at_stripe.parts import id_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.stripe.request import Parameter

__all__ = [
    "Item",
    "PlanPrices",
    "are_of",
    "as_new",
    "items_of",
    "metered_among",
    "new_items",
    "next_items",
    "updates",
]

_Kind = Literal["base", "seat", "metered"]

_BASE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a subscription at Stripe.

    Attributes:
        id: ``si_…``.
        price: ``price_…``.
        quantity: None where it is metered.
        product: of the price.
        meter: of the price, where it is metered; else None.
    """

    id: str
    price: str
    quantity: int | None
    product: str
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrices:
    """The prices at Stripe of a plan.

    Attributes:
        base: its base price.
        seat: what a seat costs beyond those that the base price covers; None: no seats are sold.
        metered: each metered price, and its meter.
    """

    base: str
    seat: str | None
    metered: Mapping[str, str | None]


def items_of(subscription: Mapping[str, Any]) -> tuple[Item, ...]:
    """The items of a subscription as Stripe shows it."""
    return tuple(_item(item) for item in subscription["items"]["data"])


def _item(item: Mapping[str, Any]) -> Item:
    price = item["price"]
    recurring = part_of(price, "recurring")
    is_metered = recurring.get("usage_type") == "metered"
    return Item(
        id=item["id"],
        price=price["id"],
        quantity=None if is_metered else item.get("quantity", _BASE),
        product=id_in(price, "product"),
        meter=(text_in(recurring, "meter") or price["id"]) if is_metered else None,
    )


def metered_among(prices: Iterable[Mapping[str, Any]], base: Mapping[str, Any]) -> dict[str, str | None]:
    """The metered prices that go with a base price, each with its meter; of each meter one, so it bills once.

    Of several of one meter it is the one that is paid as often as the base price, and of those the youngest.

    Args:
        prices: the active prices of the product of the base price, as Stripe shows them.
        base: the base price.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for price in sorted(prices, key=lambda price: _fitness(price, base)):
        recurring = part_of(price, "recurring")
        if recurring.get("usage_type") == "metered" and price.get("currency") == base.get("currency"):
            found[text_in(recurring, "meter") or price["id"]] = price
    return {price["id"]: meter for meter, price in found.items()}


def _fitness(price: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[bool, int, str]:
    return _span(price) == _span(base), price.get("created") or 0, price["id"]


def _span(price: Mapping[str, Any]) -> tuple[Any, Any]:
    recurring = part_of(price, "recurring")
    return recurring.get("interval"), recurring.get("interval_count", 1)


def new_items(prices: PlanPrices, paid_seats: int) -> list[dict[str, Parameter]]:
    """The items of a plan, as Stripe takes them for a new subscription.

    Args:
        prices: of the plan.
        paid_seats: that cost the seat price; with none there is no item for them.
    """
    items: list[dict[str, Parameter]] = [{"price": prices.base, "quantity": _BASE}]
    if prices.seat is not None and paid_seats:
        items.append({"price": prices.seat, "quantity": paid_seats})
    items.extend({"price": price} for price in prices.metered)
    return items


def are_of(items: Iterable[Item], wanted: Iterable[Mapping[str, Parameter]]) -> bool:
    """Whether items are what is wanted: of the same prices, as many of each."""
    return {(item.price, item.quantity) for item in items} == {
        (item["price"], item.get("quantity")) for item in wanted
    }


def next_items(
    current: Sequence[Item], catalog: Catalog, prices: PlanPrices, paid_seats: int
) -> list[dict[str, Parameter]]:
    """The items that a subscription has once it has another plan; those of other prices stay as they are."""
    kinds = _kinds(current, catalog)
    others = [item for item in current if item.id not in kinds]
    return [*new_items(prices, paid_seats), *map(as_new, others)]


def as_new(item: Item) -> dict[str, Parameter]:
    """An item as Stripe takes it where none is there yet."""
    return (
        {"price": item.price} if item.quantity is None else {"price": item.price, "quantity": item.quantity}
    )


def updates(
    current: Sequence[Item], catalog: Catalog, prices: PlanPrices, paid_seats: int
) -> list[dict[str, Parameter]]:
    """What brings the items of a subscription to a plan with its seats; those of other prices are left alone.

    Empty where nothing is to be done. An item is changed rather than replaced, so that Stripe reckons with
    what was paid for it.
    """
    kinds = _kinds(current, catalog)
    left = {item.id: item for item in current if item.id in kinds}
    changes: list[dict[str, Parameter]] = []
    for wanted in new_items(prices, paid_seats):
        item = _counterpart(wanted, left.values(), kinds, prices)
        if item is None:
            changes.append(wanted)
            continue
        del left[item.id]
        # A price that changes without a quantity sets that to 1.
        if item.price != wanted["price"]:
            changes.append({"id": item.id, **wanted})
        elif item.quantity != wanted.get("quantity"):
            changes.append({"id": item.id, "quantity": wanted["quantity"]})
    changes.extend({"id": item, "deleted": True} for item in left)
    return changes


def _counterpart(
    wanted: Mapping[str, Parameter], left: Iterable[Item], kinds: Mapping[str, _Kind], prices: PlanPrices
) -> Item | None:
    price = str(wanted["price"])
    kind: _Kind = "base" if price == prices.base else "seat" if price == prices.seat else "metered"
    same = [item for item in left if kinds[item.id] == kind]
    if kind == "metered":
        same = [item for item in same if item.price == price or item.meter == prices.metered[price]]
    return next((item for item in same if item.price == price), same[0] if same else None)


def _kinds(current: Sequence[Item], catalog: Catalog) -> dict[str, _Kind]:
    """The items that belong to a plan, by their ids; all others are somebody's add-ons."""
    bases = {plan.price.stripe_price for plan in catalog.plans.values()} - {None}
    seats = {plan.seat_price.stripe_price for plan in catalog.plans.values() if plan.seat_price} - {None}
    products = {item.product for item in current if item.price in bases}
    kinds: dict[str, _Kind] = {}
    for item in current:
        if item.price in bases:
            kinds[item.id] = "base"
        elif item.price in seats:
            kinds[item.id] = "seat"
        elif item.meter is not None and item.product in products:
            kinds[item.id] = "metered"
    return kinds

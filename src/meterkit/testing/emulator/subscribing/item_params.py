"""The items of a call: what is wanted of which, and what Stripe refuses of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.replies import ApiError, missing_parameter
from meterkit.testing.emulator.selling.inline_prices import named_price
from meterkit.testing.emulator.subscribing.revision import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Params
    from meterkit.testing.emulator.selling.prices import Price
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = [
    "ITEM_PARAMS",
    "read_item",
    "read_items",
    "recurring_price",
    "refuse_same_price",
    "refuse_while_pending",
]

ITEMS_MAX: Final = 20
# Accepted and without effect.
IGNORED: Final = ("billing_thresholds", "clear_usage", "current_trial", "discounts", "tax_rates")
ITEM_PARAMS: Final = ("metadata", "price", "price_data", "quantity", *IGNORED)


def read_items(account: Account, params: Params, *, of: Subscription | None) -> list[Wanted]:
    """Return what a call wants of the items of a subscription, or of one to be made.

    Raises:
        ApiError: Stripe would refuse it
            (https://docs.stripe.com/api/subscriptions/update#update_subscription-items).
    """
    wanted = [read_item(account, item, of=of) for item in params.hashes("items")]
    refuse_same_prices(wanted, of=of)
    kept = [] if of is None else of.items
    gone = {each.item for each in wanted if each.deleted}
    if of is not None and len(gone) == len(kept) and all(each.deleted for each in wanted) and wanted:
        message = (
            "A subscription must have at least one active plan/price. If you would like to cancel the "
            "subscription, use the cancel subscription endpoint instead."
        )
        raise ApiError(message, param=params.path("items"))
    if len(kept) - len(gone) + sum(each.item is None for each in wanted) > ITEMS_MAX:
        message = f"A subscription can have at most {ITEMS_MAX} subscription items."
        raise ApiError(message, param=params.path("items"))
    return wanted


def read_item(
    account: Account, params: Params, *, of: Subscription | None, item_id: str | None = None
) -> Wanted:
    """Return what a call wants of one item; it names it where ``item_id`` does not."""
    params.only("id", "deleted", *ITEM_PARAMS)
    item_id = item_id or params.given("id")
    own = {} if of is None else {item.id: item for item in of.items}
    if item_id is not None and item_id not in own:
        message = f"No such subscription item: '{item_id}'"
        raise ApiError(message, code="resource_missing", param=params.path("id"))
    price = None
    if "price" in params or "price_data" in params:
        price = recurring_price(account, params, currency=None if of is None else of.currency)
    elif item_id is None:
        raise missing_parameter(params.path("price"))
    metadata: dict[str, str] = {}
    params.amend("metadata", metadata)
    deleted = params.boolean("deleted") or False
    charged = price or (own[item_id].price if item_id is not None else None)
    quantity = None if charged is None else _quantity(params, charged)
    if quantity is None and item_id is None and charged is not None and not charged.is_metered:
        quantity = 1
    return Wanted(item=item_id, price=price, quantity=quantity, deleted=deleted, metadata=metadata)


def recurring_price(account: Account, params: Params, *, currency: str | None) -> Price:
    """Return the price that a call names or describes. Raises ApiError if it cannot be subscribed to."""
    return named_price(account, params, currency=currency, recurs=True)


def refuse_while_pending(wanted: Sequence[Wanted]) -> None:
    """An update that may be pending changes and adds items, and deletes none.

    https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes

    Raises:
        ApiError: an item is to be deleted.
    """
    if any(each.deleted for each in wanted):
        message = "`items[deleted]` cannot be set with `payment_behavior` set to `pending_if_incomplete`."
        raise ApiError(message, param="items")


def refuse_same_prices(wanted: Sequence[Wanted], *, of: Subscription | None) -> None:
    """A price can be subscribed to once (https://docs.stripe.com/billing/subscriptions/quantities)."""
    changed = {each.item: each for each in wanted if each.item is not None}
    ids: list[str] = [each.price.id for each in wanted if each.item is None and each.price is not None]
    for item in [] if of is None else of.items:
        change = changed.get(item.id)
        if change is None:
            ids.append(item.price.id)
        elif not change.deleted:
            ids.append((change.price or item.price).id)
    refuse_same_price(ids, param="items")


def refuse_same_price(ids: Sequence[str], *, param: str) -> None:
    """Refuse a price twice, in a subscription or in one phase of a schedule.

    https://github.com/stripe-archive/submigrate/issues/1 has Stripe's words.

    Raises:
        ApiError: an id is there twice.
    """
    for price_id in ids:
        if ids.count(price_id) > 1:
            message = f"Cannot add multiple subscription items with the same plan: {price_id}"
            raise ApiError(message, param=param)


def _quantity(params: Params, price: Price) -> int | None:
    quantity = params.integer("quantity")
    if quantity is None:
        return None
    if price.is_metered:
        message = "You cannot set the quantity for metered plans."
        raise ApiError(message, param=params.path("quantity"))
    if quantity < 0:
        message = "This value must be greater than or equal to 0."
        raise ApiError(message, code="parameter_invalid_integer", param=params.path("quantity"))
    return quantity

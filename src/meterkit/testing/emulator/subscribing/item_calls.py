"""The calls about subscription items: create, retrieve, list, update, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.replies import ApiError, JsonObject
from meterkit.testing.emulator.subscribing.billing_modes import refuse_in_flexible
from meterkit.testing.emulator.subscribing.item_params import (
    ITEM_PARAMS,
    read_item,
    refuse_same_prices,
    refuse_while_pending,
)
from meterkit.testing.emulator.subscribing.revision import Wanted
from meterkit.testing.emulator.subscribing.subscriptions import ENDED
from meterkit.testing.emulator.subscribing.updates import BEHAVIORS, commit, rearrange

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = ["ITEM_CALLS"]

HOW: Final = ("off_session", "payment_behavior", "proration_behavior", "proration_date")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/create."""
    call.params.only("subscription", *ITEM_PARAMS, *HOW, expandable=None)
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    refuse_in_flexible(subscription.billing_mode, call.params)
    known = {item.id for item in subscription.items}
    wanted = read_item(account, call.params.but("subscription", "expand", *HOW), of=subscription)
    changed = _change(account, call, subscription, wanted)
    item = next(item for item in changed.items if item.id not in known)
    return expanded(account, item.to_json(), call.params)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, account.subscriptions.of_item(call.object_id)[1].to_json(), call.params)


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/update."""
    call.params.only(*ITEM_PARAMS, *HOW, expandable=None)
    subscription, item = account.subscriptions.of_item(call.object_id)
    refuse_in_flexible(subscription.billing_mode, call.params)
    given = call.params.but("expand", *HOW)
    wanted = read_item(account, given, of=subscription, item_id=item.id)
    changed = _change(account, call, subscription, wanted)
    shown = next(each for each in changed.items if each.id == item.id)
    return expanded(account, shown.to_json(), call.params)


def _delete(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/delete; the last one cannot be deleted."""
    call.params.only("clear_usage", *HOW)
    subscription, item = account.subscriptions.of_item(call.object_id)
    refuse_in_flexible(subscription.billing_mode, call.params)
    if len(subscription.items) == 1:
        message = (
            "A subscription must have at least one active plan/price. If you would like to cancel the "
            "subscription, use the cancel subscription endpoint instead."
        )
        raise ApiError(message)
    _change(account, call, subscription, Wanted(item=item.id, deleted=True))
    return {"id": item.id, "object": "subscription_item", "deleted": True}


def _list(account: Account, call: Call) -> JsonObject:
    call.params.only("subscription", *PAGING, expandable=None)
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    found = [item.to_json() for item in subscription.items]
    return expanded(account, call.params.page(found, url="/v1/subscription_items"), call.params)


def _change(account: Account, call: Call, subscription: Subscription, wanted: Wanted) -> Subscription:
    if subscription.status in ENDED:
        message = "A canceled subscription can only update its cancellation_details and metadata."
        raise ApiError(message)
    refuse_same_prices([wanted], of=subscription)
    behavior = call.params.choice("payment_behavior", BEHAVIORS) or "allow_incomplete"
    if behavior == "pending_if_incomplete":
        refuse_while_pending([wanted])
    draft = subscription.copy()
    change = rearrange(account, draft, [wanted], call.params)
    return commit(account, subscription, draft, change, behavior=behavior)


ITEM_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscription_items", _create),
    ("GET", "/v1/subscription_items", _list),
    ("GET", "/v1/subscription_items/{id}", _retrieve),
    ("POST", "/v1/subscription_items/{id}", _update),
    ("DELETE", "/v1/subscription_items/{id}", _delete),
)

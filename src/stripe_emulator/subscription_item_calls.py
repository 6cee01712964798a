"""API calls about subscription items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_mode import refuse_classic_params
from stripe_emulator.call_table import PAGING, CallTable
from stripe_emulator.protocol import ApiError, JsonObject
from stripe_emulator.redemption import redeem
from stripe_emulator.subscription_changes import (
    PAYMENT_BEHAVIORS,
    commit_change,
    prepare_change,
)
from stripe_emulator.subscription_params import (
    ITEM_PARAMS,
    LAST_ITEM,
    ItemChange,
    read_item,
    refuse_deletions_while_pending,
    refuse_duplicate_prices,
)
from stripe_emulator.subscriptions import ENDED, Subscription

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call

CALLS: Final = CallTable()

CHANGE_PARAMS: Final = "off_session payment_behavior proration_behavior proration_date"


@CALLS("POST /v1/subscription_items", "subscription", *ITEM_PARAMS, CHANGE_PARAMS)
def _create_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/create."""
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    refuse_classic_params(subscription.billing_mode, call.params)
    known = {item.id for item in subscription.items}
    wanted = read_item(account, call.params.without("subscription expand", CHANGE_PARAMS), of=subscription)
    changed = _change_item(account, call, subscription, wanted)
    item = next(item for item in changed.items if item.id not in known)
    return item.to_json()


@CALLS("GET /v1/subscription_items/{id}")
def _retrieve_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/retrieve."""
    return account.subscriptions.find_item(call.object_id)[1].to_json()


@CALLS("POST /v1/subscription_items/{id}", *ITEM_PARAMS, CHANGE_PARAMS)
def _update_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/update."""
    subscription, item = account.subscriptions.find_item(call.object_id)
    refuse_classic_params(subscription.billing_mode, call.params)
    given = call.params.without("expand", CHANGE_PARAMS)
    wanted = read_item(account, given, of=subscription, item_id=item.id)
    changed = _change_item(account, call, subscription, wanted)
    shown = next(each for each in changed.items if each.id == item.id)
    return shown.to_json()


@CALLS("DELETE /v1/subscription_items/{id}", "clear_usage", CHANGE_PARAMS, expandable=())
def _delete_item(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/delete; the last one cannot be deleted."""
    subscription, item = account.subscriptions.find_item(call.object_id)
    refuse_classic_params(subscription.billing_mode, call.params)
    if len(subscription.items) == 1:
        raise ApiError(LAST_ITEM)
    _change_item(account, call, subscription, ItemChange(item=item.id, deleted=True))
    return {"id": item.id, "object": "subscription_item", "deleted": True}


@CALLS("GET /v1/subscription_items", "subscription", PAGING)
def _list_items(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_items/list."""
    subscription = account.subscriptions.find(call.params.required("subscription"), param="subscription")
    return call.page(item.to_json() for item in subscription.items)


def _change_item(
    account: Account, call: Call, subscription: Subscription, wanted: ItemChange
) -> Subscription:
    if subscription.status in ENDED:
        raise ApiError("A canceled subscription can only update its cancellation_details and metadata.")
    refuse_duplicate_prices([wanted], of=subscription)
    behavior = call.params.choice("payment_behavior", PAYMENT_BEHAVIORS) or "allow_incomplete"
    if behavior == "pending_if_incomplete":
        refuse_deletions_while_pending([wanted])
    draft = subscription.copy()
    change = prepare_change(account, draft, [wanted], call.params)
    changed = commit_change(account, subscription, draft, change, behavior=behavior)
    redeem(account, changed.item_discounts)
    return changed

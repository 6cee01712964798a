"""Parameters of subscriptions: items, trial, end, collection, and what Stripe refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import Params
from stripe_emulator.coupons import Discount, begin_discount
from stripe_emulator.invoice_drafts import read_automatic_tax
from stripe_emulator.price_calls import resolve_price
from stripe_emulator.prices import Price, price_quantity, to_cents
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter
from stripe_emulator.redemption import read_discounts
from stripe_emulator.subscriptions import Subscription, read_subscription_terms
from stripe_emulator.terms import ITEM_TERMS, SHOWN_TERMS, SUBSCRIPTION_TERMS, read_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account

ITEMS_MAX: Final = 20
LAST_ITEM: Final = (
    "A subscription must have at least one active plan/price. If you would like to cancel the "
    "subscription, use the cancel subscription endpoint instead."
)
# Accepted and without effect.
ITEM_IGNORED: Final = "clear_usage current_trial"
ITEM_PARAMS: Final = ("discounts", "metadata", "price", "price_data", "quantity", *ITEM_TERMS, ITEM_IGNORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChange:
    """A requested change of one subscription item.

    Attributes:
        item: id of the item; None: it is a new one.
        price: None: it keeps its own.
        quantity: None: it keeps its own, or has none.
        deleted: whether it goes.
        metadata: what is added to its own.
        terms: thresholds and tax rates that replace its own, each by itself.
        discounts: its own from now on; None: it keeps those that it has.
    """

    item: str | None = None
    price: Price | None = None
    quantity: int | None = None
    deleted: bool = False
    metadata: dict[str, str] | None = None
    terms: JsonObject = field(default_factory=dict[str, object])
    discounts: Sequence[Discount] | None = None

    @property
    def new_price(self) -> Price:
        """The price of a new item. Raises ValueError if it has none."""
        if self.price is None:
            raise ValueError("an item that is new needs a price")
        return self.price


def read_items(account: Account, params: Params, *, of: Subscription | None) -> list[ItemChange]:
    """Return the item changes that a call requests, of a subscription or of a new one.

    Raises:
        ApiError: Stripe would refuse it
            (https://docs.stripe.com/api/subscriptions/update#update_subscription-items).
    """
    wanted = [read_item(account, item, of=of) for item in params.hashes("items")]
    refuse_duplicate_prices(wanted, of=of)
    kept = [] if of is None else of.items
    gone = {each.item for each in wanted if each.deleted}
    if of is not None and len(gone) == len(kept) and all(each.deleted for each in wanted) and wanted:
        raise ApiError(LAST_ITEM, param=params.path("items"))
    if len(kept) - len(gone) + sum(each.item is None for each in wanted) > ITEMS_MAX:
        message = f"A subscription can have at most {ITEMS_MAX} subscription items."
        raise ApiError(message, param=params.path("items"))
    return wanted


def read_item(
    account: Account, params: Params, *, of: Subscription | None, item_id: str | None = None
) -> ItemChange:
    """Return the requested change of one item, named by ``item_id`` or by the parameters."""
    params.only("id deleted", *ITEM_PARAMS)
    item_id = item_id or params.nonempty_text("id")
    own = {} if of is None else {item.id: item for item in of.items}
    if item_id is not None and item_id not in own:
        message = f"No such subscription item: '{item_id}'"
        raise ApiError(message, code="resource_missing", param=params.path("id"))
    price = None
    if "price" in params or "price_data" in params:
        price = recurring_price(account, params, currency=None if of is None else of.currency)
    elif item_id is None:
        raise missing_parameter(params.path("price"))
    metadata = params.metadata()
    deleted = params.boolean("deleted") or False
    charged = price or (own[item_id].price if item_id is not None else None)
    quantity = None if charged is None else _read_quantity(params, charged)
    if quantity is None and item_id is None and charged is not None and not charged.is_metered:
        quantity = 1
    return ItemChange(
        item=item_id,
        price=price,
        quantity=quantity,
        deleted=deleted,
        metadata=metadata,
        terms=read_terms(params, ITEM_TERMS),
        discounts=_read_item_discounts(account, params, price, of=of),
    )


def _read_item_discounts(
    account: Account, params: Params, price: Price | None, *, of: Subscription | None
) -> list[Discount] | None:
    if "discounts" not in params:
        return None
    return read_discounts(
        account,
        params,
        customer="" if of is None else of.customer,
        currency=of.currency if of is not None else price.currency if price is not None else "",
        known=[] if of is None else [*of.discounts, *of.item_discounts],
    )


def recurring_price(account: Account, params: Params, *, currency: str | None) -> Price:
    """Return the price that a call names or describes. Raises ApiError if it cannot be subscribed to."""
    return resolve_price(account, params, currency=currency, recurs=True)


def refuse_deletions_while_pending(wanted: Sequence[ItemChange]) -> None:
    """Refuse to delete items in an update that may be pending.

    https://docs.stripe.com/billing/subscriptions/pending-updates-reference#supported-attributes

    Raises:
        ApiError: an item is to be deleted.
    """
    if any(each.deleted for each in wanted):
        message = "`items[deleted]` cannot be set with `payment_behavior` set to `pending_if_incomplete`."
        raise ApiError(message, param="items")


def refuse_duplicate_prices(wanted: Sequence[ItemChange], *, of: Subscription | None) -> None:
    """Refuse a second item of the same price (https://docs.stripe.com/billing/subscriptions/quantities)."""
    changed = {each.item: each for each in wanted if each.item is not None}
    ids: list[str] = [each.price.id for each in wanted if each.item is None and each.price is not None]
    for item in [] if of is None else of.items:
        change = changed.get(item.id)
        if change is None:
            ids.append(item.price.id)
        elif not change.deleted:
            ids.append((change.price or item.price).id)
    refuse_duplicate_ids(ids, param="items")


def refuse_duplicate_ids(ids: Sequence[str], *, param: str) -> None:
    """Refuse a price twice, in a subscription or in one phase of a schedule.

    https://github.com/stripe-archive/submigrate/issues/1 has Stripe's words.

    Raises:
        ApiError: an id is there twice.
    """
    for price_id in ids:
        if ids.count(price_id) > 1:
            message = f"Cannot add multiple subscription items with the same plan: {price_id}"
            raise ApiError(message, param=param)


def _read_quantity(params: Params, price: Price) -> int | None:
    quantity = params.integer("quantity")
    if quantity is None:
        return None
    if price.is_metered:
        raise ApiError("You cannot set the quantity for metered plans.", param=params.path("quantity"))
    return params.at_least("quantity", 0)


SUBSCRIPTION_PARAMS: Final = (
    "automatic_tax cancel_at cancel_at_period_end cancellation_details collection_method days_until_due",
    "discounts default_payment_method description metadata pause_collection payment_settings trial_settings",
    *SUBSCRIPTION_TERMS,
    *SHOWN_TERMS,
)
# Accepted and without effect.
SUBSCRIPTION_IGNORED: Final = "off_session trial_from_plan"
TRIAL_DAYS_MAX: Final = 730
DAY_S: Final = 86_400
TRIAL_ACTIONS: Final = ("cancel", "create_invoice", "pause")
COLLECTION_METHODS: Final = ("charge_automatically", "send_invoice")
PAUSE_BEHAVIORS: Final = ("keep_as_draft", "mark_uncollectible", "void")


def apply_settings(account: Account, subscription: Subscription, params: Params) -> None:
    """Apply the settings of a call, except items, cycle and end.

    Raises:
        ApiError: Stripe would refuse it.
    """
    taxed = read_automatic_tax(account, params, customer=subscription.customer)
    subscription.automatic_tax = subscription.automatic_tax if taxed is None else taxed
    read_subscription_terms(subscription, params)
    params.update_metadata("metadata", subscription.metadata)
    subscription.description = params.text_or("description", subscription.description)
    method = account.payment_methods.read_param(
        params, "default_payment_method", customer=subscription.customer
    )
    subscription.default_payment_method = method or subscription.default_payment_method
    subscription.collection_method = (
        params.choice("collection_method", COLLECTION_METHODS) or subscription.collection_method
    )
    if "days_until_due" in params:
        subscription.days_until_due = params.integer("days_until_due")
    if (subscription.collection_method == "send_invoice") != (subscription.days_until_due is not None):
        message = "`days_until_due` must be set where `collection_method` is `send_invoice`, and only there."
        raise ApiError(message, param="days_until_due")
    trial = params.hash("trial_settings")
    action = None if trial is None else trial.choice("end_behavior[missing_payment_method]", TRIAL_ACTIONS)
    subscription.trial_action = action or subscription.trial_action
    saved = params.choice("payment_settings[save_default_payment_method]", ("off", "on_subscription"))
    subscription.save_payment_method = saved or subscription.save_payment_method
    subscription.shown |= read_terms(params, SHOWN_TERMS)
    payment = params.hash("payment_settings")
    if payment is not None and "payment_method_types" in payment:
        subscription.shown["payment_method_types"] = payment.listed("payment_method_types") or None
    if "pause_collection" in params:
        subscription.pause_collection = _read_pause_collection(params)


def read_subscription_discounts(
    account: Account, subscription: Subscription, params: Params
) -> list[Discount]:
    """Return the requested discounts of a subscription; without a request, its current ones.

    New ones begin now.

    Raises:
        ApiError: Stripe would refuse one of them.
    """
    if "discounts" not in params:
        return subscription.discounts
    charged = [
        (item.price.pricing, item.quantity) for item in subscription.items if item.quantity is not None
    ]
    found = read_discounts(
        account,
        params,
        customer=subscription.customer,
        currency=subscription.currency,
        known=subscription.discounts,
        amount=sum(to_cents(price_quantity(pricing, Decimal(quantity))) for pricing, quantity in charged),
    )
    return [
        each
        if each in subscription.discounts
        else begin_discount(each, subscription=subscription.id, now=account.now)
        for each in found
    ]


def apply_cancellation_details(subscription: Subscription, params: Params) -> None:
    """Apply ``cancellation_details``: the customer's reasons."""
    details = params.hash("cancellation_details") or Params("")
    for name in ("comment", "feedback"):
        subscription.cancellation[name] = details.text_or(name, subscription.cancellation[name])


def apply_cancellation(subscription: Subscription, params: Params, *, now: int) -> None:
    """Apply the requested end of a subscription as its ``cancel_at``.

    ``cancel_at_period_end`` is the earliest end of its items' periods
    (https://docs.stripe.com/changelog/basil/2025-07-30/cancel-at-enums). Turned off, it takes back no
    ``cancel_at`` that was set by itself: Stripe says nothing of that, and a client had better not rely on it.
    """
    apply_cancellation_details(subscription, params)
    if "cancel_at" not in params and "cancel_at_period_end" not in params:
        return
    if subscription.schedule is not None:
        message = (
            f"The subscription is managed by the subscription schedule `{subscription.schedule}`, and "
            "updating any cancelation behavior directly is not allowed. Please update the schedule instead."
        )
        raise ApiError(message)
    if params.text("cancel_at") and params.boolean("cancel_at_period_end"):
        params.refuse_both("cancel_at", "cancel_at_period_end", param="cancel_at")
    own = None if subscription.cancel_at_period_end else subscription.cancel_at
    at = _read_cancel_at(subscription, params, now=now) if "cancel_at" in params else own
    subscription.cancel_at_period_end = params.boolean("cancel_at_period_end") or False
    subscription.cancel_at = subscription.renews_at if subscription.cancel_at_period_end else at
    if subscription.cancel_at is None:
        subscription.canceled_at = subscription.cancellation["reason"] = None
    else:
        subscription.canceled_at = now
        subscription.cancellation["reason"] = "cancellation_requested"
    subscription.prorate_at_cancel = params.text("proration_behavior") != "none"


def read_trial_end(params: Params, *, now: int) -> int | None:
    """Return the requested end of a trial in Unix seconds; ``now`` to end it; None: no request.

    Raises:
        ApiError: it has passed already or is over two years away.
    """
    days = params.integer("trial_period_days")
    if days is not None:
        params.refuse_both("trial_end", "trial_period_days", param="trial_period_days")
        if not 1 <= days <= TRIAL_DAYS_MAX:
            message = f"The number of trial period days must be between 1 and {TRIAL_DAYS_MAX} (2 years)."
            raise ApiError(message, param=params.path("trial_period_days"))
        return now + days * DAY_S
    if "trial_end" not in params or params.text("trial_end") == "now":
        return now if "trial_end" in params else None
    at = params.future_time("trial_end", now=now)
    if at > now + TRIAL_DAYS_MAX * DAY_S:
        message = "Invalid timestamp: can be no more than two years in the future."
        raise ApiError(message, param=params.path("trial_end"))
    return at


def _read_cancel_at(subscription: Subscription, params: Params, *, now: int) -> int | None:
    given = params.text("cancel_at")
    if not given:
        return None
    if given == "min_period_end":
        return subscription.renews_at
    if given == "max_period_end":
        return subscription.period_end
    return params.future_time("cancel_at", now=now)


def _read_pause_collection(params: Params) -> JsonObject | None:
    """https://docs.stripe.com/billing/subscriptions/pause-payment."""
    if not params.is_hash("pause_collection"):
        return None
    return {
        "behavior": params.required_choice("pause_collection[behavior]", PAUSE_BEHAVIORS),
        "resumes_at": params.integer("pause_collection[resumes_at]"),
    }

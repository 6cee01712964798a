"""What a call says of a subscription besides its items: its end, its trial, its payments, its texts."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.invoicing.taxes import read_tax
from meterkit.testing.emulator.replies import ApiError
from meterkit.testing.emulator.selling.amounts import amount_of, to_cents
from meterkit.testing.emulator.selling.redeeming import read_discounts

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Params
    from meterkit.testing.emulator.replies import JsonObject
    from meterkit.testing.emulator.selling.discounts import Discount
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = [
    "IGNORED",
    "SETTINGS",
    "apply_cancellation",
    "apply_settings",
    "read_trial_end",
    "wanted_discounts",
]

SETTINGS: Final = (
    *("automatic_tax", "cancel_at", "cancel_at_period_end", "cancellation_details", "collection_method"),
    *("days_until_due", "discounts"),
    *("default_payment_method", "description", "metadata", "pause_collection", "payment_settings"),
    "trial_settings",
)
# Accepted and without effect.
IGNORED: Final = (
    *("application_fee_percent", "billing_thresholds", "default_source"),
    *("default_tax_rates", "invoice_settings", "off_session", "on_behalf_of"),
    *("pending_invoice_item_interval", "transfer_data", "trial_from_plan"),
)
TRIAL_DAYS_MAX: Final = 730
DAY_S: Final = 86_400
ACTIONS: Final = ("cancel", "create_invoice", "pause")
COLLECTIONS: Final = ("charge_automatically", "send_invoice")
PAUSED: Final = ("keep_as_draft", "mark_uncollectible", "void")


def apply_settings(account: Account, subscription: Subscription, params: Params) -> None:
    """Take over what a call says of everything but items, cycle and end.

    Raises:
        ApiError: Stripe would refuse it.
    """
    taxed = read_tax(account, params, customer=subscription.customer)
    subscription.automatic_tax = subscription.automatic_tax if taxed is None else taxed
    params.amend("metadata", subscription.metadata)
    if "description" in params:
        subscription.description = params.text("description") or None
    method = params.given("default_payment_method")
    if method is not None:
        account.payment_methods.of_customer(
            method, customer=subscription.customer, param="default_payment_method"
        )
        subscription.default_payment_method = method
    subscription.collection_method = (
        params.choice("collection_method", COLLECTIONS) or subscription.collection_method
    )
    if "days_until_due" in params:
        subscription.days_until_due = params.integer("days_until_due")
    if (subscription.collection_method == "send_invoice") != (subscription.days_until_due is not None):
        message = "`days_until_due` must be set where `collection_method` is `send_invoice`, and only there."
        raise ApiError(message, param="days_until_due")
    trial = params.hash("trial_settings")
    action = None if trial is None else trial.choice("end_behavior[missing_payment_method]", ACTIONS)
    subscription.trial_action = action or subscription.trial_action
    saved = params.choice("payment_settings[save_default_payment_method]", ("off", "on_subscription"))
    subscription.save_payment_method = saved or subscription.save_payment_method
    if "pause_collection" in params:
        subscription.pause_collection = _pause_collection(params)


def wanted_discounts(account: Account, subscription: Subscription, params: Params) -> list[Discount]:
    """Return the discounts that a call wants a subscription to have: where it says nothing, those it has.

    Raises:
        ApiError: Stripe would refuse one of them.
    """
    if "discounts" not in params:
        return subscription.discounts
    charged = [
        (item.price.pricing, item.quantity) for item in subscription.items if item.quantity is not None
    ]
    return read_discounts(
        account,
        params,
        customer=subscription.customer,
        currency=subscription.currency,
        known=subscription.discounts,
        amount=sum(to_cents(amount_of(pricing, Decimal(quantity))) for pricing, quantity in charged),
    )


def apply_cancellation(subscription: Subscription, params: Params, *, now: int) -> None:
    """Take over when a subscription is to end; no more than ``cancel_at`` binds later.

    ``cancel_at_period_end`` is the earliest end of its items' periods
    (https://docs.stripe.com/changelog/basil/2025-07-30/cancel-at-enums). Turned off, it takes back no
    ``cancel_at`` that was set by itself: Stripe says nothing of that, and a client had better not rely on it.
    """
    details = params.hash("cancellation_details")
    for name in ("comment", "feedback"):
        if details is not None and name in details:
            subscription.cancellation[name] = details.text(name) or None
    if "cancel_at" not in params and "cancel_at_period_end" not in params:
        return
    if subscription.schedule is not None:
        message = (
            f"The subscription is managed by the subscription schedule `{subscription.schedule}`, and "
            "updating any cancelation behavior directly is not allowed. Please update the schedule instead."
        )
        raise ApiError(message)
    if params.text("cancel_at") and params.boolean("cancel_at_period_end"):
        message = "You may only specify one of these parameters: cancel_at, cancel_at_period_end."
        raise ApiError(message, param="cancel_at")
    own = None if subscription.cancel_at_period_end else subscription.cancel_at
    at = _cancel_at(subscription, params, now=now) if "cancel_at" in params else own
    subscription.cancel_at_period_end = params.boolean("cancel_at_period_end") or False
    subscription.cancel_at = subscription.renews_at if subscription.cancel_at_period_end else at
    if subscription.cancel_at is None:
        subscription.canceled_at = subscription.cancellation["reason"] = None
    else:
        subscription.canceled_at = now
        subscription.cancellation["reason"] = "cancellation_requested"
    subscription.prorate_at_cancel = params.text("proration_behavior") != "none"


def read_trial_end(params: Params, *, now: int) -> int | None:
    """Return when the trial ends that a call asks for, in Unix seconds: ``now`` where it is to end; or None.

    Raises:
        ApiError: it has passed already or is over two years away.
    """
    days = params.integer("trial_period_days")
    if days is not None:
        if "trial_end" in params:
            message = "You may only specify one of these parameters: trial_end, trial_period_days."
            raise ApiError(message, param=params.path("trial_period_days"))
        if not 1 <= days <= TRIAL_DAYS_MAX:
            message = f"The number of trial period days must be between 1 and {TRIAL_DAYS_MAX} (2 years)."
            raise ApiError(message, param=params.path("trial_period_days"))
        return now + days * DAY_S
    if "trial_end" not in params or params.text("trial_end") == "now":
        return now if "trial_end" in params else None
    at = params.integer("trial_end") or 0
    if at <= now:
        message = "Invalid timestamp: must be an integer Unix timestamp in the future."
        raise ApiError(message, param=params.path("trial_end"))
    if at > now + TRIAL_DAYS_MAX * DAY_S:
        message = "Invalid timestamp: can be no more than two years in the future."
        raise ApiError(message, param=params.path("trial_end"))
    return at


def _cancel_at(subscription: Subscription, params: Params, *, now: int) -> int | None:
    given = params.text("cancel_at")
    if not given:
        return None
    if given == "min_period_end":
        return subscription.renews_at
    if given == "max_period_end":
        return subscription.period_end
    at = params.integer("cancel_at") or 0
    if at <= now:
        message = "Invalid timestamp: must be an integer Unix timestamp in the future."
        raise ApiError(message, param=params.path("cancel_at"))
    return at


def _pause_collection(params: Params) -> JsonObject | None:
    """https://docs.stripe.com/billing/subscriptions/pause-payment."""
    if not params.is_hash("pause_collection"):
        return None
    params.required("pause_collection[behavior]")
    return {
        "behavior": params.choice("pause_collection[behavior]", PAUSED),
        "resumes_at": params.integer("pause_collection[resumes_at]"),
    }

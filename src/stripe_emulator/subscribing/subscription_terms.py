"""Terms of a subscription: read from a call, taken over by a schedule's phase, and given by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from stripe_emulator.subscribing.terms import ACCOUNT, SUBSCRIPTION_TERMS, read_hash, read_terms

if TYPE_CHECKING:
    from stripe_emulator.call import Params
    from stripe_emulator.protocol import JsonObject
    from stripe_emulator.subscribing.subscriptions import Subscription


def terms_of(subscription: Subscription) -> JsonObject:
    """Return the terms of a subscription as a phase has them."""
    terms = {name: value for name, value in subscription.terms.items() if value is not None}
    settings = dict(cast("JsonObject", terms.get("invoice_settings") or {}))
    if subscription.days_until_due is not None:
        settings["days_until_due"] = subscription.days_until_due
    own: JsonObject = {
        "automatic_tax": {"enabled": subscription.automatic_tax, "liability": subscription.tax_liability},
        "collection_method": subscription.collection_method,
        "default_payment_method": subscription.default_payment_method,
        "description": subscription.description,
        "invoice_settings": settings or None,
    }
    return terms | {name: value for name, value in own.items() if value is not None}


def apply_terms(subscription: Subscription, terms: JsonObject) -> None:
    """Give a subscription the terms of a phase; what these leave out, it does not have."""
    tax = cast("JsonObject", terms.get("automatic_tax") or {})
    settings = dict(cast("JsonObject", terms.get("invoice_settings") or {}))
    subscription.automatic_tax = tax.get("enabled") is True
    subscription.tax_liability = cast("JsonObject | None", tax.get("liability"))
    subscription.collection_method = str(terms.get("collection_method") or "charge_automatically")
    subscription.days_until_due = cast("int | None", settings.pop("days_until_due", None))
    subscription.default_payment_method = cast("str | None", terms.get("default_payment_method"))
    subscription.description = cast("str | None", terms.get("description"))
    subscription.terms = {
        name: value
        for name in SUBSCRIPTION_TERMS
        if (value := settings if name == "invoice_settings" else terms.get(name))
    }


def read_subscription_terms(subscription: Subscription, params: Params) -> None:
    """Take over the terms of a call about a subscription; parts of ``invoice_settings`` one by one."""
    given = read_terms(params, SUBSCRIPTION_TERMS)
    settings = given.get("invoice_settings")
    if settings is not None:
        known = cast("JsonObject", subscription.terms.get("invoice_settings") or {})
        given["invoice_settings"] = {**known, **cast("JsonObject", settings)}
    subscription.terms = {**subscription.terms, **given}
    tax = params.hash("automatic_tax")
    liability = None if tax is None else tax.hash("liability")
    if tax is not None:
        tax.only("enabled", "liability")
        subscription.tax_liability = None if liability is None else read_hash(liability, ACCOUNT)

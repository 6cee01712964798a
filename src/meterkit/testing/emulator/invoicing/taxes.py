"""Automatic tax: a flat rate, or none where the account has not set it up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.testing.emulator.replies import ApiError

if TYPE_CHECKING:
    from decimal import Decimal

    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Params
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = ["read_tax", "tax_percent"]


def read_tax(account: Account, params: Params, *, customer: str | None = None) -> bool | None:
    """Return whether a call turns automatic tax on or off; None where it says nothing.

    Args:
        account: what it is of.
        params: the call's.
        customer: who is taxed; None where that is not known yet.

    Raises:
        ApiError: it is turned on, and the account has no rate; in Stripe's words of an account without
            Stripe Tax, as https://github.com/wasp-lang/open-saas/issues/78 has them. Or the customer has no
            address (https://docs.stripe.com/error-codes#customer-tax-location-invalid).
    """
    wanted = params.boolean("automatic_tax[enabled]")
    if not wanted:
        return wanted
    if account.behaviour.tax_percent is None:
        message = (
            "Stripe Tax has not been activated on your account. Please visit "
            "https://stripe.com/docs/tax/set-up to get started."
        )
        raise ApiError(message)
    if customer is not None and not account.customers.find(customer).country:
        message = (
            "The customer's location isn't recognized. Set a valid customer address in order to "
            "automatically calculate tax."
        )
        raise ApiError(message, code="customer_tax_location_invalid", param=params.path("automatic_tax"))
    return True


def tax_percent(account: Account, subscription: Subscription) -> Decimal | None:
    """Return the rate that a subscription is taxed at; None: it is not."""
    return account.behaviour.tax_percent if subscription.automatic_tax else None

"""Errors about linked Stripe customers that Stripe does not know: another key, or a restarted emulator."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

from meterkit.errors import StripeError

if TYPE_CHECKING:
    from meterkit.stripe.api import StripeApi

_Error = TypeVar("_Error", bound=StripeError)


def is_missing_customer(error: StripeError) -> bool:
    """Whether Stripe refuses a request because it does not have the customer, or has deleted it."""
    return (error.code, error.param) == ("resource_missing", "customer")


async def is_unknown_at_stripe(api: StripeApi, linked: str) -> bool:
    """Whether Stripe never had such a customer; it still shows a deleted one.

    Raises:
        StripeError: Stripe refuses otherwise, or does not answer.
    """
    return await api.find(f"/v1/customers/{linked}") is None


def unknown_customer_error(error: StripeError, customer: str, linked: str) -> StripeError:
    """Explain Stripe's refusal of a linked customer that it does not know, and name the cure."""
    return same_error(
        error,
        f"customer {customer!r} is linked to Stripe customer {linked}, which Stripe does not know: the key is"
        " of another account or mode, or the Stripe emulator was restarted and has forgotten its customers."
        f" If the key is right, run `meterkit customers unlink {quote(customer)}`",
    )


def same_error(error: _Error, message: str, **own: Any) -> _Error:
    """Copy an error with another message.

    Args:
        error: of Stripe.
        message: the new one.
        own: further arguments of its kind.
    """
    return type(error)(
        message,
        status=error.status,
        type=error.type,
        code=error.code,
        param=error.param,
        request_id=error.request_id,
        **own,
    )

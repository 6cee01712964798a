"""What a customer's browser is to confirm: a payment, or a means of payment for later. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.at_stripe.parts import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SECRETS", "secret_of"]

SECRETS: Final = ("latest_invoice.confirmation_secret", "pending_setup_intent")
"""What of a subscription Stripe is to expand, so that the secret is there."""


def secret_of(found: Mapping[str, Any]) -> str | None:
    """The client secret of what a browser is to confirm; None: nothing is to be."""
    payment = part_of(part_of(found, "latest_invoice"), "confirmation_secret")
    later = part_of(found, "pending_setup_intent")
    return text_in(payment, "client_secret") or text_in(later, "client_secret") or None

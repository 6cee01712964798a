"""A customer with an open invoice of an earlier subscription may not subscribe again: ``dunning.debt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterkit.decisions.subscription import ENDED
from meterkit.errors import InvoiceOpenError
from meterkit.subscriptions.at_stripe.parts import id_in, part_of, text_in
from meterkit.subscriptions.at_stripe.reading import has_begun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Dunning
    from meterkit.stripe.api import StripeApi

__all__ = ["refuse_debtor"]


async def refuse_debtor(
    api: StripeApi,
    customer: str,
    linked: str,
    found: Sequence[Mapping[str, Any]],
    *,
    dunning: Dunning,
    is_ours: Callable[[Mapping[str, Any]], bool],
) -> None:
    """Refuse a new subscription while an invoice of an earlier one is open.

    Stripe itself does not: it cancels a subscription after its last retry, and leaves the invoice open
    (https://docs.stripe.com/billing/subscriptions/overview#unpaid-subscriptions). Paid, voided and
    uncollectible invoices are no debt, nor is the invoice of a sign-up that was never paid for.

    Args:
        api: the way to Stripe.
        customer: the app's own id.
        linked: its Stripe customer.
        found: all subscriptions that this one has and had.
        dunning: of the plans file.
        is_ours: whether a subscription is of these plans.

    Raises:
        InvoiceOpenError: an invoice is open.
        StripeError: Stripe refuses, or does not answer.
    """
    old = {one["id"] for one in found if one["status"] in ENDED and has_begun(one) and is_ours(one)}
    if dunning.debt == "allow" or not old:
        return
    invoices = await api.list("/v1/invoices", {"customer": linked, "status": "open"})
    owed = [one for one in invoices if _subscription_of(one) in old and one["amount_remaining"] > 0]
    if owed:
        oldest = owed[-1]  # Stripe lists the youngest first.
        message = (
            f"customer {customer!r} owes invoice {oldest['id']} of an earlier subscription: it has to be paid"
            " first; void it at Stripe, or mark it uncollectible, to let the customer subscribe without"
        )
        url = text_in(oldest, "hosted_invoice_url") or None
        raise InvoiceOpenError(message, invoice=str(oldest["id"]), url=url)


def _subscription_of(invoice: Mapping[str, Any]) -> str:
    """The subscription that an invoice is of; it stood at the invoice itself before 2025-03-31.basil."""
    details = part_of(part_of(invoice, "parent"), "subscription_details")
    return id_in(details, "subscription") or id_in(invoice, "subscription")

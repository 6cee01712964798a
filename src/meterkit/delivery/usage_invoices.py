"""Invoices that meterkit makes for usage alone: each is made once, and found again by its mark."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.delivery.usage_invoice_terms import read_usage_invoice_terms
from meterkit.outbox.line_metadata import USAGE_KEY, metadata_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

AFTER_THE_END_MS: Final = 10 * 60_000
"""Time that Stripe has to make the last invoice of a subscription that has ended."""
_INVOICES: Final = "/v1/invoices"


class EndedUsage(NamedTuple):
    """Usage that gets an invoice of its own.

    Attributes:
        customer: the customer's id.
        stripe_customer: at Stripe.
        currency: of its prices.
        till_ms: the first instant after it.
    """

    customer: str
    stripe_customer: str
    currency: str
    till_ms: int


class UsageInvoice(NamedTuple):
    """An invoice for usage alone.

    Attributes:
        draft: its id; None: the former ones are final, and another was not wanted.
        formers: number of the former ones.
        is_new: whether it was made now.
    """

    draft: str | None
    formers: int
    is_new: bool = False


async def find_usage_invoice(
    api: StripeApi,
    usage: EndedUsage,
    subscription: Mapping[str, Any] | None,
    checkout: Mapping[str, Any],
    *,
    suffix: str = "",
    is_once: bool = False,
) -> UsageInvoice:
    """Find or make the invoice of ended usage; Stripe finalizes it in an hour.

    Args:
        api: the way to Stripe.
        usage: what it bills.
        subscription: whose usage that is; None: there is none.
        checkout: options of all Checkout pages; see :func:`read_usage_invoice_terms`.
        suffix: of the idempotency key: Stripe may have stored a refusal under the former one.
        is_once: whether no second invoice is made once the first one is final.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    mark = f"{usage.till_ms}:{usage.customer}"[:500]  # The longest value of metadata.
    asked: dict[str, Parameter] = {
        "customer": usage.stripe_customer,
        "created": {"gte": usage.till_ms // 1000},
    }
    formers = [one for one in await api.list(_INVOICES, asked) if metadata_of(one).get(USAGE_KEY) == mark]
    draft = next((one for one in formers if one.get("status") == "draft"), None)
    if draft is not None:
        return UsageInvoice(str(draft["id"]), len(formers) - 1)
    if formers and is_once:
        return UsageInvoice(None, len(formers))
    params: dict[str, Parameter] = {
        "customer": usage.stripe_customer,
        "currency": usage.currency,
        "auto_advance": True,
        "metadata": {USAGE_KEY: mark},
        **await read_usage_invoice_terms(api, usage.stripe_customer, subscription, checkout),
    }
    # Stripe refuses a key with other parameters, and the terms may change between two tries.
    digest = blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=16).hexdigest()
    key = f"meterkit-invoice-{digest}-{len(formers)}{suffix}"
    made = await api.post(_INVOICES, params, idempotency_key=key)
    return UsageInvoice(str(made["id"]), len(formers), is_new=True)

"""Lines that wait for the next invoice of a subscription: once it has ended, they get one of their own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.history import read_all_links
from meterkit.decisions.subscription import ENDED
from meterkit.delivery.stripe_books import none_if_gone
from meterkit.delivery.usage_invoices import (
    AFTER_THE_END_MS,
    EndedUsage,
    explain_no_invoice,
    find_usage_invoice,
)
from meterkit.outbox.meters_or_lines import is_usage_line, subscription_of
from meterkit.stripe.idempotency_keys import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_logger = logging.getLogger("meterkit.delivery")
_LINES_MOST: Final = 200
"""Largest number of lines that one call moves; Stripe takes 250 items on an invoice."""


async def bill_pending_lines(
    store: Store, api: StripeApi, customer: str, stripe_customer: str | None
) -> str | None:
    """Move a customer's lines that wait for an invoice of an ended subscription onto one of their own.

    A line is assigned to its invoice by one call, so it is on exactly one, whatever fails.

    Args:
        store: has the links and the plans file.
        api: the way to Stripe.
        customer: the customer's id.
        stripe_customer: at Stripe; None: it is not linked now.

    Returns:
        None: no line waits, or its subscription goes on. Empty: Stripe may yet make the last invoice.
        Otherwise, why no invoice can have the lines.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    found: list[str | None] = []
    for linked in await read_all_links(store, customer, stripe_customer):
        asked: dict[str, Parameter] = {"customer": linked, "pending": True}
        waiting: dict[str, list[Mapping[str, Any]]] = {}
        for line in await none_if_gone(api.list("/v1/invoiceitems", asked)) or ():
            if is_usage_line(line) and (owner := subscription_of(line)):
                waiting.setdefault(owner, []).append(line)
        for owner, lines in waiting.items():
            subscription = await api.find(f"/v1/subscriptions/{owner}")
            if subscription is None:
                found.append("Stripe does not have their subscription")
            elif subscription.get("status") in ENDED:
                ended_ms = 1000 * int(subscription.get("ended_at") or 0)
                usage = EndedUsage(customer, linked, str(lines[0]["currency"]), ended_ms)
                found.append(await _bill_lines(store, api, usage, subscription, lines))
    whys = [why for why in found if why is not None]
    return "; ".join(filter(None, whys)) if whys else None


async def _bill_lines(
    store: Store,
    api: StripeApi,
    usage: EndedUsage,
    subscription: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
) -> str | None:
    """Move the pending lines of an ended subscription; returns as :func:`bill_pending_lines` does."""
    if store.now_ms() < usage.till_ms + AFTER_THE_END_MS:
        return ""
    if refusal := explain_no_invoice(subscription):
        return refusal
    invoice = await find_usage_invoice(api, usage, subscription, store.catalog.billing.checkout)
    ids = sorted(str(line["id"]) for line in lines)[:_LINES_MOST]
    await api.post(
        f"/v1/invoices/{invoice.draft}/add_lines",
        {"lines": [{"invoice_item": one} for one in ids]},
        idempotency_key=key_of("lines", invoice.draft, ids),
    )
    _logger.warning(
        "late usage of customer %r: its subscription has ended, so invoice %s of its own bills the %d lines"
        " that waited for the next one",
        usage.customer,
        invoice.draft,
        len(ids),
    )
    return None if len(ids) == len(lines) else ""

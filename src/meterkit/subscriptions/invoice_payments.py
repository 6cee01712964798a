"""Payments of invoices at Stripe: whether a subscription's period is paid, and what was refunded.

The status of a subscription is no proof of payment. It is ``active`` while its renewal is a draft, after an
invoice was voided or marked uncollectible, and while a bank debit is on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.stripe_objects import id_in, part_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

PAYMENTS: Final = "/v1/invoice_payments"


async def why_unpaid(api: StripeApi, found: Mapping[str, Any]) -> str | None:
    """The first reason why the current period is not paid in full; None if all its invoices are.

    The invoices of a period are those that Stripe has created since its start: the renewal and those of
    changes. One whose payment was refunded or disputed, or that has a credit note, counts as not paid: its
    money has gone back already.

    Args:
        api: the way to Stripe.
        found: the subscription as Stripe shows it, with all of its items.
    """
    asked: dict[str, Parameter] = {
        "subscription": str(found["id"]),
        "created": {"gte": _period_start_s(found)},
    }
    for invoice in await api.list("/v1/invoices", asked):
        if invoice["status"] != "paid":
            return f"invoice {invoice['id']} is {invoice['status']}"
        if any(invoice.get(f"{when}_payment_credit_notes_amount") for when in ("pre", "post")):
            return f"invoice {invoice['id']} has a credit note"
        if await refunded_cents(api, str(invoice["id"])):
            return f"the payment of invoice {invoice['id']} was refunded or is disputed"
    return None


def _period_start_s(found: Mapping[str, Any]) -> int:
    """The earliest period start among items (Unix seconds); they may have different intervals."""
    shown = (*found["items"]["data"], found)
    starts = [one["current_period_start"] for one in shown if one.get("current_period_start")]
    return min(starts, default=0)


async def refunded_cents(api: StripeApi, invoice: str) -> int:
    """Sum of an invoice's payments that were refunded, or are disputed, in minor units of its currency.

    A payment outside of Stripe has no charge.
    """
    refunded = 0
    for payment in await api.list(PAYMENTS, {"invoice": invoice, "status": "paid"}):
        paid = part_of(payment, "payment")
        name = id_in(paid, "charge")
        if intent := id_in(paid, "payment_intent"):
            name = id_in(await api.get(f"/v1/payment_intents/{intent}"), "latest_charge")
        if name:
            charge = await api.get(f"/v1/charges/{name}")
            refunded += charge["amount"] if charge["disputed"] else charge["amount_refunded"]
    return refunded

"""Payments of invoices at Stripe: whether a period is paid, credits refused where it is not, refunds.

The status of a subscription is no proof of payment. It is ``active`` while its renewal is a draft, after an
invoice was voided or marked uncollectible, and while a bank debit is on its way.
"""

from __future__ import annotations

from fractions import Fraction
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.subscription import OWING
from meterkit.errors import StripeError, SubscriptionError
from meterkit.subscriptions.stripe_objects import UNPAID_INVOICES, id_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

PAYMENTS: Final = "/v1/invoice_payments"
_KEPT: Final = frozenset({"won", "warning_closed"})
"""Statuses of a dispute that has ended without a loss."""
_OWED: Final = frozenset({"paid", "open"})
_SETTLED: Final = frozenset({"paid", "uncollectible"})
_MANUAL: Final = "manual"


async def refuse_unpaid_credit(api: StripeApi, found: Mapping[str, Any], net_cents: int) -> None:
    """Refuse a change that credits more than it charges while its period is not paid in full.

    A credit reduces later invoices, or becomes the customer's balance.

    Args:
        api: the Stripe client.
        found: the subscription as Stripe shows it, with all of its items.
        net_cents: the charge of the change for the rest of the period; below 0: a credit.

    Raises:
        SubscriptionError: it is refused.
    """
    if net_cents < 0 and (reason := await explain_unpaid_period(api, found)):
        raise SubscriptionError(
            f"the subscription {found['id']} cannot be reduced now: that gives back a part of this period's"
            f" price, and {reason}. Ask again once the period is paid, or in the next one",
            advice="That gives back a part of this period's price, which is not paid in full. Ask again"
            " once it is paid, or in the next period.",
        )


async def explain_unpaid_period(api: StripeApi, found: Mapping[str, Any]) -> str | None:
    """Find the first reason why the current period is not paid in full; None if all its invoices are.

    The invoices of a period are those that Stripe has created since its start: the renewal and those of
    changes. One whose payment was refunded or disputed, or that has a credit note, counts as not paid: its
    money has gone back already.

    Args:
        api: the Stripe client.
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
        if (await read_refunds(api, str(invoice["id"]))).cents:
            return f"the payment of invoice {invoice['id']} was refunded or is disputed"
    return None


def _period_start_s(found: Mapping[str, Any]) -> int:
    """The earliest period start among items (Unix seconds); they may have different intervals."""
    shown = (*found["items"]["data"], found)
    starts = [one["current_period_start"] for one in shown if one.get("current_period_start")]
    return min(starts, default=0)


async def with_unpaid_invoices(api: StripeApi, found: Mapping[str, Any]) -> dict[str, Any]:
    """Add the open invoices of a subscription that owes, back to the last one settled before them.

    Stripe itself goes by the latest invoice: paid or uncollectible, it ends what is owed; drafts and void
    ones do not count (https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses).

    Args:
        api: the Stripe client.
        found: the subscription as Stripe shows it.
    """
    if found.get("status") not in OWING:
        return {**found}
    unpaid: list[Mapping[str, Any]] = []
    for invoice in await api.list("/v1/invoices", {"subscription": str(found["id"])}):
        is_settled = invoice["status"] in _SETTLED and text_in(invoice, "billing_reason") != _MANUAL
        if is_settled and unpaid:
            break  # Before that, it has not ended what is owed: the status says so.
        if invoice["status"] == "open":
            unpaid.append(invoice)
    return {**found, UNPAID_INVOICES: unpaid}


def is_unpaid(invoice: Mapping[str, Any]) -> bool:
    """Whether a final invoice has not been paid, and still can be."""
    return invoice["status"] in {"open", "uncollectible"}


class ReturnedMoney(NamedTuple):
    """Money of an invoice that went back.

    Attributes:
        cents: in minor units of its currency.
        is_disputed: whether a part of it is disputed: the customer's bank takes it back.
    """

    cents: int
    is_disputed: bool


async def read_refunds(api: StripeApi, invoice: str) -> ReturnedMoney:
    """Sum the refunded or disputed payments of an invoice. A payment outside of Stripe has no charge."""
    refunded, is_disputed = 0, False
    for payment in await api.list(PAYMENTS, {"invoice": invoice, "status": "paid"}):
        paid = part_of(payment, "payment")
        name = id_in(paid, "charge")
        if intent := id_in(paid, "payment_intent"):
            name = id_in(await api.get(f"/v1/payment_intents/{intent}"), "latest_charge")
        if name:
            charge = await api.get(f"/v1/charges/{name}")
            disputed = await _disputed_cents(api, charge) if charge["disputed"] else 0
            refunded += min(charge["amount"], charge["amount_refunded"] + disputed)
            is_disputed = is_disputed or disputed > 0
    return ReturnedMoney(refunded, is_disputed)


async def _disputed_cents(api: StripeApi, charge: Mapping[str, Any]) -> int:
    """Sum the disputes of a charge, without those that were won; all of it if the key may not read them."""
    try:
        found = await api.list("/v1/disputes", {"charge": str(charge["id"])})
    except StripeError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return int(charge["amount"])
    lost = [one for one in found if one["status"] not in _KEPT]
    is_comparable = bool(found) and all(one["currency"] == charge["currency"] for one in lost)
    return sum(int(one["amount"]) for one in lost) if is_comparable else int(charge["amount"])


async def read_returned(api: StripeApi, invoice: Mapping[str, Any]) -> ReturnedMoney:
    """Sum what went back after the payment of an invoice: refunds, disputes, and credit notes.

    A credit note may itself refund a part of what it credits: that part is among the refunds of the charge.

    Args:
        api: the Stripe client.
        invoice: as Stripe shows it.
    """
    name = str(invoice["id"])
    returned, is_disputed = await read_refunds(api, name)
    if invoice.get("post_payment_credit_notes_amount"):
        for note in await api.list("/v1/credit_notes", {"invoice": name}):
            if note["status"] != "void":
                refunds: list[dict[str, Any]] = note.get("refunds") or []
                refunded = sum(int(one["amount_refunded"]) for one in refunds if id_in(one, "refund"))
                returned += int(note["post_payment_amount"]) - refunded
    return ReturnedMoney(returned, is_disputed)


async def is_rest_paid(
    api: StripeApi, found: Mapping[str, Any], *, start_ms: int, cut_ms: int, end_ms: int
) -> bool:
    """Whether the money for the rest of a period that was cut short was kept.

    It was not if a proration credited it, if the price is 0 or fully discounted, or if the invoice is void or
    a draft that Stripe no longer collects. An open invoice is a debt and counts as paid.

    Args:
        api: the Stripe client.
        found: the subscription as Stripe shows it.
        start_ms: start of the paid period.
        cut_ms: its early end.
        end_ms: its regular end.
    """
    asked: dict[str, Parameter] = {"subscription": str(found["id"]), "created": {"gte": start_ms // 1000}}
    charged, credited = Fraction(0), Fraction(0)
    for invoice in await api.list("/v1/invoices", asked):
        shown = part_of(invoice, "lines")
        lines = (
            await api.list(f"/v1/invoices/{invoice['id']}/lines") if shown.get("has_more") else shown["data"]
        )
        parts = [_part_within(line, cut_ms // 1000, end_ms // 1000) for line in lines]
        is_collected = invoice["status"] == "draft" and invoice.get("auto_advance") is True
        if invoice["status"] in _OWED or is_collected:
            charged += sum(part for part in parts if part > 0)
        if invoice["status"] != "void":
            credited -= sum(part for part in parts if part < 0)
    pending: dict[str, Parameter] = {"customer": id_in(found, "customer"), "pending": True}
    for item in await api.list("/v1/invoiceitems", pending):
        if id_in(part_of(part_of(item, "parent"), "subscription_details"), "subscription") == found["id"]:
            credited -= min(Fraction(0), _part_within(item, cut_ms // 1000, end_ms // 1000))
    return charged > 2 * credited


def _part_within(line: Mapping[str, Any], cut_s: int, end_s: int) -> Fraction:
    """The part of an invoice line, less discounts, for the time from one second to another.

    A charge that starts within that time pays for another period.
    """
    start_s, till_s = (int(line["period"][edge]) for edge in ("start", "end"))
    cents = int(line["amount"]) - sum(int(one["amount"]) for one in line.get("discount_amounts") or ())
    if till_s <= start_s or (cents > 0 and start_s >= cut_s):
        return Fraction(0)
    return Fraction(cents * max(0, min(till_s, end_s) - max(start_s, cut_s)), till_s - start_s)

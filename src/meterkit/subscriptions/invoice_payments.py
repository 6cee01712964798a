"""Payments of invoices at Stripe: whether a period is paid, credits refused where it is not, refunds.

The status of a subscription is no proof of payment. It is ``active`` while its renewal is a draft, after an
invoice was voided or marked uncollectible, and while a bank debit is on its way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.subscription import ENDED, OWING
from meterkit.errors import StripeError, SubscriptionError
from meterkit.stripe.prices import PRICES
from meterkit.subscriptions.stripe_objects import (
    UNPAID_INVOICES,
    id_in,
    items_in,
    part_of,
    role_of_price,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
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
    api: StripeApi, found: Mapping[str, Any], catalog: Catalog, *, since_ms: int, cut_ms: int
) -> bool:
    """Whether the money for the rest of a period that was cut short was kept.

    It was if one charge of the plan that reaches beyond the cut is left without a credit. Each credit takes
    back one charge, and has its end, however often the plan was changed
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#credit-proration-calculations).

    Seats and add-ons do not count, unless the plan itself costs nothing beside its seats. Amounts of 0 and
    invoices that are not collected charge nothing; void invoices credit nothing, either. An open invoice is a
    debt and counts as paid.

    Args:
        api: the Stripe client.
        found: the subscription as Stripe shows it.
        catalog: the plans file.
        since_ms: start of the paid period, or earlier.
        cut_ms: its early end.
    """
    prices = {id_in(item, "price"): part_of(item, "price") for item in items_in(found)}
    cut_s, has_ended, has_plan_cost = cut_ms // 1000, found.get("status") in ENDED, False
    left: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for line, is_charged, is_credited in await _read_item_lines(api, found, since_ms // 1000):
        start_s, end_s = (int(line["period"][edge]) for edge in ("start", "end"))
        if end_s <= cut_s or not line["amount"]:
            continue
        name = id_in(part_of(part_of(line, "pricing"), "price_details"), "price")
        if name not in prices:
            prices[name] = await api.find(f"{PRICES}/{name}") or {"id": name}
        role, cents = role_of_price(prices[name], catalog), _cents_of(line)
        has_plan_cost = has_plan_cost or role == "plan"
        if cents > 0 and is_charged and (has_ended or start_s < cut_s):  # Otherwise, of the present period.
            left[role][end_s] += 1
        elif cents < 0 and is_credited:
            left[role][end_s] -= 1
    return any(charges > 0 for charges in left["plan" if has_plan_cost else "seat"].values())


class _ItemLine(NamedTuple):
    """A line of a subscription's item, on an invoice or pending.

    Attributes:
        line: as Stripe shows it.
        is_charged: whether an amount above 0 is paid, owed, or will be collected.
        is_credited: whether one below 0 is given back.
    """

    line: Mapping[str, Any]
    is_charged: bool
    is_credited: bool


async def _read_item_lines(api: StripeApi, found: Mapping[str, Any], since_s: int) -> list[_ItemLine]:
    """Lines of a subscription's items on invoices created since an instant, and pending ones.

    They may be on the invoice of another subscription of the customer by now.
    """
    customer, lines = id_in(found, "customer"), list[_ItemLine]()
    asked: dict[str, Parameter] = {"customer": customer, "created": {"gte": since_s}}
    for invoice in await api.list("/v1/invoices", asked):
        shown, status = part_of(invoice, "lines"), invoice["status"]
        listed = (
            await api.list(f"/v1/invoices/{invoice['id']}/lines") if shown.get("has_more") else shown["data"]
        )
        is_collected = status in _OWED or (status == "draft" and invoice.get("auto_advance") is True)
        lines += [_ItemLine(line, is_collected, status != "void") for line in listed]
    pending = await api.list("/v1/invoiceitems", {"customer": customer, "pending": True})
    lines += [_ItemLine(item, is_charged=True, is_credited=True) for item in pending]
    return [one for one in lines if _is_of_items(one.line, found["id"])]


def _is_of_items(line: Mapping[str, Any], subscription: str) -> bool:
    """Whether a line, or a pending invoice item, charges or credits an item of a subscription."""
    parent = part_of(line, "parent")
    details = part_of(parent, text_in(parent, "type"))
    is_prorated = True in {line.get("proration"), details.get("proration")}
    return details.get("subscription") == subscription and (
        is_prorated or bool(details.get("subscription_item"))
    )


def _cents_of(line: Mapping[str, Any]) -> int:
    """The amount of a line, less discounts."""
    return int(line["amount"]) - sum(int(one["amount"]) for one in line.get("discount_amounts") or ())

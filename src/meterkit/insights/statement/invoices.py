"""The invoices of a period and their lines, read from Stripe."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.errors import StripeError
from meterkit.insights.statement.lines import StatementInvoice, invoice_lines, price_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.insights.statement.lines import StatementLine
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

_CREDIT_NOTES: Final = ("pre_payment_credit_notes_amount", "post_payment_credit_notes_amount")


class _Price(NamedTuple):
    """The event name that a price bills, empty if it has no meter; and whether it recurs."""

    event_name: str
    recurs: bool


class PeriodInvoices:
    """Reads the invoices of subscriptions, and fetches each price and meter once.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, or does not answer.

    Args:
        api: the way to Stripe.
    """

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._prices: dict[str, _Price] = {}
        self._events: dict[str, str] = {}

    async def of(self, stripe_customer: str, start_s: int, end_s: int) -> list[dict[str, Any]]:
        """The invoices that belong to a period (Unix seconds), oldest first, each with all its lines.

        That is the first invoice of a subscription that begins in it, those of changes in it, and that of the
        renewal at its end. Void invoices are left out.
        """
        asked: dict[str, Parameter] = {"customer": stripe_customer, "created": {"gte": start_s}}
        found = [one for one in await self._api.list("/v1/invoices", asked) if _is_of(one, start_s, end_s)]
        for invoice in found:
            lines: dict[str, Any] = invoice.get("lines") or {}
            # What the list shows of a draft may be what it was when it was made.
            if lines.get("has_more") or invoice.get("status") == "draft":
                invoice["lines"] = {"data": await self._api.list(f"/v1/invoices/{invoice['id']}/lines")}
        return sorted(found, key=lambda one: int(one["created"]))

    async def lines_of(
        self, invoices: Sequence[Mapping[str, Any]], meters: Mapping[str, str]
    ) -> list[StatementLine]:
        """The lines of invoices; ``meters``: by event name, the meter."""
        named = {price_in(line) for invoice in invoices for line in invoice["lines"]["data"]} - {""}
        known = {price: await self._price(price) for price in sorted(named)}
        of = {
            name: (meters.get(one.event_name, one.event_name))
            for name, one in known.items()
            if one.event_name
        }
        recurring = [name for name, one in known.items() if one.recurs and not one.event_name]
        return [line for one in invoices for line in invoice_lines(one, of, recurring)]

    async def _price(self, price: str) -> _Price:
        if price not in self._prices:
            found = await self._api.get(f"/v1/prices/{price}")
            recurring: Mapping[str, Any] = found.get("recurring") or {}
            meter = recurring.get("meter")
            event_name = "" if meter is None else await self._event_name(str(meter))
            self._prices[price] = _Price(event_name, recurs=bool(recurring))
        return self._prices[price]

    async def _event_name(self, meter: str) -> str:
        if meter not in self._events:
            try:
                found = await self._api.get(f"/v1/billing/meters/{meter}")
            except StripeError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                found = {"event_name": meter}
            self._events[meter] = str(found["event_name"])
        return self._events[meter]


def _is_of(invoice: Mapping[str, Any], start_s: int, end_s: int) -> bool:
    parent: Mapping[str, Any] = invoice.get("parent") or {}
    if parent.get("type") != "subscription_details" or invoice.get("status") == "void":
        return False
    if invoice.get("billing_reason") == "subscription_create":
        return bool(start_s <= invoice["created"] < end_s)
    at_s = int(invoice["period_end"])
    if at_s in {start_s, end_s}:  # Two periods meet: a renewal ends the one, a change begins the other.
        return _charges_ahead(invoice) == (at_s == start_s)
    return start_s < at_s < end_s


def _charges_ahead(invoice: Mapping[str, Any]) -> bool:
    """Whether an invoice of a change charges something for the time after it."""
    shown: Mapping[str, Any] = invoice.get("lines") or {}
    lines: Sequence[Mapping[str, Any]] = shown.get("data") or ()
    charged = (line for line in lines if line["amount"] > 0)
    is_change = invoice.get("billing_reason") == "subscription_update"
    return is_change and any(line["period"]["end"] > invoice["period_end"] for line in charged)


def shown_invoice(invoice: Mapping[str, Any]) -> StatementInvoice:
    """An invoice as a statement shows it."""
    metadata: Mapping[str, str] = invoice.get("metadata") or {}
    rows = metadata.get("meterkit_audit_rows", "")
    return StatementInvoice(
        id=str(invoice["id"]),
        number=invoice.get("number"),
        status=str(invoice["status"]),
        total_cents=int(invoice["total"]),
        credit_notes_cents=sum(int(invoice.get(name) or 0) for name in _CREDIT_NOTES),
        audit_root=metadata.get("meterkit_audit_root"),
        audit_rows=int(rows) if rows.isdecimal() else None,
    )

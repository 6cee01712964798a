"""The calls that change lines of a draft: one by itself, or several at once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import shown_now, subscription_of, with_rates
from stripe_emulator.protocol import ApiError, missing_resource
from stripe_emulator.selling.amounts import to_cents

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params
    from stripe_emulator.invoicing.invoices import Invoice, Line
    from stripe_emulator.protocol import JsonObject

CHANGED: Final = ("amount", "description", "metadata", "period", "quantity", "tax_rates")


def _update(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-line-item/update: of a draft alone."""
    params, invoice = call.params, _draft(account, call.object_id)
    params.only(*CHANGED, expandable=None)
    before = invoice.to_json()
    place = _index_of_line(invoice, call.inner_id, param="line_item_id")
    invoice.lines[place] = _apply_change(account, invoice, invoice.lines[place], params)
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    return invoice.lines_to_json()[place]


def _update_many(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/invoice-line-item/bulk-update: all of them, or none."""
    params, invoice = call.params, _draft(account, call.object_id)
    params.only("invoice_metadata", "lines", expandable=None)
    before, lines = invoice.to_json(), list(invoice.lines)
    for each in params.hashes("lines"):
        each.only("id", *CHANGED)
        place = _index_of_line(invoice, each.required("id"), param=each.path("id"))
        lines[place] = _apply_change(account, invoice, lines[place], each)
    invoice.lines = lines
    params.amend("invoice_metadata", invoice.metadata)
    account.emit("invoice.updated", invoice.to_json(), previous=before)
    return shown_now(account, invoice)


def _draft(account: Account, invoice_id: str) -> Invoice:
    invoice = account.invoices.find(invoice_id)
    if invoice.status != "draft":
        raise ApiError("Finalized invoices can't be updated in this way.", code="invoice_not_editable")
    return invoice


def _index_of_line(invoice: Invoice, line_id: str, *, param: str) -> int:
    """Index of a line that can be changed; usage is counted anew until the end."""
    for place, line in enumerate(invoice.lines):
        if line.id == line_id:
            return place
    if any(line.id == line_id for line in invoice.usage_lines):
        raise ApiError("The emulator changes no line of usage: it is counted until the end.", param=param)
    raise missing_resource("invoice line item", line_id, param=param)


def _apply_change(account: Account, invoice: Invoice, line: Line, params: Params) -> Line:
    """A line as a call wants it: an amount is of all units, a quantity at the price of one."""
    params.refuse_both("amount", "quantity", param="amount")
    line = replace(line, description=params.text("description") or line.description)
    if "metadata" in params:
        line.metadata = dict(line.metadata or {})
        params.amend("metadata", line.metadata)
    amount, quantity = params.integer("amount"), params.at_least("quantity", 0)
    if amount is not None:
        line.amount, line.unit_amount = amount, Decimal(amount) / (line.quantity or 1)
    if quantity is not None:
        line.quantity, line.amount = Decimal(quantity), to_cents(Fraction(line.unit_amount) * quantity)
    span = params.hash("period")
    if span is not None:
        span.only("end", "start")
        line.start, line.end = (int(span.required(edge)) for edge in ("start", "end"))
    if "tax_rates" in params:
        line.rate_ids = params.listed("tax_rates") if params.is_hash("tax_rates") else ()
    subscription = subscription_of(account, invoice)
    return line if subscription is None else with_rates(account, subscription, [line])[0]


LINE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/invoices/{id}/lines/{inner}", _update),
    ("POST", "/v1/invoices/{id}/update_lines", _update_many),
)

"""Invoices and their lines, refunds, disputes and credit notes, by id."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from stripe_emulator.currency_amounts import decimal_text
from stripe_emulator.invoice_totals import (
    AppliedRate,
    InvoiceTotals,
    LineTotal,
    automatic_tax_to_json,
    compute_totals,
    discounts_to_json,
)
from stripe_emulator.protocol import JsonObject, list_to_json, not_found, null_fields, shown_fields
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from stripe_emulator.coupons import Discount
    from stripe_emulator.prices import Price
    from stripe_emulator.subscriptions import Subscription


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedUsage:
    """Usage that an invoice charges: of an item, within a span of Unix seconds, at the price of that time.

    Attributes:
        arrived_from: how many events arrived too early to count; see :class:`Item`.
        removed: whether the item is gone, or has another price: then an invoice item charges the usage.
        rate_ids: the item's own tax rates.
        discounts: the item's.
        ids: of its lines and of their invoice items, by place: they stay while a draft is counted anew.
    """

    item: str
    price: Price
    start: int
    end: int
    arrived_from: int = 0
    removed: bool = False
    rate_ids: Sequence[str] = ()
    discounts: Sequence[Discount] = ()
    ids: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]], compare=False)


InvoiceStatus = Literal["draft", "open", "paid", "uncollectible", "void"]
# An object that holds a list shows its beginning (https://docs.stripe.com/api/invoices/object#invoice_object-lines).
LINES_SHOWN: Final = 10
# https://docs.stripe.com/api/invoiceitems/create#create_invoiceitem-invoice.
INVOICE_ITEMS_MAX: Final = 250
PREVIEWS_MAX: Final = 100
# Fields of an invoice that Stripe shows in another shape, or not at all.
INVOICE_HIDDEN: Final = (
    "client_secret days_until_due disputed finalized_at finalizes_at is_overdue_reported paid_at"
    " paid_out_of_band post_credited pre_credited proration_date rate_ids subscription"
    " subscription_metadata tax_percent uncollectible_at usage_lines usages voided_at"
)
INVOICE_NULLS: Final = (
    "account_tax_ids application custom_fields customer_account customer_address"
    " customer_phone customer_shipping default_source footer from_invoice"
    " last_finalization_error latest_revision on_behalf_of receipt_number rendering"
    " shipping_cost shipping_details statement_descriptor status_details threshold_reason"
    " webhooks_delivered_at"
)
INVOICE_CONSTANTS: Final[JsonObject] = {
    **dict.fromkeys(("amount_overpaid", "amount_paid_off_stripe", "amount_shipping"), 0),
    "account_country": "US",
    "account_name": "Emulated account",
    "customer_tax_exempt": "none",
    "customer_tax_ids": [],
    "total_pretax_credit_amounts": [],
}


class CreditedLines(NamedTuple):
    """The charges that a proration credits.

    Attributes:
        invoice: the id of their invoice; None: they were pending.
        lines: their ids.
        invoice_item: the id of the first one as an invoice item; None: it is none.
    """

    invoice: str | None
    lines: tuple[str, ...]
    invoice_item: str | None

    def to_json(self, invoice: str) -> JsonObject:
        """Return them as a line of an invoice shows them; pending ones are taken up by the same invoice."""
        return {"invoice": self.invoice or invoice, "invoice_line_items": list(self.lines)}


@dataclass(slots=True, kw_only=True)
class InvoiceLine:
    """A line of an invoice, or a pending one for the next invoice.

    Attributes:
        amount: minor units of the currency; a credit is negative.
        start: of the time it is for, in Unix seconds, as is ``end``.
        item: id of the subscription item that it charges; None: it charges something else, once.
        proration: whether it corrects a period that is under way.
        invoice_item: its id as an invoice item, which what a change brings about is first.
        customer: who is charged by an invoice item that a call has made; None: of other lines.
        metadata: of such an invoice item; None: that of the subscription.
        created: when an invoice item was made, in Unix seconds; 0: at ``start``.
        rate_ids: its own tax rates; empty: it has the default ones of its subscription.
        tax_rates: those rates, once it is on an invoice.
        discounts: of its item.
        credited: the charges that it credits; None: it credits none.
    """

    id: str
    amount: int
    description: str
    start: int
    end: int
    price: Price
    quantity: Decimal
    unit_amount: Decimal
    subscription: str | None
    item: str | None
    customer: str | None = None
    metadata: dict[str, str] | None = None
    created: int = 0
    proration: bool = False
    invoice_item: str | None = None
    rate_ids: Sequence[str] = ()
    tax_rates: Sequence[AppliedRate] = ()
    discounts: Sequence[Discount] = ()
    credited: CreditedLines | None = None

    @property
    def product(self) -> str:
        """The id of what it charges."""
        return self.price.product

    @property
    def includes_tax(self) -> bool:
        """True if its amount includes tax."""
        return self.price.tax_behavior == "inclusive"

    def to_json(self, invoice: Invoice, total: LineTotal) -> JsonObject:
        """Return the line as Stripe shows it (https://docs.stripe.com/api/invoice-line-item/object)."""
        return {
            "id": self.id,
            "object": "line_item",
            "amount": self.amount,
            "currency": self.price.currency,
            "description": self.description,
            "discount_amounts": discounts_to_json(total.off),
            "discountable": not self.proration,
            "discounts": [discount.id for discount in self.discounts],
            "invoice": invoice.id,
            "livemode": invoice.livemode,
            "metadata": dict(invoice.subscription_metadata if self.metadata is None else self.metadata),
            "parent": self._parent(invoice),
            "period": {"end": self.end, "start": self.start},
            "pretax_credit_amounts": [],
            "pricing": {
                "price_details": {"price": self.price.id, "product": self.price.product},
                "type": "price_details",
                "unit_amount_decimal": decimal_text(self.unit_amount),
            },
            "quantity": int(self.quantity),
            "quantity_decimal": decimal_text(self.quantity),
            "subscription": self.subscription,
            "subtotal": self.amount,
            "taxes": total.taxes(),
        }

    def _parent(self, invoice: Invoice) -> JsonObject:
        """Return its origin (https://docs.stripe.com/api/invoice-line-item/object#invoice_line_item_object-parent)."""
        kind = "invoice_item_details" if self.item is None else "subscription_item_details"
        credited = None if self.credited is None else self.credited.to_json(invoice.id)
        details: JsonObject = {
            "invoice_item": self.invoice_item,
            "proration": self.proration,
            "proration_details": {"credited_items": credited},
            "subscription": self.subscription,
        }
        if self.item is not None:
            details["subscription_item"] = self.item
        return {"invoice_item_details": None, "subscription_item_details": None, kind: details, "type": kind}


@dataclass(slots=True, kw_only=True)
class Invoice:
    """An invoice. Instants are in Unix seconds, amounts in minor units of the currency.

    Attributes:
        subscription: whose it is; None: of no subscription.
        lines: what does not change any more.
        usages: what is counted until the invoice is finalized.
        usage_lines: the usage as it was counted last.
        auto_advance: whether it is finalized and collected by itself.
        finalizes_at: when a draft is, if ``auto_advance`` is on; None: not by itself.
        starting_balance: the customer's balance when it was finalized; negative: a credit.
        client_secret: with which a browser pays; None while there is nothing to pay.
        is_overdue_reported: whether an event has reported that its due date passed.
        rate_ids: the default tax rates of its subscription.
        disputed: whether the bank of its customer takes the payment back.
        pre_credited, post_credited: what credit notes took off before it was paid, and gave back afterwards.
    """

    id: str
    customer: str
    subscription: str | None
    created: int
    currency: str
    billing_reason: str
    period_start: int
    period_end: int
    livemode: bool = False
    subscription_metadata: dict[str, str] = field(default_factory=dict[str, str])
    customer_email: str | None = None
    customer_name: str | None = None
    status: InvoiceStatus = "draft"
    lines: list[InvoiceLine] = field(default_factory=list[InvoiceLine])
    usages: list[ChargedUsage] = field(default_factory=list["ChargedUsage"])
    usage_lines: list[InvoiceLine] = field(default_factory=list[InvoiceLine])
    auto_advance: bool = False
    collection_method: str = "charge_automatically"
    days_until_due: int | None = None
    default_payment_method: str | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    finalizes_at: int | None = None
    next_payment_attempt: int | None = None
    attempt_count: int = 0
    attempted: bool = False
    number: str | None = None
    starting_balance: int = 0
    ending_balance: int | None = None
    amount_due: int = 0
    amount_paid: int = 0
    finalized_at: int | None = None
    paid_at: int | None = None
    voided_at: int | None = None
    uncollectible_at: int | None = None
    client_secret: str | None = None
    proration_date: int | None = None
    discounts: list[Discount] = field(default_factory=list["Discount"])
    tax_percent: Decimal | None = None
    rate_ids: Sequence[str] = ()
    test_clock: str | None = None
    paid_out_of_band: bool = False
    is_overdue_reported: bool = False
    disputed: bool = False
    pre_credited: int = 0
    post_credited: int = 0

    @property
    def payment_intent(self) -> str | None:
        """The id of the payment intent that pays it; None: there was nothing to pay."""
        return None if self.client_secret is None else self.client_secret.partition("_secret_")[0]

    @property
    def charge(self) -> str | None:
        """The id of the charge that paid it; None: nothing was charged."""
        intent = self.payment_intent
        if intent is None or not self.amount_paid or self.paid_out_of_band:
            return None
        return f"ch_{intent.removeprefix('pi_')}"

    @property
    def due_date(self) -> int | None:
        """The due date of an invoice that was sent, in Unix seconds."""
        return None if self.days_until_due is None else self.created + self.days_until_due * 86_400

    @property
    def all_lines(self) -> list[InvoiceLine]:
        """The fixed lines, then those of usage."""
        return [*self.lines, *self.usage_lines]

    @property
    def total(self) -> int:
        """The total; negative if credits exceed charges."""
        return self.totals.total

    @property
    def totals(self) -> InvoiceTotals:
        """The totals: lines, less discounts, plus tax."""
        return compute_totals(self.all_lines, self.discounts, self.tax_percent, now=self.created)

    def schedule(self, at: int | None) -> None:
        """Schedule its automatic finalization; a charge follows at once."""
        self.finalizes_at = at
        is_charged = self.collection_method == "charge_automatically"
        self.next_payment_attempt = at if is_charged and self.auto_advance else None

    @property
    def next_transition_at(self) -> int | None:
        """The instant of its next automatic finalization or collection; None: there is none."""
        if not self.auto_advance:
            return None
        if self.status == "open" and self.collection_method == "send_invoice":
            return None if self.is_overdue_reported else self.due_date
        return {"draft": self.finalizes_at, "open": self.next_payment_attempt}.get(self.status)

    def lines_to_json(self) -> list[JsonObject]:
        """Return its lines as Stripe shows them."""
        totals = self.totals.lines
        return [line.to_json(self, total) for line, total in zip(self.all_lines, totals, strict=True)]

    def to_json(self) -> JsonObject:
        """Return the invoice as Stripe shows it (https://docs.stripe.com/api/invoices/object)."""
        lines, totals = self.lines_to_json(), self.totals
        due = max(0, totals.total + self.starting_balance) if self.finalized_at is None else self.amount_due
        page = None if self.number is None else f"https://invoice.stripe.com/i/acct_emulated/{self.id}"
        return {
            **shown_fields(self, INVOICE_HIDDEN),
            "object": "invoice",
            "amount_due": due,
            "amount_remaining": due - self.amount_paid,
            "automatic_tax": automatic_tax_to_json(enabled=self.tax_percent is not None, is_invoice=True),
            "automatically_finalizes_at": self.finalizes_at if self.auto_advance else None,
            "due_date": self.due_date,
            "effective_at": self.finalized_at,
            "hosted_invoice_url": page,
            "invoice_pdf": None if page is None else f"{page}/pdf",
            "issuer": {"type": "self"},
            "lines": list_to_json(lines, url=f"/v1/invoices/{self.id}/lines", shown_max=LINES_SHOWN),
            "parent": self._parent(),
            "payment_settings": {"default_mandate": None, "payment_method_types": None},
            "post_payment_credit_notes_amount": self.post_credited,
            "pre_payment_credit_notes_amount": self.pre_credited,
            "status_transitions": {
                "finalized_at": self.finalized_at,
                "marked_uncollectible_at": self.uncollectible_at,
                "paid_at": self.paid_at,
                "voided_at": self.voided_at,
            },
            "default_tax_rates": [{"id": rate, "object": "tax_rate"} for rate in self.rate_ids],
            "discounts": [discount.id for discount in self.discounts],
            "subtotal": totals.subtotal,
            "subtotal_excluding_tax": totals.subtotal - totals.tax_within,
            "total": totals.total,
            "total_discount_amounts": totals.discount_amounts(),
            "total_excluding_tax": totals.without_tax,
            "total_taxes": totals.taxes(),
            **INVOICE_CONSTANTS,
            **null_fields(INVOICE_NULLS),
        }

    def _parent(self) -> JsonObject | None:
        if self.subscription is None:
            return None
        details: JsonObject = {
            "metadata": dict(self.subscription_metadata),
            "subscription": self.subscription,
            "subscription_proration_date": self.proration_date,
        }
        return {"quote_details": None, "subscription_details": details, "type": "subscription_details"}


class Invoices(ObjectRegistry[Invoice]):
    """All invoices of the emulated account, oldest first, and pending lines.

    Attributes:
        pending: the id of a subscription to the invoice items that its next invoice takes up, and the id of a
            customer to those that the next invoice of any of its subscriptions does.
        previews: the latest previews by their ids.
    """

    def __init__(self) -> None:
        super().__init__("invoice")
        self._moving: dict[str, Invoice] = {}
        self._of: defaultdict[str, list[Invoice]] = defaultdict(list)
        self._numbers = Counter[str]()
        self.pending: dict[str, list[InvoiceLine]] = {}
        self.previews: dict[str, Invoice] = {}

    def add_preview(self, preview: Invoice) -> None:
        """Keep a preview, which can be retrieved for a while (https://docs.stripe.com/invoicing/preview)."""
        self.previews[preview.id] = preview
        if len(self.previews) > PREVIEWS_MAX:
            del self.previews[next(iter(self.previews))]

    def pending_lines(self, subscription: Subscription) -> list[InvoiceLine]:
        """Return the pending lines for the next invoice of a subscription."""
        free = self.pending.get(subscription.customer, [])
        fitting = [line for line in free if line.price.currency == subscription.currency]
        return [*self.pending.get(subscription.id, []), *fitting][:INVOICE_ITEMS_MAX]

    def take_pending_lines(self, subscription: Subscription) -> list[InvoiceLine]:
        """Remove and return the pending lines for an invoice."""
        taken = self.pending_lines(subscription)
        ids = {line.id for line in taken}
        for key in (subscription.id, subscription.customer):
            left = [line for line in self.pending.pop(key, []) if line.id not in ids]
            self.pending |= {key: left} if left else {}
        return taken

    def add(self, added: Invoice) -> None:
        """Add an invoice."""
        super().add(added)
        self._moving[added.id] = added
        if added.subscription is not None:
            self._of[added.subscription].append(added)

    def delete(self, deleted: Invoice) -> None:
        """Forget an invoice of no subscription."""
        super().delete(deleted)
        self._moving.pop(deleted.id, None)

    def unfinished(self) -> list[Invoice]:
        """Return drafts and open invoices, oldest first."""
        for invoice in list(self._moving.values()):
            if invoice.status not in {"draft", "open"}:
                del self._moving[invoice.id]
        return list(self._moving.values())

    def of(self, subscription_id: str) -> list[Invoice]:
        """Return the invoices of a subscription, oldest first."""
        return list(self._of[subscription_id])

    def find_by_payment_intent(self, intent_id: str) -> Invoice:
        """Return the invoice that a payment intent pays. Raises ApiError, 404, if there is none."""
        for invoice in self:
            if (invoice.client_secret or "").startswith(f"{intent_id}_secret_"):
                return invoice
        raise not_found("payment_intent", intent_id)

    def next_number(self, customer_id: str) -> int:
        """Return the next number of a customer's invoices; they are numbered when they are finalized."""
        self._numbers[customer_id] += 1
        return self._numbers[customer_id]


@dataclass(slots=True, kw_only=True)
class Refund:
    """A refund of an invoice's payment. ``amount`` is in minor units of the currency."""

    id: str
    created: int
    amount: int
    currency: str
    invoice: str
    payment_intent: str
    charge: str
    reason: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the refund as Stripe shows it (https://docs.stripe.com/api/refunds/object)."""
        return {
            **shown_fields(self, "invoice"),
            "object": "refund",
            "balance_transaction": None,
            "destination_details": {"card": {"type": "refund"}, "type": "card"},
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A dispute of an invoice's payment. ``amount`` is in minor units of the currency."""

    id: str
    created: int
    amount: int
    currency: str
    payment_intent: str | None
    charge: str
    status: str
    livemode: bool
    reason: str = "general"

    def to_json(self) -> JsonObject:
        """Return the dispute as Stripe shows it (https://docs.stripe.com/api/disputes/object)."""
        return {**shown_fields(self), "object": "dispute"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditNote:
    """An issued credit note. ``shown`` is the object as Stripe shows it."""

    id: str
    created: int
    customer: str
    invoice: str
    shown: JsonObject

    def to_json(self) -> JsonObject:
        """Return the credit note as Stripe shows it (https://docs.stripe.com/api/credit_notes/object)."""
        return dict(self.shown)

"""Sessions of Stripe's hosted pages: checkout and customer portal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stripe_emulator.invoice_totals import AppliedRate, InvoiceTotals, automatic_tax_to_json, compute_totals
from stripe_emulator.protocol import JsonObject, shown_fields
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from stripe_emulator.coupons import Discount
    from stripe_emulator.prices import Prices, Products

# Fields of a session that Stripe shows in another shape, or not at all.
CHECKOUT_HIDDEN: Final = (
    "address customer_update email lines name page subscription_data tax_percent"
    " invoice_metadata saves_card trial"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutLine:
    """A line of a checkout page.

    Attributes:
        price: its id.
        product: the id of the price's product.
        quantity: None: of a metered price, which has none.
        amount: what it costs at once, in minor units of the currency.
        includes_tax: whether the amount has the tax in it.
        proration: no.
        tax_rates: none: the page has automatic tax alone.
        discounts: none: those of the page are for all lines.
    """

    id: str
    price: str
    product: str
    quantity: int | None
    amount: int
    includes_tax: bool
    proration: bool = False
    tax_rates: tuple[AppliedRate, ...] = ()
    discounts: tuple[Discount, ...] = ()


@dataclass(slots=True, kw_only=True)
class CheckoutSession:
    """A checkout session.

    Attributes:
        created: Unix seconds, as is ``expires_at``.
        mode: ``subscription``, or ``payment`` of prices that are charged once.
        invoice_metadata: in ``payment`` mode, of the invoice that is made; None: none is.
        saves_card: in ``payment`` mode, whether the card is for later payments, too.
        subscription_data: fields of the subscription to be made, as ``POST /v1/subscriptions`` takes them.
        trial: whether it begins with a trial, so that nothing is paid yet.
        discounts: what is taken off; a person may add one where ``allow_promotion_codes`` is true.
        automatic_tax: whether tax is worked out, once it is known where the customer is.
        tax_percent: the rate; None: it is not known yet, or nothing is taxed.
        customer_update: the parts of the customer that the page may change.
        status: ``open``, ``complete`` or ``expired``.
        email: what the person has given on the page.
    """

    id: str
    created: int
    expires_at: int
    page: str
    currency: str
    lines: tuple[CheckoutLine, ...]
    success_url: str
    mode: str = "subscription"
    invoice_metadata: dict[str, str] | None = None
    saves_card: bool = False
    cancel_url: str | None = None
    livemode: bool = False
    client_reference_id: str | None = None
    customer: str | None = None
    customer_email: str | None = None
    locale: str | None = None
    payment_method_collection: str = "always"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    subscription_data: dict[str, str] = field(default_factory=dict[str, str])
    trial: bool = False
    discounts: list[Discount] = field(default_factory=list["Discount"])
    allow_promotion_codes: bool | None = None
    automatic_tax: bool = False
    tax_percent: Decimal | None = None
    tax_id_collection: bool = False
    customer_update: tuple[str, ...] = ()
    status: str = "open"
    payment_status: str = "unpaid"
    email: str | None = None
    name: str | None = None
    address: JsonObject | None = None
    subscription: str | None = None
    invoice: str | None = None
    payment_intent: str | None = None

    @property
    def totals(self) -> InvoiceTotals:
        """The amount due on the page: lines, less discounts, plus tax."""
        lines = () if self.trial else self.lines
        return compute_totals(lines, self.discounts, self.tax_percent, now=self.created)

    def to_json(self) -> JsonObject:
        """Return the session as Stripe shows it (https://docs.stripe.com/api/checkout/sessions/object)."""
        email, totals = self.email or self.customer_email, self.totals
        details = {"address": self.address, "email": email, "name": self.name, "phone": None}
        return {
            **shown_fields(self, CHECKOUT_HIDDEN),
            "object": "checkout.session",
            "amount_subtotal": totals.subtotal,
            "amount_total": totals.total,
            "automatic_tax": self._tax_to_json(),
            "custom_fields": [],
            "customer_creation": "always",
            "customer_details": {**details, "tax_exempt": "none", "tax_ids": []} if email else None,
            "discounts": [_discount_to_json(discount) for discount in self.discounts],
            "payment_method_types": ["card"],
            "shipping_options": [],
            "tax_id_collection": {"enabled": self.tax_id_collection, "required": "never"},
            "total_details": {
                "amount_discount": totals.discount,
                "amount_shipping": 0,
                "amount_tax": totals.tax,
            },
            "ui_mode": "hosted",
            "url": self.page if self.status == "open" else None,
            **dict.fromkeys(("client_secret", "payment_link", "setup_intent")),
            **dict.fromkeys(("consent", "return_url", "submit_type")),
        }

    def _tax_to_json(self) -> JsonObject:
        shown = automatic_tax_to_json(enabled=self.automatic_tax, is_invoice=True)
        if self.automatic_tax and self.tax_percent is None:
            shown["status"] = "requires_location_inputs"
        return shown


def _discount_to_json(discount: Discount) -> JsonObject:
    code = discount.promotion_code
    return {"coupon": discount.coupon.id if code is None else None, "promotion_code": code}


class CheckoutSessions(ObjectRegistry[CheckoutSession]):
    """All checkout sessions of the emulated account, oldest first."""

    def __init__(self, emit: Callable[..., object]) -> None:
        super().__init__("checkout.session")
        self._emit = emit

    def expire_due(self, *, now: float) -> None:
        """Expire the open sessions that are due, each at its own second."""
        over = [each for each in self if each.status == "open" and each.expires_at <= now]
        for session in sorted(over, key=lambda each: each.expires_at):
            self.expire(session, at_s=session.expires_at)

    def expire(self, session: CheckoutSession, *, at_s: float) -> None:
        """Expire a session that was not completed."""
        session.status = "expired"
        self._emit("checkout.session.expired", session.to_json(), at_s=at_s)


def line_items_to_json(session: CheckoutSession, *, prices: Prices, products: Products) -> list[JsonObject]:
    """Return the line items as Stripe shows them (https://docs.stripe.com/api/checkout/sessions/line_items)."""
    shown: list[JsonObject] = []
    totals = compute_totals(session.lines, session.discounts, session.tax_percent, now=session.created).lines
    for line, total in zip(session.lines, totals, strict=True):
        price = prices.find(line.price)
        amounts = {"amount_subtotal": line.amount, "amount_total": total.total}
        shown.append(
            {
                "id": line.id,
                "object": "item",
                "amount_discount": total.discount,
                **amounts,
                "amount_tax": total.tax,
                "currency": session.currency,
                "description": products.find(price.product).name,
                "price": price.to_json(),
                "quantity": line.quantity,
            }
        )
    return shown


PORTAL_FLOWS: Final = (
    "customer_update",
    "payment_method_update",
    "subscription_cancel",
    "subscription_pause",
    "subscription_update",
    "subscription_update_confirm",
)
PORTAL_CONFIGURATION: Final = "bpc_1emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalSession:
    """A portal session.

    Attributes:
        created: Unix seconds.
        flow: what the page is opened for; None: its front page.
        subscription: which one the flow is about.
    """

    id: str
    created: int
    customer: str
    url: str
    return_url: str | None
    livemode: bool
    configuration: str = PORTAL_CONFIGURATION
    flow: str | None = None
    subscription: str | None = None

    def to_json(self) -> JsonObject:
        """Return the session as Stripe shows it.

        https://docs.stripe.com/api/customer_portal/sessions/object
        """
        return {
            **shown_fields(self, "subscription"),
            "object": "billing_portal.session",
            "flow": self._flow(),
            "locale": None,
            "on_behalf_of": None,
        }

    def _flow(self) -> JsonObject | None:
        if self.flow is None:
            return None
        after = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"}
        flows: JsonObject = {name: None for name in PORTAL_FLOWS if name.startswith("subscription")}
        if self.subscription is not None:
            flows[self.flow] = {"subscription": self.subscription}
        return {"after_completion": after, "type": self.flow, **flows}

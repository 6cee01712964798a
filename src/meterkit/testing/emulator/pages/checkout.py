"""Checkout sessions: a page on which a person subscribes, open for a day at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meterkit.testing.emulator.registry import Registry

if TYPE_CHECKING:
    from meterkit.testing.emulator.replies import JsonObject
    from meterkit.testing.emulator.selling.prices import Prices
    from meterkit.testing.emulator.selling.products import Products
    from meterkit.testing.emulator.webhooks.events import Emit

__all__ = ["CheckoutLine", "CheckoutSession", "CheckoutSessions", "line_items"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutLine:
    """What is offered.

    Attributes:
        price: its id.
        quantity: None: of a metered price, which has none.
        amount: what it costs at once, in minor units of the currency.
    """

    id: str
    price: str
    quantity: int | None
    amount: int


@dataclass(slots=True, kw_only=True)
class CheckoutSession:
    """A checkout session.

    Attributes:
        created: Unix seconds, as is ``expires_at``.
        subscription_data: fields of the subscription to be made, as ``POST /v1/subscriptions`` takes them.
        trial: whether it begins with a trial, so that nothing is paid yet.
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
    status: str = "open"
    payment_status: str = "unpaid"
    email: str | None = None
    subscription: str | None = None
    invoice: str | None = None

    @property
    def amount(self) -> int:
        """What is to be paid on the page, in minor units: nothing where a trial comes first."""
        return 0 if self.trial else sum(line.amount for line in self.lines)

    def to_json(self) -> JsonObject:
        """Return the session as Stripe shows it (https://docs.stripe.com/api/checkout/sessions/object)."""
        email = self.email or self.customer_email
        details = {"address": None, "email": email, "name": None, "phone": None, "tax_exempt": "none"}
        return {
            "id": self.id,
            "object": "checkout.session",
            "amount_subtotal": self.amount,
            "amount_total": self.amount,
            "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
            "cancel_url": self.cancel_url,
            "client_reference_id": self.client_reference_id,
            "created": self.created,
            "currency": self.currency,
            "custom_fields": [],
            "customer": self.customer,
            "customer_creation": "always",
            "customer_details": details if email else None,
            "customer_email": self.customer_email,
            "expires_at": self.expires_at,
            "invoice": self.invoice,
            "livemode": self.livemode,
            "locale": self.locale,
            "metadata": dict(self.metadata),
            "mode": "subscription",
            "payment_method_collection": self.payment_method_collection,
            "payment_method_types": ["card"],
            "payment_status": self.payment_status,
            "shipping_options": [],
            "status": self.status,
            "subscription": self.subscription,
            "success_url": self.success_url,
            "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
            "ui_mode": "hosted",
            "url": self.page if self.status == "open" else None,
            **dict.fromkeys(("client_secret", "payment_intent", "payment_link", "setup_intent")),
            **dict.fromkeys(("consent", "return_url", "submit_type")),
        }


class CheckoutSessions(Registry[CheckoutSession]):
    """All checkout sessions of the emulated account, oldest first."""

    what = "checkout.session"

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def add(self, session: CheckoutSession) -> None:
        """Take over a session."""
        self._by_id[session.id] = session

    def lapse(self, *, now: float) -> None:
        """Expire the open sessions whose time is over, each at its own second."""
        over = [each for each in self if each.status == "open" and each.expires_at <= now]
        for session in sorted(over, key=lambda each: each.expires_at):
            self.expire(session, at_s=session.expires_at)

    def expire(self, session: CheckoutSession, *, at_s: float) -> None:
        """End a session that nobody has completed."""
        session.status = "expired"
        self._emit("checkout.session.expired", session.to_json(), at_s=at_s)


def line_items(session: CheckoutSession, *, prices: Prices, products: Products) -> list[JsonObject]:
    """Return what is offered, as Stripe shows it (https://docs.stripe.com/api/checkout/sessions/line_items)."""
    shown: list[JsonObject] = []
    for line in session.lines:
        price = prices.find(line.price)
        amounts = {"amount_subtotal": line.amount, "amount_total": line.amount}
        shown.append(
            {
                "id": line.id,
                "object": "item",
                "amount_discount": 0,
                **amounts,
                "amount_tax": 0,
                "currency": session.currency,
                "description": products.find(price.product).name,
                "price": price.to_json(),
                "quantity": line.quantity,
            }
        )
    return shown

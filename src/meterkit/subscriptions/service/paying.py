"""What Stripe wants before it takes a change: a paid invoice, a payment method, an authenticated card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import (
    InvoiceOpenError,
    PaymentAuthenticationError,
    PaymentMethodMissingError,
    StripeError,
    SubscriptionError,
)
from meterkit.subscriptions.at_stripe.idempotency import key_of, mark_of
from meterkit.subscriptions.at_stripe.objects import id_in, part_of, text_in
from meterkit.subscriptions.at_stripe.pages import open_portal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.at_stripe.live_subscription import LiveSubscription

# https://docs.stripe.com/error-codes
_NEEDS_CUSTOMER: Final = frozenset({"subscription_payment_intent_requires_action", "authentication_required"})
# Stripe gives this refusal no code of its own.
_NO_METHOD: Final = "no attached payment source or default payment method"
_INTENTS: Final = "/v1/setup_intents"
_ENDED: Final = frozenset({"canceled", "requires_payment_method"})
_INTENTS_MAX: Final = 16


async def check_paid(customer: str, live: LiveSubscription, refused: Collection[str]) -> None:
    """Refuse a change while an invoice of the subscription has to be paid first.

    A pending update counts too: Stripe applies it as soon as its invoice is paid. It is never voided, because
    Stripe then discards the usage that its invoice bills
    (https://docs.stripe.com/billing/subscriptions/pending-updates).

    Args:
        customer: the app's own id.
        live: the subscription.
        refused: the statuses in which the change is not allowed.

    Raises:
        InvoiceOpenError: an invoice is open.
        SubscriptionError: the status is refused, and no invoice is open.
        StripeError: Stripe refuses, or does not answer.
    """
    status = live.found["status"]
    awaits = bool(part_of(live.found, "pending_update"))
    if status not in refused and not awaits:
        return
    invoice = await _open_invoice(live)
    what = "has a change that waits for its payment" if awaits else f"is {status}"
    message = f"the subscription {live.id} of customer {customer!r} {what}: it has to be paid for first"
    if invoice:
        url = text_in(invoice, "hosted_invoice_url") or None
        raise InvoiceOpenError(message, invoice=str(invoice["id"]), url=url)
    raise SubscriptionError(message)


async def _open_invoice(live: LiveSubscription) -> Mapping[str, Any]:
    """The latest invoice if it is open, else the youngest one that is; empty: none is."""
    latest = part_of(live.found, "latest_invoice")
    if latest.get("status") == "open":
        return latest
    asked: dict[str, Parameter] = {"subscription": live.id, "status": "open", "limit": 1}
    found: list[dict[str, Any]] = (await live.api.get("/v1/invoices", asked))["data"]
    return found[0] if found else {}


async def remedy(
    store: Store, live: LiveSubscription, asked: Mapping[str, Parameter], refused: StripeError
) -> str:
    """Find out what a change needs whose payment Stripe has refused; nothing has changed then.

    Args:
        store: whose plans file names the page where customers pay.
        live: the subscription.
        asked: the parameters of the change.
        refused: what Stripe has answered.

    Returns:
        The client secret of a SetupIntent, with which the customer's browser authenticates the card for later
        payments. The caller asks for the change again after that.

    Raises:
        PaymentMethodMissingError: the customer has no payment method.
        PaymentAuthenticationError: the card asks its customer for each payment.
        StripeError: the payment was refused for another reason, or Stripe does not answer.
    """
    linked = id_in(live.found, "customer")
    if _NO_METHOD in str(refused):
        message = f"the change needs a payment, and Stripe customer {linked} has no payment method"
        raise PaymentMethodMissingError(message, url=await _payment_page(store, live, linked)) from refused
    if refused.code not in _NEEDS_CUSTOMER:
        raise refused
    method = await _payment_method(live, linked)
    secret = await _authentication(live, linked, method, asked) if method else None
    if secret is None:
        message = (
            f"the card of Stripe customer {linked} has to be authenticated for each payment, so it cannot pay"
            " for this change: the customer needs another payment method"
        )
        raise PaymentAuthenticationError(message, url=await _payment_page(store, live, linked)) from refused
    return secret


async def _payment_method(live: LiveSubscription, linked: str) -> str:
    """The payment method that Stripe charges; empty: it is not known.

    https://docs.stripe.com/billing/subscriptions/payment-methods-setting#payment-method-priority
    """
    own = id_in(live.found, "default_payment_method") or id_in(live.found, "default_source")
    if own:
        return own
    owner = await live.api.get(f"/v1/customers/{linked}")
    settings = part_of(owner, "invoice_settings")
    return id_in(settings, "default_payment_method") or id_in(owner, "default_source")


async def _authentication(
    live: LiveSubscription, linked: str, method: str, asked: Mapping[str, Parameter]
) -> str | None:
    """The client secret of a SetupIntent for this change; None: the card was authenticated for it already.

    https://docs.stripe.com/payments/save-and-reuse: a card that is set up for off-session payments may be
    charged without its customer, unless its bank asks for each payment.
    """
    params: dict[str, Parameter] = {
        "customer": linked,
        "payment_method": method,
        "payment_method_types": ["card"],
        "usage": "off_session",
    }
    ended = ""
    for _ in range(_INTENTS_MAX):
        key = key_of("authenticate", live.id, mark_of(live.found), asked, params, ended)
        made = await live.api.post(_INTENTS, params, idempotency_key=key)
        # An answer of earlier shows the intent as it was then.
        intent = await live.api.get(f"{_INTENTS}/{made['id']}")
        if intent["status"] == "succeeded":
            return None
        if intent["status"] not in _ENDED:
            return str(intent["client_secret"])
        ended = str(made["id"])
    return None


async def _payment_page(store: Store, live: LiveSubscription, linked: str) -> str | None:
    """The page where the customer adds a payment method; None: Stripe has no portal that could show it."""
    if store.catalog.billing.portal_url is not None:
        return store.catalog.billing.portal_url
    asked: dict[str, Parameter] = {"customer": linked, "flow_data": {"type": "payment_method_update"}}
    try:
        made = await open_portal(live.api, asked, now_ms=store.now_ms())
    except StripeError:
        return None  # The error says what is missing.
    return str(made["url"])

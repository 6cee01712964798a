"""Stripe's checkout and portal pages, and the payments or confirmations that a change needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from meterkit.catalog.billing import reserved_options
from meterkit.decisions.periods import MINUTE_MS
from meterkit.errors import (
    InvoiceOpenError,
    MeterkitError,
    NoSubscriptionError,
    PaymentAuthenticationError,
    PaymentMethodMissingError,
    StripeError,
    StripeUnavailableError,
    SubscriptionError,
)
from meterkit.stripe.idempotency_keys import key_of
from meterkit.subscriptions.stripe_objects import (
    CHANGE_MARK,
    PURCHASE,
    TOP_UP,
    default_method,
    id_in,
    is_missing_customer,
    is_unknown_at_stripe,
    mark_of,
    part_of,
    subscription_method,
    text_in,
    unknown_customer_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Collection

    from meterkit.catalog.billing import CheckoutOptions
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.subscription_updates import LiveSubscription


def checkout_options(common: CheckoutOptions, given: CheckoutOptions | None) -> dict[str, Any]:
    """Merge the checkout options of the plans file and of a call.

    Args:
        common: of the plans file.
        given: of the call; each replaces the option of its name, None removes it.

    Raises:
        MeterkitError: meterkit sets one of them itself, or one cannot be sent to Stripe.
    """
    if given is None:
        return dict(common)
    if not _is_mapping(given):
        raise MeterkitError(f"options: found a value of type {type(given).__name__}; allowed is a mapping")
    own = [".".join(path) for path in reserved_options(given)]
    if own:
        raise MeterkitError(f"options: found {', '.join(own)}, which meterkit sets itself; leave it out")
    try:
        _check_option("", given)
    except TypeError as error:
        raise MeterkitError(f"options: {error}") from error
    return {**common, **given}


def _check_option(name: str, value: object) -> None:
    """Refuse a value that Stripe would misread: money is integer cents, a time integer seconds."""
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            _check_option(f"{name}[{key}]" if name else key, inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(cast("list[object]", value)):
            _check_option(f"{name}[{place}]", inner)
    elif not isinstance(value, str | int | None):
        kind = type(value).__name__
        raise TypeError(f"{name}: found a value of type {kind}; allowed are texts, integers, lists and dicts")


def _is_mapping(given: object) -> bool:
    """Whether a value is a mapping: a caller without a type checker may pass anything."""
    return isinstance(given, Mapping)


_PATH: Final = "/v1/checkout/sessions"
_INVOICES: Final = "/v1/invoices"
_PORTAL: Final = "/v1/billing_portal/sessions"
_OPEN_S_MIN: Final = 3_600
_TRIES: Final = 4


async def open_page(
    api: StripeApi, asked: Mapping[str, Parameter], before: Collection[str], *, now_s: int
) -> Mapping[str, Any]:
    """Find the page that is open for the same request, or open one; close the customer's others.

    With each open page the customer could still start a subscription and a trial.

    Args:
        api: the Stripe client.
        asked: parameters of the page, with the customer.
        before: all subscriptions of the customer, ended ones too.
        now_s: the current time (Unix seconds).

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    mark = key_of("checkout", asked, sorted(before))
    linked = str(asked["customer"])
    opened = await _list_open_pages(api, linked)
    same = (one for one in opened if mark_of(one) == mark and one["expires_at"] - now_s >= _OPEN_S_MIN)
    page: Mapping[str, Any] | None = next(same, None)
    if page is None:
        page = await _create_page(api, {**asked, "metadata": {CHANGE_MARK: mark}}, opened)
    await close_pages(api, linked, but=page["id"])
    return page


async def open_portal(api: StripeApi, asked: Mapping[str, Parameter], *, now_ms: int) -> Mapping[str, Any]:
    """Open a session of the customer portal. Its URL expires after some minutes: each minute has its own.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    return await api.post(_PORTAL, asked, idempotency_key=key_of("portal", asked, now_ms // MINUTE_MS))


@asynccontextmanager
async def refuse_missing(api: StripeApi, customer: str, linked: str) -> AsyncGenerator[None]:
    """Refuse the portal of a Stripe customer that Stripe has deleted, or does not know.

    Raises:
        NoSubscriptionError: Stripe has deleted it.
        StripeError: Stripe does not know it, or refuses, or does not answer.
    """
    try:
        yield
    except StripeError as error:
        if not is_missing_customer(error):
            raise
        if await is_unknown_at_stripe(api, linked):
            raise unknown_customer_error(error, customer, linked) from error
        message = f"Stripe has deleted {linked}, the Stripe customer of {customer!r}: there is no portal"
        raise NoSubscriptionError(customer, f"{message}; a new subscription makes another one") from error


async def close_pages(api: StripeApi, linked: str, *, but: str = "") -> None:
    """Close all open sign-up pages that meterkit made for a Stripe customer. Raises StripeError."""
    for page in await _list_open_pages(api, linked):
        if page["id"] != but:
            await _end_unless_done(api.post(f"{_PATH}/{page['id']}/expire"))


async def close_payments(api: StripeApi, linked: str) -> None:
    """Close all that meterkit opened for a Stripe customer to pay: pages, and unpaid invoices of top-ups.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    asked: dict[str, Parameter] = {"customer": linked, "status": "open"}
    try:
        pages = await api.list(_PATH, asked)
        drafts = await api.list(_INVOICES, {**asked, "status": "draft"})
    except StripeError as error:
        if not is_missing_customer(error):
            raise
        return  # Stripe has deleted it: nothing can be paid.
    for page in pages:
        if mark_of(page) or text_in(part_of(page, "metadata"), PURCHASE):
            await _end_unless_done(api.post(f"{_PATH}/{page['id']}/expire"))
    # A top-up by card may be under way: a draft that becomes final meanwhile is among the open ones.
    for draft in filter(_is_of_top_up, drafts):
        await _end_unless_done(api.delete(f"{_INVOICES}/{draft['id']}"))
    for invoice in filter(_is_of_top_up, await api.list(_INVOICES, asked)):
        await _end_unless_done(api.post(f"{_INVOICES}/{invoice['id']}/void"))


def _is_of_top_up(invoice: Mapping[str, Any]) -> bool:
    return TOP_UP in part_of(invoice, "metadata")


async def _end_unless_done(request: Awaitable[object]) -> None:
    """End a page or an invoice at Stripe; a no-op if it is no longer open."""
    try:
        await request
    except StripeUnavailableError:
        raise
    except StripeError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise


async def _create_page(
    api: StripeApi, asked: Mapping[str, Parameter], opened: Collection[Mapping[str, Any]]
) -> Mapping[str, Any]:
    known, page = sorted(one["id"] for one in opened), dict[str, Any]()
    for _ in range(_TRIES):
        key = key_of("checkout", asked, known)
        page = await api.post(_PATH, asked, idempotency_key=key)
        found = await api.get(f"{_PATH}/{page['id']}")
        if found.get("status") == "open" and page["id"] not in known:
            break
        known.append(page["id"])  # A replayed response: that page is closed.
    return page


async def _list_open_pages(api: StripeApi, linked: str) -> list[dict[str, Any]]:
    found = await api.list(_PATH, {"customer": linked, "status": "open"})
    return [page for page in found if mark_of(page)]


# Requirements of Stripe for a change: a paid invoice, a payment method, an authenticated card.

# https://docs.stripe.com/error-codes
_NEEDS_CUSTOMER: Final = frozenset({"subscription_payment_intent_requires_action", "authentication_required"})
# Stripe gives this refusal no code of its own.
_NO_METHOD: Final = "no attached payment source or default payment method"
_INTENTS: Final = "/v1/setup_intents"
_ENDED: Final = frozenset({"canceled", "requires_payment_method"})
_INTENTS_MAX: Final = 16


async def check_paid(customer: str, live: LiveSubscription, refused: Collection[str]) -> None:
    """Refuse a change while an invoice of the subscription must be paid first.

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
    invoice = await _find_open_invoice(live)
    what = "has a change that waits for its payment" if awaits else f"is {status}"
    done = "resumed" if status == "paused" and not invoice else "paid for"
    message = f"the subscription {live.id} of customer {customer!r} {what}: it must be {done} first"
    if invoice:
        url = text_in(invoice, "hosted_invoice_url") or None
        raise InvoiceOpenError(message, invoice=str(invoice["id"]), url=url)
    raise SubscriptionError(message, advice=f"The subscription has to be {done} first.")


async def _find_open_invoice(live: LiveSubscription) -> Mapping[str, Any]:
    """The latest invoice if it is open, otherwise the newest open one; empty if none is."""
    latest = part_of(live.found, "latest_invoice")
    if latest.get("status") == "open":
        return latest
    asked: dict[str, Parameter] = {"subscription": live.id, "status": "open", "limit": 1}
    found: list[dict[str, Any]] = (await live.api.get(_INVOICES, asked))["data"]
    return found[0] if found else {}


async def find_remedy(
    store: Store, live: LiveSubscription, asked: Mapping[str, Parameter], refused: StripeError
) -> str:
    """Find what a change needs whose payment Stripe has refused. Nothing has changed then.

    Args:
        store: of the kit.
        live: the subscription.
        asked: the parameters of the change.
        refused: the error of Stripe.

    Returns:
        The client secret of a SetupIntent, with which the customer's browser authenticates the card for later
        payments. The caller asks for the change again after that.

    Raises:
        PaymentMethodMissingError: the customer has no payment method.
        PaymentAuthenticationError: the card must be authenticated for each payment.
        StripeError: the payment was refused for another reason, or Stripe does not answer.
    """
    linked = id_in(live.found, "customer")
    if _NO_METHOD in str(refused):
        message = f"the change needs a payment, and Stripe customer {linked} has no payment method"
        raise PaymentMethodMissingError(
            message, url=await _find_payment_page(store, live.api, linked)
        ) from refused
    if refused.code not in _NEEDS_CUSTOMER:
        raise refused
    method = await _find_payment_method(live, linked)
    secret = await _create_setup_secret(live, linked, method, asked) if method else None
    if secret is None:
        message = (
            f"the card of Stripe customer {linked} must be authenticated for each payment, so it cannot pay"
            " for this change: the customer needs another payment method"
        )
        raise PaymentAuthenticationError(
            message, url=await _find_payment_page(store, live.api, linked)
        ) from refused
    return secret


async def refuse_without_method(store: Store, api: StripeApi, linked: str, why: str) -> NoReturn:
    """Refuse a change that needs a saved payment method.

    Raises:
        PaymentMethodMissingError: always, with the page where the customer adds one.
    """
    message = (
        f"{why}: Stripe customer {linked} has no payment method that can be charged; nothing has changed"
    )
    raise PaymentMethodMissingError(message, url=await _find_payment_page(store, api, linked))


async def _find_payment_method(live: LiveSubscription, linked: str) -> str:
    """Find the payment method that Stripe charges; empty if it is unknown.

    https://docs.stripe.com/billing/subscriptions/payment-methods-setting#payment-method-priority
    """
    return subscription_method(live.found) or default_method(await live.api.get(f"/v1/customers/{linked}"))


async def _create_setup_secret(
    live: LiveSubscription, linked: str, method: str, asked: Mapping[str, Parameter]
) -> str | None:
    """Create a SetupIntent for this change; return its client secret, None if the card is authenticated.

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
        # A replayed response shows the intent as it was then.
        intent = await live.api.get(f"{_INTENTS}/{made['id']}")
        if intent["status"] == "succeeded":
            return None
        if intent["status"] not in _ENDED:
            return str(intent["client_secret"])
        ended = str(made["id"])
    return None


async def _find_payment_page(store: Store, api: StripeApi, linked: str) -> str | None:
    """Find the page where the customer adds a payment method; None if there is none."""
    if store.catalog.billing.portal_url is not None:
        return store.catalog.billing.portal_url
    asked: dict[str, Parameter] = {"customer": linked, "flow_data": {"type": "payment_method_update"}}
    try:
        made = await open_portal(api, asked, now_ms=store.now_ms())
    except StripeError:
        return None  # The error names what is missing.
    return str(made["url"])

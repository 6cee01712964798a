"""API calls about checkout sessions, and their parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_mode import read_billing_mode
from stripe_emulator.call import Call, Params
from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.invoice_drafts import read_automatic_tax
from stripe_emulator.page_sessions import (
    CheckoutLine,
    CheckoutSession,
    line_items_to_json,
)
from stripe_emulator.price_calls import choose_currency
from stripe_emulator.prices import price_quantity, to_cents
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, new_id
from stripe_emulator.redemption import read_discounts
from stripe_emulator.subscription_calls import refuse_other_currency

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.coupons import Discount
    from stripe_emulator.prices import Price

CALLS: Final = CallTable()

CHECKOUT_MODES: Final = ("payment", "subscription")

CHECKOUT_LIFE_S: Final = 86_400

CHECKOUT_LIFE_S_MIN: Final = 1_800

REFERENCE_LENGTH_MAX: Final = 200

SUBSCRIPTION_FIELDS: Final = (
    "billing_cycle_anchor billing_mode description metadata proration_behavior trial_end"
    " trial_period_days trial_settings"
)

# Accepted and shown nowhere.
CHECKOUT_IGNORED: Final = (
    "billing_address_collection consent_collection custom_text payment_method_options"
    " payment_method_types phone_number_collection saved_payment_method_options ui_mode"
)

# https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-locale.
LOCALES: Final = (
    "auto bg cs da de el en en-GB es es-419 et fi fil fr fr-CA hi-IN hr hu id it ja ko lt lv"
    " ms mt nb nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW"
)

CUSTOMER_UPDATES: Final = ("address", "name", "shipping")


@CALLS(
    "POST /v1/checkout/sessions",
    "allow_promotion_codes automatic_tax cancel_url client_reference_id currency customer customer_email"
    " customer_update discounts expires_at invoice_creation line_items locale metadata mode"
    " payment_intent_data payment_method_collection subscription_data success_url tax_id_collection",
    CHECKOUT_IGNORED,
)
def _create_checkout(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/checkout/sessions/create."""
    params = call.params
    mode = params.required("mode")
    if mode not in CHECKOUT_MODES:
        message = f"The emulator has Checkout Sessions of the modes {' and '.join(CHECKOUT_MODES)} only."
        raise ApiError(message, param="mode")
    params.refuse_both("customer", "customer_email", param="customer")
    customer = account.customers.read_param(params)
    updates = _read_customer_update(params, customer=customer)
    taxed = _read_checkout_tax(account, params, customer=customer, updates=updates)
    lines, currency = _read_checkout_lines(account, params, mode=mode, customer=customer)
    data = params.hash("subscription_data") or Params("")
    data.only(SUBSCRIPTION_FIELDS)
    data.metadata()
    billing_mode = read_billing_mode(data, version=call.version)
    session_id = new_id("cs_live" if call.livemode else "cs_test", length=58)
    session = CheckoutSession(
        id=session_id,
        created=int(call.now),
        expires_at=_read_expires_at(params, now=int(call.now)),
        page=f"{call.base_url}/c/pay/{session_id}",
        currency=currency,
        lines=lines,
        success_url=params.url("success_url") or params.required("success_url"),
        mode=mode,
        invoice_metadata=_read_invoice_metadata(params, mode=mode),
        saves_card=_read_saves_card(params, mode=mode),
        cancel_url=params.url("cancel_url"),
        livemode=call.livemode,
        client_reference_id=params.nonempty_text("client_reference_id", length_max=REFERENCE_LENGTH_MAX),
        customer=customer,
        customer_email=params.nonempty_text("customer_email", length_max=800),
        locale=params.choice("locale", LOCALES.split()),
        payment_method_collection=params.choice("payment_method_collection", ("always", "if_required"))
        or "always",
        metadata=params.metadata(),
        subscription_data={**data.flat(), "billing_mode[type]": billing_mode.type},
        trial="trial_period_days" in data or "trial_end" in data,
        allow_promotion_codes=params.boolean("allow_promotion_codes"),
        automatic_tax=taxed,
        tax_percent=_known_tax_percent(account, customer) if taxed else None,
        tax_id_collection=_read_tax_id_collection(params, customer=customer, updates=updates),
        customer_update=updates,
    )
    session.discounts = _read_checkout_discounts(account, params, session)
    account.checkouts.add(session)
    return session.to_json()


def _read_customer_update(params: Params, *, customer: str | None) -> tuple[str, ...]:
    """Return the customer fields that the page may change.

    "customer_update can only be used with customer"
    (https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-customer_update).
    """
    given = params.hash("customer_update")
    if given is None:
        return ()
    if customer is None:
        raise ApiError("`customer_update` can only be used with `customer`.", param="customer_update")
    given.only(*CUSTOMER_UPDATES)
    return tuple(name for name in CUSTOMER_UPDATES if given.choice(name, ("auto", "never")) == "auto")


def _known_tax_percent(account: Account, customer: str | None) -> Decimal | None:
    is_known = customer is not None and account.customers.find(customer).country
    return account.behaviour.tax_percent if is_known else None


def _read_checkout_tax(
    account: Account, params: Params, *, customer: str | None, updates: tuple[str, ...]
) -> bool:
    """https://github.com/TryGhost/Ghost/pull/20105 has Stripe's words for a customer without an address."""
    if not read_automatic_tax(account, params):
        return False
    knows = customer is None or account.customers.find(customer).country
    if not knows and not {"address", "shipping"} & set(updates):
        message = (
            "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid "
            "address to the Customer or set either `customer_update[address]` to 'auto' or "
            "`customer_update[shipping]` to 'auto' to save the address entered in Checkout to the Customer."
        )
        raise ApiError(message, code="customer_tax_location_invalid", param="automatic_tax")
    return True


def _read_tax_id_collection(params: Params, *, customer: str | None, updates: tuple[str, ...]) -> bool:
    """https://github.com/invertase/stripe-firebase-extensions/issues/225 has Stripe's words."""
    if not params.boolean("tax_id_collection[enabled]"):
        return False
    if customer is not None and "name" not in updates:
        message = (
            "Tax ID collection requires updating business name on the customer. To enable tax ID collection "
            "for an existing customer, please set `customer_update[name]` to `auto`."
        )
        raise ApiError(message, param="tax_id_collection")
    return True


def _read_checkout_discounts(account: Account, params: Params, session: CheckoutSession) -> list[Discount]:
    """Return the discounts, at most one (https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-discounts)."""
    params.refuse_both("allow_promotion_codes", "discounts", param="allow_promotion_codes")
    found = read_discounts(
        account,
        params,
        customer=session.customer or "",
        currency=session.currency,
        amount=sum(line.amount for line in session.lines),
    )
    if len(found) > 1:
        raise ApiError("Only up to one discount may be specified.", param="discounts")
    return found


def _read_invoice_metadata(params: Params, *, mode: str) -> dict[str, str] | None:
    """https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-invoice_creation."""
    given = params.hash("invoice_creation")
    if given is None:
        return None
    if mode != "payment":
        raise ApiError("`invoice_creation` can only be used in `payment` mode.", param="invoice_creation")
    given.only("enabled invoice_data")
    data = given.hash("invoice_data")
    if data is None:
        return {} if given.boolean("enabled") else None
    data.only("description footer metadata")
    return data.metadata() if given.boolean("enabled") else None


def _read_saves_card(params: Params, *, mode: str) -> bool:
    """https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-payment_intent_data."""
    data = params.hash("payment_intent_data")
    if data is None:
        return False
    if mode != "payment":
        message = "You can not pass `payment_intent_data` in `subscription` mode."
        raise ApiError(message, param="payment_intent_data")
    data.only("description metadata setup_future_usage")
    return data.choice("setup_future_usage", ("off_session", "on_session")) == "off_session"


def _read_checkout_lines(
    account: Account, params: Params, *, mode: str, customer: str | None
) -> tuple[tuple[CheckoutLine, ...], str]:
    items = params.hashes("line_items")
    if not items:
        raise missing_parameter("line_items")
    prices = [account.prices.find_active(item) for item in items]
    for item, price in zip(items, prices, strict=True):
        if not account.products.find(price.product).active:
            # Words of Checkout's own, in each mode; lists show such a price as active, see
            # https://github.com/stripe/stripe-node/issues/2131.
            message = (
                f"Price `{price.id}` is not available to be purchased because its product is not active."
            )
            raise ApiError(message, param=item.path("price"))
    if mode == "payment" and any(price.recurring is not None for price in prices):
        message = (
            "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode "
            "or use only one-time prices."
        )
        raise ApiError(message, param="line_items")
    if mode == "subscription" and all(price.recurring is None for price in prices):
        message = "You must provide at least one recurring price in `subscription` mode when using prices."
        raise ApiError(message, param="line_items")
    cycles = {(each.interval, each.interval_count) for price in prices if (each := price.recurring)}
    if len(cycles) > 1:
        # https://docs.stripe.com/billing/subscriptions/mixed-interval: not in Checkout.
        message = "All recurring prices of a Checkout Session must have the same billing interval."
        raise ApiError(message, param="line_items")
    currency = choose_currency(account, prices, asked=params.nonempty_text("currency"), customer=customer)
    if currency is None:
        raise ApiError("All prices of a Checkout Session must have the same currency.", param="line_items")
    if mode == "subscription" and customer is not None:
        refuse_other_currency(account, customer, currency)
    charged = zip((price.in_currency(currency) for price in prices), items, strict=True)
    lines = tuple(
        _read_checkout_line(price, item, place=place) for place, (price, item) in enumerate(charged)
    )
    return lines, currency


def _read_checkout_line(price: Price, item: Params, *, place: int) -> CheckoutLine:
    """Return a line; a metered price has no quantity, others must have one."""
    item.only("price quantity metadata adjustable_quantity")
    quantity = item.integer("quantity")
    if price.is_metered and quantity is not None:
        message = (
            "Quantity should not be specified where usage_type is `metered`. Remove quantity from "
            f"`line_items[{place}]`"
        )
        raise ApiError(message, param=item.path("quantity"))
    if not price.is_metered and quantity is None:
        raise ApiError(f"Quantity is required. Add `quantity` to `line_items[{place}]`", param="line_items")
    amount = 0 if quantity is None else to_cents(price_quantity(price.pricing, Decimal(quantity)))
    return CheckoutLine(
        id=new_id("li_1", length=23),
        price=price.id,
        product=price.product,
        quantity=quantity,
        amount=amount,
        includes_tax=price.tax_behavior == "inclusive",
    )


def _read_expires_at(params: Params, *, now: int) -> int:
    """Return the expiry, 30 minutes to 24 hours from now (https://docs.stripe.com/api/checkout/sessions/create)."""
    at = params.integer("expires_at")
    if at is None:
        return now + CHECKOUT_LIFE_S
    if at < now + CHECKOUT_LIFE_S_MIN:
        message = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation."
        raise ApiError(message, param="expires_at")
    if at >= now + CHECKOUT_LIFE_S:
        message = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation."
        raise ApiError(message, param="expires_at")
    return at


@CALLS("GET /v1/checkout/sessions", "created customer status subscription", PAGING)
def _list_checkouts(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/checkout/sessions/list."""
    call.params.choice("status", ("open", "complete", "expired"))
    for name in ("customer", "subscription"):
        call.params.nonempty_text(name)
    return list_newest(account.checkouts, call, "customer", "status", "subscription")


@CALLS("GET /v1/checkout/sessions/{id}/line_items", PAGING)
def _list_line_items(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/checkout/sessions/line_items."""
    session = account.checkouts.find(call.object_id)
    return call.page(line_items_to_json(session, prices=account.prices, products=account.products))


@CALLS("POST /v1/checkout/sessions/{id}/expire")
def _expire_checkout(account: Account, call: Call) -> JsonObject:
    """Expire an open session (https://docs.stripe.com/api/checkout/sessions/expire)."""
    session = account.checkouts.find(call.object_id)
    if session.status != "open":
        raise ApiError(
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a '
            f"status of `{session.status}`."
        )
    account.checkouts.expire(session, at_s=call.now)
    return session.to_json()


CALLS.retrieve("/v1/checkout/sessions/{id}", lambda account: account.checkouts)

"""What ``POST /v1/checkout/sessions`` is given, and what of it is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import Params
from meterkit.testing.emulator.invoicing.taxes import refuse_tax
from meterkit.testing.emulator.pages.checkout import CheckoutLine, CheckoutSession
from meterkit.testing.emulator.replies import ApiError, missing_parameter, missing_resource, new_id
from meterkit.testing.emulator.selling.amounts import amount_of, to_cents
from meterkit.testing.emulator.subscribing.billing_modes import read_mode

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Call

__all__ = ["read_session"]

LIFE_S: Final = 86_400
LIFE_S_MIN: Final = 1_800
REFERENCE_MAX: Final = 200
SUBSCRIPTION_FIELDS: Final = (
    *("billing_cycle_anchor", "billing_mode", "description", "metadata", "proration_behavior"),
    *("trial_end", "trial_period_days", "trial_settings"),
)
# Accepted and shown nowhere.
IGNORED: Final = (
    *("allow_promotion_codes", "automatic_tax", "billing_address_collection", "consent_collection"),
    *("custom_text", "customer_update", "payment_method_options", "payment_method_types"),
    *("phone_number_collection", "saved_payment_method_options", "tax_id_collection", "ui_mode"),
)


def read_session(account: Account, call: Call) -> CheckoutSession:
    """Return the session that a call describes. Raises ApiError where Stripe would refuse it."""
    params = call.params
    params.only(
        *("cancel_url", "client_reference_id", "currency", "customer", "customer_email", "expires_at"),
        *("line_items", "locale", "metadata", "mode", "payment_method_collection", "subscription_data"),
        *("success_url", *IGNORED),
        expandable=None,
    )
    if params.required("mode") != "subscription":
        raise ApiError("The emulator has Checkout Sessions in `subscription` mode only.", param="mode")
    refuse_tax(params)
    customer = _customer(account, params)
    lines, currency = _lines(account, params)
    data = params.hash("subscription_data")
    if data is not None:
        data.only(*SUBSCRIPTION_FIELDS)
        data.metadata()
    mode = read_mode(data or Params(""), version=call.version)
    fields = {} if data is None else data.flat()
    session_id = new_id("cs_live" if call.livemode else "cs_test", length=58)
    return CheckoutSession(
        id=session_id,
        created=int(call.now),
        expires_at=_expires_at(params, now=int(call.now)),
        page=f"{call.base_url}/c/pay/{session_id}",
        currency=currency,
        lines=lines,
        success_url=_url(params, "success_url") or _missing("success_url"),
        cancel_url=_url(params, "cancel_url"),
        livemode=call.livemode,
        client_reference_id=params.given("client_reference_id", length_max=REFERENCE_MAX),
        customer=customer,
        customer_email=params.given("customer_email", length_max=800),
        locale=params.given("locale"),
        payment_method_collection=params.choice("payment_method_collection", ("always", "if_required"))
        or "always",
        metadata=params.metadata(),
        subscription_data={**fields, "billing_mode[type]": mode.type},
        trial=data is not None and ("trial_period_days" in data or "trial_end" in data),
    )


def _customer(account: Account, params: Params) -> str | None:
    customer = params.given("customer")
    if customer is not None and "customer_email" in params:
        message = "You may only specify one of these parameters: customer, customer_email."
        raise ApiError(message, param="customer")
    if customer is not None and not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    return customer


def _lines(account: Account, params: Params) -> tuple[tuple[CheckoutLine, ...], str]:
    items = params.hashes("line_items")
    if not items:
        raise missing_parameter("line_items")
    lines = tuple(_line(account, item, place=place) for place, item in enumerate(items))
    prices = [account.prices.find(line.price) for line in lines]
    if all(price.recurring is None for price in prices):
        message = "You must provide at least one recurring price in `subscription` mode when using prices."
        raise ApiError(message, param="line_items")
    cycles = {(each.interval, each.interval_count) for price in prices if (each := price.recurring)}
    if len(cycles) > 1:
        # https://docs.stripe.com/billing/subscriptions/mixed-interval: not in Checkout.
        message = "All recurring prices of a Checkout Session must have the same billing interval."
        raise ApiError(message, param="line_items")
    if len({price.currency for price in prices}) > 1:
        raise ApiError("All prices of a Checkout Session must have the same currency.", param="line_items")
    return lines, prices[0].currency


def _line(account: Account, item: Params, *, place: int) -> CheckoutLine:
    """A metered price has no quantity, another must have one."""
    item.only("price", "quantity", "metadata", "adjustable_quantity")
    price = account.prices.find(item.required("price"), param=item.path("price"))
    if not price.active:
        message = "The price specified is inactive. This field only accepts active prices."
        raise ApiError(message, param=item.path("price"))
    quantity = item.integer("quantity")
    if price.is_metered and quantity is not None:
        message = (
            "Quantity should not be specified where usage_type is `metered`. Remove quantity from "
            f"`line_items[{place}]`"
        )
        raise ApiError(message, param=item.path("quantity"))
    if not price.is_metered and quantity is None:
        raise ApiError(f"Quantity is required. Add `quantity` to `line_items[{place}]`", param="line_items")
    amount = 0 if quantity is None else to_cents(amount_of(price.pricing, Decimal(quantity)))
    return CheckoutLine(id=new_id("li_1", length=23), price=price.id, quantity=quantity, amount=amount)


def _expires_at(params: Params, *, now: int) -> int:
    """From 30 minutes to below 24 hours from now (https://docs.stripe.com/api/checkout/sessions/create)."""
    at = params.integer("expires_at")
    if at is None:
        return now + LIFE_S
    if at < now + LIFE_S_MIN:
        message = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation."
        raise ApiError(message, param="expires_at")
    if at >= now + LIFE_S:
        message = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation."
        raise ApiError(message, param="expires_at")
    return at


def _url(params: Params, name: str) -> str | None:
    url = params.given(name)
    if url is not None and not url.startswith(("http://", "https://")):
        raise ApiError("Not a valid URL", code="url_invalid", param=name)
    return url


def _missing(name: str) -> str:
    raise missing_parameter(name)

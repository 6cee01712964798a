"""``expand[]``: ids in an answer replaced by what they stand for, and what is shown on demand only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

from stripe_emulator.customers import CUSTOMER_EXPANDABLE
from stripe_emulator.invoice_drafts import refreshed_invoice_json
from stripe_emulator.page_sessions import line_items_to_json
from stripe_emulator.protocol import ApiError, JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.coupons import Coupon
    from stripe_emulator.invoices import Invoice

    Finder: TypeAlias = Callable[[Account, str], JsonObject]
    Shower: TypeAlias = Callable[[Account, str], object]

DEPTH_MAX: Final = 4


def payment_intent_to_json(account: Account, name: str) -> JsonObject:
    """Return the payment intent of an invoice, as far as clients of subscriptions need it.

    https://docs.stripe.com/api/payment_intents/object
    """
    invoice = account.invoices.find_by_payment_intent(name)
    return {
        "id": name,
        "object": "payment_intent",
        "amount": invoice.amount_due,
        "client_secret": invoice.client_secret,
        "currency": invoice.currency,
        "customer": invoice.customer,
        "livemode": invoice.livemode,
        "latest_charge": invoice.charge,
        "status": "succeeded" if invoice.status == "paid" else "requires_payment_method",
    }


def _promotion_code_to_json(account: Account, name: str) -> JsonObject:
    code = account.promotion_codes.find(name)
    return code.to_json(account.coupons.get(code.coupon), now=account.now)


def _find_coupon(account: Account, name: str) -> Coupon:
    """Find a coupon; a deleted one as it was when redeemed."""
    redeemed = (discount.coupon for discount in account.discounts if discount.coupon.id == name)
    return account.coupons.get(name) or next(redeemed, None) or account.coupons.find(name)


def _coupon_to_json(account: Account, name: str) -> JsonObject:
    return _find_coupon(account, name).to_json(now=account.now)


def _applies_to_json(account: Account, name: str) -> JsonObject | None:
    """https://docs.stripe.com/api/coupons/object#coupon_object-applies_to."""
    products = _find_coupon(account, name).products
    return {"products": list(products)} if products else None


# The name of a field to what its id stands for.
EXPANDABLE_IDS: Final[Mapping[str, Finder]] = {
    "coupon": _coupon_to_json,
    "customer": lambda account, name: account.customers.find(name).to_json(),
    "default_payment_method": lambda account, name: account.payment_methods.find(name).to_json(),
    "default_source": lambda account, name: account.payment_methods.find(name).to_json(),
    "latest_invoice": lambda account, name: refreshed_invoice_json(account, account.invoices.find(name)),
    "invoice": lambda account, name: refreshed_invoice_json(account, account.invoices.find(name)),
    "payment_intent": payment_intent_to_json,
    "pending_setup_intent": lambda account, name: account.setup_intents.find(name).to_json(),
    "refund": lambda account, name: account.refunds.find(name).to_json(),
    "schedule": lambda account, name: account.schedules.find(name).to_json(),
    "subscription": lambda account, name: account.subscriptions.find(name).to_json(),
    "released_subscription": lambda account, name: account.subscriptions.find(name).to_json(),
    "default_price": lambda account, name: account.prices.find(name).to_json(),
    "price": lambda account, name: account.prices.find(name).to_json(),
    "product": lambda account, name: account.products.find(name).to_json(),
    "promotion_code": _promotion_code_to_json,
}


def _confirmation_secret(account: Account, name: str) -> JsonObject | None:
    """https://docs.stripe.com/api/invoices/object#invoice_object-confirmation_secret."""
    secret = account.invoices.find(name).client_secret
    return None if secret is None else {"client_secret": secret, "type": "payment_intent"}


def invoice_payments_to_json(invoice: Invoice) -> list[JsonObject]:
    """Return the payments of an invoice: one, of its payment intent.

    https://docs.stripe.com/api/invoice-payment/object
    """
    intent = invoice.payment_intent
    if intent is None:
        return []
    payment: JsonObject = {
        "id": f"inpay_{intent.removeprefix('pi_')}",
        "object": "invoice_payment",
        "amount_paid": invoice.amount_paid or None,
        "amount_requested": invoice.amount_due,
        "currency": invoice.currency,
        "invoice": invoice.id,
        "is_default": True,
        "payment": {"payment_intent": intent, "type": "payment_intent"},
        "status": "paid" if invoice.status == "paid" else "open",
    }
    return [payment]


def _invoice_payments(account: Account, name: str) -> JsonObject:
    invoice = account.invoices.find(name)
    return _list_to_json(invoice_payments_to_json(invoice), url=f"/v1/invoice_payments?invoice={invoice.id}")


# The kind of an object and the name of a field that is present only if it is expanded.
HIDDEN_UNTIL_EXPANDED: Final[Mapping[tuple[str, str], Shower]] = {
    ("checkout.session", "line_items"): lambda account, name: _list_to_json(
        line_items_to_json(account.checkouts.find(name), prices=account.prices, products=account.products),
        url=f"/v1/checkout/sessions/{name}/line_items",
    ),
    ("coupon", "applies_to"): _applies_to_json,
    ("invoice", "confirmation_secret"): _confirmation_secret,
    ("invoice", "payments"): _invoice_payments,
    ("price", "tiers"): lambda account, name: account.prices.find(name).tiers_to_json(),
}


def expand_fields(account: Account, body: JsonObject, params: Params) -> JsonObject:
    """Expand fields of a response: ``expand[]=data.latest_invoice.payments``.

    Raises:
        ApiError: it cannot be expanded, or lies deeper than four levels
            (https://docs.stripe.com/api/expanding_objects).
    """
    for wanted in params.listed("expand"):
        path = wanted.split(".")
        if len(path) - (path[0] == "data") > DEPTH_MAX:
            message = f"You cannot expand more than {DEPTH_MAX} levels of a property ({wanted})."
            raise ApiError(message, param="expand")
        _expand_path(account, body, path, wanted=wanted)
    return body


def _expand_path(account: Account, found: object, path: list[str], *, wanted: str) -> None:
    if isinstance(found, list):
        for each in cast("list[object]", found):
            _expand_path(account, each, path, wanted=wanted)
        return
    if not path or found is None:
        return
    if not isinstance(found, dict):
        raise _not_expandable(wanted)
    here, name = cast("JsonObject", found), path[0]
    if here.get("object") == "customer" and name in CUSTOMER_EXPANDABLE:
        return
    if here.get("object") == "price" and name == "currency_options":
        _expand_currency_options(account, here, path[1:], wanted=wanted)
        return
    on_demand = HIDDEN_UNTIL_EXPANDED.get((str(here.get("object")), name))
    if on_demand is not None:
        here[name] = on_demand(account, str(here["id"]))
    elif name not in here:
        raise _not_expandable(wanted)
    elif isinstance(here[name], str):
        if name not in EXPANDABLE_IDS:
            raise _not_expandable(wanted)
        here[name] = EXPANDABLE_IDS[name](account, str(here[name]))
    elif name == "discounts":
        ids = cast("list[object]", here[name])
        # Those of a preview are nowhere else.
        here[name] = [
            account.discounts.find(each).to_json()
            if isinstance(each, str) and each in account.discounts
            else each
            for each in ids
        ]
    _expand_path(account, here[name], path[1:], wanted=wanted)


def _expand_currency_options(account: Account, price: JsonObject, path: list[str], *, wanted: str) -> None:
    """Expand the amounts of a price in its currencies, or the tiers of one: ``eur.tiers``."""
    found = account.prices.find(str(price["id"]))
    options = cast("dict[str, JsonObject]", price.setdefault("currency_options", found.options_to_json()))
    if not path:
        return
    currency, *inner = path
    if currency not in options or inner not in ([], ["tiers"]):
        raise _not_expandable(wanted)
    if inner:
        options[currency]["tiers"] = found.in_currency(currency).tiers_to_json()


def _list_to_json(items: list[JsonObject], *, url: str) -> JsonObject:
    return {"object": "list", "data": items, "has_more": False, "url": url}


def _not_expandable(wanted: str) -> ApiError:
    return ApiError(f"This property cannot be expanded ({wanted}).", param="expand")

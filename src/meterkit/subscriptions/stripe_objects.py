"""Stripe's objects: their parts, lookup keys and marks; customers that are unknown there."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from meterkit.errors import StripeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.stripe.api import StripeApi

_Error = TypeVar("_Error", bound=StripeError)


def part_of(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part that is an object; empty if it is missing, or only an id."""
    inner: object = found.get(name)
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}


def text_in(found: Mapping[str, Any], name: str) -> str:
    """A text; empty if there is none."""
    inner: object = found.get(name)
    return inner if isinstance(inner, str) else ""


def id_in(found: Mapping[str, Any], name: str) -> str:
    """The id of a part, expanded or not; empty if there is none."""
    return text_in(found, name) or text_in(part_of(found, name), "id")


def fixed_price_in(price: Mapping[str, Any]) -> str:
    """A licensed price as ``AMOUNT CURRENCY INTERVAL``; empty if it has no single unit amount."""
    recurring, amount = (
        part_of(price, "recurring"),
        price.get("unit_amount_decimal") or price.get("unit_amount"),
    )
    if amount is None or price.get("tiers_mode") or part_of(price, "transform_quantity"):
        return ""
    interval, count = text_in(recurring, "interval"), recurring.get("interval_count", 1)
    every = interval if count == 1 else f"{count} {interval}s"
    return f"{amount} {text_in(price, 'currency')} {every}"


def items_in(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The items of a subscription, or of a phase of its schedule."""
    items: object = found.get("items")
    if isinstance(items, dict):
        items = cast("dict[str, Any]", items).get("data")
    return cast("list[Mapping[str, Any]]", items) if isinstance(items, list) else []


LOOKUP_MARK: Final = "meterkit"
"""Metadata key of prices and products: their lookup key."""
_METER: Final = "meter"


def base_key(plan: str) -> str:
    """The lookup key of a plan's base price."""
    return f"{LOOKUP_MARK}:{plan}:base"


def seat_key(plan: str) -> str:
    """The lookup key of the price of a plan's seats."""
    return f"{LOOKUP_MARK}:{plan}:seats"


def plan_key_in(key: str) -> str:
    """The plan that the lookup key of one of its prices names; empty: it names none."""
    mark, _, named = key.partition(":")
    plan, _, part = named.partition(":")
    return plan if mark == LOOKUP_MARK and part and not addon_in(key) else ""


def is_seat_key(key: str) -> bool:
    """Whether a key is that of the seats of a plan, of the plans file or not."""
    plan = plan_key_in(key)
    return bool(plan) and key == seat_key(plan)


def sells_seats_of(key: str, plan: str, catalog: Catalog) -> bool:
    """Whether an item with this key sells seats of its subscription's plan.

    The plans file may have that plan under another key by now: seats of a plan that it lacks count too.
    """
    return is_seat_key(key) and (plan_key_in(key) == plan or plan_key_in(key) not in catalog.plans)


def addon_key(addon: str) -> str:
    """The lookup key of the price of an add-on, whatever plan it is bought beside."""
    return f"{LOOKUP_MARK}:addon:{addon}"


def addon_in(key: str) -> str:
    """The add-on that the lookup key of a price names; empty: it names none."""
    return key.removeprefix(addon_key("")) if key.startswith(addon_key("")) else ""


def meter_key(plan: str, meter: str) -> str:
    """The lookup key of a plan's price on a meter."""
    return f"{LOOKUP_MARK}:{plan}:{_METER}:{meter}"


def meter_in(key: str) -> str:
    """The meter that the lookup key of a price names; empty: it names none."""
    _, is_metered, meter = key.partition(f":{_METER}:")
    return meter if is_metered and key.startswith(f"{LOOKUP_MARK}:") else ""


OVERRIDE_PRICE: Final = f"{LOOKUP_MARK}-override:"
"""The beginning of the lookup key of a price that an override gives one customer."""


def is_override_price(price: Mapping[str, Any]) -> bool:
    """Whether an override made a price at Stripe for one customer: it belongs to no plan."""
    return text_in(part_of(price, "metadata"), LOOKUP_MARK).startswith(OVERRIDE_PRICE)


def is_for_new_customers(price: Mapping[str, Any]) -> bool:
    """Whether new customers of a plan may get a metered price of its product.

    Not an override's, nor one whose lookup key another price has taken: its subscribers keep it.
    """
    key = text_in(part_of(price, "metadata"), LOOKUP_MARK)
    is_replaced = bool(meter_in(key)) and text_in(price, "lookup_key") != key
    return not (is_replaced or is_override_price(price))


TOP_UP: Final = "meterkit_top_up"
"""Metadata key of a top-up's invoice: the credit and the cents."""
PURCHASE: Final = "meterkit_purchase"
"""Metadata key of a top-up's invoice or page: its idempotency key and amount."""


def pack_key(credit: str, amount_cents: int) -> str:
    """The lookup key of the price of a top-up."""
    return f"{packs_key(credit)}:{amount_cents}"


def packs_key(credit: str) -> str:
    """The lookup key of the product whose prices are the top-ups of a credit."""
    return f"{LOOKUP_MARK}-top-up:{credit}"


def key_in(price: Mapping[str, Any]) -> str:
    """The lookup key of a price, also of a replaced one; empty: it was made by hand.

    The mark in its metadata comes first: the key may name a plan that has another name by now.
    """
    key, mark = text_in(price, "lookup_key"), text_in(part_of(price, "metadata"), LOOKUP_MARK)
    ours = f"{LOOKUP_MARK}:"
    return key if key.startswith(ours) and not mark.startswith(ours) else mark


def all_currencies(catalog: Catalog) -> tuple[Catalog, ...]:
    """A plans file in each of its currencies."""
    return (catalog, *catalog.other_currencies.values())


def plan_of_price(price: str, key: str, catalog: Catalog) -> str | None:
    """The plan with this base price; None if there is none. An id in the plans file takes precedence.

    The file may name a price for each of its currencies.
    """
    plans = (plan for each in all_currencies(catalog) for plan in each.plans.values())
    named = (plan.key for plan in plans if plan.price.stripe_price == price)
    keyed = (plan.key for plan in catalog.plans.values() if key == base_key(plan.key))
    return next(named, None) or next(keyed, None)


def addon_of_price(price: str, key: str, catalog: Catalog) -> str | None:
    """The add-on with this price; None if there is none. An id in the plans file takes precedence."""
    named = (addon.key for addon in catalog.addons.values() if addon.price.stripe_price == price)
    keyed = (addon for addon in catalog.addons if key == addon_key(addon))
    return next(named, None) or next(keyed, None)


def role_of_price(price: Mapping[str, Any], catalog: Catalog) -> Literal["plan", "seat", "addon", "usage"]:
    """The part of a subscription that a recurring price sells.

    A licensed price that is none of seats or add-ons counts as a plan's: the file may have lost its plan.
    """
    name, key = text_in(price, "id"), key_in(price)
    if text_in(part_of(price, "recurring"), "meter"):
        return "usage"
    if plan_of_price(name, key, catalog) is not None:
        return "plan"
    sold = all_currencies(catalog)
    seats = (plan.seat_price for each in sold for plan in each.plans.values())
    if is_seat_key(key) or name in {seat.stripe_price for seat in seats if seat is not None}:
        return "seat"
    is_addon = addon_in(key) or any(addon_of_price(name, key, each) is not None for each in sold)
    return "addon" if is_addon else "plan"


SECRETS: Final = ("latest_invoice.confirmation_secret", "pending_setup_intent")
"""Parts of a subscription that Stripe must expand for its client secret."""


def secret_of(found: Mapping[str, Any]) -> str | None:
    """Client secret of the pending PaymentIntent or SetupIntent; None if nothing needs confirmation."""
    payment = part_of(part_of(found, "latest_invoice"), "confirmation_secret")
    later = part_of(found, "pending_setup_intent")
    return text_in(payment, "client_secret") or text_in(later, "client_secret") or None


AWAITS_METHOD: Final = "meterkit_awaits_payment_method"
"""Additional key in a subscription that :mod:`meterkit.subscriptions.payment_method_gate` holds back."""
UNPAID_INVOICES: Final = "meterkit_unpaid_invoices"
"""Additional key in a subscription that owes: its open invoices since the last payment, newest first."""
NEVER_BEGAN: Final = "ended by meterkit: no payment method was saved"
"""The comment of the cancellation of a subscription that was never active."""


def subscription_method(found: Mapping[str, Any]) -> str:
    """A subscription's own payment method; empty: it has none."""
    return id_in(found, "default_payment_method") or id_in(found, "default_source")


def default_method(customer: Mapping[str, Any]) -> str:
    """The payment method of a Stripe customer that its subscriptions use by default; empty: it has none."""
    settings = part_of(customer, "invoice_settings")
    return id_in(settings, "default_payment_method") or id_in(customer, "default_source")


def has_subscription_method(found: Mapping[str, Any]) -> bool:
    """Whether a subscription has its own payment method."""
    return bool(subscription_method(found))


def has_payment_method(customer: Mapping[str, Any]) -> bool:
    """Whether a Stripe customer has a payment method that its subscriptions use by default."""
    return bool(default_method(customer))


def is_charged(found: Mapping[str, Any]) -> bool:
    """Whether Stripe charges a payment method; otherwise it sends invoices."""
    return text_in(found, "collection_method") != "send_invoice"


CHANGE_MARK: Final = "meterkit_change"
"""Metadata key of a subscription: the mark of its last change."""
MADE_MARK: Final = "meterkit_made"
"""Metadata key of a schedule that meterkit has made for a change of plan."""
RELEASED_MARK: Final = "meterkit_released_schedule"
"""Metadata key of an ending subscription: its released schedule, which a resume restores."""


def mark_of(found: Mapping[str, Any]) -> str:
    """The mark of the last change on a subscription as Stripe shows it; empty: there was none."""
    return text_in(part_of(found, "metadata"), CHANGE_MARK)


def is_missing_customer(error: StripeError) -> bool:
    """Whether Stripe refuses a request because it does not have the customer, or has deleted it."""
    return (error.code, error.param) == ("resource_missing", "customer")


async def is_unknown_at_stripe(api: StripeApi, linked: str) -> bool:
    """Whether Stripe never had such a customer; it still shows a deleted one.

    Raises:
        StripeError: Stripe refuses otherwise, or does not answer.
    """
    return await api.find(f"/v1/customers/{linked}") is None


def unknown_customer_error(error: StripeError, customer: str, linked: str) -> StripeError:
    """Explain Stripe's refusal of a linked customer that it does not know, and name the cure."""
    return same_error(
        error,
        f"customer {customer!r} is linked to Stripe customer {linked}, which Stripe does not know: the key is"
        " of another account or mode, or the Stripe emulator was restarted and has forgotten its customers."
        f" If the key is right, run `meterkit customers unlink {quote(customer)}`",
    )


def same_error(error: _Error, message: str, **own: Any) -> _Error:
    """Copy an error with another message.

    Args:
        error: of Stripe.
        message: the new one.
        own: further arguments of its kind.
    """
    return type(error)(
        message,
        status=error.status,
        type=error.type,
        code=error.code,
        param=error.param,
        request_id=error.request_id,
        **own,
    )

"""Invoices for usage alone: each is made once, on the terms of the subscription or of its customer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.errors import StripeError
from meterkit.outbox.meters_or_lines import USAGE_KEY, metadata_of
from meterkit.stripe.idempotency_keys import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter

AFTER_THE_END_MS: Final = 10 * 60_000
"""Time that Stripe has to make the last invoice of a subscription that has ended."""
_INVOICES: Final = "/v1/invoices"
_COUPONS: Final = "/v1/coupons"
_COPIED: Final = ("name", "percent_off", "amount_off", "currency")
_DAYS_UNTIL_DUE: Final = 30
_REPLAYS_MAX: Final = 16
_KEPT: Final = "keep_as_draft"


class EndedUsage(NamedTuple):
    """Usage that gets an invoice of its own.

    Attributes:
        customer: the customer's id.
        stripe_customer: at Stripe.
        currency: of its prices.
        till_ms: the first instant after it.
    """

    customer: str
    stripe_customer: str
    currency: str
    till_ms: int


class UsageInvoice(NamedTuple):
    """An invoice for usage alone.

    Attributes:
        draft: its id; None: the former ones are final, and another was not wanted.
        formers: number of the former ones.
        is_new: whether it was made now.
    """

    draft: str | None
    formers: int
    is_new: bool = False


async def find_usage_invoice(
    api: StripeApi,
    usage: EndedUsage,
    subscription: Mapping[str, Any] | None,
    checkout: Mapping[str, Any],
    *,
    is_once: bool = False,
) -> UsageInvoice:
    """Find or make the invoice of ended usage; Stripe finalizes it in an hour.

    Args:
        api: the way to Stripe.
        usage: what it bills.
        subscription: whose usage that is; None: there is none.
        checkout: options of all Checkout pages: without a subscription, their ``automatic_tax`` is taken.
        is_once: whether no second invoice is made once the first one is final.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    mark = f"{usage.till_ms}:{usage.customer}"[:500]  # The longest value of metadata.
    asked: dict[str, Parameter] = {
        "customer": usage.stripe_customer,
        "created": {"gte": usage.till_ms // 1000},
    }

    async def list_formers() -> list[dict[str, Any]]:
        return [one for one in await api.list(_INVOICES, asked) if metadata_of(one).get(USAGE_KEY) == mark]

    async def find_draft() -> dict[str, Any] | None:
        return next((one for one in await list_formers() if one.get("status") == "draft"), None)

    async def make(params: Mapping[str, Parameter]) -> dict[str, Any]:
        # Stripe refuses a key with other parameters, and the terms may change between two tries.
        gone = list[str]()
        for _ in range(_REPLAYS_MAX):
            key = key_of("usage-invoice", params, len(formers), gone)
            made = await api.post(_INVOICES, params, idempotency_key=key, find=find_draft)
            if await api.find(f"{_INVOICES}/{made['id']}") is not None:
                return made
            gone.append(str(made["id"]))  # A replayed response: a person has deleted it.
        raise StripeError(f"Stripe has lost {_REPLAYS_MAX} invoices for this usage; it is tried again")

    formers = await list_formers()
    draft = next((one for one in formers if one.get("status") == "draft"), None)
    if draft is not None:
        return UsageInvoice(str(draft["id"]), len(formers) - 1)
    if formers and is_once:
        return UsageInvoice(None, len(formers))
    params: dict[str, Parameter] = {
        "customer": usage.stripe_customer,
        "currency": usage.currency,
        "auto_advance": True,
        "metadata": {USAGE_KEY: mark},
        **await _read_terms(api, usage.stripe_customer, subscription, checkout),
    }
    try:
        made = await make(params)
    except StripeError as error:
        if subscription is None or not _refuses_coupon(error, params):
            raise
        made = await make({**params, "discounts": await _copy_coupons(api, subscription, error)})
    return UsageInvoice(str(made["id"]), len(formers), is_new=True)


def _refuses_coupon(error: StripeError, params: Mapping[str, Parameter]) -> bool:
    """Whether Stripe refuses a coupon: used up, expired or deleted, it stays on those who redeemed it."""
    is_named = (error.param or "").startswith("discounts")
    return "discounts" in params and (error.code == "coupon_expired" or is_named)


async def _copy_coupons(
    api: StripeApi, subscription: Mapping[str, Any], refused: StripeError
) -> list[Parameter]:
    """Copy the coupons of a subscription, each for one invoice; the ``discounts`` of an invoice.

    Raises:
        StripeError: ``refused``, as a coupon is not shown; or Stripe refuses a copy, or does not answer.
    """
    asked: dict[str, Parameter] = {"expand": ["discounts.source.coupon.applies_to"]}
    expanded = await api.get(f"/v1/subscriptions/{subscription['id']}", asked)
    found: list[Parameter] = []
    for discount in expanded["discounts"]:
        coupon: Mapping[str, Any] = (discount.get("source") or discount).get("coupon") or {}
        kept = {name: coupon[name] for name in _COPIED if coupon.get(name) is not None}
        if not kept.keys() & {"percent_off", "amount_off"}:
            raise refused
        terms: dict[str, Parameter] = {**kept, "duration": "once"}
        if applies_to := cast("Mapping[str, Any] | None", coupon.get("applies_to")):
            terms["applies_to"] = {"products": applies_to["products"]}
        name = key_of("coupon", terms)
        if await api.find(f"{_COUPONS}/{name}") is None:
            await api.post(_COUPONS, {"id": name, **terms}, idempotency_key=name)
        found.append({"coupon": name})
    return found


def explain_no_invoice(subscription: Mapping[str, Any]) -> str:
    """Explain why usage of a subscription gets no invoice of its own; empty: it gets one.

    An invoice takes an amount where these fields of a subscription are percentages
    (https://docs.stripe.com/api/invoices/create).
    """
    transfer: Mapping[str, Any] = subscription.get("transfer_data") or {}
    if subscription.get("application_fee_percent"):
        return "its subscription has an application fee in percent, which an invoice of its own cannot have"
    if transfer.get("amount_percent"):
        return "its subscription transfers a percentage, which an invoice of its own cannot do"
    if _paused_behavior(subscription) not in {"", _KEPT}:
        return "collection of its subscription is paused, so it is not to be paid"
    return ""


def _paused_behavior(subscription: Mapping[str, Any]) -> str:
    """Read what becomes of invoices while collection is paused; empty: it is not.

    https://docs.stripe.com/billing/subscriptions/pause-payment
    """
    paused: Mapping[str, Any] = subscription.get("pause_collection") or {}
    return str(paused.get("behavior") or "")


def copy_terms(subscription: Mapping[str, Any]) -> dict[str, Parameter]:
    """Copy payment method, taxes, connected accounts and way of collection of a subscription."""
    found: dict[str, Parameter] = {}
    for name in ("default_payment_method", "default_source"):
        if isinstance(method := subscription.get(name), str):
            found[name] = method
    automatic_tax: Mapping[str, Any] = subscription.get("automatic_tax") or {}
    if automatic_tax.get("enabled"):
        found["automatic_tax"] = {"enabled": True}
    if rates := subscription.get("default_tax_rates"):
        found["default_tax_rates"] = [str(rate["id"]) for rate in rates]
    settings: Mapping[str, Any] = subscription.get("invoice_settings") or {}
    if tax_ids := settings.get("account_tax_ids"):
        found["account_tax_ids"] = [one if isinstance(one, str) else str(one["id"]) for one in tax_ids]
    if isinstance(account := subscription.get("on_behalf_of"), str):
        found["on_behalf_of"] = account
    transfer: Mapping[str, Any] = subscription.get("transfer_data") or {}
    if isinstance(account := transfer.get("destination"), str):
        found["transfer_data"] = {"destination": account}
    if _paused_behavior(subscription) == _KEPT:
        found["auto_advance"] = False
    if subscription.get("collection_method") == "send_invoice":
        found["collection_method"] = "send_invoice"
        found["days_until_due"] = int(subscription.get("days_until_due") or _DAYS_UNTIL_DUE)
    return found


async def _read_terms(
    api: StripeApi,
    stripe_customer: str,
    subscription: Mapping[str, Any] | None,
    checkout: Mapping[str, Any],
) -> dict[str, Parameter]:
    """Read the terms of an invoice of its own. Stripe sends it by e-mail if there is nothing to charge.

    Args:
        api: the way to Stripe.
        stripe_customer: the customer at Stripe.
        subscription: whose usage it bills; None: there is none.
        checkout: options of all Checkout pages: without a subscription, their ``automatic_tax`` is taken.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    terms: dict[str, Parameter]
    if subscription is None:
        terms = {name: checkout[name] for name in ("automatic_tax",) if name in checkout}
    else:
        terms = copy_terms(subscription)
    if subscription is not None and subscription.get("discounts"):
        asked: dict[str, Parameter] = {"expand": ["discounts"]}
        expanded = await api.get(f"/v1/subscriptions/{subscription['id']}", asked)
        if coupons := [coupon for one in expanded["discounts"] if (coupon := _coupon_of(one))]:
            terms["discounts"] = [{"coupon": coupon} for coupon in coupons]
    if not terms.keys() & {"default_payment_method", "default_source", "collection_method"}:
        customer = await api.get(f"/v1/customers/{stripe_customer}")
        settings: Mapping[str, Any] = customer.get("invoice_settings") or {}
        if not (settings.get("default_payment_method") or customer.get("default_source")):
            terms |= {"collection_method": "send_invoice", "days_until_due": _DAYS_UNTIL_DUE}
    return terms


def _coupon_of(discount: Mapping[str, Any]) -> str:
    source: Mapping[str, Any] = discount.get("source") or discount
    coupon: Any = source.get("coupon") or ""
    return coupon if isinstance(coupon, str) else str(coupon["id"])

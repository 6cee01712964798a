"""Findings about the meters at Stripe: missing, inactive, or with other settings."""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.amount_texts import money
from meterkit.catalog.meters import billed_meters
from meterkit.catalog.model_prices import sold_in
from meterkit.catalog.overage_prices import ITEMS_MAX
from meterkit.errors import StripeError, UnknownPlanError
from meterkit.health.findings import Finding, named, single
from meterkit.health.health import UnseenError
from meterkit.stripe.api import StripeApi
from meterkit.stripe.meters import meter_differences
from meterkit.subscriptions.plan_prices import prices_by_key, prices_of
from meterkit.subscriptions.stripe_objects import pack_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.catalog import Catalog, Meter
    from meterkit.customers.customers import Customers
    from meterkit.subscriptions.item_changes import PlanPrices

UNTOLD: Final = Finding(
    check="stripe",
    problem="usage goes by meter event streams, and no process receives Stripe's error reports: no webhook"
    " secret is set",
    cure="have Stripe post its thin events about meters to the webhook endpoint, and set"
    " METERKIT_STRIPE_WEBHOOK_SECRET",
)


def meters_at_stripe(differences: Iterable[str]) -> list[Finding]:
    """What keeps Stripe's meters from taking what is sent; as :func:`meter_differences` says it."""
    found: list[Finding] = []
    for difference in differences:
        problem, separator, cure = difference.rpartition(": ")
        if not separator or not cure.startswith("make a meter"):
            problem, cure = difference, "run `meterkit stripe sync`, or mend the event name in the plans file"
        found.append(Finding(check="stripe", problem=problem, cure=cure))
    return found


def refused_by_stripe(error: StripeError) -> Finding | str:
    """The finding for a refusal to list meters; a text if it only prevents the check."""
    message = str(error).partition(": ")[2]
    if error.status == HTTPStatus.FORBIDDEN:
        return f"the Stripe key may not list meters: {message}"
    if error.status == HTTPStatus.UNAUTHORIZED:
        return Finding(
            check="stripe",
            problem=f"Stripe refuses the key: {message}",
            cure="set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account",
        )
    return Finding(
        check="stripe",
        problem=f"the meters at Stripe cannot be read: {message}",
        cure="see that this host reaches METERKIT_STRIPE_API_BASE, by default https://api.stripe.com",
    )


async def _top_ups_without_price(api: StripeApi, catalog: Catalog) -> list[Finding]:
    """The amounts that cannot be bought yet; none where the key may not list prices."""
    sold = sold_in(catalog.credits)
    if sold is None:
        return []
    credit, top_ups = sold
    keys = {pack_key(credit, amount): amount for amount in top_ups.amounts}
    try:
        there = await prices_by_key(api, [*keys])
    except StripeError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return []
        raise
    missing = ", ".join(money(amount, catalog.currency) for key, amount in keys.items() if key not in there)
    if not missing:
        return []
    problem = f"Stripe has no price of these top-ups of {credit}: {missing}"
    return [Finding(check="stripe", problem=problem, cure="run `meterkit stripe sync`")]


async def _prices_of_plans(
    api: StripeApi, catalog: Catalog, meters: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """The plans whose prices by model Stripe lacks, or that have too many prices with those at Stripe alone.

    None where the key may not list prices.
    """
    ids = {meter["event_name"]: meter["id"] for meter in meters if meter["status"] == "active"}
    found: list[Finding] = []
    for plan in catalog.plans.values():
        billed = billed_meters(catalog.meters, plan)
        by_model = [meter for meter in billed if meter.is_row or plan.entitlements[meter.name].overage.rows]
        if not by_model and all(
            plan.entitlements[one.name].overage.amount_cents is not None for one in billed
        ):
            continue
        try:
            prices = await prices_of(api, catalog, plan)
        except UnknownPlanError:
            missing = ["the plan itself"]
        except StripeError as error:
            if error.status == HTTPStatus.FORBIDDEN:
                return []
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            missing = [f"the plan itself ({plan.price.stripe_price})"]
        else:
            missing = _unpriced(by_model, prices, ids)
            found += too_many_items(plan.key, 1 + (prices.seat is not None) + len(prices.metered))
        if by_model and missing:
            problem = f"plan {plan.key}: Stripe has no price of {named(missing)}"
            found.append(Finding(check="stripe", problem=problem, cure="run `meterkit stripe sync`"))
    return found


def _unpriced(meters: Iterable[Meter], prices: PlanPrices, ids: Mapping[str, str]) -> list[str]:
    """The meters that no price of a plan bills."""
    priced = {*prices.metered.values()}
    return [
        meter.name
        for meter in meters
        if meter.stripe is not None
        and (there := ids.get(meter.stripe.event_name)) is not None  # Else the meter is a finding.
        and there not in priced
    ]


def too_many_items(plan: str, items: int) -> list[Finding]:
    """A plan with more prices than a subscription takes, those that are not in the plans file included."""
    if items <= ITEMS_MAX:
        return []
    problem = (
        f"plan {plan} has {items} prices at Stripe: its own, of seats and of overage; a subscription takes"
        f" {ITEMS_MAX}, so that Stripe refuses to begin one"
    )
    cure = (
        "bill fewer meters, join patterns of models, or archive metered prices of its product that are unused"
    )
    return single(check="stripe", problem=problem, cure=cure)


async def look_at_meters(parts: Parts) -> tuple[str, list[Finding]]:
    """How many meters Stripe has, and what is wrong with those of the plans file.

    Raises:
        UnseenError: no key is set, or it may not ask.
    """
    if parts.settings.stripe_api_key is None:
        raise UnseenError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api = StripeApi(parts.settings)
    try:
        meters = await api.list("/v1/billing/meters")
        unsold = await _top_ups_without_price(api, parts.store.catalog)
        unsold += await _prices_of_plans(api, parts.store.catalog, meters)
        unsold += await links_to_nobody(api, parts.customers)
    except StripeError as error:
        refused = refused_by_stripe(error)
        if isinstance(refused, str):
            raise UnseenError(refused) from None
        return "", [refused]
    finally:
        await api.close()
    found = meters_at_stripe(meter_differences(parts.store.catalog, meters)) + unsold
    is_told = parts.settings.stripe_transport == "v1" or bool(parts.settings.stripe_webhook_secret)
    return f"{len(meters):,} meters", found if is_told else [*found, UNTOLD]


_LINKS_MAX: Final = 1_000
_PAGES_MAX: Final = 10
_ASKED_MAX: Final = 20


async def links_to_nobody(api: StripeApi, customers: Customers) -> list[Finding]:
    """Customers who are linked to a Stripe customer that Stripe does not have.

    Compares the first thousand links with the first pages of Stripe's list, and asks for a few of the rest:
    the list leaves out customers of test clocks. None where the key may not read customers.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    linked: dict[str, str] = {}
    async for customer in customers.list():
        if customer.stripe_customer is not None and len(linked) < _LINKS_MAX:
            linked[customer.stripe_customer] = customer.customer
    try:
        missing = await _missing(api, set(linked))
    except StripeError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return []
        raise
    if not missing:
        return []
    pairs = [f"{linked[stripe_customer]} ({stripe_customer})" for stripe_customer in missing]
    return [
        Finding(
            check="links",
            problem=f"Stripe does not have the customers that these are linked to: {named(pairs)};"
            " their usage is on no invoice",
            cure="meterkit customers unlink CUSTOMER, then link the Stripe customer that pays",
        )
    ]


async def _missing(api: StripeApi, unseen: set[str]) -> list[str]:
    if not unseen:
        return []
    pages = 0
    async with aclosing(api.pages("/v1/customers")) as listed:
        async for page in listed:
            unseen -= {str(found["id"]) for found in page}
            pages += 1
            if not unseen or pages == _PAGES_MAX:
                break
    return [one for one in sorted(unseen)[:_ASKED_MAX] if await _is_missing(api, one)]


async def _is_missing(api: StripeApi, stripe_customer: str) -> bool:
    try:
        found = await api.get(f"/v1/customers/{stripe_customer}")
    except StripeError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return True
        raise
    return found.get("deleted") is True

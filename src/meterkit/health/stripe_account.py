"""Checks of the Stripe account: meters, prices of plans and top-ups, linked customers."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.meters import billed_meters
from meterkit.catalog.overage_prices import ITEMS_MAX
from meterkit.catalog.value_parsers import money
from meterkit.customers.drift_records import DriftRecords
from meterkit.customers.states import list_states
from meterkit.errors import StripeError, UnknownPlanError
from meterkit.insights.health_report import CheckSkippedError, Finding, join_names, one_finding
from meterkit.outbox.sealing_terms import line_products
from meterkit.store.concurrent_calls import run_together
from meterkit.stripe.api import StripeApi
from meterkit.stripe.meter_differences import meter_differences
from meterkit.stripe.prices import OPTIONS, currencies_of, fetch_price, with_option_tiers
from meterkit.subscriptions.plan_prices import prices_by_key, prices_of
from meterkit.subscriptions.price_problems import describe_as_sold, has_other_amounts
from meterkit.subscriptions.stripe_objects import pack_key
from meterkit.subscriptions.wanted_prices import shape_of, wanted_addons, wanted_plans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.catalog import Catalog, Meter, Plan
    from meterkit.customers.drift_records import Drift
    from meterkit.store.store import Store
    from meterkit.subscriptions.item_changes import PlanPrices
    from meterkit.subscriptions.wanted_prices import WantedPrice


_CHECKS_AT_ONCE: Final = 8
"""The operator pages wait three seconds for all checks."""

NO_ERROR_REPORTS: Final = Finding(
    check="stripe",
    problem="usage is sent by meter event streams, and no process receives Stripe's error reports: no webhook"
    " secret is set",
    cure="let Stripe post thin events about meters to the webhook endpoint, and set"
    " METERKIT_STRIPE_WEBHOOK_SECRET",
)


def find_meter_differences(differences: Iterable[str]) -> list[Finding]:
    """Report meters at Stripe that would not accept events, by :func:`meter_differences`."""
    found: list[Finding] = []
    for difference in differences:
        problem, separator, cure = difference.rpartition(": ")
        if not separator or not cure.startswith("make a meter"):
            problem, cure = (
                difference,
                "run `meterkit stripe sync`, or correct the event name in the plans file",
            )
        found.append(Finding(check="stripe", problem=problem, cure=cure))
    return found


def read_refusal(error: StripeError, objects: Literal["meters", "products"] = "meters") -> Finding | str:
    """Turn a refusal to list objects into a finding, or into the reason to skip the check."""
    message = str(error).partition(": ")[2]
    if error.status == HTTPStatus.FORBIDDEN:
        return f"the Stripe key may not list {objects}: {message}"
    if error.status == HTTPStatus.UNAUTHORIZED:
        return Finding(
            check="stripe",
            problem=f"Stripe refuses the key: {message}",
            cure="set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account",
        )
    return Finding(
        check="stripe",
        problem=f"the {objects} at Stripe cannot be read: {message}",
        cure="check that this host reaches METERKIT_STRIPE_API_BASE, by default https://api.stripe.com",
    )


async def _find_unpriced_top_ups(api: StripeApi, catalog: Catalog) -> list[Finding]:
    """Report top-up amounts without a price."""
    sold = find_top_ups(catalog.credits)
    if sold is None:
        return []
    credit, top_ups = sold
    keys = {pack_key(credit, amount): amount for amount in top_ups.amounts}
    there = await prices_by_key(api, [*keys])
    missing = ", ".join(money(amount, BALANCE_CURRENCY) for key, amount in keys.items() if key not in there)
    if not missing:
        return []
    problem = f"Stripe has no price for these top-ups of {credit}: {missing}"
    return [Finding(check="stripe", problem=problem, cure="run `meterkit stripe sync`")]


async def _find_unsold(api: StripeApi, catalog: Catalog) -> list[Finding]:
    """Report add-ons without a price, and prices without a currency, or the amount, of the plans file.

    In one currency, prices of usage are left out: models have many.
    """
    addons = [price for addon in wanted_addons(catalog) for price in addon.prices]
    plans = [price for plan in wanted_plans(catalog) for price in plan.prices]
    if len(catalog.currencies) == 1:
        plans = [price for price in plans if price.shape.meter is None]
    there = await _fetch_wanted(api, [*addons, *plans])
    unsold = [price.product.name for price in addons if price not in there]
    lacking = {
        price.name: missing
        for price, found in there.items()
        if (missing := [one.currency for one in price.shapes if one.currency not in currencies_of(found)])
    }
    problems: list[str] = []
    if unsold:
        problems.append(f"Stripe has no price for these add-ons: {join_names(unsold)}")
    if lacking:
        named = [f"{name} ({', '.join(missing).upper()})" for name, missing in lacking.items()]
        problems.append(f"prices at Stripe lack a currency of the plans file: {join_names(named)}")
    if differing := [
        f"{price.name} ({describe_as_sold(found, price)}; in the file {price.describe()})"
        for price, found in there.items()
        if has_other_amounts(found, price, meter=shape_of(found).meter)
    ]:
        problems.append(f"new customers pay other prices than the plans file says: {join_names(differing)}")
    cure = "run `meterkit stripe sync`, and change the plans file where it says so"
    return [Finding(check="stripe", problem=problem, cure=cure) for problem in problems]


async def _fetch_wanted(
    api: StripeApi, wanted: Sequence[WantedPrice]
) -> dict[WantedPrice, Mapping[str, Any]]:
    """Fetch prices with their tiers and currencies, as far as Stripe has them."""
    keys = [price.key for price in wanted if price.stripe_price is None]
    keyed = await prices_by_key(api, keys, expand=("data.tiers", f"data.{OPTIONS}"))

    async def fetch(price: WantedPrice) -> Mapping[str, Any] | None:
        if price.stripe_price is not None:
            return await fetch_price(api, price.stripe_price)
        there = keyed.get(price.key)
        return None if there is None else await with_option_tiers(api, there)

    fetched = await run_together([partial(fetch, price) for price in wanted], at_once=_CHECKS_AT_ONCE)
    return {price: there for price, there in zip(wanted, fetched, strict=True) if there is not None}


async def _find_unpriced_plans(
    api: StripeApi, catalog: Catalog, meters: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Report plans at Stripe that lack a price of a billed meter or of a model, or have too many prices.

    Usage without a price is delivered and never billed.
    """
    plans = [plan for plan in catalog.plans.values() if billed_meters(catalog.meters, plan)]
    checks = [partial(_find_unpriced, api, catalog, plan, meters) for plan in plans]
    return [one for found in await run_together(checks, at_once=_CHECKS_AT_ONCE) for one in found]


async def _find_unpriced(
    api: StripeApi, catalog: Catalog, plan: Plan, meters: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Report the missing prices of a plan, or that it has too many."""
    billed, found = billed_meters(catalog.meters, plan), list[Finding]()
    by_model = [one for one in billed if one.is_row or plan.entitlements[one.name].overage.rows]
    # `stripe sync` makes no other price: the rest is sold by prices that were made at Stripe.
    priced = [
        one
        for one in billed
        if one in by_model or plan.entitlements[one.name].overage.amount_cents is not None
    ]
    try:
        prices = await prices_of(api, catalog, plan, meters)
    except UnknownPlanError:
        missing = ["the plan itself"] if by_model else []
    except StripeError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        missing = [f"the plan itself ({plan.price.stripe_price})"] if by_model else []
    else:
        ids = {meter["event_name"]: meter["id"] for meter in meters if meter["status"] == "active"}
        missing = _list_unpriced_meters(priced, prices, ids)
        items = 1 + (prices.seat is not None) + len(prices.metered) + len(plan.addons)
        found += find_too_many_items(plan.key, items)
    if missing:
        problem = f"plan {plan.key}: Stripe has no price for {join_names(missing)}"
        found.append(Finding(check="stripe", problem=problem, cure="run `meterkit stripe sync`"))
    return found


async def _find_together(checks: Iterable[Callable[[], Awaitable[list[Finding]]]]) -> list[Finding]:
    """Run checks of Stripe concurrently; the findings are in the order of the checks.

    A check that asks for what the key may not read has none.
    """

    async def run_permitted(check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
        try:
            return await check()
        except StripeError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            return []

    found = await run_together([partial(run_permitted, check) for check in checks], at_once=_CHECKS_AT_ONCE)
    return [finding for findings in found for finding in findings]


def _list_unpriced_meters(meters: Iterable[Meter], prices: PlanPrices, ids: Mapping[str, str]) -> list[str]:
    """List the meters that no price of a plan bills."""
    priced = {*prices.metered.values()}
    return [
        meter.name
        for meter in meters
        if meter.stripe is not None
        and (there := ids.get(meter.stripe.event_name)) is not None  # Otherwise the meter is a finding.
        and there not in priced
    ]


def find_too_many_items(plan: str, items: int) -> list[Finding]:
    """Report a plan with more prices than a subscription may have, including prices made at Stripe."""
    if items <= ITEMS_MAX:
        return []
    problem = (
        f"plan {plan} has {items} prices at Stripe for itself, seats, add-ons and overage; a subscription may"
        f" have {ITEMS_MAX}, so Stripe refuses new ones"
    )
    cure = "bill fewer meters, join model patterns, or archive unused metered prices of its product"
    return one_finding(check="stripe", problem=problem, cure=cure)


async def check_meters(parts: Parts) -> tuple[str, list[Finding]]:
    """Compare the meters and prices at Stripe with the plans file.

    Where meterkit writes invoice lines, it compares the products that these lines name.

    Raises:
        CheckSkippedError: no key is set, or it may not list meters.
    """
    if parts.settings.stripe_api_key is None:
        raise CheckSkippedError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api, catalog = StripeApi(parts.settings), parts.store.catalog
    by_lines = catalog.billing.is_by_lines
    checks = [
        partial(_find_unpriced_top_ups, api, catalog),
        partial(_find_unsold, api, catalog),
        partial(find_broken_links, api, parts.store),
    ]
    try:
        if by_lines:
            products = await _count_line_products(api, catalog)
            return f"{products:,} products of invoice lines", await _find_together(checks)
        meters = await api.list("/v1/billing/meters")
        checks.insert(2, partial(_find_unpriced_plans, api, catalog, meters))
        unsold = await _find_together(checks)
    except StripeError as error:
        refused = read_refusal(error, "products" if by_lines else "meters")
        if isinstance(refused, str):
            raise CheckSkippedError(refused) from None
        return "", [refused]
    finally:
        await api.close()
    found = find_meter_differences(meter_differences(parts.store.catalog, meters)) + unsold
    is_reported = parts.settings.stripe_transport == "v1" or bool(parts.settings.stripe_webhook_secret)
    return f"{len(meters):,} meters", found if is_reported else [*found, NO_ERROR_REPORTS]


async def _count_line_products(api: StripeApi, catalog: Catalog) -> int:
    """Count the products of invoice lines; a missing one is made with its first line."""
    paths = [f"/v1/products/{product['id']}" for _, product in line_products(catalog)]
    return sum([await api.find(path) is not None for path in paths])


_LINKS_MAX: Final = 1_000
_PAGES_MAX: Final = 10
_ASKED_MAX: Final = 20


async def find_broken_links(api: StripeApi, store: Store) -> list[Finding]:
    """Report customers who are linked to a Stripe customer that does not exist.

    Compares the first thousand links with the first pages of Stripe's list, and fetches a few of the rest:
    the list leaves out customers of test clocks.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    linked, admin = dict[str, str](), await store.admin()
    # The check of the plans reports a state that cannot be read.
    async with aclosing(list_states(admin, store.keys, _LINKS_MAX)) as states:
        async for customer, state in states:
            if state.stripe_customer is not None and len(linked) < _LINKS_MAX:
                linked[state.stripe_customer] = customer
    missing = await _list_missing_customers(api, set(linked))
    if not missing:
        return []
    pairs = [f"{linked[stripe_customer]} ({stripe_customer})" for stripe_customer in missing]
    return [
        Finding(
            check="links",
            problem=f"these customers are linked to Stripe customers that do not exist: {join_names(pairs)};"
            " their usage is not billed",
            cure="meterkit customers unlink CUSTOMER, then link the Stripe customer that pays",
        )
    ]


async def _list_missing_customers(api: StripeApi, unseen: set[str]) -> list[str]:
    if not unseen:
        return []
    pages = 0
    async with aclosing(api.pages("/v1/customers")) as listed:
        async for page in listed:
            unseen -= {str(found["id"]) for found in page}
            pages += 1
            if not unseen or pages == _PAGES_MAX:
                break
    return [one for one in sorted(unseen)[:_ASKED_MAX] if not await api.has_customer(one)]


async def check_subscriptions(parts: Parts) -> tuple[str, list[Finding]]:
    """Check for subscriptions that differ from the plans file.

    Raises:
        StoreError: the store does not answer.
    """
    found = await DriftRecords(parts.store).all()
    return f"{len(found):,} differ", find_drifts(found)


def find_drifts(found: Mapping[str, Sequence[Drift]]) -> list[Finding]:
    """Report subscriptions that differ from the plans file."""
    inexact = {
        customer: odd
        for customer, drifts in found.items()
        if (odd := [one.message for one in drifts if one.kind == "inexact_price"])
    }
    found = {
        customer: drifts
        for customer, drifts in found.items()
        if any(one.kind != "inexact_price" for one in drifts)
    }
    return [*_find_differences(found), *_find_inexact_prices(inexact)]


def _find_inexact_prices(found: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Report prices that have no exact price per unit, by customer."""
    if not found:
        return []
    whose = join_names(
        [f"of customer {customer}: {message}" for customer, messages in found.items() for message in messages]
    )
    return one_finding(
        check="subscriptions",
        problem=f"prices at Stripe that cannot be computed exactly, {whose}",
        cure="move the subscription at Stripe to a price per unit in the plans file's currency, unless this"
        " is intended; `meterkit subscriptions check` lists all",
    )


def _find_differences(found: Mapping[str, Sequence[Drift]]) -> list[Finding]:
    if not found:
        return []
    count = "1 subscription differs" if len(found) == 1 else f"{len(found):,} subscriptions differ"
    firsts = {
        customer: next(one.message for one in drifts if one.kind != "inexact_price")
        for customer, drifts in found.items()
    }
    whose = join_names([f"of customer {customer} ({message})" for customer, message in firsts.items()])
    return one_finding(
        check="subscriptions",
        problem=f"{count} from the plans file: {whose}",
        cure="`meterkit subscriptions check` lists all; `meterkit subscriptions repair CUSTOMER` repairs one,"
        " or prints what you must decide",
    )

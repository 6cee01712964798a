"""Checks of the plans file: allotments without effect, missing plans, refused overrides, unpriced models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from llm_usage.listed_models import providers_of
from meterkit.catalog import override
from meterkit.catalog.errors import find_mistakes
from meterkit.catalog.subjects import override_subject
from meterkit.decisions.compiled_decision import demands_of
from meterkit.decisions.limit_policies import gauge_terms
from meterkit.decisions.periods import from_ms
from meterkit.insights.health_report import Finding, join_names, one_finding
from meterkit.store.allotment import find_allotment_key, find_single_keys
from meterkit.store.plan_definitions import exchange_plans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.assembly import Parts
    from meterkit.catalog import Catalog, Plan, Route
    from meterkit.customers.customers import Customer
    from meterkit.redis.local_allotments import LocalAllotments


ALLOTMENTS: Final = "allotments"


def describe_allotments(catalog: Catalog) -> str | None:
    """Describe which plans and routes allotments leave out, and why; None if allotments are off."""
    lines = {plan.key: _routes_with_allotments(catalog, plan) for plan in catalog.plans.values()}
    if not any(lines.values()):
        return None
    found = [
        f"plan {key} ({', '.join(reasons)})"
        for key, routes in lines.items()
        if (reasons := [*dict.fromkeys(_list_exclusions(catalog, catalog.plans[key], routes))])
    ]
    found += [
        f"route {route.match} ({', '.join(keys)})"
        for route in catalog.routes
        if any(route in routes for routes in lines.values()) and (keys := find_single_keys(route))
    ]
    return f"no effect in {'; '.join(found)}" if found else "in effect in each plan and route"


def describe_units(allotments: Sequence[LocalAllotments]) -> str:
    """Describe the units that this process was allotted; empty if none."""
    granted = sum(one.granted for one in allotments)
    if not granted:
        return ""
    unused, returned = sum(one.unused for one in allotments), sum(one.returned for one in allotments)
    return f"; of {granted:,} units of this process, {unused:,} are unused and {returned:,} were returned"


def _routes_with_allotments(catalog: Catalog, plan: Plan) -> Sequence[Route]:
    return [
        route
        for route in catalog.routes
        if not route.exempt and find_allotment_key(route, plan, catalog) != "off"
    ]


def _list_exclusions(catalog: Catalog, plan: Plan, routes: Sequence[Route]) -> Iterator[str]:
    """List the limits of a plan that keep requests of these routes from allotments."""
    for route in routes:
        if find_single_keys(route):
            continue
        meters = demands_of(route, catalog)
        for name in meters:
            if any(rate.algorithm == "token-bucket" for rate in plan.entitlements[name].rates):
                yield f"token bucket of {name}"
        for gauge, _ in gauge_terms(plan.entitlements, catalog, meters, keeps=False):
            yield f"limit of {gauge.measure.policy.meter}"
        if plan.subjects:
            yield f"requests of a {' or '.join(plan.subjects)}"


async def check_plans_of_customers(parts: Parts) -> tuple[str, list[Finding]]:
    """Find the customers whose plan is not in the plans file, and those with overrides that it refuses.

    A scheduled change to a plan of the file needs no finding.

    Raises:
        StoreError: the store does not answer.
        MeterkitError: the store's user may not list customers.
    """
    await exchange_plans(await parts.store.admin(), parts.store, writes=False)
    catalog = parts.store.catalog
    on_plan, by_problem = dict[str, list[str]](), dict[str, list[str]]()
    in_currency = dict[str, list[str]]()
    seen = 0
    async for customer in parts.customers.list():
        seen += 1
        is_leaving = customer.plan == customer.missing_plan and customer.pending_plan in catalog.plans
        if customer.missing_plan is not None and not is_leaving:
            on_plan.setdefault(customer.missing_plan, []).append(customer.customer)
        if not catalog.in_currency(customer.currency).has_amounts:
            in_currency.setdefault(customer.currency, []).append(customer.customer)
        for problem in ignored_overrides(customer, catalog):
            by_problem.setdefault(problem, []).append(customer.customer)
    return f"{seen:,} customers", [
        *report_missing_plans(on_plan, catalog),
        *report_ignored_overrides(by_problem, catalog),
        *report_lost_currencies(in_currency, catalog),
    ]


def report_missing_plans(on_plan: Mapping[str, Sequence[str]], catalog: Catalog) -> list[Finding]:
    """Report plans that the plans file lacks, with the customers on each."""
    cure = (
        "put the plan back, beside the one that replaces it, and run `meterkit plans migrate FROM TO` before"
        " you remove it; if it was set by hand, or TO has its `stripe_price`, run that at once"
    )
    found = list[Finding]()
    for plan, customers in on_plan.items():
        is_known = catalog.find_plan(plan) is not None
        have = "keep its terms" if is_known else f"have the default plan {catalog.default_plan!r}"
        problem = f"plan {plan!r} is not in {catalog.source}; its customers {have}: {join_names(customers)}"
        found.append(Finding(check="plans", problem=problem, cure=cure))
    return found


def report_lost_currencies(billed_in: Mapping[str, Sequence[str]], catalog: Catalog) -> list[Finding]:
    """Report currencies that the plans file lacks, with the customers who are billed in each."""
    return [
        Finding(
            check="plans",
            problem=f"{catalog.source} has no prices in {currency.upper()}, in which these customers are"
            f" billed: {join_names(customers)}; they keep the prices of their subscriptions, and other usage"
            " of theirs is not billed",
            cure=f"add {currency} to `currency`, with its amounts",
        )
        for currency, customers in billed_in.items()
    ]


def ignored_overrides(customer: Customer, catalog: Catalog) -> list[str]:
    """Reasons why overrides of a customer have no effect: a later plans file than theirs refuses them."""
    catalog = catalog.in_currency(customer.currency)
    plan = catalog.plan_or_default(customer.plan)
    found = [*find_mistakes(lambda: override(catalog, plan, customer.overrides, strict=True))]
    features = customer.feature_overrides.keys() - catalog.features
    found += [f"{name}: there is no such feature" for name in sorted(features)]
    for member, limits in customer.subject_overrides.items():
        kind = member.partition(":")[0]
        given = next((one.subjects[kind] for one in (plan, *catalog.all_plans) if kind in one.subjects), None)
        if given is None:
            found.append(f"{kind}: no plan has limits of such subjects")
        else:
            found += find_mistakes(partial(override_subject, catalog, given, limits, strict=True))
    return found


def report_ignored_overrides(by_problem: Mapping[str, Sequence[str]], catalog: Catalog) -> list[Finding]:
    """Report overrides that the plans file refuses, with the customers of each."""
    return [
        Finding(
            check="plans",
            problem=f"as {catalog.source} is now, an override of customers {join_names(customers)} has no"
            f" effect: {problem}",
            cure="override it anew, or take it back: `meterkit customers override CUSTOMER METER --clear`",
        )
        for problem, customers in by_problem.items()
    ]


MODELS: Final = "models"
_SHOWN_MAX: Final = 64


async def find_unpriced_models(parts: Parts) -> tuple[str, list[Finding]]:
    """Find the models that were called today and yesterday and have no price now.

    Raises:
        StoreError: the store does not answer.
    """
    compiled = parts.store.cache
    at = from_ms(compiled.now_ms())
    found = {
        model: calls
        for model, calls in (await parts.store.unpriced.read()).items()
        if not compiled.has_price(model, at)
    }
    return f"{len(found):,} without a price", report_unpriced_models(found)


def _describe_model(model: str, count: int) -> str:
    choices = providers_of(model)
    where = f"; `provider` may be: {', '.join(choices)}" if choices else ""
    return f"{model[:_SHOWN_MAX]!r} (calls: {count:,}{where})"


def report_unpriced_models(calls: Mapping[str, int]) -> list[Finding]:
    """Report models without a price, with their calls."""
    if not calls:
        return []
    models = join_names([_describe_model(model, count) for model, count in calls.items()])
    count = "1 model has" if len(calls) == 1 else f"{len(calls):,} models have"
    return one_finding(
        check=MODELS,
        problem=f"{count} no price, so calls of today and yesterday cost nothing: {models}",
        cure="add their prices to the plans file, set the `provider` of the route, or refuse them"
        " with `unknown_model: deny`",
    )

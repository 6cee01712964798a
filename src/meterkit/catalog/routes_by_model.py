"""Routes against the limits of plans: by the model that a request names, and quantities that never fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.entitlements import ceiling, is_limited
from meterkit.catalog.routes import additions_of, reads_tokens, requested_quantities
from meterkit.catalog.usage_meters import USAGE_METERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.errors import Problems
    from meterkit.catalog.model_prices import ModelPrices, PriceRows
    from meterkit.catalog.models import Addon, Catalog, Entitlement, Meter, Plan, Route
    from meterkit.catalog.routes import RouteTable

_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "WS"})


def mark_model_readers(
    routes: Iterable[Route],
    meters: Mapping[str, Meter],
    plans: Iterable[Plan],
    credits_: Mapping[str, Credit],
) -> tuple[Route, ...]:
    """The routes, each with what depends on the model that a request names: limits, refusals and prices."""
    by_model = {name for name, meter in meters.items() if "model" in meter.where and is_limited(name, plans)}
    is_priced = any(credit.by_model for credit in credits_.values()) or any(
        "model" in meter.where or meter.is_row or meter.charges is not None for meter in meters.values()
    )
    denied = frozenset(_refusing_unpriced(meters, plans, credits_))

    def mark_route(route: Route) -> Route:
        route = replace(route, keeps_request=is_priced and _may_report_calls(route))
        if route.own_models:
            return route
        added = additions_of(route, meters).keys() | {reserve.meter for reserve in route.reserve}
        return replace(
            route,
            reads_model=not by_model.isdisjoint(additions_of(route, meters)),
            refuses_unpriced=tuple(name for name in meters if name in denied and name in added),
        )

    return tuple(map(mark_route, routes))


def _refusing_unpriced(
    meters: Mapping[str, Meter], plans: Iterable[Plan], credits_: Mapping[str, Credit]
) -> Iterator[str]:
    """The meters that refuse requests for a model without a price."""
    for name, meter in meters.items():
        if meter.charges is not None and meter.charges.unknown_model == "deny":
            yield name
    for credit in credits_.values():
        yield from (name for name, table in credit.by_model.items() if table.refuses_others)
    for plan in plans:
        for name, given in plan.entitlements.items():
            if given.overage.rows is not None and given.overage.rows.refuses_others:
                yield name


def _may_report_calls(route: Route) -> bool:
    """Whether the app may report a call of a model that the body of a request names."""
    has_body = route.method not in _BODILESS and route.mcp is None and not route.storage
    return has_body and route.usage == "none" and not (route.own_models or route.exempt)


def refuse_unsaid_models(
    routes: Iterable[tuple[Route, RouteTable]],
    meters: Mapping[str, Meter],
    plans: Iterable[Plan],
    credits_: Mapping[str, Credit],
) -> None:
    """Refuse each route that holds what is priced by model, and does not say who chooses the model."""
    priced = {name for credit in credits_.values() for name in credit.by_model}
    for plan in plans:
        priced |= {name for name, given in plan.entitlements.items() if given.overage.rows is not None}
    is_charged = any(meter.charges is not None and not meter.charges.is_free for meter in meters.values())
    for route, values in routes:
        if not values.has("model") and holds_by_model(route, meters, priced, is_charged=is_charged):
            values.refuse(
                "model",
                "this route holds what is priced by model, so it says who chooses the model: write `model:"
                " NAME`, or `model: [NAME, NAME]`, if the app chooses it, or `model: request` if the model"
                " that a client names is called",
            )


def holds_by_model(
    route: Route, meters: Mapping[str, Meter], priced: Collection[str], *, is_charged: bool
) -> bool:
    """Whether a route holds a quantity whose price depends on the model.

    Args:
        route: the route.
        meters: those of the plans file.
        priced: those of them with prices by model.
        is_charged: whether calls are charged at providers' prices.
    """
    if not route.reserve:
        return False
    held = {"input_tokens", "total_tokens"}.intersection(meters) | {one.meter for one in route.reserve}
    calls_model = reads_tokens(route) or not USAGE_METERS.isdisjoint({*held, *route.records})
    return (is_charged and calls_model) or not held.isdisjoint(priced)


def tables_without_default(catalog: Catalog) -> dict[str, list[ModelPrices | PriceRows]]:
    """Meters to the prices by model that leave some models without a price."""
    found: dict[str, list[ModelPrices | PriceRows]] = {}
    for credit in catalog.credits.values():
        for meter, table in credit.by_model.items():
            if not table.default:
                found.setdefault(meter, []).append(table)
    for plan in catalog.all_plans:
        for meter, given in plan.entitlements.items():
            rows = given.overage.rows
            if rows is not None and not rows.has_default:
                found.setdefault(meter, []).append(rows)
    return found


def check_quantities_fit(
    routes: Iterable[tuple[Route, RouteTable]],
    plans: Mapping[str, Plan | None],
    *,
    credits_: Mapping[str, Credit],
    addons: Mapping[str, Addon],
    problems: Problems,
) -> None:
    """Refuse each quantity of a route that never fits a plan that limits its meter."""
    payable = {meter for credit in credits_.values() for meter in credit.costs}
    for route, values in routes:
        for place, key, meter, quantity in requested_quantities(route, values):
            for plan in plans.values():
                if plan is None or meter not in plan.entitlements:
                    continue
                is_payable = meter in payable or meter in _extendable_meters(plan, addons)
                limit = _exceeded_limit(plan.entitlements[meter], quantity, is_payable=is_payable)
                if limit is not None:
                    what = f"a default of {quantity}" if key == "reserve" else f"{quantity}"
                    message = (
                        f"{what} never fits the plan {plan.key}, whose {limit}; lower it, or raise the plan's"
                    )
                    problems.refuse(place, message)


def _extendable_meters(plan: Plan, addons: Mapping[str, Addon]) -> set[str]:
    """Meters for which grants or add-ons can give more than a plan includes."""
    sold = [addons[key] for key in plan.addons if key in addons]
    grants = (*plan.grants, *(grant for addon in sold for grant in addon.grants))
    return {grant.name for grant in grants} | {meter for addon in sold for meter in addon.included}


def _exceeded_limit(entitlement: Entitlement, quantity: int, *, is_payable: bool) -> str | None:
    """The limit that ``quantity`` can never fit, in words, or None.

    A ceiling of 0 says that the plan does not have the meter; that is no slip.
    """
    meter = entitlement.meter
    for rate in entitlement.rates:
        if quantity > rate.burst:
            if rate.algorithm == "token-bucket":
                return f"burst of {meter} is {rate.burst}"
            return f"rate of {meter} is {rate.limit}/{rate.window}"
    most = None if is_payable else ceiling(entitlement)
    return f"ceiling of {meter} is {most}" if most and quantity > most else None

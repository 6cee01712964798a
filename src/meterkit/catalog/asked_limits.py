"""Which limits a route asks for, and those that none does. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from meterkit.catalog.additions import additions_of
from meterkit.catalog.entitlements import ceiling
from meterkit.catalog.meters import CHARGED, counts_bytes
from meterkit.catalog.models import SPEND
from meterkit.catalog.notes import COMPARED_MAX
from meterkit.catalog.shapes import kept
from meterkit.catalog.units import USAGE_METERS, nearest_usage_meter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog.errors import Place, Problems
    from meterkit.catalog.model_prices import Credit, ModelPrices, PriceRows
    from meterkit.catalog.models import Catalog, Entitlement, Meter, Plan, Route
    from meterkit.catalog.note import Note
    from meterkit.catalog.plans import PlanTable

_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "WS"})
CHECK: Final = "limits"
"""The name of the check of `meterkit doctor` that shows limits no route asks for."""


def has_limit(given: Entitlement, *, in_budget: bool = False) -> bool:
    """Whether an entitlement can refuse a request; ``in_budget``: a budget bounds what the meter costs."""
    is_priced = given.overage.amount_cents is not None or given.overage.rows is not None
    return bool(given.rates) or ceiling(given) is not None or (in_budget and is_priced)


def is_limited(meter: str, plans: Iterable[Plan]) -> bool:
    """Whether a plan, or what it gives a subject, limits a meter."""
    return any(
        has_limit(given, in_budget=_has_budget(plan))
        for plan in plans
        for given in _given_of(meter, plan)
        if given is not None
    )


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

    def marked(route: Route) -> Route:
        route = replace(route, keeps_request=is_priced and _may_report_calls(route))
        if route.model is not None:
            return route
        added = additions_of(route, meters).keys() | {reserve.meter for reserve in route.reserve}
        return replace(
            route,
            reads_model=not by_model.isdisjoint(additions_of(route, meters)),
            refuses_unpriced=tuple(name for name in meters if name in denied and name in added),
        )

    return tuple(map(marked, routes))


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
    return has_body and route.usage == "none" and route.model is None and not route.exempt


def tables_without_default(catalog: Catalog) -> dict[str, list[ModelPrices | PriceRows]]:
    """Meters to the prices by model that leave some models without a price."""
    found: dict[str, list[ModelPrices | PriceRows]] = {}
    for credit in catalog.credits.values():
        for meter, table in credit.by_model.items():
            if not table.default:
                found.setdefault(meter, []).append(table)
    for plan in catalog.plans.values():
        for meter, given in plan.entitlements.items():
            rows = given.overage.rows
            if rows is not None and not rows.has_default:
                found.setdefault(meter, []).append(rows)
    return found


def unasked_limits_of(catalog: Catalog) -> Sequence[Note]:
    """The limits that no route of a plans file asks for."""
    return [note for note in catalog.notes if note.kind == "never_asked"]


def named_by(routes: Iterable[Route], meters: Mapping[str, Meter]) -> frozenset[str | None]:
    """The meters that routes count on, raise or set aside."""
    named = set[str | None]()
    for route in routes:
        named |= {*additions_of(route, meters), *route.grow, route.storage_meter}
        named |= {reserve.meter for reserve in route.reserve}
    return frozenset(named)


def note_unasked_limits(
    named: frozenset[str | None],
    meters: Mapping[str, Meter],
    plans: Mapping[str, Plan],
    written: Mapping[str, PlanTable],
    *,
    credit_places: Mapping[str, Place],
    stored: str | None,
    problems: Problems,
) -> None:
    """Name each meter that a plan limits and that no route asks for, where the first such plan limits it.

    Args:
        named: the meters that routes name; see :func:`named_by`.
        meters: those of the file.
        plans: by their keys.
        written: the same, as the file has them.
        credit_places: where each credit stands.
        stored: the gauge of stored objects, which presigned uploads ask for; None: there is none.
        problems: the list to add to.
    """
    asked = {stored, *named}
    for name, meter in meters.items():
        limiting = [key for key, plan in plans.items() if name not in asked and is_limited(name, [plan])]
        if limiting and meter.charges is not None:
            message = (
                "no route reads the token usage that it pays; write `usage: auto` on those that call a model"
            )
            problems.note(credit_places[name.removesuffix(CHARGED)], "never_asked", message)
        elif limiting and not (meter.is_row or meter.is_spend):
            place = place_of(name, written[limiting[0]])
            message = (
                f"no route asks for {name}, so no request is refused by this limit of"
                f" {', '.join(limiting)}; write {_cure(meter, meters)}; leave it as it is where only calls"
                " such as kit.consume() count it"
            )
            problems.note(place, "never_asked", message)


def note_unfed_meters(
    named: frozenset[str | None], meters: Mapping[str, Meter], places: Mapping[str, Place], problems: Problems
) -> None:
    """Name each meter that no route feeds and whose name is close to one that `usage:` feeds.

    Args:
        named: the meters that routes name; see :func:`named_by`.
        meters: those of the file.
        places: where each meter stands.
        problems: the list to add to.
    """
    unfed = (
        name
        for name in places
        if name in meters
        and name not in named
        and meters[name].kind == "counter"
        and meters[name].source is None
    )
    for name in islice(unfed, COMPARED_MAX):
        meant = nearest_usage_meter(name)
        if meant is not None and meant not in meters:
            message = (
                f"no route feeds {name}: `usage:` feeds the meters that bear the name of a unit; did you mean"
                f" {meant!r}? Leave it as it is where the app counts it itself"
            )
            problems.note(places[name], "informs", message)


def _given_of(meter: str, plan: Plan) -> Iterator[Entitlement | None]:
    yield plan.entitlements.get(meter)
    yield from (subject.limits.get(meter) for subject in plan.subjects.values())


def _has_budget(plan: Plan) -> bool:
    spend = plan.entitlements.get(SPEND)
    is_bounded = spend is not None and has_limit(spend)
    return is_bounded or any(subject.budget for subject in plan.subjects.values())


def place_of(meter: str, written: PlanTable) -> Place:
    """Place of a meter in a plan: in its `meters`, or else in its `subjects`."""
    subjects = (subject.node.places for subject in kept(written.subjects).values())
    places = (written.places("meters"), *subjects)
    return next((found[meter] for found in places if meter in found), written.node.place)


def _cure(meter: Meter, meters: Mapping[str, Meter]) -> str:
    name = meter.name
    if meter.kind == "gauge":
        way = "`storage: content-length`" if counts_bytes(meter) else f"`grow: {{{name}: 1}}`"
        return f"{way} on the routes that raise it"
    if meter.source is not None:
        whole = meters[meter.source]
        while whole.source is not None:
            whole = meters[whole.source]
        return f"`usage: auto` on the routes that call a model, or `records: [{whole.name}]`"
    usage = "`usage: auto` on the routes that call a model, or " if name in USAGE_METERS else ""
    return f"{usage}`records: [{name}]` on the routes in which the app records it"

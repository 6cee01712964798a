"""Notes on routes: limits no route asks for, spending without a hold, choices left to clients. Pure."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from llm_usage.price_table import is_listed
from meterkit.catalog.entitlements import is_limited
from meterkit.catalog.errors import listed
from meterkit.catalog.match_lines import WEBSOCKET
from meterkit.catalog.meters import CHARGED, counts_bytes, counts_tokens
from meterkit.catalog.notes import COMPARED_MAX, SHOWN_MAX
from meterkit.catalog.routes import additions_of, reads_tokens
from meterkit.catalog.usage_meters import USAGE_METERS, nearest_usage_meter
from meterkit.catalog.value_shapes import drop_refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.credits import CreditTable, ModelPricesTable
    from meterkit.catalog.errors import FilePlace, Note, Problems
    from meterkit.catalog.model_prices import ModelTerms
    from meterkit.catalog.models import Catalog, Meter, Plan, Route
    from meterkit.catalog.plans import PlanTable
    from meterkit.catalog.routes import RouteTable

CHECK: Final = "limits"
"""The name of the check of `meterkit doctor` that shows limits no route asks for."""


def unasked_limits_of(catalog: Catalog) -> Sequence[Note]:
    """The limits that no route of a plans file asks for."""
    return [note for note in catalog.notes if note.kind == "never_asked"]


def asked_meters(routes: Iterable[Route], meters: Mapping[str, Meter]) -> frozenset[str | None]:
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
    credit_places: Mapping[str, FilePlace],
    stored: str | None,
    problems: Problems,
) -> None:
    """Name each meter that a plan limits and that no route asks for, where the first such plan limits it.

    Args:
        named: the meters that routes name; see :func:`asked_meters`.
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
            message = "no route reads the token usage that it pays for; write `usage: auto` on model routes"
            problems.note(credit_places[name.removesuffix(CHARGED)], "never_asked", message)
        elif limiting and not (meter.is_row or meter.is_spend):
            place = place_of(name, written[limiting[0]])
            is_gauge = meter.kind == "gauge"
            kept = "the app asks kit.check()" if is_gauge else "only calls such as kit.consume() count it"
            message = (
                f"no route asks for {name}, so no request is refused by this limit of"
                f" {', '.join(limiting)}; write {_route_key_hint(meter, meters)}; leave it as it is if {kept}"
            )
            problems.note(place, "never_asked", message)


def place_of(meter: str, written: PlanTable) -> FilePlace:
    """FilePlace of a meter in a plan: in its `meters`, otherwise in its `subjects`."""
    subjects = (subject.node.places for subject in drop_refused(written.subjects).values())
    places = (written.places("meters"), *subjects)
    return next((found[meter] for found in places if meter in found), written.node.place)


def _route_key_hint(meter: Meter, meters: Mapping[str, Meter]) -> str:
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


def note_unfilled_token_meters(
    routes: Sequence[Route],
    meters: Mapping[str, Meter],
    places: Mapping[str, FilePlace],
    problems: Problems,
) -> None:
    """Name each meter of tokens whose name is none that usage fills, and that no route adds to.

    A meter that routes only record or reserve is named if the file has no meter that usage fills: a file with
    both has a purpose for each.

    Args:
        routes: the lines of the file.
        meters: those of the file.
        places: where each meter stands.
        problems: the list to add to.
    """
    filled = set[str]()
    for route in routes:
        filled |= {*route.consume, *route.per_message, *route.usage_fields}
        if not USAGE_METERS.isdisjoint(meters):
            filled |= {*route.records, *(reserve.meter for reserve in route.reserve)}
    for name in islice(places, COMPARED_MAX):
        meter = meters.get(name)
        if meter is None or name in filled or name in USAGE_METERS or not counts_tokens(meter):
            continue
        meant = nearest_usage_meter(name) or "total_tokens"
        if meant not in meters:
            message = (
                "usage read from responses, or by record_usage() and tap(), fills only meters with certain"
                f" names, such as total_tokens, input_tokens and output_tokens, and not {name}; call it"
                f" {meant!r} to count that usage; leave it as it is if the app counts it by record()"
            )
            problems.note(places[name], "informs", message)


def note_unfed_reserves(
    routes: Iterable[tuple[Route, RouteTable]], meters: Mapping[str, Meter], problems: Problems
) -> None:
    """Name each reserved meter that nothing of its route fills, so that it is held and records 0.

    Args:
        routes: those of the file, each as it is written.
        meters: those of the file.
        problems: the list to add to.
    """
    has_usage_meters = not USAGE_METERS.isdisjoint(meters)
    for route, written in routes:
        filled = {*route.consume, *route.usage_fields, *route.records}
        for name, place in written.places("reserve").items():
            meter = meters.get(name)
            if meter is None or name in filled or name in USAGE_METERS:
                continue
            if counts_tokens(meter) and not has_usage_meters:
                continue  # The note at the meter says so.
            meant = nearest_usage_meter(name) if counts_tokens(meter) else None
            cure = "" if meant is None else f"reserve {meant!r}, which `usage` fills; or "
            message = (
                f"{name} is held, and nothing fills it, so 0 is recorded; {cure}write `records: [{name}]` if"
                " the app records it, or name its path in `usage_fields`"
            )
            problems.note(place, "informs", message)


def note_unheld_money(
    routes: Iterable[Route],
    credits_: Iterable[Credit],
    written: Iterable[PlanTable],
    place: FilePlace,
    problems: Problems,
) -> None:
    """Say which lines spend a balance in money, or a budget, and hold nothing for it.

    Args:
        routes: the lines of the file.
        credits_: those of the file.
        written: the plans, as the file has them.
        place: where the routes stand.
        problems: the list to add to.
    """
    # A websocket cannot hold anything.
    may_hold = (route for route in routes if route.usage != "none" and route.method != WEBSOCKET)
    unheld = [route.match for route in may_hold if not route.reserve]
    has_balance = any(credit.is_money for credit in credits_)
    if unheld and (has_balance or any(plan.budget is not None for plan in written)):
        shown = listed([repr(match) for match in unheld], SHOWN_MAX)
        what = "balance" if has_balance else "budget"
        message = (
            f"concurrent requests can spend more than the {what} on routes that hold nothing: {shown}; write"
            " `reserve: {output_tokens: {from: max_tokens, default: N, ceiling: M}}` and `model: NAME` or"
            " `model: request` to hold what a call can cost at most"
        )
        problems.note(place, "informs", message)


def note_unpaid_meters(
    named: frozenset[str | None],
    plans: Mapping[str, Plan],
    written: Mapping[str, PlanTable],
    credits_: Iterable[Credit],
    problems: Problems,
) -> None:
    """Name each meter of tokens that a plan denies: a balance in money does not pay for it.

    Args:
        named: the meters that routes name; see :func:`asked_meters`.
        plans: by their keys.
        written: the same, as the file has them.
        credits_: those of the file.
        problems: the list to add to.
    """
    found = list(credits_)
    money = next((credit.name for credit in found if credit.is_money), None)
    if money is None:
        return
    paid = {meter for credit in found for meter in credit.costs}
    for key, plan in plans.items():
        granted = {grant.name for grant in plan.grants}
        for name, given in plan.entitlements.items():
            is_denied = given.included == 0 and given.overage.mode == "deny"
            if is_denied and name in named and name in USAGE_METERS and name not in paid | granted:
                message = (
                    f"no request that uses {name} is served: nothing is included, overage is denied, and the"
                    f" balance {money!r} pays for calls, not for this meter; leave {name} out of the plan, or"
                    " include a quantity"
                )
                problems.note(place_of(name, written[key]), "informs", message)


_EXAMPLES: Final = {
    "service_tier": "service_tier: {priority: 200%, flex: 50%}",
    "speed": "speed: {fast: 200%}",
    "inference_geo": "inference_geo: {us: 110%}",
}
_ASKED_BY: Final = {
    "openai": ("service_tier",),
    "anthropic": ("speed", "inference_geo"),
    "gemini": ("service_tier",),
    "bedrock": ("service_tier",),
    "auto": ("service_tier", "speed"),
}
"""The words of ``usage:``, each with the ways of processing that clients of such an API choose at a price."""


def note_client_choices(
    routes: Iterable[tuple[Route, RouteTable]],
    credits_: Iterable[CreditTable],
    tables: Iterable[ModelPricesTable],
    problems: Problems,
) -> None:
    """Say where a client may choose a model, or a way of processing, that has no price.

    Args:
        routes: those of the file, each as it is written.
        credits_: likewise.
        tables: those of ``prices:``.
        problems: the list to add to.
    """
    calling = [(route, written) for route, written in routes if reads_tokens(route)]
    money = [credit for credit in credits_ if credit.unit == "money"]
    chosen = [repr(route.match) for route, _ in calling if not route.own_models]
    without_default = [table for table in tables if not table.has("default")]
    selling: list[CreditTable | ModelPricesTable] = [*money, *without_default]
    shown = listed(chosen, SHOWN_MAX)
    for table in selling:
        if chosen and table.unknown_model != "deny":
            message = (
                f"clients choose the model on {shown}, and calls of a model without a price cost nothing;"
                " write `unknown_model: deny` here to refuse such requests, or `model: NAME` on the route"
            )
            problems.note(table.place("unknown_model"), "informs", message)
    for credit in money:
        _note_unpriced_ways(calling, drop_refused(credit.models), credit, problems)


def _note_unpriced_ways(
    calling: Sequence[tuple[Route, RouteTable]],
    terms: Mapping[str, ModelTerms],
    credit: CreditTable,
    problems: Problems,
) -> None:
    """Say which prices of the file count for every way of processing, where clients may choose one."""
    asked = {way for route, _ in calling for way in _ASKED_BY.get(route.usage, ())}
    for pattern, one in terms.items():
        missing = [way for way in _EXAMPLES if way in asked and way not in one.factors]
        if missing and one.prices and is_listed(pattern):
            write = " and ".join(f"`{_EXAMPLES[way]}`" for way in missing)
            message = (
                f"these prices apply to every {' and '.join(missing)} of a request; write {write} with"
                " them if your app passes it on"
            )
            problems.note(credit.places("models")[pattern], "informs", message)

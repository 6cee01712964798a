"""Notes on a plans file: valid entries that may surprise, and their one-line summary."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import listed
from meterkit.catalog.match_lines import covers_line
from meterkit.catalog.meters import bills_usage, counts_tokens, is_sold, meters_billed_by_tiers
from meterkit.catalog.usage_meters import nearest_usage_meter
from meterkit.catalog.value_parsers import money

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog.billing import AnonymousTable
    from meterkit.catalog.entitlements import EntitlementTable
    from meterkit.catalog.errors import FilePlace, Note, NoteKind, Problems
    from meterkit.catalog.meters import MeterTable
    from meterkit.catalog.model_prices import ModelPrices
    from meterkit.catalog.models import Addon, Catalog, Changes, Enforcement, Entitlement, Meter, Plan, Route

_logger = logging.getLogger("meterkit")
_plans_logger = logging.getLogger("meterkit.plans")

COMPARED_MAX: Final = 300
"""So many lines are compared with each other, so that no file takes long."""
SHOWN_MAX: Final = 10
"""So many names are shown in a note."""
WEBHOOK_PATH: Final = "/webhooks/stripe"
"""Path of Stripe's webhooks among the billing routes."""
_TITLES: Final[dict[NoteKind, str]] = {
    "billed_from_first_unit": "billed from the first unit, as nothing is included",
    "never_reached": "routes and prices that an earlier one stands before",
}
_ENFORCEMENTS: Final = {
    "shadow": "every request is decided and counted, and none is refused",
    "off": "requests pass, and nothing is decided or counted",
}


def note_entitlement(
    entitlement: Entitlement,
    meter: Meter,
    written: EntitlementTable | None,
    plan: FilePlace,
    problems: Problems,
) -> None:
    """Say so where a plan bills a meter from the first unit.

    Args:
        entitlement: what the plan gives, defaults applied.
        meter: its name.
        written: what the plan says of the meter; None where it leaves it out.
        plan: where the plan stands.
        problems: the list to add to.
    """
    stripe = meter.stripe
    says = written is not None and written.has("included", "overage")
    if says or stripe is None or stripe.report == "none" or entitlement.overage.mode != "bill":
        return
    subject = f"{meter.name} is left out" if written is None else f"{meter.name} has no `included`"
    problems.note(
        plan if written is None else written.node.place,
        "billed_from_first_unit",
        f"{subject}: unlimited, and billed from the first unit as {stripe.event_name!r}; write"
        f" `{meter.name}: {{included: N}}` to include a quantity and refuse more, or"
        f" `{meter.name}: {{included: 0, overage: bill}}` if you want that",
    )


def note_trial(
    entitlements: Mapping[str, Entitlement],
    meters: Mapping[str, Meter],
    trial: FilePlace,
    problems: Problems,
    *,
    has_budget: bool,
) -> None:
    """Say so where a plan with a trial bills a meter without end: Stripe bills no usage of a trial.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials

    Args:
        entitlements: what the plan gives, defaults applied.
        meters: of the file.
        trial: where the plan's trial stands.
        problems: the list to add to.
        has_budget: whether a budget refuses requests: it counts in a trial, too, what has a price.
    """
    endless = [
        name
        for name, given in entitlements.items()
        if bills_usage(given, meters[name])
        and given.overage.cap is None
        and not meters[name].is_row
        and not (has_budget and given.overage.amount_cents is not None)
    ]
    if endless:
        problems.note(
            trial,
            "informs",
            f"Stripe bills no usage of a trial, so {', '.join(endless)} can be used in it without a limit"
            " and for free; write a ceiling, `overage: {bill: {cap: N}}`, if that is too much",
        )


def note_without_rates(
    entitlements: Mapping[str, Entitlement],
    meters: Mapping[str, Meter],
    plan: FilePlace,
    problems: Problems,
) -> None:
    """Note a plan with a ceiling and without a rate: in an outage no rate limits its requests.

    Args:
        entitlements: what the plan gives, defaults applied.
        meters: of the file.
        plan: place of the plan.
        problems: the list to add to.
    """
    if any(given.rates for given in entitlements.values()):
        return
    limited = [
        name
        for name, given in entitlements.items()
        if meters[name].kind == "counter"
        and given.included is not None
        and (given.overage.mode == "deny" or given.overage.cap is not None)
    ]
    if limited:
        problems.note(
            plan,
            "no_rate",
            f"the plan limits {', '.join(limited)} by period and has no rate: in an outage of the store each"
            " process admits what its last reply left, at any speed; write a `rate` to limit the speed",
        )


def note_default_plan(
    key: str,
    plans: Mapping[str, Plan],
    meters: Mapping[str, Meter],
    problems: Problems,
    *,
    currency: str,
    place: FilePlace,
) -> None:
    """Say so where customers without a subscription get for nothing what others pay for.

    Args:
        key: of the default plan.
        plans: all plans of the file.
        meters: of the file.
        problems: the list to add to.
        currency: of the file.
        place: where the default plan is named.
    """
    unpaid = _unbilled_amounts(plans[key], meters, currency) if key in plans else []
    if not unpaid:
        return
    name, addition = _free_plan(key, plans, meters, currency)
    problems.note(
        place,
        "informs",
        "customers never seen before and customers whose subscription has ended are on this plan without a"
        f" subscription, so no invoice bills {' or '.join(unpaid)}; write `default_plan: {name}`{addition},"
        f" and give {key!r} by a subscription or by `set_plan`",
    )


def note_anonymous_plan(
    anonymous: AnonymousTable,
    plans: Mapping[str, Plan],
    meters: Mapping[str, Meter],
    problems: Problems,
    *,
    currency: str,
) -> None:
    """Say so where requests without a customer, which no invoice bills, get what others pay for.

    Args:
        anonymous: the block of the file.
        plans: all plans of the file.
        meters: of the file.
        problems: the list to add to.
        currency: of the file.
    """
    key = anonymous.plan or ""
    unpaid = _unbilled_amounts(plans[key], meters, currency) if key in plans else []
    if unpaid:
        name, addition = _free_plan(key, plans, meters, currency)
        problems.note(
            anonymous.place("plan"),
            "informs",
            "each address that sends requests without a customer is on this plan, so no invoice bills"
            f" {' or '.join(unpaid)}; write `plan: {name}`{addition}",
        )


def _free_plan(
    key: str, plans: Mapping[str, Plan], meters: Mapping[str, Meter], currency: str
) -> tuple[str, str]:
    """Name of a plan that costs nothing, in place of another; and how to add it if there is none."""
    free = next((plan.key for plan in plans.values() if not _unbilled_amounts(plan, meters, currency)), None)
    if free is not None:
        return free, ""
    name = "free" if key != "free" else "without_price"
    return (
        name,
        f" and add a plan that costs nothing, `{name}: {{price: {{amount_cents: 0, interval: month}}}}`",
    )


def _unbilled_amounts(plan: Plan, meters: Mapping[str, Meter], currency: str) -> list[str]:
    """Amounts of a plan that only a subscription bills, in words."""
    found: list[str] = []
    if plan.price.amount_cents or plan.price.stripe_price is not None:
        amount = money(plan.price.amount_cents, currency) if currency else str(plan.price.amount_cents)
        found.append(f"its price of {amount} a {plan.price.interval}")
    if plan.seat_price is not None:
        found.append("its seats")
    billed = [
        name
        for name, given in plan.entitlements.items()
        if meters[name].source is None and bills_usage(given, meters[name])
    ]
    return [*found, f"its overage of {listed(billed, SHOWN_MAX)}"] if billed else found


def note_repeated_tiers(
    plans: Iterable[Plan], meters: Mapping[str, Meter], changes: Changes, place: FilePlace, problems: Problems
) -> None:
    """Say so where changes between plans wait for the period's end, and the file has them at once.

    Args:
        plans: of the file.
        meters: of the file.
        changes: of the file.
        place: where the plans stand.
        problems: the list to add to.
    """
    if "now" not in (changes.upgrade, changes.downgrade):
        return
    billing: dict[str, list[str]] = {}
    for plan in filter(is_sold, plans):
        for meter in meters_billed_by_tiers(meters, plan):
            billing.setdefault(meter, []).append(plan.key)
    for meter, keys in billing.items():
        if len(keys) > 1:
            problems.note(
                place,
                "informs",
                f"{listed(keys, SHOWN_MAX)} bill {meter} with `report: usage`: a change between them"
                " takes effect when the period ends, even if `billing.changes` says `now`, because Stripe"
                " would give the first tier again; for immediate changes write `report: overage`",
            )


def note_equal_ranks(
    plans: Mapping[str, Plan],
    meters: Mapping[str, Meter],
    changes: Changes,
    places: Mapping[str, FilePlace],
    problems: Problems,
) -> None:
    """Name the sold plans of one rank, where upgrades and downgrades take effect at different times.

    Only plans of one price interval are compared: the monthly and the yearly price of a product share its
    rank. Plans with a meter of tiers in common have :func:`note_repeated_tiers`.

    Args:
        plans: of the file, by their keys.
        meters: of the file.
        changes: of the file.
        places: where each plan stands.
        problems: the list to add to.
    """
    if changes.upgrade == changes.downgrade:
        return
    alike: dict[tuple[int, str, str], list[Plan]] = {}
    for plan in filter(is_sold, plans.values()):
        alike.setdefault((plan.rank, plan.price.interval, plan.price.included_per), []).append(plan)
    for (rank, *_), group in alike.items():
        tiers = {plan.key: set(meters_billed_by_tiers(meters, plan)) for plan in group[:COMPARED_MAX]}
        keys = [
            key
            for key, own in tiers.items()
            if any(key != other and own.isdisjoint(others) for other, others in tiers.items())
        ]
        if keys:
            problems.note(
                places[keys[1]],
                "informs",
                f"{listed(keys, SHOWN_MAX)} have rank {rank}: a change between them counts as an upgrade,"
                f" also to the cheaper plan (`billing.changes.upgrade: {changes.upgrade}`);"
                " give the higher plan a higher `rank`",
            )


def note_unlisted_addons(plans: Iterable[Plan], places: Mapping[str, FilePlace], problems: Problems) -> None:
    """Name the add-ons that no plan lists, so that no customer can buy them.

    Args:
        plans: of the file.
        places: where each add-on stands.
        problems: the list to add to.
    """
    sold = {key for plan in plans for key in plan.addons}
    for key, place in places.items():
        if key not in sold:
            cure = f"write `addons: [{key}]` in a plan"
            problems.note(place, "informs", f"no plan lists this add-on, so no customer can buy it; {cure}")


def note_idle_addons(
    plans: Iterable[Plan],
    addons: Mapping[str, Addon],
    places: Mapping[str, FilePlace],
    problems: Problems,
) -> None:
    """Name the add-ons that add nothing to a plan, which has their features and limits none of their meters.

    One without all of these may be sold for what the app does.

    Args:
        plans: of the file.
        addons: of the file.
        places: where each plan stands.
        problems: the list to add to.
    """
    for plan in plans:
        for key in plan.addons:
            addon = addons.get(key)
            if addon is None or addon.grants or not (addon.included or addon.features):
                continue
            is_unlimited = all(plan.entitlements[meter].included is None for meter in addon.included)
            if is_unlimited and addon.features <= plan.features:
                message = f"{key} adds nothing to this plan, and is charged; take it out of `addons`"
                problems.note(places[plan.key], "informs", message)


def note_addons_in_trials(
    plans: Iterable[Plan],
    addons: Mapping[str, Addon],
    places: Mapping[str, FilePlace],
    problems: Problems,
) -> None:
    """Name the add-ons without ``max`` of plans with a trial, where none of them is sold: nothing is paid.

    Args:
        plans: of the file.
        addons: of the file.
        places: where each plan stands.
        problems: the list to add to.
    """
    for plan in plans:
        keys = [key for key in plan.addons if key in addons and addons[key].max_quantity is None]
        if plan.trial_ms is not None and keys:
            message = (
                f"its trial does not sell {listed(keys, SHOWN_MAX)}, as nothing is paid there: write a `max`"
            )
            problems.note(places[plan.key], "informs", message)


def note_billing_lines(
    routes: Iterable[Route], plans: Iterable[Plan | None], place: FilePlace, problems: Problems
) -> None:
    """Say which lines the billing routes want, where plans are sold and no line is `always`.

    Args:
        routes: the lines of the file.
        plans: its plans.
        place: where the routes stand.
        problems: the list to add to.
    """
    is_sold = any(plan is not None and plan.price.stripe_price is not None for plan in plans)
    if is_sold and not any(route.always for route in routes):
        problems.note(
            place,
            "informs",
            "plans are sold, and no route is `always`: if you mount the billing routes, at /billing for"
            ' example, write before all others `{match: "POST /billing/webhooks/stripe", exempt: true}`, as'
            ' Stripe is no customer, and `{match: "/billing/{path:path}", always: true}`, so that customers'
            " who owe can pay",
        )


def note_webhook_lines(
    routes: Sequence[Route],
    places: Sequence[FilePlace],
    plans: Iterable[Plan],
    problems: Problems,
    *,
    anonymous_plan: str | None,
) -> None:
    """Name each line that takes Stripe's webhooks and may refuse them: Stripe is no customer.

    Args:
        routes: the lines of the file.
        places: where each line stands.
        plans: those of the file.
        problems: the list to add to.
        anonymous_plan: the plan of requests without a customer; None: they are refused.
    """
    can_mount = not has_webhook_route(routes) and any(map(is_sold, plans))
    lines = list(zip(routes, places, strict=True))
    named = set[str]()
    for route in routes[:COMPARED_MAX]:
        path = _webhook_path(route, can_mount=can_mount)
        if path is None or path in named:
            continue
        named.add(path)
        found = next((line for line in lines if covers_line(line[0].match, f"POST {path}")), None)
        refusal = found and describe_webhook_refusal(found[0], path, anonymous_plan)
        if found is not None and refusal is not None:
            mount = path.removesuffix(WEBHOOK_PATH) or "/"
            where = "" if route.path == path else f", if the billing routes are mounted at {mount}"
            problems.note(found[1], "informs", f"this route takes Stripe's webhooks{where}, and {refusal}")


def has_webhook_route(routes: Iterable[Route]) -> bool:
    """Whether a route exempts the endpoint of Stripe's webhooks, at its usual path."""
    return any(route.exempt and (route.path or "").endswith(WEBHOOK_PATH) for route in routes)


def describe_webhook_refusal(taker: Route, path: str, anonymous_plan: str | None) -> str | None:
    """Word why a route may refuse Stripe's webhooks, and the cure; None if it serves them all.

    Args:
        taker: the route that takes them.
        path: where Stripe sends them.
        anonymous_plan: the plan of requests without a customer; None: they are refused.
    """
    if taker.exempt:
        return None
    cure = f'write before it `{{match: "POST {path}", exempt: true}}`'
    if anonymous_plan is None:
        return f"Stripe is no customer, so they are refused like all requests without one; {cure}"
    if taker.always and not (taker.rates or taker.consume):
        return None
    return (
        "Stripe is no customer, so they are limited by address, as anonymous requests on the plan"
        f" {anonymous_plan!r}; {cure}"
    )


def _webhook_path(route: Route, *, can_mount: bool) -> str | None:
    """Path of Stripe's webhooks that a line may be for: its own, or one below the billing routes."""
    path = route.path or ""
    if route.exempt or route.mcp is not None or route.method not in {None, "POST"}:
        return None
    if path.endswith(WEBHOOK_PATH):
        return path
    mount, _, parameter = path.rpartition("/")
    is_mount = route.always and can_mount and parameter.startswith("{") and parameter.endswith(":path}")
    return mount + WEBHOOK_PATH if is_mount else None


def note_unfed_meters(
    named: frozenset[str | None],
    meters: Mapping[str, Meter],
    places: Mapping[str, FilePlace],
    problems: Problems,
) -> None:
    """Name each meter that no route feeds and whose name is close to one that `usage:` feeds.

    Meters of tokens have :func:`~meterkit.catalog.route_notes.note_unfilled_token_meters`.

    Args:
        named: the meters that routes name; see :func:`~meterkit.catalog.route_notes.asked_meters`.
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
        and not counts_tokens(meters[name])
    )
    for name in islice(unfed, COMPARED_MAX):
        meant = nearest_usage_meter(name)
        if meant is not None and meant not in meters:
            message = (
                f"no route feeds {name}: `usage:` feeds the meters named as a unit; did you mean"
                f" {meant!r}? Leave it as it is if the app counts it itself"
            )
            problems.note(places[name], "informs", message)


def note_unpriced_models(
    meters: Mapping[str, MeterTable], tables: Iterable[tuple[str, ModelPrices]], problems: Problems
) -> None:
    """Say which models a derived meter names that no pattern of the prices of its source has.

    Args:
        meters: those of the file, as it has them.
        tables: meters, each with prices by model of a credit or of overage.
        problems: the list to add to.
    """
    prices = list(tables)
    for table in meters.values():
        pattern = (table.where or {}).get("model")
        root = _root_of(table.source or "", meters)
        if pattern is not None and any(name == root and not found.covers(pattern) for name, found in prices):
            message = (
                f"no pattern of the prices has the models {pattern!r}: they cost the `default`; add them to"
                " `models` if you do not want that"
            )
            problems.note(table.places("where")["model"], "informs", message)


def _root_of(name: str, meters: Mapping[str, MeterTable]) -> str:
    """The meter that is no part of another one."""
    for _ in meters:  # A circle is refused elsewhere.
        name = (meters[name].source or name) if name in meters else name
    return name


def summary(notes: Iterable[Note]) -> str:
    """The notes in one line, by their kinds, with their places in the file; empty where there are none.

    The kinds ``informs`` and ``no_rate`` are left out: what they tell of may be meant so, and no line
    ends them.
    """
    parts: list[str] = []
    for kind, title in _TITLES.items():
        places = list(dict.fromkeys(f"{note.path} (line {note.line})" for note in notes if note.kind == kind))
        if places:
            parts.append(f"{title}: {listed(places, SHOWN_MAX)}")
    return "; ".join([*parts, "`meterkit check` says more"]) if parts else ""


def log_notes(catalog: Catalog, setting: Enforcement | None) -> None:
    """Log what the catalog may surprise with, and that it is not enforced where it is not.

    Args:
        catalog: what is sold, as it is enforced.
        setting: the setting ``enforcement``; None: the plans file decides.
    """
    found = catalog.enforcement
    found_notes = summary(catalog.notes)
    if found_notes and found != "off":
        _plans_logger.warning("%s: %s", catalog.source, found_notes)
    if found != "on":
        origin = catalog.source if setting is None else "the setting enforcement"
        _logger.warning("enforcement is %s (%s): %s", found, origin, _ENFORCEMENTS[found])

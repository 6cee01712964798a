"""Entitlements: what a plan gives of one meter, whether it limits it, defaults, and overrides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from meterkit.catalog.budgets import LimitsTable, apply_spend_limits
from meterkit.catalog.currencies import AMOUNT
from meterkit.catalog.errors import FilePlace, Problems, unknown
from meterkit.catalog.meters import refuse_sizes
from meterkit.catalog.models import QUANTITY_MAX, SPEND, Entitlement, Overage
from meterkit.catalog.rates import RatesShape, rate_text
from meterkit.catalog.value_parsers import (
    TABLE_OF_PRICES,
    UNLIMITED,
    Unlimited,
    duration,
    integer,
    or_unlimited,
    percent,
    quantity,
)
from meterkit.catalog.value_shapes import AnyForm, Key, ListOf, Nullable, Table, ValueShape, WordChoice
from meterkit.catalog.yaml_tree import DEPTH_MAX, Fields, Items, Node, Text
from meterkit.safe_text import as_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meterkit.catalog.models import Bought, Catalog, Meter, Plan


class BillTable(Table, what="a price of overage", inheritable=True):
    """``bill:`` of an overage."""

    cap = Key(
        quantity(), "The quantity beyond included that is admitted and billed at most; default: no ceiling."
    )
    per = Key(quantity(least=1), "The quantity that amount_cents buys.")
    amount_cents = Key(AMOUNT, "The price of `per` units in minor units.")
    price = Key(
        Nullable(TABLE_OF_PRICES),
        "In place of both: `prices.NAME`, prices by model in minor units; default: null.",
    )


_PERCENT: Final = percent(least=1, most=1000)


class OverageTable(Table, what="overage", inheritable=True):
    """The map form of ``overage:``."""

    bill = Key(BillTable, "Overage is admitted and billed.")
    percent = Key(_PERCENT, "How far above included a gauge may be.")
    grace_ms = Key(duration(least=1), "For how long it may be above.", name="grace")


_OVERAGE_MAPS: Final = ", a map {bill: {cap, per, amount_cents}} or a map {percent, grace}"
OVERAGE_ALLOWED: Final = f"deny, bill{_OVERAGE_MAPS}"
_OVERAGE_SHAPE: Final[ValueShape[str | OverageTable]] = AnyForm(
    OVERAGE_ALLOWED, scalar=WordChoice(("deny", "bill"), others=_OVERAGE_MAPS), fields=OverageTable
)


_LIMITS: Final = "a limit per billing period is `included`, one per minute or day is `rate`"
_MEANT: Final[Mapping[str, str]] = dict.fromkeys(("limit", "limits", "quota", "max", "maximum"), _LIMITS)


class EntitlementTable(Table, what="an entitlement", inheritable=True, meant=_MEANT):
    """One of ``meters:`` of a plan."""

    rates = Key(RatesShape(), "Quantity per window: one rate, several, or unlimited (default).", name="rate")
    concurrency: Key[int | Unlimited] = Key(
        or_unlimited(integer(least=1)), "Requests in flight; default: unlimited."
    )
    included: Key[int | Unlimited] = Key(
        or_unlimited(quantity()), "Quantity per billing period that the price covers."
    )
    overage = Key(
        _OVERAGE_SHAPE,
        "What happens beyond included: deny (default where something is included), bill, or a tolerance.",
    )
    warn_at = Key(
        ListOf(_PERCENT, "percentages"), "Percentages of included at which usage.threshold is sent."
    )


class CounterLimits(Table, what="a limit of a subject", inheritable=True):
    """One of the meters of a subject of a plan: rates, concurrency and included, and no overage."""

    rates = EntitlementTable.rates
    concurrency = EntitlementTable.concurrency
    included = EntitlementTable.included


DENY: Final = Overage(mode="deny")
BILLED: Final = Overage(mode="bill")


def default_entitlement(meter: Meter) -> Entitlement:
    """Entitlement of a meter that a plan does not list: no ceiling, billed if Stripe has an event for it.

    Of what calls are charged it gives nothing: credits pay for that.
    """
    is_billed = meter.stripe is not None and meter.source is None
    return Entitlement(
        meter=meter.name,
        rates=(),
        concurrency=None,
        included=0 if is_billed or meter.charges is not None else None,
        overage=BILLED if is_billed else DENY,
        warn_at=(),
    )


def build_entitlement(
    values: EntitlementTable, meter: Meter, *, base: Entitlement | None = None
) -> Entitlement:
    """Build the entitlement that a plan lists; unspecified keys come from ``base``, if there is one."""
    if meter.kind == "gauge":
        _refuse_on_gauge(values, meter)
    _refuse_sizes(values, meter)
    start = base or default_entitlement(meter)
    if values.has("included"):
        included = _none_if_unlimited(values.included)
    else:
        included = 0 if base is None and values.overage is not None else start.included
    return Entitlement(
        meter=meter.name,
        rates=(values.rates or ()) if values.has("rates") else start.rates,
        concurrency=_none_if_unlimited(values.concurrency)
        if values.has("concurrency")
        else start.concurrency,
        included=included,
        overage=_build_overage(values, meter, base),
        warn_at=_build_warn_at(values) if values.has("warn_at") else start.warn_at,
        is_unlimited=included is None and (values.included == UNLIMITED or start.is_unlimited),
    )


def build_counter_limits(
    values: CounterLimits, meter: Meter, *, base: Entitlement | None = None
) -> Entitlement:
    """The rates, the concurrency and the ceiling of one meter of a subject; nothing is billed of it."""
    refuse_sizes(values.nodes("rates", "included"), meter, values.problems)
    start = base or Entitlement(
        meter=meter.name, rates=(), concurrency=None, included=None, overage=DENY, warn_at=()
    )
    return replace(
        start,
        rates=(values.rates or ()) if values.has("rates") else start.rates,
        concurrency=_none_if_unlimited(values.concurrency)
        if values.has("concurrency")
        else start.concurrency,
        included=_none_if_unlimited(values.included) if values.has("included") else start.included,
    )


def _none_if_unlimited(written: int | Unlimited | None) -> int | None:
    return None if written == UNLIMITED else written


def ceiling(entitlement: Entitlement) -> int | None:
    """The quantity per period, or the level, beyond which only grants and credits admit; None: no ceiling."""
    included, overage = entitlement.included, entitlement.overage
    if included is None:
        return None
    match overage.mode:
        case "deny":
            return included
        case "bill":
            return None if overage.cap is None else included + overage.cap
        case "percent":
            return included * (100 + (overage.percent or 0)) // 100


def _refuse_on_gauge(values: EntitlementTable, meter: Meter) -> None:
    if values.rates:
        values.refuse("rates", f"{meter.name} is a gauge: it has a level, not a rate; remove `rate`")
    if isinstance(values.concurrency, int):
        message = f"{meter.name} is a gauge: concurrency counts requests; put it on a counter"
        values.refuse("concurrency", message)


def _refuse_sizes(values: EntitlementTable, meter: Meter) -> None:
    bill = values.overage.bill if isinstance(values.overage, OverageTable) else None
    billed = bill.nodes("cap", "per") if bill else []
    refuse_sizes([*values.nodes("rates", "included"), *billed], meter, values.problems)


def _build_overage(values: EntitlementTable, meter: Meter, base: Entitlement | None) -> Overage:
    written = values.overage
    if written is None:
        if base is not None:
            return base.overage
        return DENY if values.has("included", "overage") else default_entitlement(meter).overage
    if isinstance(written, OverageTable):
        overage = _build_overage_table(written, meter)
        if base is not None and written.bill is not None and written.bill.price is not None:
            written.bill.refuse("price", "prices by model are a plan's; give `per` and `amount_cents`")
    else:
        overage = BILLED if written == "bill" else DENY
    if base is not None and overage.mode == base.overage.mode == "bill" and overage.amount_cents is None:
        overage = replace(base.overage, cap=overage.cap)  # An override without a price has the plan's.
    if overage.mode == "bill" and meter.stripe is None:
        cure = (
            "deny it" if meter.kind == "gauge" else "add `stripe: {event_name: …}` to the meter, or deny it"
        )
        values.refuse("overage", f"{meter.name} has no Stripe event, so its overage cannot be billed; {cure}")
    elif overage.mode != "bill" and not values.has("included") and (base is None or base.included is None):
        message = (
            "overage is usage beyond included, and `included` is missing; add it, `included: 0` for none"
        )
        values.refuse("overage", message)
    return overage


def _build_overage_table(written: OverageTable, meter: Meter) -> Overage:
    place = written.node.place
    has_tolerance = written.has("percent", "grace_ms")
    if written.has("bill") and not has_tolerance:
        return _build_bill(written.bill)
    if written.has("bill"):
        written.problems.refuse(place, f"found both `bill` and a tolerance; allowed: {OVERAGE_ALLOWED}")
        return DENY
    if not (written.has("percent") and written.has("grace_ms")):
        written.problems.refuse(place, f"a tolerance needs `percent` and `grace`; allowed: {OVERAGE_ALLOWED}")
    elif meter.kind != "gauge":
        message = f"{meter.name} is a counter, and percent and grace are for gauges; use deny or bill"
        written.problems.refuse(place, message)
    return Overage(mode="percent", percent=written.percent, grace_ms=written.grace_ms)


def _build_bill(bill: BillTable | None) -> Overage:
    if bill is None:
        return DENY
    for given, needed in (("per", "amount_cents"), ("amount_cents", "per")):
        if bill.has(given) and not bill.has(needed):
            bill.refuse(given, f"`{given}` needs `{needed}`: an amount of money per number of units")
    if bill.price is not None:
        for key in ("per", "amount_cents"):
            if bill.has(key):
                bill.refuse(key, f"found `price` and `{key}`; keep one: a price for all models, or by model")
    return Overage(mode="bill", **bill.given("cap", "per", "amount_cents"))


def _build_warn_at(values: EntitlementTable) -> tuple[int, ...]:
    warn_at = values.warn_at or ()
    if len(set(warn_at)) < len(warn_at):
        values.refuse("warn_at", "a percentage is listed twice; keep one")
    return tuple(sorted(set(warn_at)))


_SOURCE: Final = "override"


def override(
    catalog: Catalog,
    plan: Plan,
    overrides: Mapping[str, Mapping[str, object]],
    *,
    added: Mapping[str, int] | None = None,
    strict: bool = False,
) -> dict[str, Entitlement]:
    """A plan's entitlements with some replaced; what its add-ons include is added.

    Args:
        catalog: the catalog of the plan.
        plan: what is laid over.
        overrides: meter to an entitlement in the notation of the plans file; what it does not say stays
            as the plan has it.
        added: meter to the quantity that add-ons include; None: that of those in the plan.
        strict: whether to raise. Otherwise a meter whose override cannot be read stays as the plan has
            it: what was stored under one plans file must not break the decisions of the next.

    Raises:
        PlansError: something is wrong; with all that is wrong.
    """
    merged, replaced = dict(plan.entitlements), list[str]()
    problems = Problems(_SOURCE)
    for name, given in overrides.items():
        place, found = FilePlace(0, 0, "").child(name), Problems(_SOURCE)
        if name == "budget" and name not in catalog.meters:
            found.refuse(place, f"a budget is overridden by the limits of `{SPEND}`: {{period: MINOR_UNITS}}")
        elif name not in catalog.meters or catalog.meters[name].is_row:
            written = [known for known, meter in catalog.meters.items() if not meter.is_row]
            found.refuse(place, unknown("meter", name, written))
        elif catalog.meters[name].is_spend:
            limits = LimitsTable.read(build_node(given, place, 1), found)
            if limits is not None and not found:
                merged[name] = apply_spend_limits(plan.entitlements[name], limits, catalog.currency)
        elif (values := EntitlementTable.read(build_node(given, place, 1), found)) is not None:
            built = build_entitlement(values, catalog.meters[name], base=plan.entitlements[name])
            if not found:
                merged[name] = built
                replaced += [name] if "included" in given else []
        problems.extend(found)
    if strict and problems:
        raise problems.error()
    added = included_by(plan.bought, catalog) if added is None else added
    return add_included(merged, {name: added[name] for name in replaced if name in added})


def included_by(bought: Bought, catalog: Catalog) -> Mapping[str, int]:
    """Quantities by meter that add-ons include."""
    found = Counter[str]()
    for key, n in bought:
        if (addon := catalog.find_addon(key)) is not None:
            found.update({meter: included * n for meter, included in addon.included.items()})
    return found


def add_included(given: Mapping[str, Entitlement], added: Mapping[str, int]) -> dict[str, Entitlement]:
    """Entitlements with larger included quantities, where they have a limit."""
    found = dict(given)
    for meter, more in added.items():
        if (included := found[meter].included) is not None:
            found[meter] = replace(found[meter], included=min(included + more, QUANTITY_MAX))
    return found


def build_node(value: object, place: FilePlace, depth: int) -> Node:
    """A value of Python in the notation of the plans file."""
    if depth > DEPTH_MAX:
        return Text(place, "…", quoted=True)
    if isinstance(value, Mapping):
        entries = {as_text(key): item for key, item in cast("Mapping[object, object]", value).items()}
        places = {key: place.child(key) for key in entries}
        return Fields(
            place, {key: build_node(item, places[key], depth + 1) for key, item in entries.items()}, places
        )
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return Items(place, tuple(build_node(item, place.item(i), depth + 1) for i, item in enumerate(items)))
    if value is None:
        return Text(place, "null", quoted=False)
    if isinstance(value, bool):
        return Text(place, str(value).lower(), quoted=True)
    return Text(place, rate_text(value) or as_text(value), quoted=True)


def has_limit(given: Entitlement, *, in_budget: bool = False) -> bool:
    """Whether an entitlement can refuse a request; ``in_budget``: a budget bounds what the meter costs."""
    if given.rates or given.concurrency is not None or ceiling(given) is not None:
        return True
    return in_budget and (given.overage.amount_cents is not None or given.overage.rows is not None)


def is_limited(meter: str, plans: Iterable[Plan]) -> bool:
    """Whether a plan, or what it gives a subject, limits a meter."""
    return any(
        has_limit(given, in_budget=_has_budget(plan))
        for plan in plans
        for given in _entitlements_of(meter, plan)
        if given is not None
    )


def _entitlements_of(meter: str, plan: Plan) -> Iterator[Entitlement | None]:
    yield plan.entitlements.get(meter)
    yield from (subject.limits.get(meter) for subject in plan.subjects.values())


def _has_budget(plan: Plan) -> bool:
    spend = plan.entitlements.get(SPEND)
    is_bounded = spend is not None and has_limit(spend)
    return is_bounded or any(subject.budget for subject in plan.subjects.values())

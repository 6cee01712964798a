"""``plans:``: named sets of entitlements, and what a plan that extends another inherits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.billing import ALLOTMENTS
from meterkit.catalog.budgets import BudgetTable
from meterkit.catalog.currencies import CHARGED_AMOUNT, PerCurrency
from meterkit.catalog.entitlements import EntitlementTable, build_entitlement, default_entitlement
from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.meters import (
    ALL,
    Meters,
    bills_usage,
    check_meter,
    meters_billed_by_tiers,
    refuse_sizes,
)
from meterkit.catalog.models import CREDITS_MAX, SEAT_UNITS, Plan, PlanGrant, Price, Rollover, SeatPrice
from meterkit.catalog.notes import note_entitlement, note_trial, note_without_rates
from meterkit.catalog.overage_prices import (
    bill_by_model,
    build_rows,
    check_item_count,
    make_price_rows,
    price_by_model,
)
from meterkit.catalog.subjects import SubjectShape, build_subjects
from meterkit.catalog.value_parsers import (
    NAME,
    PRICE_ID,
    UNLIMITED,
    duration,
    integer,
    quantity,
    scalar,
    text,
    trial_days,
)
from meterkit.catalog.value_shapes import (
    AnyForm,
    Key,
    ListOf,
    MapOf,
    Nullable,
    Table,
    ValueShape,
    WordChoice,
    drop_refused,
)
from meterkit.catalog.yaml_tree import Fields, Node, Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.errors import Problems
    from meterkit.catalog.model_prices import ModelPrices
    from meterkit.catalog.models import (
        Addon,
        Allotment,
        Entitlement,
        GrantedEvery,
        PaymentMethodTerm,
        WithoutCard,
    )

DEFAULT_PLAN_WORD: Final = "default_plan"
_EXTENDS: Final = "extends"
# A plan's name and what it extends are its own; all else is inherited.
_OWN: Final = frozenset({_EXTENDS, "name"})
_RESERVED: Final = {
    DEFAULT_PLAN_WORD: "stands for the default plan",
    "addon": "stands in the lookup keys of add-ons' prices at Stripe",
}

_NO_PRICE: Final[dict[str, Any]] = {"amount_cents": 0, "interval": "month"}  # Where it was refused.
_NO_SEAT_PRICE: Final[dict[str, Any]] = {"amount_cents": 0}


class PriceTable(Table, what="a price", inheritable=True):
    """``price:`` of a plan."""

    amount_cents = Key(
        CHARGED_AMOUNT,
        "In minor units of the currency: `meterkit stripe sync` makes such a price, and previews use it.",
        required=True,
    )
    interval = Key(WordChoice(("month", "year")), "How often it is paid: month or year.", required=True)
    included_per = Key(
        WordChoice(("month", "interval")), "Span of included quantities: month (default) or interval."
    )
    stripe_price = Key(
        Nullable(PerCurrency(PRICE_ID, common=".+")),
        "The id of the price at Stripe, which may have several currencies; default: the price that `meterkit"
        " stripe sync` made.",
    )


class SeatPriceTable(Table, what="a seat price", inheritable=True):
    """``seat_price:`` of a plan."""

    amount_cents = PriceTable.amount_cents
    stripe_price = PriceTable.stripe_price


_QUANTITY: Final = quantity(least=1)
_NO_QUANTITY: Final[dict[str, Any]] = {"quantity": 1}  # Where it was refused.
_EVERY: Final[WordChoice[GrantedEvery]] = WordChoice(("period", "once"))
_PERIODS: Final = re.compile(r"([1-9][0-9]{0,2}) periods?")
_PERIODS_MAX: Final = 120
_PERIODS_ALLOWED: Final = f"a number of billing periods such as 2 periods, at most {_PERIODS_MAX}"


def _parse_periods(written: str) -> int:
    found = _PERIODS.fullmatch(written)
    if found is None or int(found[1]) > _PERIODS_MAX:
        meant = f"{written} periods" if written.isdecimal() else None
        raise RefusedError(f"allowed: {_PERIODS_ALLOWED}", meant=meant)
    return int(found[1])


class RolloverTable(Table, what="a rollover"):
    """``rollover:`` of a grant."""

    at_most = Key(_QUANTITY, "Largest balance of the grant, with the new period's quantity.", required=True)
    periods = Key(
        scalar(_parse_periods, _PERIODS_ALLOWED, pattern="^[1-9][0-9]{0,2} periods?$"),
        "Number of further billing periods in which unused units stay, such as 2 periods.",
        name="for",
        required=True,
    )


class GrantTable(Table, what="a grant"):
    """One of ``grants:`` of a plan."""

    credit = Key(NAME, "The credit that is granted.")
    meter = Key(NAME, "The meter of the granted quantity.")
    quantity = Key(_QUANTITY, "How much.", required=True)
    every: Key[GrantedEvery] = Key(
        _EVERY,
        "When: with every billing period, or once in a customer's life, at the first period on a plan that"
        " has it.",
        required=True,
    )
    priority = Key(integer(most=1000), "Lower is used first; default: 50.")
    expires_ms = Key(duration(least=1), "Life of the grant; default: its period.", name="expires")
    rollover = Key(
        RolloverTable, "Terms by which unused units stay after a period's end; default: they expire."
    )
    id = Key(
        NAME,
        "Id that makes it the same grant in other plans and after an edit; default: its priority and expiry.",
    )


FEATURES_SHAPE: Final[ValueShape[str | tuple[str, ...]]] = AnyForm(
    "a list of features, or all",
    scalar=WordChoice((ALL,), others=", or a list of features"),
    items=ListOf(NAME, "features"),
)


_WITHOUT_CARD: Final[WordChoice[WithoutCard]] = WordChoice(("cancel", "pause", "invoice"))


class TrialTable(Table, what="a trial", inheritable=True):
    """The map form of ``trial:`` of a plan."""

    for_ms = Key(trial_days(), "Its length, in whole days, at most 730.", name="for", required=True)
    without_card: Key[WithoutCard] = Key(
        _WITHOUT_CARD,
        "What happens to the subscription at the end of the trial, if there is no payment method: cancel"
        " (default), pause, or invoice.",
    )


_PAYMENT_METHOD: Final[WordChoice[PaymentMethodTerm]] = WordChoice(("required", "optional"))
_TRIAL: Final[ValueShape[int | TrialTable]] = AnyForm(
    "whole days such as 14d, or a map such as {for: 14d, without_card: pause}",
    scalar=trial_days(),
    fields=TrialTable,
)


_SUBJECTS: Final = "limits of each user or team are `subjects: {user: {METER: …}}`"
_MEANT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("user", "users", "team", "teams", "per_user"), _SUBJECTS),
    **dict.fromkeys(("limit", "limits", "quota", "quotas", "rate"), "limits stand under `meters`"),
    "seats": "seats are a gauge: `meters: {seats: {included: 5}}`",
}


class PlanTable(Table, what="a plan", inheritable=True, meant=_MEANT):
    """One of ``plans:``."""

    name = Key(
        text(128),
        "The name that customers see, on invoices and in previews; default: the key.",
    )
    extends = Key(NAME, "The plan whose entries this one inherits.")
    rank = Key(
        integer(most=1_000_000),
        "Decides upgrade or downgrade; default: 0.",
    )
    price = Key(PriceTable, "What the plan costs; required unless inherited.", required=True)
    seat_price = Key(
        Nullable(SeatPriceTable),
        "What a seat costs per interval, beyond those included.",
    )
    payment_method: Key[PaymentMethodTerm] = Key(
        _PAYMENT_METHOD,
        "required: a subscription is active once a payment method is saved. Default: required if the"
        " plan can cost anything, otherwise optional.",
    )
    trial: Key[int | TrialTable] = Key(
        Nullable(_TRIAL),
        "Length of the trial of a customer's first subscription, in whole days, at most 730; or a map.",
    )
    features = Key(FEATURES_SHAPE, "The features that the plan has: a list, or all; default: none.")
    meters = Key(MapOf(NAME, EntitlementTable, "meters and entitlements"), "What it gives of each meter.")
    grants = Key(ListOf(GrantTable, "grants"), "Grants that it gives every period, or once.")
    addons = Key(ListOf(NAME, "add-ons"), "The add-ons that customers may buy beside it; default: none.")
    subjects = Key(
        MapOf(NAME, SubjectShape(), "kinds of subjects"),
        "What it gives each user, team or other subject that `identify` names, by kind.",
    )
    budget = Key(Nullable(BudgetTable), "What may be spent beyond the plan's price; default: no limit.")
    allotment: Key[Allotment] = Key(ALLOTMENTS, "off or 250ms; default: the file's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredNames:
    """Names that plans and routes may refer to."""

    meters: Meters
    features: tuple[str, ...]
    credits: Mapping[str, Credit]
    prices: Mapping[str, ModelPrices | None]
    currency: str = ""
    addons: Mapping[str, Addon | None] = field(default_factory=dict[str, "Addon | None"])


def build_price_rows(
    read: Mapping[str, PlanTable | None], meters: Meters, prices: Mapping[str, ModelPrices | None]
) -> Meters:
    """The meters that the plans' prices by model need."""
    found: Meters = {}
    for values in drop_refused(read).values():
        found |= build_rows(values.meters or {}, meters, prices)
    return found


def find_overage_tables(read: Mapping[str, PlanTable | None]) -> set[str]:
    """Names of the tables by which plans price overage."""
    listed = (one for values in drop_refused(read).values() for one in (values.meters or {}).values())
    bills = (bill_by_model(one) for one in listed)
    return {bill.price for bill in bills if bill is not None and bill.price is not None}


def find_price_tables(
    read: Mapping[str, PlanTable | None], prices: Mapping[str, ModelPrices | None]
) -> Iterator[tuple[str, ModelPrices]]:
    """The meters whose overage a plan prices by model, each with the table."""
    for values in drop_refused(read).values():
        for name, listed in (values.meters or {}).items():
            bill = bill_by_model(listed)
            if bill is not None and (table := prices.get(bill.price or "")) is not None:
                yield name, table


def build_plans(
    read: Mapping[str, PlanTable | None], declared: DeclaredNames, problems: Problems, *, by_lines: bool
) -> dict[str, Plan | None]:
    """The plans by key; None where a plan was refused altogether.

    Args:
        read: the plans as written.
        declared: names that they may use.
        problems: gets what is wrong.
        by_lines: whether invoice lines bill usage, without meters at Stripe.
    """
    plans = {
        key: None if values is None else _build_plan(key, values, declared) for key, values in read.items()
    }
    for key, plan in drop_refused(plans).items():
        if (values := read[key]) is not None:
            check_item_count(plan, declared.meters, values.node.place, problems, by_lines=by_lines)
    for key, meaning in _RESERVED.items():
        if (values := read.get(key)) is not None:
            problems.refuse(values.node.place, f"{key!r} {meaning}; choose another key")
    _refuse_prices_used_twice(read)
    return plans


def _build_plan(key: str, values: PlanTable, declared: DeclaredNames) -> Plan:
    price, seat_price = values.price, values.seat_price
    trial_ms, without_card = _build_trial(values.trial)
    plan = Plan(
        key=key,
        name=values.name or key,
        rank=values.rank or 0,
        price=Price(**_NO_PRICE | (price.given() if price else {})),
        seat_price=SeatPrice(**_NO_SEAT_PRICE | seat_price.given()) if seat_price else None,
        trial_ms=trial_ms,
        trial_without_card=without_card,
        features=build_features(values.features, values, declared),
        entitlements=_build_entitlements(values, declared),
        grants=build_grants(values.grants or (), declared),
        allotment=values.allotment,
        subjects=build_subjects(values.subjects or {}, declared.meters, declared.currency, values.problems),
        addons=values.addons or (),
    )
    _check_addons(plan, values, declared)
    _check_seat_price(values, declared)
    default: PaymentMethodTerm = "required" if can_cost(plan, declared) else "optional"
    return replace(plan, payment_method=values.payment_method or default)


def _check_seat_price(values: PlanTable, declared: DeclaredNames) -> None:
    """Refuse a seat price where nothing says which gauge counts seats: none would grow, nor be included."""
    meters = drop_refused(declared.meters)
    gauges = [name for name, meter in meters.items() if meter.kind == "gauge" and meter.unit in SEAT_UNITS]
    if values.seat_price is not None and len(gauges) > 1 and "seats" not in gauges:
        message = (
            f"seats are counted on one gauge, and {', '.join(gauges)} count seats; name one of them `seats`"
        )
        values.refuse("seat_price", message)


def can_cost(plan: Plan, declared: DeclaredNames) -> bool:
    """Whether a customer of a plan may owe money: its price, seats, add-ons, billed usage, automatic top-ups.

    Args:
        plan: the plan, with the defaults of its entitlements applied.
        declared: the meters and credits of the file.
    """
    buys_by_itself = any(
        credit.top_up is not None and credit.top_up.auto is not None for credit in declared.credits.values()
    )
    if plan.price.amount_cents > 0 or plan.seat_price is not None or buys_by_itself or plan.addons:
        return True
    return any(
        bills_usage(plan.entitlements[name], meter)
        for meter in drop_refused(declared.meters).values()
        for name in {meter.name, meter.source or meter.name} & plan.entitlements.keys()
    )


def _build_trial(written: int | TrialTable | None) -> tuple[int | None, WithoutCard]:
    """The length of a trial (None: there is none), and what happens at its end without a payment method."""
    if not isinstance(written, TrialTable):
        return written, "cancel"
    return written.for_ms, written.without_card or "cancel"


def build_features(
    written: str | tuple[str, ...] | None, values: Table, declared: DeclaredNames
) -> frozenset[str]:
    """The features that a plan or an add-on lists under ``features``."""
    names = written or ()
    if isinstance(names, str):
        return frozenset(declared.features)
    for item in values.texts("features"):
        if item.text not in declared.features:
            hint = "; write `features: all` for every one" if item.text == ALL else ""
            values.problems.refuse(item.place, unknown("feature", item.text, declared.features) + hint)
    return frozenset(names)


def _build_entitlements(values: PlanTable, declared: DeclaredNames) -> dict[str, Entitlement]:
    listed = values.meters or {}
    for name, place in values.places("meters").items():
        check_meter(name, declared.meters, place, values.problems)
    built: dict[str, Entitlement] = {}
    for name, meter in drop_refused(declared.meters).items():
        written = listed.get(name)
        built[name] = default_entitlement(meter) if written is None else build_entitlement(written, meter)
        note_entitlement(built[name], meter, written, values.node.place, values.problems)
    for name, written in listed.items():
        bill = bill_by_model(written)
        table = None if bill is None else declared.prices.get(bill.price or "")
        if (
            table is not None
            and built.get(name) is not None
            and make_price_rows(name, table).default in built
        ):
            built |= price_by_model(built[name], table)
    known = drop_refused(declared.meters)
    place = values.place("meters") if values.has("meters") else values.node.place
    note_without_rates(built, known, place, values.problems)
    if values.trial is not None:
        budget = values.budget
        refuses = budget is not None and budget.at_limit != "notify" and budget.amount_cents != UNLIMITED
        note_trial(built, known, values.place("trial"), values.problems, has_budget=refuses)
    return built


def build_grants(read: tuple[GrantTable, ...], declared: DeclaredNames) -> tuple[PlanGrant, ...]:
    """The grants that a plan or an add-on lists."""
    built: dict[tuple[str, str], PlanGrant] = {}
    grants: list[PlanGrant] = []
    for written in read:
        grant = _build_grant(written, declared)
        if grant is None:
            continue
        other = built.setdefault((grant.name, grant.key), grant)
        if other is not grant and grant.id is not None and grant.id == other.id:
            message = f"{grant.id!r} is the id of another grant of {grant.name} in this list; choose another"
            written.refuse("id", message)
        elif other is not grant and (grant.rollover or other.rollover):
            message = f"another grant of {grant.name} has the same priority and expiry; give this one an `id`"
            written.problems.refuse(written.node.place, message)
        grants.append(grant)
    return tuple(grants)


def _build_grant(values: GrantTable, declared: DeclaredNames) -> PlanGrant | None:
    credit, meter_name = values.credit, values.meter
    if values.has("credit") == values.has("meter"):
        values.problems.refuse(values.node.place, "a grant names either `credit` or `meter`, one of the two")
        return None
    granted = values.nodes("quantity") + (values.rollover.nodes("at_most") if values.rollover else [])
    if credit is not None and credit not in declared.credits:
        hint = f"; for a quantity of a meter write `meter: {credit}`" if credit in declared.meters else ""
        values.refuse("credit", unknown("credit", credit, declared.credits) + hint)
    elif credit is not None:
        refuse_sizes(granted, f"{credit} is a credit", values.problems)
    if meter_name is not None:
        meter = check_meter(meter_name, declared.meters, values.place("meter"), values.problems)
        if meter is not None and meter.kind == "gauge":
            message = f"{meter_name} is a gauge: it has a level, which no grant raises; raise its `included`"
            values.refuse("meter", message)
        elif meter is not None and meter.source is not None:
            values.refuse("meter", f"{meter_name} is a part of {meter.source}; grant {meter.source}")
        elif meter is not None:
            refuse_sizes(granted, meter, values.problems)
    if credit is not None and (values.quantity or 0) > CREDITS_MAX:
        values.refuse("quantity", f"found {values.quantity}; allowed: at most {CREDITS_MAX} credits")
    return PlanGrant(
        kind="credit" if credit is not None else "meter",
        name=credit or meter_name or "",
        rollover=None if values.rollover is None else _build_rollover(values.rollover, values),
        **_NO_QUANTITY | values.given("quantity", "priority", "expires_ms", "id", "every"),
    )


def _build_rollover(values: RolloverTable, grant: GrantTable) -> Rollover | None:
    at_most, periods = values.at_most, values.periods
    if grant.has("expires_ms"):
        grant.refuse(
            "rollover", "found `rollover` beside `expires`; keep one: each says how long the grant lives"
        )
    if grant.every == "once":
        message = "a grant that is given once has no next period; to limit its life, write `expires`"
        grant.refuse("rollover", message)
    if at_most is None or periods is None:
        return None
    if at_most < (grant.quantity or 0):
        least = grant.quantity
        values.refuse("at_most", f"found {at_most}, below the grant's quantity; allowed: {least} or more")
    if grant.credit is not None and at_most > CREDITS_MAX:
        values.refuse("at_most", f"found {at_most}; allowed: at most {CREDITS_MAX} credits")
    return Rollover(at_most=at_most, periods=periods)


def _check_addons(plan: Plan, values: PlanTable, declared: DeclaredNames) -> None:
    """Refuse add-ons that are not there, listed twice, or do not go with the plan."""
    meters = drop_refused(declared.meters)
    has_tiers = set(meters_billed_by_tiers(meters, plan)) if plan.addons else set[str]()
    owners = {(grant.name, grant.key): f"the plan {plan.key}" for grant in plan.grants}
    seen: set[str] = set()
    for item in values.texts("addons"):
        addon, problems = declared.addons.get(item.text), values.problems
        if item.text not in declared.addons:
            problems.refuse(item.place, unknown("add-on", item.text, declared.addons))
        elif item.text in seen:
            problems.refuse(item.place, f"{item.text!r} is listed twice; keep one")
        elif addon is not None:
            for reason in _list_misfits(addon, plan, has_tiers, owners):
                problems.refuse(item.place, reason)
        seen.add(item.text)


def _list_misfits(
    addon: Addon, plan: Plan, has_tiers: set[str], owners: dict[tuple[str, str], str]
) -> Iterator[str]:
    """Reasons against an add-on in a plan; ``owners`` names the plan or add-on of each grant."""
    own, other = plan.price.interval, addon.price.interval
    if own != other:
        cure = f"list in {plan.key} only add-ons that are paid per {own}"
        yield f"{addon.key} is paid per {other}, the plan {plan.key} per {own}; {cure}"
    for meter in sorted(has_tiers & addon.included.keys()):
        yield (
            f"{addon.key} adds to {meter}; with `report: usage` the price of the plan {plan.key} at Stripe"
            " has what is included; write `report: overage`"
        )
    for grant in addon.grants:
        owner = owners.setdefault((grant.name, grant.key), addon.key)
        if owner != addon.key:
            yield (
                f"{owner} has a grant of {grant.name} with the id {grant.key!r}, too; write another"
                f" `id` in {addon.key}"
            )


def _price_ids(price: PriceTable) -> set[str]:
    """The ids of a plan's prices at Stripe, in all currencies."""
    node = price.node.values.get("stripe_price")
    if isinstance(node, Fields):
        return {item.text for item in node.values.values() if isinstance(item, Text)}
    return set() if price.stripe_price is None else {price.stripe_price}


def _refuse_prices_used_twice(read: Mapping[str, PlanTable | None]) -> None:
    """An inherited price is the same line of the file, so that two lines with one price are a slip."""
    first: dict[str, tuple[int, int]] = {}
    for values in drop_refused(read).values():
        price = values.price
        if not price:
            continue
        place = price.place("stripe_price")
        for price_id in _price_ids(price):
            line, column = first.setdefault(price_id, (place.line, place.column))
            if (line, column) != (place.line, place.column):
                message = f"{price_id!r} is already used in line {line}; a price names one plan"
                price.refuse("stripe_price", message)


def with_inheritance(root: Fields, problems: Problems) -> Fields:
    """The document with every plan's inherited entries written out, each keeping its own place."""
    plans = root.values.get("plans")
    if not isinstance(plans, Fields):
        return root
    parents = {key: parent for key, node in plans.values.items() if (parent := _parent_of(node)) is not None}
    merged: dict[str, Node] = {}
    for key in plans.values:
        _merge_ancestors(key, plans, parents, merged, problems)
    ordered = {key: merged[key] for key in plans.values}
    return replace(root, values={**root.values, "plans": replace(plans, values=ordered)})


def _parent_of(node: Node) -> Text | None:
    extends = node.values.get(_EXTENDS) if isinstance(node, Fields) else None
    return extends if isinstance(extends, Text) and not extends.is_null else None


def _merge_ancestors(
    key: str, plans: Fields, parents: dict[str, Text], merged: dict[str, Node], problems: Problems
) -> None:
    """Fill ``merged`` for one plan and for all it extends, furthest first."""
    line: list[str] = []
    step: str | None = key
    while step is not None and step not in merged:
        if step in line:
            around = " → ".join([*line[line.index(step) :], step])
            message = f"plans extend each other in a circle: {around}; one of them must not"
            problems.refuse(parents[step].place, message)
            break
        line.append(step)
        parent = parents.get(step)
        if parent is not None and parent.text not in plans.values:
            problems.refuse(parent.place, unknown("plan", parent.text, plans.values))
            parent = None
        step = parent.text if parent else None
    for name in reversed(line):
        own = plans.values[name]
        parent = parents.get(name)
        base = merged.get(parent.text) if parent else None
        merged[name] = own if base is None else _merge_nodes(base, own, without=_OWN)


def _merge_nodes(base: Node, own: Node, *, without: frozenset[str] = frozenset()) -> Node:
    if not isinstance(base, Fields) or not isinstance(own, Fields):
        return own
    values = {key: value for key, value in base.values.items() if key not in without}
    inherited = {key: base.places[key] for key in values}
    for key, value in own.values.items():
        values[key] = _merge_nodes(values[key], value) if key in values else value
    return Fields(own.place, values, {**inherited, **own.places})

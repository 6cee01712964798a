"""Subjects of a customer (users, teams): demands on their limits, and holds. Pure.

Every subject has counters of its own beside the customer's; the scripts decide all of them at once. See
``include/check_subjects.lua``.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.models import SPEND
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field
from meterkit.decisions.limit_policies import budget_terms, counter_terms, keep_ms_of
from meterkit.decisions.spending import UNBOUNDED, SpendingTerms, budget_of, unit_price

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.catalog.models import SubjectPlan
    from meterkit.decisions.limit_policies import Demand, PolicyMeasure
    from meterkit.decisions.spending import SpendBudget

SUBJECTS_PER_REQUEST_MAX: Final = 3
"""The most subjects that one request may name."""
_NOTHING: Final[dict[str, int]] = {}
_NO_ROWS: Final[dict[str, str]] = {}


class SubjectHold(NamedTuple):
    """Hold of an allowed decision on one subject.

    Attributes:
        quantities: by meter.
        concurrency: meters of whose concurrency it holds one.
        spent: micro-units of its budget.
        rates: the fields of the rates that the decision counted in.
    """

    quantities: Mapping[str, int] = _NOTHING
    concurrency: Sequence[str] = ()
    spent: int = 0
    rates: frozenset[str] = frozenset()


class SubjectDemand(NamedTuple):
    """Demands of a decision on subjects of one kind.

    Attributes:
        kind: of the subjects.
        fields: counter fields of a subject that the script reads.
        numbers: the script's terms.
        measures: limits, in the script's order.
        hold: hold of an allowed decision on each.
    """

    kind: str
    fields: tuple[str, ...]
    numbers: tuple[int, ...]
    measures: tuple[PolicyMeasure, ...]
    hold: SubjectHold


def subject_member(kind: str, subject: str) -> str:
    """The name of a subject in the index of its customer's."""
    return f"{kind}:{subject}"


def subject_budget(limits: SubjectPlan, catalog: Catalog) -> SpendBudget | None:
    """The budget of each subject of a kind; None: there is none."""
    given = limits.budget
    if given is None:
        return None
    field = rate_field(SPEND, given.window_ms, "fixed-window") if given.window_ms else meter_field(SPEND)
    return budget_of(given.window_ms, field, given.micros, given.window, catalog.currency)


def cost_of(
    quantities: Mapping[str, int],
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    model: str | None = "",
    rows: Mapping[str, str] = _NO_ROWS,
) -> Fraction:
    """Exact price of units in micro-units, whether or not the customer has to pay for them.

    Args:
        quantities: by meter; units of meters without a price cost nothing.
        entitlements: what the customer gets of every meter.
        catalog: what is sold.
        model: model that used them; None: no model; empty: an unknown one, at the highest price.
        rows: meter to the meter that counts its price by model; see ``ModelPricing``.
    """
    total = Fraction(0)
    for meter, quantity in quantities.items():
        # What a table prices by model is counted once more by price: the same units.
        is_priced = quantity and not catalog.meters[meter].is_row
        price = unit_price(rows.get(meter, meter), model, entitlements, catalog) if is_priced else None
        if price is not None:
            total += Fraction(quantity * price.micros, price.per)
    return total


def compile_subject(
    limits: SubjectPlan,
    demands: Mapping[str, Demand],
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    *,
    in_flight: bool,
    rates_only: bool,
    rows: Mapping[str, str] = _NO_ROWS,
) -> SubjectDemand:
    """Compile demands on meters for each subject of a kind.

    Args:
        limits: limits by the plan or an override.
        demands: by meter.
        entitlements: of every meter, for the prices of units.
        catalog: what is sold.
        in_flight: whether it is a request, which concurrency limits count.
        rates_only: leave ceilings, concurrency and budget aside.
        rows: see :func:`cost_of`.
    """
    own = {name: demand for name, demand in demands.items() if name in limits.limits}
    rates, ceilings, concurrency = counter_terms(
        limits.limits, catalog, own, UNBOUNDED, in_flight=in_flight and not rates_only
    )
    ceilings = [] if rates_only else ceilings
    counted = [*rates, *ceilings, *concurrency]
    fields = [part.field for part in counted]
    numbers = [number for part in counted for number in part.numbers]
    measures = [part.measure for part in counted]
    budget = subject_budget(limits, catalog)
    if rates_only or all(unit_price(name, "", entitlements, catalog) is None for name in demands):
        budget = None  # Nothing is spent by it.
    spans = spent = 0
    if budget is not None:
        needed, spent = _demand_costs(demands, entitlements, catalog, rows)
        fields += (meter_field(SPEND), budget.field) if budget.window_ms else (budget.field,)
        spans = 1 + (budget.window_ms > 0)
        numbers += (budget.window_ms, budget.micros, budget.unit, needed, spent)
        measures += [part.measure for part in budget_terms(SpendingTerms((budget,), {}))]
    rated = [rate for name in own for rate in limits.limits[name].rates]
    return SubjectDemand(
        limits.kind,
        tuple(fields),
        (keep_ms_of(rated), len(rates), len(ceilings), len(concurrency), spans, *numbers),
        tuple(_name_for_kind(measure, limits.kind) for measure in measures),
        SubjectHold(
            {part.measure.policy.meter: part.numbers[-1] for part in ceilings if part.numbers[-1]},
            tuple(part.measure.policy.meter for part in concurrency),
            spent,
            frozenset(part.field for part in rates),
        ),
    )


def _demand_costs(
    demands: Mapping[str, Demand],
    entitlements: Mapping[str, Entitlement],
    catalog: Catalog,
    rows: Mapping[str, str],
) -> tuple[int, int]:
    """The cost of the needed quantities and of the taken ones, in micro-units, rounded up."""
    needed = {name: demand.needed for name, demand in demands.items()}
    taken = {name: demand.taken for name, demand in demands.items()}
    of_needed = cost_of(needed, entitlements, catalog, rows=rows)
    return ceil(of_needed), ceil(cost_of(taken, entitlements, catalog, rows=rows))


def _name_for_kind(measure: PolicyMeasure, kind: str) -> PolicyMeasure:
    """The measure with the kind of the subject in the name of its policy."""
    return replace(measure, policy=replace(measure.policy, name=f"{kind}:{measure.policy.name}"))


def is_of_subject(policy: str) -> bool:
    """Whether a policy with this name limits a subject, not the customer."""
    return ":" in policy


def renew_hold(kind: str, hold: SubjectHold) -> SubjectDemand:
    """Demand that repeats the hold of another decision, even beyond limits."""
    fields = (
        *map(meter_field, hold.quantities),
        *map(concurrency_field, hold.concurrency),
        *((meter_field(SPEND),) if hold.spent else ()),
    )
    numbers = [keep_ms_of(()), 0, len(hold.quantities), len(hold.concurrency), int(bool(hold.spent))]
    for quantity in (*hold.quantities.values(), *(1 for _ in hold.concurrency)):
        numbers += (0, -1, 0, quantity)
    if hold.spent:
        numbers += (0, 0, 1, 0, hold.spent)
    return SubjectDemand(kind, fields, tuple(numbers), (), hold._replace(rates=frozenset()))

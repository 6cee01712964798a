"""``subjects:`` of a plan: what it gives each user, team or the like of a customer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.catalog.budgets import WINDOWS, BudgetTable, note_balances_in_dollars
from meterkit.catalog.entitlements import CounterLimits, build_counter_limits, build_node
from meterkit.catalog.errors import FilePlace, Problems, unknown
from meterkit.catalog.meters import check_meter
from meterkit.catalog.models import QUANTITY_MAX, SPEND, SubjectBudget, SubjectPlan
from meterkit.catalog.value_parsers import NAME, UNLIMITED, micros_per_minor_unit
from meterkit.catalog.value_shapes import MapOf, Table
from meterkit.catalog.yaml_tree import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.meters import Meters
    from meterkit.catalog.models import Catalog, Entitlement
    from meterkit.catalog.value_shapes import Json
    from meterkit.catalog.yaml_tree import Node

BUDGET: Final = "budget"
_BUDGET_DOC: Final = "What each may spend, whether or not the customer pays for it; beyond it: refused."
_WHAT: Final = "meters and their limits, and budget"


class SubjectBudgetTable(Table, what="a budget of a subject", inheritable=True):
    """``budget:`` of a subject."""

    amount_cents = BudgetTable.amount_cents
    per = BudgetTable.per


@dataclass(frozen=True, slots=True)
class WrittenSubject:
    """One kind of subjects as a plan writes it: limits by meter, and the budget."""

    node: Fields
    limits: Mapping[str, CounterLimits | None]
    budget: SubjectBudgetTable | None


class SubjectShape:
    """A map of meters to limits, with a budget among them."""

    _limits: Final = MapOf(NAME, CounterLimits, _WHAT)

    def read(self, node: Node, problems: Problems) -> WrittenSubject | None:
        """Read a node; None where it was refused or null."""
        if not isinstance(node, Fields):
            self._limits.read(node, problems)
            return None
        values = {name: value for name, value in node.values.items() if name != BUDGET}
        places = {name: place for name, place in node.places.items() if name != BUDGET}
        limits = self._limits.read(Fields(node.place, values, places), problems) or {}
        budget = node.values.get(BUDGET)
        return WrittenSubject(
            node, limits, None if budget is None else SubjectBudgetTable.read(budget, problems)
        )

    def schema(self) -> Json:
        """An object with meters as keys, and budget."""
        return {
            **self._limits.schema(),
            "properties": {BUDGET: {"description": _BUDGET_DOC, **SubjectBudgetTable.schema()}},
        }


def build_subjects(
    written: Mapping[str, WrittenSubject | None], meters: Meters, currency: str, problems: Problems
) -> dict[str, SubjectPlan]:
    """Build the limits of subjects by kind."""
    return {
        kind: _build_subject(kind, values, meters, currency, problems)
        for kind, values in written.items()
        if values is not None
    }


def _build_subject(
    kind: str, values: WrittenSubject, meters: Meters, currency: str, problems: Problems
) -> SubjectPlan:
    limits: dict[str, Entitlement] = {}
    for name, table in values.limits.items():
        place = values.node.places[name]
        meter = check_meter(name, meters, place, problems)
        if meter is None or table is None:
            continue
        if meter.kind == "gauge":
            message = f"{name} is a gauge: a subject has counters only; limit it in `meters` of the plan"
            problems.refuse(place, message)
        elif meter.source is not None:
            problems.refuse(place, f"{name} is a part of {meter.source}; limit {meter.source}")
        else:
            limits[name] = build_counter_limits(table, meter)
    budget = None
    if values.budget is not None:
        if SPEND in meters:
            problems.refuse(
                values.budget.node.place,
                f"spending is counted on the meter {SPEND}, which this file declares itself; rename it",
            )
        note_balances_in_dollars(meters, values.budget.node.place, problems)
        budget = _build_budget(values.budget, currency)
    return SubjectPlan(kind=kind, limits=limits, budget=budget)


def _build_budget(values: SubjectBudgetTable, currency: str) -> SubjectBudget | None:
    amount, per = values.amount_cents, values.per or "period"
    if amount == UNLIMITED:
        return None
    micros = min((amount or 0) * micros_per_minor_unit(currency), QUANTITY_MAX)
    window_ms, window = (0, "period") if per == "period" else WINDOWS[per]
    return SubjectBudget(micros=micros, window_ms=window_ms, window=window)


def override_subject(
    catalog: Catalog, given: SubjectPlan, overrides: Mapping[str, object], *, strict: bool = False
) -> SubjectPlan:
    """Limits of a subject with overrides applied.

    Args:
        catalog: the catalog of the plan.
        given: what is laid over.
        overrides: meter to its limits, and ``budget``, in the notation of the plans file; what a limit does
            not say stays as the plan has it.
        strict: whether to raise. Otherwise what cannot be read stays as the plan has it.

    Raises:
        PlansError: something is wrong; with all that is wrong.
    """
    problems, limits, budget = Problems("override"), dict(given.limits), given.budget
    for name, value in overrides.items():
        found = Problems("override")
        place = FilePlace(0, 0, "").child(given.kind)
        meters: Meters = {known: meter for known, meter in catalog.meters.items() if not meter.is_spend}
        if name not in {BUDGET, *meters}:
            problems.refuse(place.child(name), unknown("limit", name, (BUDGET, *meters)))
            continue
        written = SubjectShape().read(build_node({name: value}, place, 0), found)
        if written is not None and not found:
            built = _build_subject(given.kind, written, meters, catalog.currency, found)
            if not found and name == BUDGET:
                budget = built.budget
            elif not found:
                table, meter = written.limits[name], catalog.meters[name]
                limits[name] = (
                    build_counter_limits(table, meter, base=limits.get(name)) if table else limits[name]
                )
        problems.extend(found)
    if strict and problems:
        raise problems.error()
    return SubjectPlan(kind=given.kind, limits=limits, budget=budget)

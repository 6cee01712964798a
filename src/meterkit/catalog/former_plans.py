"""Definitions of plans and add-ons: those that left the plans file keep their terms for its customers."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from meterkit.catalog.entitlements import default_entitlement
from meterkit.catalog.load import to_plain_value
from meterkit.catalog.lost_currencies import without_prices
from meterkit.catalog.model_prices import PriceRows
from meterkit.catalog.models import (
    Addon,
    Entitlement,
    Overage,
    Plan,
    PlanGrant,
    Price,
    Rate,
    Rollover,
    SeatPrice,
    SubjectBudget,
    SubjectPlan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meterkit.catalog.models import Catalog, Meter

_T = TypeVar("_T")
_PLAN: Final = "plan"
_ADDON: Final = "addon"


class Definition(NamedTuple):
    """Terms of a plan or an add-on in each currency of the plans file that had it.

    Attributes:
        kind: ``plan`` or ``addon``.
        key: in that file.
        by_currency: the terms as plain JSON values, by currency.
    """

    kind: str
    key: str
    by_currency: Mapping[str, Any]


def list_definitions(catalog: Catalog) -> list[Definition]:
    """List the plans and add-ons of a catalog, those that have left its file included."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for code in catalog.currencies:
        own = catalog.in_currency(code)
        for kind, sold in ((_PLAN, own.all_plans), (_ADDON, own.all_addons)):
            for one in sold:
                found.setdefault((kind, one.key), {})[code] = one
    return [
        Definition(*name, json.loads(json.dumps(terms, default=to_plain_value)))
        for name, terms in found.items()
    ]


def with_former_plans(catalog: Catalog, known: Iterable[Definition]) -> Catalog:
    """The catalog with the plans and add-ons that its file lacks, as far as they are known.

    Their terms of meters, features, credits and kinds of meters that the file lacks, too, are left out.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: a definition is damaged, or of another release.
    """
    gone = [one for one in known if one.key not in (catalog.plans if one.kind == _PLAN else catalog.addons)]

    def add_to(own: Catalog) -> Catalog:
        plans = {one.key: _plan_in(one, own) for one in gone if one.kind == _PLAN}
        addons = {one.key: _addon_in(one, own) for one in gone if one.kind == _ADDON}
        return replace(own, former_plans=plans, former_addons=addons)

    others = {code: add_to(one) for code, one in catalog.other_currencies.items()}
    return replace(add_to(catalog), other_currencies=others)


def _plan_in(found: Definition, catalog: Catalog) -> Plan:
    """A plan that has left the file, in the currency of a catalog; without prices if it had none in that."""
    terms = found.by_currency.get(catalog.currency)
    if terms is None:
        plan: Plan = without_prices(_read_plan(next(iter(found.by_currency.values())), catalog))
        return plan
    return _read_plan(terms, catalog)


def _read_plan(terms: Mapping[str, Any], catalog: Catalog) -> Plan:
    given = _read_entitlements(terms["entitlements"], catalog)
    return _build(
        Plan,
        terms,
        price=_build(Price, terms["price"]),
        seat_price=_build_if_any(SeatPrice, terms["seat_price"]),
        features=frozenset(terms["features"]) & catalog.features,
        entitlements={
            name: given.get(name) or default_entitlement(meter) for name, meter in catalog.meters.items()
        },
        grants=_read_grants(terms["grants"], catalog),
        subjects={kind: _read_subject(one, catalog) for kind, one in terms["subjects"].items()},
        addons=tuple(terms.get("addons", ())),
    )


def _addon_in(found: Definition, catalog: Catalog) -> Addon:
    terms = found.by_currency.get(catalog.currency) or next(iter(found.by_currency.values()))
    return _build(
        Addon,
        terms,
        price=_build(Price, terms["price"]),
        included={name: units for name, units in terms["included"].items() if name in catalog.meters},
        features=frozenset(terms["features"]) & catalog.features,
        grants=_read_grants(terms["grants"], catalog),
    )


def _read_entitlements(terms: Mapping[str, Any], catalog: Catalog) -> dict[str, Entitlement]:
    found = {
        name: _build(
            Entitlement,
            one,
            rates=tuple(_build(Rate, rate) for rate in one["rates"]),
            overage=_read_overage(one["overage"], catalog),
            warn_at=tuple(one["warn_at"]),
        )
        for name, one in terms.items()
        if name in catalog.meters
    }
    return {name: one for name, one in found.items() if _is_of_kind(one, catalog.meters[name])}


def _is_of_kind(given: Entitlement, meter: Meter) -> bool:
    """Whether an entitlement was one of a meter of this kind: its key may be another meter's by now."""
    return not given.rates if meter.kind == "gauge" else given.overage.mode != "percent"


def _read_overage(terms: Mapping[str, Any], catalog: Catalog) -> Overage:
    """Overage terms; without prices by model if the file does not count by these any more."""
    rows = _build_if_any(PriceRows, terms["rows"])
    if rows is not None:
        rows = replace(rows, models=tuple((pattern, row) for pattern, row in rows.models))
    is_counted = rows is not None and catalog.meters.keys() >= {*rows.all}
    return _build(Overage, terms, rows=rows if is_counted else None)


def _read_grants(terms: Iterable[Mapping[str, Any]], catalog: Catalog) -> tuple[PlanGrant, ...]:
    return tuple(
        _build(PlanGrant, one, rollover=_build_if_any(Rollover, one.get("rollover")))
        for one in terms
        if one["name"] in (catalog.credits if one["kind"] == "credit" else catalog.meters)
    )


def _read_subject(terms: Mapping[str, Any], catalog: Catalog) -> SubjectPlan:
    limits = _read_entitlements(terms["limits"], catalog)
    return _build(SubjectPlan, terms, limits=limits, budget=_build_if_any(SubjectBudget, terms["budget"]))


def _build(kind: Callable[..., _T], terms: Mapping[str, Any], **read: Any) -> _T:
    """A value of a catalog by its fields; those that only another release has are ignored."""
    known = {one.name for one in fields(cast("Any", kind))}
    return kind(**{name: value for name, value in (dict(terms) | read).items() if name in known})


def _build_if_any(kind: Callable[..., _T], terms: Mapping[str, Any] | None) -> _T | None:
    return None if terms is None else _build(kind, terms)

"""Grants and credits that pay for a customer's meters, as the scripts read them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.allowance import OnceGrant
from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.packed import compact_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Plan, PlanGrant
    from meterkit.catalog.credit_values import Credit
    from meterkit.catalog.model_prices import ModelPrices
    from meterkit.catalog.models import Bought
    from meterkit.decisions.allowance import Allowance, GrantLine
    from meterkit.decisions.customer_state import CustomerState, EffectivePlan

MICRO: Final = 10**6
"""Micro-credits in a credit."""
_KEPT_MAX: Final = 1024


def target_of(kind: Literal["meter", "credit"], name: str) -> str:
    """Target of a grant, as the store writes it: ``m:METER`` or ``c:CREDIT``."""
    return f"{kind[0]}:{name}"


def sold_grants(catalog: Catalog) -> Iterator[PlanGrant]:
    """The grants of all plans, then those of all add-ons."""
    for plan in catalog.all_plans:
        yield from plan.grants
    for addon in catalog.all_addons:
        yield from addon.grants


class PrepaidPlans:
    """Prepaid quantities of plans, each worked out once: with the add-ons of customers, by currency.

    Attributes:
        may_have_given: whether a plan or an add-on has grants, or an earlier plans file may have had some.
    """

    __slots__ = ("_catalog", "_known", "may_have_given")

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[str, Bought, str], Prepaid] = {}
        self.may_have_given = bool(catalog.credits) or any(True for _ in sold_grants(catalog))

    def of(self, plan: Plan, currency: str) -> Prepaid:
        """Prepaid quantities of a plan of the file, with its add-ons, in a currency of the file."""
        key = plan.key, plan.bought, currency
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _KEPT_MAX:
                self._known.clear()
            found = self._known[key] = Prepaid.of(plan, self._catalog.in_currency(currency))
        return found


def prepaid_of(
    rev: str,
    state: CustomerState,
    effective: EffectivePlan,
    plans: PrepaidPlans,
    *,
    anonymous: bool = False,
) -> Prepaid | None:
    """Grants and credits of a customer; None if there can be none.

    A customer with a state may have come from a plan with grants, or an earlier plans file gave credits: they
    stay. A customer known by name can owe money without a grant.

    Args:
        rev: of the state.
        state: of the customer.
        effective: the active plan, and what differs from it in this period.
        plans: of the plans of the catalog.
        anonymous: whether the customer is anonymous.
    """
    plan = effective.plan
    of_a_plan = plans.may_have_given if rev != NO_STATE else plan.grants
    prepaid = plans.of(plan, effective.currency)
    can_owe = prepaid.money and not anonymous
    is_any = state.granted or of_a_plan or can_owe
    return prepaid.with_allowance(effective.allowance) if is_any else None


def grant_lines(plan: Plan) -> tuple[GrantLine, ...]:
    """The recurring grants of a plan, in the order in which they are used up."""
    given: dict[str, GrantLine] = {}
    for grant in plan.grants:
        if grant.every == "period":
            name, target = grant_name(grant), target_of(grant.kind, grant.name)
            before = given[name][2] if name in given else 0
            given[name] = (name, target, before + micros_of(grant), grant.priority, grant.expires_ms or 0)
    return sort_by_burn_order(given.values())


def once_lines(plan: Plan) -> tuple[GrantLine, ...]:
    """The grants of a plan that are given once in a customer's life, in the same order."""
    return sort_by_burn_order(
        (name, target_of(grant.kind, grant.name), micros_of(grant), grant.priority, grant.expires_ms or 0)
        for name, grant in {
            grant_name(grant): grant for grant in reversed(plan.grants) if grant.every == "once"
        }.items()
    )


def grant_name(grant: PlanGrant) -> str:
    """Name of a plan's grant in the store, without its period."""
    origin = "o" if grant.every == "once" else "p"
    return f"{origin} {target_of(grant.kind, grant.name)} {grant.key}"


ONCE_GIVEN: Final = "once "


def once_field(name: str) -> str:
    """Field of the hash of grants that says that a plan's grant was given for once and all.

    Args:
        name: of the grant in the store, without its period.
    """
    return ONCE_GIVEN + name.partition(" ")[2]


def micros_of(grant: PlanGrant) -> int:
    """Quantity of a grant: units of its meter, or micro-credits."""
    return grant.quantity * (MICRO if grant.kind == "credit" else 1)


def sort_by_burn_order(lines: Iterable[GrantLine]) -> tuple[GrantLine, ...]:
    """Recurring grants in the order in which they are used up."""
    return tuple(sorted(lines, key=lambda line: (line[3], line[4] or math.inf, line[0])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepaid:
    """The grants and credits of customers who may have some.

    Attributes:
        recurring: the plan's grants in the order in which they are used up. Lines of the plan that differ
            only in the quantity are one grant.
        once: the grants that are given once in a customer's life, in this order, too.
        mark: names these grants of the plan.
        paid_with: meter to the target of the credit that pays for it, and to its cost in micro-credits.
        low: the target of a credit to the share (%) of its last grant, and the micro-credits besides, below
            which it is low.
        by_model: the meters whose cost depends on the model.
        money: the target of the credit in money, whose balance may end below zero; empty: there is none.
        allowance: of a customer whose grants differ from the plan's in this period; None: they do not.
    """

    recurring: tuple[GrantLine, ...]
    once: tuple[OnceGrant, ...]
    mark: str
    paid_with: Mapping[str, tuple[str, int]]
    low: Mapping[str, tuple[int, int]]
    by_model: Mapping[str, ModelPrices]
    money: str
    allowance: Allowance | None = None

    @classmethod
    def of(cls, plan: Plan, catalog: Catalog) -> Prepaid:
        """Grants and credits of a plan."""
        recurring, once = grant_lines(plan), tuple(map(OnceGrant, once_lines(plan)))
        credits_ = catalog.credits.values()
        return cls(
            recurring=recurring,
            once=once,
            mark=digest_of_terms((recurring, once) if once else recurring),
            paid_with={
                meter: (target_of("credit", credit.name), cost)
                for credit in credits_
                for meter, cost in credit.costs.items()
            },
            low={
                target_of("credit", credit.name): low
                for credit in credits_
                if (low := _low_threshold(credit)) is not None
            },
            by_model={meter: prices for credit in credits_ for meter, prices in credit.by_model.items()},
            money=next((target_of("credit", credit.name) for credit in credits_ if credit.is_money), ""),
        )

    def with_allowance(self, allowance: Allowance | None) -> Prepaid:
        """The grants of a customer who has an allowance in this period."""
        if allowance is None:
            return self
        recurring = self.recurring if allowance.grants is None else allowance.grants.lines
        once = self.once if allowance.once is None else allowance.once
        more = filter(None, (allowance.rolls, once, allowance.history))
        terms = (recurring, allowance.grants, allowance.earlier, *more)
        return replace(self, recurring=recurring, once=once, mark=digest_of_terms(terms), allowance=allowance)

    def recurring_units(self, meter: str) -> int:
        """Units of a meter that the recurring grants of a period pay for, at the highest cost.

        A balance in money is left out: it may be in debt, which its grants pay first.
        """
        units = self._recurring_quantity(target_of("meter", meter))
        paying = self.paid_with.get(meter)
        if paying is None or paying[0] == self.money:
            return units
        credit, cost = paying
        if meter in self.by_model:
            cost = self.by_model[meter].highest
        return units + self._recurring_quantity(credit) // max(1, cost)

    def _recurring_quantity(self, target: str) -> int:
        """Units or micro-credits that the recurring grants of a period give."""
        given = sum(line[2] for line in self.recurring if line[1] == target)
        grants = None if self.allowance is None else self.allowance.grants
        return given if grants is None else min(given, dict(grants.limits).get(target, given))

    def costs_of(self, model: str | None) -> dict[str, int]:
        """Cost of a unit, by meter whose cost depends on the model; ``model`` is None if it is not known."""
        return {meter: prices.of(model) for meter, prices in self.by_model.items()}

    def decision_costs(self, model: str | None) -> dict[str, int]:
        """Costs for a decision: at least a micro-credit, because it divides a balance by the cost."""
        return {meter: max(1, cost) for meter, cost in self.costs_of(model).items()}

    def held_costs(self, models: Sequence[str] = ()) -> dict[str, int]:
        """Costs at which units are held: the highest ones of the models, or of all if none is known."""
        return {meter: max(1, prices.most(models)) for meter, prices in self.by_model.items()}

    def all_costs(self, known: Mapping[str, int] | None) -> dict[str, int]:
        """Costs of these meters: known ones, also under another plans file; otherwise the highest."""
        most = self.held_costs()
        return most | {meter: cost for meter, cost in (known or {}).items() if meter in most}

    def meters_sharing_credit(
        self, meters: Iterable[str], entitlements: Mapping[str, Entitlement] | None = None
    ) -> tuple[str, ...]:
        """Meters paid with a credit that also pays for one of the given meters.

        With entitlements, unlimited meters are left out.
        """
        shared = {self.paid_with[meter][0] for meter in meters if meter in self.paid_with}
        return tuple(
            meter
            for meter, (credit, _) in self.paid_with.items()
            if credit in shared and (entitlements is None or entitlements[meter].included is not None)
        )

    def backing_terms(
        self,
        ceilings: Sequence[str],
        unbounded: Mapping[str, int],
        places: Mapping[str, int],
        held_places: Mapping[str, int],
        costs: Mapping[str, int],
        entitlements: Mapping[str, Entitlement],
    ) -> str:
        """Grants and credits that back ceilings, as the decision script's JSON terms.

        Args:
            ceilings: the requested meters with a ceiling.
            unbounded: requested meters without a ceiling, to the quantity.
            places: meters that share a credit, to the position of their field among those that the script
                reads: from 2, after the head.
            held_places: meters whose cost depends on the model, to the position of their held credit.
            costs: cost of a unit of these meters now.
            entitlements: of every meter.
        """
        backed: list[list[Any]] = []
        asked_at = dict.fromkeys(ceilings, 0)
        for meter, place in places.items():
            credit, cost = self.paid_with[meter]
            included, target = entitlements[meter].included, target_of("meter", meter)
            line = [credit, costs.get(meter, cost), included, target, place, unbounded.get(meter, 0)]
            if meter in held_places:
                line += [held_places[meter], self.by_model[meter].highest]
            backed.append(line)
            if meter in asked_at:
                asked_at[meter] = len(backed)
        asked = [[target_of("meter", meter), at] for meter, at in asked_at.items()]
        return compact_json({**self._plan_terms, "asked": asked, "backed": backed})

    def payment_terms(
        self,
        meters: Iterable[tuple[str, bool]],
        costs: Mapping[str, int],
        *,
        owes: bool = True,
        is_named: bool = True,
    ) -> str:
        """Grants and credits that pay overage, as the settlement script's JSON terms.

        Args:
            meters: each recorded meter, and whether it is paid for: a derived one is paid through its source.
            costs: cost of a unit, by meter whose cost depends on the model.
            owes: whether use beyond a balance in money is a debt.
            is_named: whether the customer is not anonymous: then it is known for ever what was given once.
        """
        paying: list[list[Any]] = []
        for meter, is_paid in meters:
            credit, cost = self.paid_with.get(meter, ("", 0))
            line = [target_of("meter", meter), credit, costs.get(meter, cost)] if is_paid else ["", "", 0]
            paying.append([meter, *line])
        credits_ = {pay[2] for pay in paying}
        low = {target: share for target, share in self.low.items() if target in credits_}
        terms = {**self._plan_terms, "paying": paying, "low": low, "money": self.money if owes else ""}
        return compact_json(terms if is_named or not self.once else {**terms, "fleeting": 1})

    def packed_grants(self) -> str:
        """Terms of the plan's grants, as JSON for the usage script."""
        return compact_json(self._plan_terms)

    @property
    def _plan_terms(self) -> dict[str, object]:
        found: dict[str, object] = {"mark": self.mark, "recurring": self.recurring}
        if self.allowance is not None and self.allowance.grants is not None:
            found["limits"] = dict(self.allowance.grants.limits)
        if self.allowance is not None and self.allowance.earlier:
            found["earlier"] = [period.packed() for period in self.allowance.earlier]
        if self.allowance is not None and self.allowance.rolls is not None:
            found["rolls"] = self.allowance.rolls.packed()
        if self.allowance is not None and self.allowance.history:
            found["history"] = self.allowance.history
        if self.once:
            found["once"] = [grant.packed() for grant in self.once]
        return found


def _low_threshold(credit: Credit) -> tuple[int, int] | None:
    """Threshold of a low balance: a share (%) of its last grant, and a number of micro-credits."""
    if credit.top_up is not None and credit.top_up.auto is not None:
        return 0, credit.top_up.auto.below_cents * (MICRO // 100)
    return None if credit.low_balance_percent is None else (credit.low_balance_percent, 0)


def digest_of_terms(grants: object) -> str:
    """Digest of terms that compact JSON can say."""
    return blake2b(compact_json(grants).encode(), digest_size=6).hexdigest()

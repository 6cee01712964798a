"""Grants and credits behind a customer's meters: as scripts take them, and their balance. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.customer_state import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.catalog.model_prices import Credit, ModelPrices
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.periods import Bounds

MICRO: Final = 10**6
"""Micro-credits in a credit."""


def target_of(kind: Literal["meter", "credit"], name: str) -> str:
    """What a grant is of, as the store writes it: ``m:METER`` or ``c:CREDIT``."""
    return f"{kind[0]}:{name}"


def prepaid_by_plan(catalog: Catalog) -> dict[str, Prepaid]:
    """Prepaid quantities of each plan, by its key."""
    return {key: Prepaid.of(plan, catalog) for key, plan in catalog.plans.items()}


def prepaid_of(
    rev: str, state: CustomerState, plan: Plan, by_plan: Mapping[str, Prepaid], *, anonymous: bool = False
) -> Prepaid | None:
    """The grants and credits of a customer, or None where there are none to look for.

    A customer with a state may have come from a plan with grants: what that gave stays. A customer known by
    name can owe money without a grant.

    Args:
        rev: of the state.
        state: of the customer.
        plan: in force.
        by_plan: of each plan of the catalog.
        anonymous: whether the customer is one.
    """
    of_a_plan = any(prepaid.recurring for prepaid in by_plan.values()) if rev != NO_STATE else plan.grants
    prepaid = by_plan[plan.key]
    can_owe = prepaid.money and not anonymous
    return prepaid if state.granted or of_a_plan or can_owe else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepaid:
    """The grants and credits of customers who may have some.

    Attributes:
        recurring: the plan's grants, each a name without the period, a target, a quantity (units, or
            micro-credits), a priority, a life (ms; 0: until the period ends); in the order of their priority.
            Lines of the plan that differ only in the quantity are one grant.
        mark: names these grants of the plan.
        paid_with: meter to the target of the credit that pays for it, and to its cost in micro-credits.
        low: the target of a credit to the share (%) of its last grant, and the micro-credits besides, below
            which it is low.
        by_model: the meters whose cost depends on the model.
        money: the target of the credit in money, whose balance may end below zero; empty: there is none.
    """

    recurring: tuple[tuple[str, str, int, int, int], ...]
    mark: str
    paid_with: Mapping[str, tuple[str, int]]
    low: Mapping[str, tuple[int, int]]
    by_model: Mapping[str, ModelPrices]
    money: str

    @classmethod
    def of(cls, plan: Plan, catalog: Catalog) -> Prepaid:
        """What the customers of a plan may have."""
        given: dict[str, tuple[str, str, int, int, int]] = {}
        for grant in plan.grants:
            target = target_of(grant.kind, grant.name)
            quantity = grant.quantity * (MICRO if grant.kind == "credit" else 1)
            name = f"p {target} {grant.key}"
            before = given[name][2] if name in given else 0
            given[name] = (name, target, before + quantity, grant.priority, grant.expires_ms or 0)
        recurring = tuple(
            sorted(given.values(), key=lambda grant: (grant[3], grant[4] or math.inf, grant[0]))
        )
        credits_ = catalog.credits.values()
        return cls(
            recurring=recurring,
            mark=blake2b(_json(recurring).encode(), digest_size=6).hexdigest(),
            paid_with={
                meter: (target_of("credit", credit.name), cost)
                for credit in credits_
                for meter, cost in credit.costs.items()
            },
            low={
                target_of("credit", credit.name): low
                for credit in credits_
                if (low := _low_of(credit)) is not None
            },
            by_model={meter: prices for credit in credits_ for meter, prices in credit.by_model.items()},
            money=next((target_of("credit", credit.name) for credit in credits_ if credit.is_money), ""),
        )

    def costs_of(self, model: str | None) -> dict[str, int]:
        """What a unit costs of the meters whose cost depends on the model; None: no model is known."""
        return {meter: prices.of(model) for meter, prices in self.by_model.items()}

    def asked_costs(self, model: str | None) -> dict[str, int]:
        """The same for a decision: at least a micro-credit, as it counts how many units a balance pays."""
        return {meter: max(1, cost) for meter, cost in self.costs_of(model).items()}

    def held_costs(self, model: str | None) -> dict[str, int]:
        """What a unit is held at of these meters: the most where no model is known."""
        return self.asked_costs("" if model is None else model)

    def all_costs(self, known: Mapping[str, int] | None) -> dict[str, int]:
        """What a unit of these meters costs: as known under this plans file or another, else the most."""
        most = self.held_costs(None)
        return most | {meter: cost for meter, cost in (known or {}).items() if meter in most}

    def sharing(
        self, meters: Iterable[str], entitlements: Mapping[str, Entitlement] | None = None
    ) -> tuple[str, ...]:
        """The meters that are paid with a credit that pays for one of some meters, too.

        With entitlements, unlimited meters are left out.
        """
        shared = {self.paid_with[meter][0] for meter in meters if meter in self.paid_with}
        return tuple(
            meter
            for meter, (credit, _) in self.paid_with.items()
            if credit in shared and (entitlements is None or entitlements[meter].included is not None)
        )

    def behind(
        self,
        ceilings: Sequence[str],
        unbounded: Mapping[str, int],
        places: Mapping[str, int],
        held_places: Mapping[str, int],
        costs: Mapping[str, int],
        entitlements: Mapping[str, Entitlement],
    ) -> str:
        """What the decision script reads of the grants and credits behind ceilings, as JSON; see its terms.

        Args:
            ceilings: the requested meters with a ceiling.
            unbounded: requested meters without one: to the quantity.
            places: the meters that share a credit, each to the place of its field among those that
                the script reads: from 2, behind the head.
            held_places: those whose cost depends on the model, each to the place of its held credit.
            costs: what a unit of these costs now.
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
        return _json({**self._plans, "asked": asked, "backed": backed})

    def paying(
        self, meters: Iterable[tuple[str, bool]], costs: Mapping[str, int], *, owes: bool = True
    ) -> str:
        """What the settlement script pays overage with, as JSON; see its terms.

        Args:
            meters: each that is recorded, and whether it is paid for: derived ones are by their source.
            costs: what a unit costs of those whose cost depends on the model.
            owes: whether use beyond a balance in money is a debt.
        """
        paying: list[list[Any]] = []
        for meter, is_paid in meters:
            credit, cost = self.paid_with.get(meter, ("", 0))
            line = [target_of("meter", meter), credit, costs.get(meter, cost)] if is_paid else ["", "", 0]
            paying.append([meter, *line])
        credits_ = {pay[2] for pay in paying}
        low = {target: share for target, share in self.low.items() if target in credits_}
        money = self.money if owes else ""
        return _json({**self._plans, "paying": paying, "low": low, "money": money})

    @property
    def _plans(self) -> dict[str, object]:
        return {"mark": self.mark, "recurring": self.recurring}


def _low_of(credit: Credit) -> tuple[int, int] | None:
    """When a balance is low: below a share (%) of its last grant, or below so many micro-credits."""
    if credit.top_up is not None and credit.top_up.auto is not None:
        return 0, credit.top_up.auto.below_cents * (MICRO // 100)
    return None if credit.low_balance_percent is None else (credit.low_balance_percent, 0)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One grant as the store keeps it: units of a meter, or micro-credits.

    Attributes:
        name: ``a TARGET GRANT_ID`` for the app's, ``p TARGET KEY PERIOD`` for the plan's.
        target: ``m:METER`` or ``c:CREDIT``.
        expires_ms: 9 * 10^15 for never.
        until_ms: when it leaves the store; what a plan gave is kept for the whole period, too.
    """

    name: str
    target: str
    quantity: int
    used: int
    priority: int
    effective_ms: int
    expires_ms: int
    created_ms: int
    until_ms: int

    @classmethod
    def parse(cls, name: str, text: str) -> Holding:
        """Read a field of the hash of grants."""
        target, *numbers = text.split(" ")
        quantity, used, priority, effective_ms, expires_ms, created_ms, until_ms = map(int, numbers)
        return cls(
            name=name,
            target=target,
            quantity=quantity,
            used=used,
            priority=priority,
            effective_ms=effective_ms,
            expires_ms=expires_ms,
            created_ms=created_ms,
            until_ms=until_ms,
        )

    @property
    def left(self) -> int:
        """What it has left, whether it counts now or not."""
        return self.quantity - self.used

    def is_live(self, now_ms: int) -> bool:
        """Whether it pays for something now, if it has something left."""
        return self.effective_ms <= now_ms < self.expires_ms


def holdings_of(
    fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int
) -> list[Holding]:
    """All grants on file and those of the plan that are due, in the order in which they are used up."""
    found = [Holding.parse(name, text) for name, text in fields.items() if name.startswith(("a ", "p "))]
    known = {holding.name: holding for holding in found if holding.until_ms > now_ms}
    ended = [holding for holding in found if holding.until_ms <= now_ms]
    if prepaid is not None:
        in_first = now_ms < bounds.end_ms
        start_ms, end_ms = (
            (bounds.start_ms, bounds.end_ms) if in_first else (bounds.end_ms, bounds.next_end_ms)
        )
        for holding in _due(known.values(), prepaid, start_ms, end_ms, now_ms):
            known[holding.name] = holding
    return sorted(
        [*ended, *known.values()],
        key=lambda found: (found.priority, found.expires_ms, found.created_ms, found.name),
    )


def _due(
    on_file: Iterable[Holding], prepaid: Prepaid, start_ms: int, end_ms: int, now_ms: int
) -> Iterator[Holding]:
    """What a plan gives in a period that is not on file yet; see ``include/recur.lua``."""
    known = {holding.name: holding for holding in on_file}
    given: Counter[str] = Counter()
    for holding in known.values():
        if holding.name.startswith("p ") and holding.name.endswith(f" {start_ms}"):
            given[holding.target] += holding.quantity
    whole: Counter[str] = Counter()
    for _, target, quantity, _, _ in prepaid.recurring:
        whole[target] += quantity
    for prefix, target, quantity, priority, life_ms in prepaid.recurring:
        name, expires_ms = f"{prefix} {start_ms}", start_ms + life_ms if life_ms else end_ms
        before = known.get(name)
        more = min(quantity - (before.quantity if before else 0), whole[target] - given[target])
        if more <= 0:
            continue
        given[target] += more
        if before is None:
            yield Holding(
                name=name,
                target=target,
                quantity=more,
                used=0,
                priority=priority,
                effective_ms=start_ms,
                expires_ms=expires_ms,
                created_ms=start_ms,
                until_ms=max(expires_ms, end_ms),
            )
        else:
            lives_ms = before.expires_ms
            if lives_ms > now_ms:
                lives_ms = max(lives_ms, expires_ms)
            yield replace(before, quantity=before.quantity + more, expires_ms=lives_ms)


class Balance:
    """What live grants have left, by target, less what is owed, and what held quantities claim of it."""

    def __init__(
        self,
        holdings: Iterable[Holding],
        prepaid: Prepaid | None,
        now_ms: int,
        owed: Mapping[str, int] | None = None,
    ) -> None:
        self._prepaid = prepaid
        self._left: dict[str, int] = {target: -micros for target, micros in (owed or {}).items()}
        for holding in holdings:
            if holding.is_live(now_ms):
                self._left[holding.target] = self._left.get(holding.target, 0) + holding.left

    def of(self, target: str) -> int:
        """Units of a meter, or micro-credits; below 0 where it is owed."""
        return self._left.get(target, 0)

    def more(
        self,
        meter: str,
        entitlements: Mapping[str, Entitlement],
        counted: Callable[[str], int],
        held: Callable[[str], int],
        held_credit: Callable[[str], int],
    ) -> int:
        """Units that grants and credits add to what a plan gives of a meter; see ``include/backing_of.lua``.

        Args:
            meter: the meter; where its cost depends on the model, units at the default are meant.
            entitlements: of every meter.
            counted: what included has paid for of a meter in this period.
            held: what is held of a meter.
            held_credit: what that would cost of a meter whose cost depends on the model, in micro-credits.
        """
        units, prepaid = self.of(target_of("meter", meter)), self._prepaid
        if prepaid is None or meter not in prepaid.paid_with:
            return units
        credit, cost = prepaid.paid_with[meter]
        free, claimed, uncovered = self.of(credit), 0, 0
        for other in prepaid.sharing([meter]):
            included, by_model = entitlements[other].included, prepaid.by_model.get(other)
            if included is None or (other == meter and by_model is None):
                continue
            covered = max(0, included - counted(other)) + self.of(target_of("meter", other))
            beyond = max(0, held(other) - covered)
            if by_model is None:
                claim = beyond * prepaid.paid_with[other][1]
            else:
                claim = min(beyond * by_model.highest, held_credit(other))
            if other == meter:
                claimed, uncovered = claim, beyond
            else:
                free -= claim
        free = max(min(0, self.of(credit)), free)
        if claimed > max(0, free):  # It does not pay all of them, but no fewer than at the highest cost.
            return units + min(uncovered, free // prepaid.by_model[meter].highest)
        return units + (free - claimed) // cost + uncovered

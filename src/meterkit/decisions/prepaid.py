"""What grants and credits stand behind a customer's meters, as the scripts take it. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.customer_state import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.decisions.customer_state import CustomerState

__all__ = ["MICRO", "Prepaid", "prepaid_by_plan", "prepaid_of", "target_of"]

MICRO: Final = 10**6
"""Micro-credits in a credit."""


def target_of(kind: Literal["meter", "credit"], name: str) -> str:
    """What a grant is of, as the store writes it: ``m:METER`` or ``c:CREDIT``."""
    return f"{kind[0]}:{name}"


def prepaid_by_plan(catalog: Catalog) -> dict[str, Prepaid]:
    """What is prepaid in each plan, by its key."""
    return {key: Prepaid.of(plan, catalog) for key, plan in catalog.plans.items()}


def prepaid_of(rev: str, state: CustomerState, plan: Plan, by_plan: Mapping[str, Prepaid]) -> Prepaid | None:
    """The grants and credits of a customer, or None where there are none to look for.

    A customer with a state may have come from a plan with grants: what that gave stays.

    Args:
        rev: of the state.
        state: of the customer.
        plan: in force.
        by_plan: of each plan of the catalog.
    """
    of_a_plan = any(prepaid.recurring for prepaid in by_plan.values()) if rev != NO_STATE else plan.grants
    return by_plan[plan.key] if state.granted or of_a_plan else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepaid:
    """The grants and credits of customers who may have some.

    Attributes:
        recurring: the plan's grants, each a name but for the period, a target, a quantity (units, or
            micro-credits), a priority, a life (ms; 0: until the period ends); in the order of their priority.
            Lines of the plan that say the same but for the quantity are one grant.
        mark: names these grants of the plan.
        paid_with: meter to the target of the credit that pays for it, and to its cost in micro-credits.
        low: the target of a credit to the share of its last grant below which it is low (%).
    """

    recurring: tuple[tuple[str, str, int, int, int], ...]
    mark: str
    paid_with: Mapping[str, tuple[str, int]]
    low: Mapping[str, int]

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
                target_of("credit", credit.name): credit.low_balance_percent
                for credit in credits_
                if credit.low_balance_percent is not None
            },
        )

    def sharing(self, meters: Iterable[str]) -> tuple[str, ...]:
        """The meters that are paid with a credit that pays for one of some meters, too."""
        shared = {self.paid_with[meter][0] for meter in meters if meter in self.paid_with}
        return tuple(meter for meter, (credit, _) in self.paid_with.items() if credit in shared)

    def behind(
        self,
        ceilings: Sequence[str],
        unbounded: Mapping[str, int],
        places: Mapping[str, int],
        entitlements: Mapping[str, Entitlement],
    ) -> str:
        """What the decision script reads of the grants and credits behind ceilings, as JSON; see its terms.

        Args:
            ceilings: the meters with a ceiling that are asked for.
            unbounded: meters without one that are asked for: to the quantity.
            places: the meters that share a credit, each to the place of its field among those that
                the script reads: from 2, behind the head.
            entitlements: of every meter.
        """
        backed: list[list[Any]] = []
        asked_at = dict.fromkeys(ceilings, 0)
        for meter, place in places.items():
            credit, cost = self.paid_with[meter]
            included, target = entitlements[meter].included, target_of("meter", meter)
            backed.append([credit, cost, included, target, place, unbounded.get(meter, 0)])
            if meter in asked_at:
                asked_at[meter] = len(backed)
        asked = [[target_of("meter", meter), at] for meter, at in asked_at.items()]
        return _json({**self._plans, "asked": asked, "backed": backed})

    def paying(self, meters: Iterable[tuple[str, bool]]) -> str:
        """What the settlement script pays overage with, as JSON; see its terms.

        Args:
            meters: each that is recorded, and whether it is paid for: derived ones are by their source.
        """
        paying = [
            [meter, target_of("meter", meter), *self.paid_with.get(meter, ("", 0))]
            if is_paid
            else [meter, "", "", 0]
            for meter, is_paid in meters
        ]
        credits_ = {pay[2] for pay in paying}
        low = {target: share for target, share in self.low.items() if target in credits_}
        return _json({**self._plans, "paying": paying, "low": low})

    @property
    def _plans(self) -> dict[str, object]:
        return {"mark": self.mark, "recurring": self.recurring}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))

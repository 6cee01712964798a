"""Terms of a subscription after a requested change: from now on, and from the next period on. Pure.

A preview may name a plan, seats and add-ons. Each takes effect at its own time, as if requested by itself, in
this order: the preview shows what the three changes cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from meterkit.catalog.addons import with_addons
from meterkit.decisions.customer_state import seat_meter
from meterkit.subscriptions.addon_rules import kept_addons, merge_addons, scheduled_addons, split_addons
from meterkit.subscriptions.change_rules import (
    are_seats_sold,
    check_seats,
    check_seats_sold,
    is_by_year,
    paid_seats,
    seats_on,
    total_seats,
)
from meterkit.subscriptions.proration_estimate import PlanTerms
from meterkit.subscriptions.service.change_costs import RequestedChange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.subscription import SubscriptionState


class PlannedTerms(NamedTuple):
    """Terms after a change.

    Attributes:
        now: from now on.
        later: from the next period on; None: the same.
        is_waiting: whether a requested part takes effect only then.
    """

    now: PlanTerms
    later: PlanTerms | None
    is_waiting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsPlanner:
    """Plans the terms of one subscription.

    Args:
        catalog: the plans file.
        known: the stored subscription.
        current: its plan, with its add-ons.
        in_use: seats in use.
        now_ms: the instant.
    """

    catalog: Catalog
    known: SubscriptionState
    current: Plan
    in_use: int
    now_ms: int

    @property
    def _seat_meter(self) -> str | None:
        return seat_meter(self.catalog.meters)

    @property
    def present(self) -> PlanTerms:
        """The terms before the change."""
        return PlanTerms(plan=self.current, seats=self.known.seats_at(self.now_ms))

    def to_change(self, planned: PlannedTerms) -> RequestedChange:
        """Make the requested change that leads to planned terms."""
        now, later, is_waiting = planned
        if is_waiting and later is not None and now == self.present:
            return RequestedChange(self.current, later, "period_end")
        return RequestedChange(self.current, now, "now", None if later == now else later)

    def keep(self) -> PlannedTerms:
        """Keep the present terms, and the scheduled ones."""
        return PlannedTerms(self.present, self._pending)

    def change_plan(self, wanted: Plan, when: Literal["now", "period_end"]) -> PlannedTerms:
        """Change the plan: with the seats that were bought or are in use, and the kept add-ons.

        An immediate change cancels a scheduled plan alone: scheduled add-ons stay.
        """
        held = self.known.addons_at(self.now_ms)
        scheduled = scheduled_addons(self.known, held, self.catalog)
        if wanted.key == self.current.key:
            later = self._pending
            return PlannedTerms(self.present, later and self.with_present_plan(later))
        if when == "period_end":
            return PlannedTerms(self.present, self._terms_on(wanted, scheduled), is_waiting=True)
        target = self._terms_on(wanted, held)
        return PlannedTerms(target, self.with_addons(target, scheduled))

    def change_seats(self, planned: PlannedTerms, wanted: Plan, seats: int) -> PlannedTerms:
        """Change the seats now, and with them those of scheduled terms.

        Seats that only the requested plan sells come with it.

        Args:
            planned: terms after the other changes.
            wanted: the requested plan, or the present one.
            seats: in all.

        Raises:
            QuantityError: ``seats`` is not an integer from 1 to 1,000,000.
            SubscriptionError: the requested plan sells no seats beyond those that it includes.
        """
        now, later, is_waiting = planned
        check_seats_sold(wanted, self._seat_meter, check_seats(seats))
        if later is not None and not are_seats_sold(now.plan, self._seat_meter, seats):
            return PlannedTerms(now, self._with_seats(later.plan, seats), is_waiting=True)
        now = self._with_seats(now.plan, seats)
        return PlannedTerms(now, later and self.carry_seats(later.plan, now), is_waiting)

    def change_addons(self, planned: PlannedTerms, given: Mapping[str, int]) -> PlannedTerms:
        """Change quantities of add-ons: each now or later, as the plans file has it.

        An add-on that only the requested plan lists comes with it.

        Args:
            planned: terms after the other changes.
            given: requested quantities by key.
        """
        now, later, is_waiting = planned
        is_kept = now.plan.key == self.current.key
        paid_per = self.known.interval_at(self.now_ms) if is_kept else None
        fewer_wait = is_by_year(now.plan, paid_per)
        asked = split_addons(now.addons, given, self.catalog.billing.changes, fewer_wait=fewer_wait)
        now = self.with_addons(now, asked.now)
        then = later or now
        then = self.with_addons(then, merge_addons(then.addons, given))
        return PlannedTerms(now, then, is_waiting or asked.has_waiting)

    def with_addons(self, terms: PlanTerms, bought: Bought) -> PlanTerms:
        """Terms with other add-ons; seats that cost the seat price stay bought."""
        if terms.addons == bought:
            return terms
        return self._carry_paid(self._compose_plan(terms.plan, bought), terms)

    def with_present_plan(self, later: PlanTerms) -> PlanTerms:
        """Scheduled terms without a change of plan: the add-ons stay, and seats of the same plan."""
        if later.plan.key == self.current.key:
            return later
        plan = self.catalog.plans[later.plan.key]
        return self.with_addons(self.present, kept_addons(self.present.addons, later.addons, plan))

    def carry_seats(self, plan: Plan, target: PlanTerms) -> PlanTerms:
        """Terms of a later phase after a change of seats now."""
        if plan.key != target.plan.key:
            return PlanTerms(plan=plan, seats=self._seats_on(plan, target))
        return self._carry_paid(plan, target)

    def _carry_paid(self, plan: Plan, before: PlanTerms) -> PlanTerms:
        """Terms with the same number of seats that cost the seat price."""
        paid = paid_seats(before.plan, self._seat_meter, before.seats)
        return PlanTerms(plan=plan, seats=total_seats(plan, self._seat_meter, paid))

    def _terms_on(self, wanted: Plan, bought: Bought) -> PlanTerms:
        """Terms on another plan, with the scheduled seats if it is the scheduled one."""
        plan = self._compose_plan(wanted, bought)
        if wanted.key == self.known.pending_plan and self.known.pending_seats is not None:
            return PlanTerms(plan=plan, seats=self.known.pending_seats)
        return PlanTerms(plan=plan, seats=self._seats_on(plan, self.present))

    @property
    def _pending(self) -> PlanTerms | None:
        """Scheduled terms; None if nothing is scheduled."""
        plan = self.catalog.plans.get(self.known.pending_plan or "")
        if plan is None:
            return None
        bought = self.current.bought if self.known.pending_addons is None else self.known.pending_addons
        plan = self._compose_plan(plan, bought)
        if self.known.pending_seats is not None:
            return PlanTerms(plan=plan, seats=self.known.pending_seats)
        return self.carry_seats(plan, self.present)

    def _with_seats(self, plan: Plan, seats: int) -> PlanTerms:
        """A plan with a requested number of seats."""
        paid = paid_seats(plan, self._seat_meter, seats)
        return PlanTerms(plan=plan, seats=seats_on(plan, self._seat_meter, paid=paid, seats=seats, in_use=0))

    def _seats_on(self, plan: Plan, before: PlanTerms) -> int:
        paid = paid_seats(before.plan, self._seat_meter, before.seats)
        return seats_on(plan, self._seat_meter, paid=paid, seats=before.seats, in_use=self.in_use)

    def _compose_plan(self, plan: Plan, bought: Bought) -> Plan:
        return with_addons(self.catalog.plans[plan.key], bought, self.catalog)

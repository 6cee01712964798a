"""Costs and timing of changes: Stripe's invoice preview or an estimate; terms from now or the next period on.

Stripe computes a preview from the customer's own items: their prices, discounts and tax rates, whatever the
plans file says (https://docs.stripe.com/api/invoices/create_preview).

A preview may name a plan, seats and add-ons. Each takes effect at its own time, as if requested by itself, in
this order: the preview shows what the three changes cost.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from meterkit.catalog.addons import with_addons
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import CurrencyError, StripeError, StripeUnavailableError
from meterkit.subscriptions.change_rules import (
    are_seats_sold,
    check_seats,
    check_seats_sold,
    is_by_year,
    kept_addons,
    merge_addons,
    paid_seats,
    scheduled_addons,
    seats_on,
    split_addons,
    total_seats,
)
from meterkit.subscriptions.item_changes import CREATE_PRORATIONS
from meterkit.subscriptions.proration_estimate import PlanTerms, PreviewedCharges, cost_of, ends_trial
from meterkit.subscriptions.stripe_objects import part_of, text_in
from meterkit.subscriptions.subscription_updates import FLEXIBLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.proration_estimate import Proration
    from meterkit.subscriptions.service.terms_writer import TermsWriter
    from meterkit.subscriptions.subscription_updates import LiveSubscription

_logger = logging.getLogger("meterkit.subscriptions")
_ESTIMATED: Final = " This is an estimate, without discounts and taxes: Stripe gave no preview."


class PricedChange(NamedTuple):
    """The cost of a change of plan, and the add-ons that end with it."""

    proration: Proration
    ended_addons: Mapping[str, int]


class RequestedChange(NamedTuple):
    """A change of a subscription.

    Attributes:
        current: the present plan, with its add-ons.
        target: plan, add-ons and seats after the change.
        when: when the change takes effect.
        later: a scheduled change that stays; None: there is none.
    """

    current: Plan
    target: PlanTerms
    when: Literal["now", "period_end"]
    later: PlanTerms | None = None

    @property
    def is_invoiced(self) -> bool:
        """Whether it is invoiced at once, rather than with the next period."""
        of = self.target.plan
        return (of.key, of.bought) != (self.current.key, self.current.bought)

    def next_terms(self, known: SubscriptionState) -> PlanTerms | None:
        """Plan, add-ons and seats from the next period on; None if the subscription ends with this one."""
        is_last = known.cancel_at_ms is not None and known.cancel_at_ms <= known.end_ms
        return None if is_last else self.later or self.target


@dataclass(frozen=True, slots=True)
class ChangePricer:
    """Prices changes of subscriptions.

    Args:
        store: of the kit.
    """

    store: Store

    async def price(
        self, live: LiveSubscription, writer: TermsWriter, known: SubscriptionState, change: RequestedChange
    ) -> Proration:
        """Cost of a change by Stripe's preview; an estimate if Stripe refuses to preview it.

        Raises:
            CurrencyError: Stripe bills the customer in another currency.
            StripeUnavailableError: Stripe does not answer.
        """
        later, is_now = change.next_terms(known), change.when == "now"
        now = await writer.plan_item_changes(live, change.target) if is_now else []
        then = now if later is change.target and is_now else None
        if later is not None and then is None:
            then = await writer.plan_scheduled_changes(live, later)
        try:
            previewed = await InvoicePreviewer(live).preview(
                now,
                then,
                period_end_s=known.end_ms // 1000,
                is_invoiced=change.is_invoiced,
                ends_trial=ends_trial(known, change.current, change.target.plan, self.store.now_ms()),
            )
        except (CurrencyError, StripeUnavailableError):
            raise
        except StripeError as error:
            _logger.warning(
                "Stripe does not preview a change of subscription %s (%s); its cost is an estimate, without"
                " discounts and taxes",
                live.id,
                error,
            )
            return self.estimate(known, change)
        return self._cost_of(known, change, previewed)

    def estimate(self, known: SubscriptionState, change: RequestedChange) -> Proration:
        """Estimated cost of a change; its description says that it is one."""
        found = self._cost_of(known, change, None)
        return replace(found, description=f"{found.description}{_ESTIMATED}")

    def _cost_of(
        self, known: SubscriptionState, change: RequestedChange, previewed: PreviewedCharges | None
    ) -> Proration:
        catalog, now_ms = self.store.catalog.in_currency(known.currency), self.store.now_ms()
        return cost_of(
            known,
            PlanTerms(plan=change.current, seats=known.seats_at(now_ms)),
            change.target,
            when=change.when,
            seat_meter=seat_meter(catalog.meters),
            catalog=catalog,
            now_ms=now_ms,
            next_period=change.next_terms(known),
            previewed=previewed,
        )


_PATH: Final = "/v1/invoices"
_NO_INVOICE: Final = "invoice_upcoming_none"


@dataclass(frozen=True, slots=True)
class InvoicePreviewer:
    """Previews what changes of a subscription's items charge and credit, usage left out.

    Each method raises :class:`~meterkit.errors.StripeError` if Stripe refuses, or does not answer.

    Args:
        live: the subscription.
    """

    live: LiveSubscription

    async def preview(
        self,
        now: Sequence[Mapping[str, Parameter]],
        later: Sequence[Mapping[str, Parameter]] | None,
        *,
        period_end_s: int,
        is_invoiced: bool,
        ends_trial: bool,
    ) -> PreviewedCharges:
        """Preview a change.

        Args:
            now: changes of items that take effect at once.
            later: changes of items that lead to those of the next period; None: there is none.
            period_end_s: when that begins (Unix seconds).
            is_invoiced: whether the change is invoiced at once, rather than with the next period.
            ends_trial: whether it ends the trial.
        """
        credit_cents, charge_cents = 0, 0
        if now:
            credit_cents, charge_cents = await self._preview_change(now, is_invoiced, ends_trial)
        return PreviewedCharges(
            credit_cents=credit_cents,
            charge_cents=charge_cents,
            period_cents=None if later is None else await self._preview_period(later, period_end_s),
            currency=text_in(self.live.found, "currency"),
        )

    async def _preview_change(
        self, changes: Sequence[Mapping[str, Parameter]], is_invoiced: bool, ends_trial: bool
    ) -> tuple[int, int]:
        """Credits and charges of changes that take effect at once, both at least 0."""
        details: dict[str, Parameter] = {"items": list(changes), "proration_behavior": CREATE_PRORATIONS}
        if is_invoiced:
            details["proration_behavior"] = "always_invoice"
        if ends_trial:
            details["trial_end"] = "now"
        lines = [
            line
            for line in await self._list_lines(changes, details, {})
            if is_invoiced or _line_origin(line).get("proration") is True
        ]
        amounts = [_total_of(line) for line in lines]
        return -sum(each for each in amounts if each < 0), sum(each for each in amounts if each > 0)

    async def _preview_period(self, changes: Sequence[Mapping[str, Parameter]], begins_s: int) -> int:
        """Price of a whole period with changed items, without usage.

        The preview begins a period now, without prorations: a yearly base price beside monthly usage is not
        on the next invoice (https://docs.stripe.com/billing/subscriptions/billing-cycle). It has no metered
        items: a coupon for an amount would be taken off usage, too.
        """
        metered = {item.id for item in self.live.items if item.meter is not None}
        ended = {
            item["id"]: left
            for item in self.live.found["items"]["data"]
            if item["id"] not in metered and (left := _lasting_discounts(item, begins_s))
        }
        items: list[Parameter] = [{"id": item, "deleted": True} for item in sorted(metered)]
        items += [
            {**one, **ended.pop(str(one.get("id")), {})}
            for one in changes
            if one.get("id") not in metered and ("id" in one or "quantity" in one)
        ]
        items += [{"id": item, **left} for item, left in ended.items()]
        is_trial = self.live.found.get("status") == "trialing"
        begins_now = {"trial_end": "now"} if is_trial else {"billing_cycle_anchor": {"type": "now"}}
        details: dict[str, Parameter] = {**begins_now, "proration_behavior": "none"}
        if items:
            details["items"] = items
        lasting = _lasting_discounts(self.live.found, begins_s)
        return sum(map(_total_of, await self._list_lines(changes, details, lasting)))

    async def _list_lines(
        self,
        changes: Sequence[Mapping[str, Parameter]],
        details: Mapping[str, Parameter],
        params: Mapping[str, Parameter],
    ) -> list[Mapping[str, Any]]:
        """Lines of a preview, without usage and without items that wait for an invoice already."""
        api, mode = self.live.api, dict(FLEXIBLE) if self.live.is_classic else {}
        asked: dict[str, Parameter] = {
            **params,
            "subscription": self.live.id,
            "subscription_details": {**details, **mode},
        }
        try:
            found = await api.post(f"{_PATH}/create_preview", asked)
        except StripeError as error:
            if error.code == _NO_INVOICE:
                return []
            raise
        shown = part_of(found, "lines")
        lines = cast("Sequence[Mapping[str, Any]]", shown.get("data") or [])
        if shown.get("has_more") is True:
            lines = await api.list(f"{_PATH}/{found['id']}/lines")
        customer: dict[str, Parameter] = {"customer": text_in(self.live.found, "customer"), "pending": True}
        waiting = {item["id"] for item in await api.list("/v1/invoiceitems", customer)}
        metered = _metered_prices(self.live, changes)
        return [
            line
            for line in lines
            if _line_origin(line).get("invoice_item") not in waiting and _price_of(line) not in metered
        ]


def _lasting_discounts(found: Mapping[str, Any], at_s: int) -> dict[str, Parameter]:
    """Parameter of a subscription or item that leaves out discounts which end by an instant.

    Empty if none does.
    """
    discounts = cast("Sequence[Mapping[str, Any]]", found.get("discounts") or [])
    left = [one for one in discounts if one.get("end") is None or one["end"] > at_s]
    return (
        {} if len(left) == len(discounts) else {"discounts": [{"discount": one["id"]} for one in left] or ""}
    )


def _metered_prices(live: LiveSubscription, changes: Iterable[Mapping[str, Parameter]]) -> set[str]:
    """Prices of usage that a subscription has or gets: such an item has no quantity."""
    present = {item.price for item in live.items if item.meter is not None}
    return present | {str(one["price"]) for one in changes if "price" in one and "quantity" not in one}


def _price_of(line: Mapping[str, Any]) -> str:
    return text_in(part_of(part_of(line, "pricing"), "price_details"), "price")


def _line_origin(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a line that names its origin."""
    parent = part_of(line, "parent")
    return part_of(parent, text_in(parent, "type"))


def _total_of(line: Mapping[str, Any]) -> int:
    """Amount of a line after discounts, with the taxes that come on top."""
    off = sum(int(one["amount"]) for one in line.get("discount_amounts") or ())
    taxes = line.get("taxes") or ()
    return (
        int(line["amount"])
        - off
        + sum(int(tax["amount"]) for tax in taxes if tax.get("tax_behavior") == "exclusive")
    )


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

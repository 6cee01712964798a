"""Change subscriptions: fetch, decide, price, check, deliver usage, change at Stripe."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.meters import is_sold
from meterkit.customers.history import read_history
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import entitlements_on, seat_meter
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import ended_labels
from meterkit.decisions.subscription import ENDED
from meterkit.errors import NoSubscriptionError, SeatsInUseError, SubscriptionError
from meterkit.subscriptions.change_rules import (
    check_seats,
    check_seats_sold,
    check_sold,
    course_of,
    over_limit,
    paid_seats,
    repeats_tiers,
    seats_on,
)
from meterkit.subscriptions.invoice_payments import explain_unpaid_period
from meterkit.subscriptions.live_subscription import LiveSubscription
from meterkit.subscriptions.payment_gate import PaymentGate, hold_back
from meterkit.subscriptions.proration_estimate import PlanTerms, ends_trial
from meterkit.subscriptions.service.change_costs import ChangePricer, RequestedChange
from meterkit.subscriptions.service.payment_pages import check_paid, refuse_without_method
from meterkit.subscriptions.service.results import Preview
from meterkit.subscriptions.service.terms_writer import TermsWriter
from meterkit.subscriptions.stripe_objects import AWAITS_METHOD, persistently

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.change_rules import Course
    from meterkit.subscriptions.proration_estimate import Proration


_UNPAID: Final = frozenset({"incomplete", "paused", "unpaid"})
# An immediate change credits an unpaid amount; its invoice, once paid, would end the dunning.
_OWING: Final = _UNPAID | {"past_due"}


@dataclass(eq=False)
class SubscriptionChanger:
    """Changes subscriptions; :class:`meterkit.Subscriptions` documents each method and its errors.

    A change goes one way: fetch the subscription from Stripe, decide when the change takes effect, price it,
    refuse what cannot be paid, cut the usage until now where prices change, change it at Stripe. The caller
    fetches it again, which stores the new state.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        fetch: fetches a customer's subscription from Stripe into the store.
        deliver: delivers a customer's usage, and waits until Stripe has counted it.
        cut: delivers a customer's usage before prices change, and holds usage while the block runs; see
            :class:`meterkit.delivery.usage_cutter.UsageCutter`.
    """

    store: Store
    api: Callable[[], StripeApi]
    fetch: Callable[[str], Awaitable[object]]
    deliver: Callable[[str], Awaitable[object]]
    cut: Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[None]]

    def __post_init__(self) -> None:
        self._states = CustomerStates(self.store)
        self._gate = PaymentGate(self.api)
        self._pricer = ChangePricer(self.store)

    async def change_plan(
        self, customer: str, wanted: Plan, started: asyncio.Event
    ) -> tuple[Proration, str | None]:
        """Change the plan, now or when the period ends; return the cost.

        And a client secret, if the customer must confirm the payment first. Sets ``started`` before it does
        anything that another call can finish.
        """
        costs: list[Proration] = []
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))

        async def attempt(again: int) -> str | None:
            live, known, current = await self.fetch_payable(customer, again)
            writer = await self._terms_writer_for(customer)
            target = self._terms_after(known, current, wanted, None, in_use)
            had = await self._plans_of_period(customer, known, current)
            change = RequestedChange(current, target, self._time_of_change(known, current, wanted, had))
            costs.append(await self._pricer.price(live, writer, known, change))
            await self._refuse_unpaid_credit(live, costs[-1])
            pending = known.pending_plan if live.schedule is not None else None
            course = self._course_of_change(known, current, wanted, pending, had)
            if wanted.key == current.key:
                if course == "unschedule":
                    await writer.cancel_scheduled(live, target)
                # Items that others changed at Stripe become those of the plan again.
                started.set()
                async with self._cut_if_metered(customer, live, target, current):
                    await writer.apply_now(live, target)
                return None
            await self._refuse_without_method(live, known, current, wanted, course)
            if course == "period_end":
                await writer.schedule(live, known, target)
            elif course == "now":
                await check_paid(customer, live, _OWING)
                is_paid_now = ends_trial(known, current, wanted, self.store.now_ms())
                started.set()
                async with self._cut_if_metered(customer, live, target, current):
                    return await writer.apply_if_paid(live, target, ends_trial=is_paid_now)
            return None

        secret = await persistently(attempt)
        return costs[0], secret  # Later attempts may have found it done.

    async def set_seats(self, customer: str, seats: int) -> Proration:
        """Change the number of seats now; return the cost."""
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        if seats < in_use:
            raise SeatsInUseError(customer, seats=seats, used=in_use)
        costs: list[Proration] = []

        async def attempt(again: int) -> None:
            live, known, current = await self.fetch_payable(customer, again)
            writer = await self._terms_writer_for(customer)
            await check_paid(customer, live, _OWING)
            target = self._terms_after(known, current, current, seats, in_use)
            later = None if live.schedule is None else self._pending_terms(known, target, in_use)
            change = RequestedChange(current, target, "now", later)
            costs.append(await self._pricer.price(live, writer, known, change))
            await self._refuse_unpaid_credit(live, costs[-1])
            if live.schedule is None:
                async with self._cut_if_metered(customer, live, target, current):
                    await writer.apply_now(live, target)
                return

            def terms_of(plan: Plan) -> PlanTerms:
                is_current = plan.key == current.key
                seats_there = self._seats_on(plan, target, in_use)
                return target if is_current else PlanTerms(plan=plan, seats=seats_there)

            await writer.update_phases(live, live.schedule, terms_of)

        await persistently(attempt)
        return costs[0]

    async def cancel(self, customer: str, *, immediately: bool, give_back: bool) -> None:
        """End the subscription, now or with its period."""

        async def attempt(again: int) -> None:
            live, _ = await self._fetch_live(customer, again)
            if immediately or live.found["status"] == "incomplete":
                await self.deliver(customer)
                await live.end(give_back=give_back)
            elif not live.found.get("cancel_at_period_end"):
                await live.cancel_at_end()

        await persistently(attempt)

    async def resume(self, customer: str) -> None:
        """Resume an ending subscription."""

        async def attempt(again: int) -> None:
            live, _ = await self._fetch_live(customer, again)
            if live.is_ending or live.released_schedule:
                await live.resume(self.store.now_ms() // 1000)

        await persistently(attempt)

    async def preview(self, customer: str, plan: str | None, seats: int | None) -> Preview:
        """Price a change, and find the gauges above its limits, by the subscription at Stripe."""
        _, state = await self._states.read(customer)
        self._require_subscription(customer, state)
        live, known = await self._fetch_live(customer, 0)
        current = self._require_plan(customer, known)
        wanted = current if plan is None else check_sold(plan, self._catalog)
        levels = await self._read_gauge_levels(customer)
        in_use = self._seats_in_use(levels)
        target = self._terms_after(known, current, wanted, seats, in_use)
        later = self._pending_terms(known, target, in_use) if plan is None else None
        had = await self._plans_of_period(customer, known, current)
        change = RequestedChange(current, target, self._time_of_change(known, current, wanted, had), later)
        return Preview(
            proration=await self._pricer.price(live, await self._terms_writer_for(customer), known, change),
            over_limit=over_limit(self._catalog, wanted, target.seats, levels),
        )

    async def estimate(self, customer: str, wanted: Plan) -> Proration:
        """Estimate the cost of a plan by the stored subscription, while Stripe does not answer."""
        _, state = await self._states.read(customer)
        known = self._require_subscription(customer, state)
        current = self._require_plan(customer, known)
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        target = self._terms_after(known, current, wanted, None, in_use)
        had = await self._plans_of_period(customer, known, current)
        when = self._time_of_change(known, current, wanted, had)
        return self._pricer.estimate(known, RequestedChange(current, target, when))

    async def fetch_payable(
        self, customer: str, again: int
    ) -> tuple[LiveSubscription, SubscriptionState, Plan]:
        """Fetch a subscription that can be changed, its stored state, and its plan."""
        live, known = await self._fetch_live(customer, again)
        if live.found.get(AWAITS_METHOD):
            await refuse_without_method(self.store, live, f"the subscription {live.id} is not active")
        await check_paid(customer, live, _UNPAID)
        return live, known, self._require_plan(customer, known)

    async def present_terms(
        self, customer: str, known: SubscriptionState, current: Plan
    ) -> Callable[[Plan], PlanTerms]:
        """Return the seats of each plan that is current or scheduled, as they are."""
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        return lambda plan: self._terms_after(known, current, plan, None, in_use)

    async def _fetch_live(self, customer: str, again: int) -> tuple[LiveSubscription, SubscriptionState]:
        """Fetch the active subscription, then read its state."""
        await self.fetch(customer)
        _, state = await self._states.read(customer)
        known = self._require_subscription(customer, state)
        live = await LiveSubscription.fetch(self.api(), known.id, again)
        if live is None or live.found["status"] in ENDED:
            raise NoSubscriptionError(customer)
        if known.status == "incomplete" and known.awaits_payment_method:
            live = replace(live, found=hold_back(live.found))
        return live, known

    async def _terms_writer_for(self, customer: str) -> TermsWriter:
        """Make the terms writer of a customer, by its stored overrides."""
        _, state = await self._states.read(customer)
        return TermsWriter(self.store, self.api, state)

    @asynccontextmanager
    async def _cut_if_metered(
        self, customer: str, live: LiveSubscription, target: PlanTerms, current: Plan
    ) -> AsyncGenerator[None]:
        """Cut the customer's usage before the block, if the block changes metered items."""
        _, state = await self._states.read(customer)
        if not await TermsWriter(self.store, self.api, state).changes_metered_items(live, target):
            yield
            return
        now_ms = self.store.now_ms()
        given = entitlements_on(current, state, self._catalog, now_ms)
        then = entitlements_on(target.plan, state, self._catalog, now_ms, own_prices=False)
        ended = ended_labels(given, then, self._catalog)
        async with self.cut(customer, ended):
            yield

    @property
    def _catalog(self) -> Catalog:
        return self.store.catalog

    @property
    def _seat_meter(self) -> str | None:
        return seat_meter(self._catalog.meters)

    async def _read_gauge_levels(self, customer: str) -> dict[str, int]:
        """The level of each gauge, holds included."""
        used = (await self.store.usage(customer))["meters"]
        return {
            name: used[name]["used"] for name, meter in self._catalog.meters.items() if meter.kind == "gauge"
        }

    def _seats_in_use(self, levels: Mapping[str, int]) -> int:
        """The level of the seat gauge; 0 without one."""
        return 0 if self._seat_meter is None else levels[self._seat_meter]

    def _terms_after(
        self, known: SubscriptionState, current: Plan, wanted: Plan, seats: int | None, in_use: int
    ) -> PlanTerms:
        """Plan and seats after a change; without a number of seats those that were bought or are in use."""
        before = PlanTerms(plan=current, seats=known.seats_at(self.store.now_ms()))
        if seats is not None:
            check_seats_sold(wanted, self._seat_meter, check_seats(seats))
            requested = PlanTerms(plan=wanted, seats=seats)
            return PlanTerms(plan=wanted, seats=self._seats_on(wanted, requested, 0))
        if wanted is current:
            return before
        if wanted.key == known.pending_plan and known.pending_seats is not None:
            return PlanTerms(plan=wanted, seats=known.pending_seats)
        return PlanTerms(plan=wanted, seats=self._seats_on(wanted, before, in_use))

    def _pending_terms(self, known: SubscriptionState, target: PlanTerms, in_use: int) -> PlanTerms | None:
        """Scheduled plan and its seats after a change of seats; None if nothing is scheduled."""
        later = self._catalog.plans.get(known.pending_plan or "")
        if later is None:
            return None
        if known.seats == target.seats and known.pending_seats is not None:
            return PlanTerms(plan=later, seats=known.pending_seats)
        return PlanTerms(plan=later, seats=self._seats_on(later, target, in_use))

    def _seats_on(self, plan: Plan, before: PlanTerms, in_use: int) -> int:
        paid = paid_seats(before.plan, self._seat_meter, before.seats)
        return seats_on(plan, self._seat_meter, paid=paid, seats=before.seats, in_use=in_use)

    async def _plans_of_period(self, customer: str, known: SubscriptionState, current: Plan) -> list[Plan]:
        """Plans that were subscribed to in this period until now, the current one included."""
        start = from_ms(known.start_ms)
        former = {
            entry.before
            for entry in await read_history(self.store, customer)
            if entry.kind == "plan" and entry.at > start
        }
        plans = self._catalog.plans.values()
        return [current, *(plan for plan in plans if plan.key in former and is_sold(plan))]

    def _course_of_change(
        self,
        known: SubscriptionState,
        current: Plan,
        wanted: Plan,
        pending: str | None,
        had: Iterable[Plan],
    ) -> Course:
        return course_of(
            current,
            wanted,
            pending=pending,
            changes=self._catalog.billing.changes,
            repeats_tiers=repeats_tiers(had, wanted, self._catalog.meters),
            paid_per=known.interval_at(self.store.now_ms()),
        )

    def _time_of_change(
        self, known: SubscriptionState, current: Plan, wanted: Plan, had: Iterable[Plan]
    ) -> Literal["now", "period_end"]:
        """Time at which a change takes effect that is not scheduled yet."""
        course = self._course_of_change(known, current, wanted, None, had)
        return "period_end" if course == "period_end" else "now"

    def _require_subscription(self, customer: str, state: CustomerState) -> SubscriptionState:
        known = state.subscription
        if known is None or known.status_at(self.store.now_ms()) in ENDED:
            raise NoSubscriptionError(customer)
        return known

    def _require_plan(self, customer: str, known: SubscriptionState) -> Plan:
        plan = self._catalog.plans.get(known.plan_at(self.store.now_ms()) or "")
        if plan is None:
            raise SubscriptionError(
                f"customer {customer!r} has subscription {known.id}, of a price that no plan of the plans"
                " file has: give it to a plan as its `stripe_price`, or change the subscription at Stripe"
            )
        return plan

    async def _refuse_without_method(
        self, live: LiveSubscription, known: SubscriptionState, current: Plan, wanted: Plan, course: Course
    ) -> None:
        """Refuse a plan that requires a payment method if none is saved and something can be charged.

        A continuing trial needs none, nor does a downgrade from a plan that requires one too.
        """
        is_downgrade = course == "period_end" and current.payment_method == "required"
        is_ended = course == "now" and ends_trial(known, current, wanted, self.store.now_ms())
        is_trial = live.found["status"] == "trialing" and not is_ended
        if wanted.payment_method != "required" or is_downgrade or is_trial:
            return
        if not await self._gate.can_charge(live.found):
            await refuse_without_method(self.store, live, f"plan {wanted.key!r} requires a payment method")

    async def _refuse_unpaid_credit(self, live: LiveSubscription, cost: Proration) -> None:
        """Refuse a change that credits more than it charges while its period is not paid in full.

        A credit reduces later invoices, or becomes the customer's balance.
        """
        if cost.net_cents < 0 and (reason := await explain_unpaid_period(self.api(), live.found)):
            raise SubscriptionError(
                f"the subscription {live.id} cannot be reduced now: that gives back a part of this period's"
                f" price, and {reason}. Ask again once the period is paid, or in the next one"
            )

"""Change subscriptions: fetch, decide, price, check, deliver usage, change at Stripe."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from meterkit.catalog.addons import with_addons
from meterkit.catalog.meters import is_sold
from meterkit.customers.history import read_history
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import entitlements_of, entitlements_on, seat_meter
from meterkit.decisions.gauges import GaugeLimit
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import ended_labels
from meterkit.decisions.subscription import ENDED
from meterkit.errors import NoSubscriptionError, SeatsInUseError, SubscriptionError
from meterkit.store.gauge_levels import held_meanwhile
from meterkit.subscriptions.change_rules import (
    check_addons,
    check_sold,
    course_of,
    ended_addons,
    gives_up_unlisted,
    merge_addons,
    over_limit,
    repeats_tiers,
)
from meterkit.subscriptions.invoice_payments import refuse_unpaid_credit
from meterkit.subscriptions.payment_method_gate import PaymentMethodGate, hold_back
from meterkit.subscriptions.proration_estimate import PlanTerms, ends_trial
from meterkit.subscriptions.service.change_costs import ChangePricer, PricedChange, TermsPlanner
from meterkit.subscriptions.service.payment_pages import check_paid, refuse_without_method
from meterkit.subscriptions.service.results import Preview
from meterkit.subscriptions.service.terms_writer import TermsWriter, refuse_ending
from meterkit.subscriptions.stripe_objects import AWAITS_METHOD, id_in
from meterkit.subscriptions.subscription_reading import is_paused_after_trial, plan_of
from meterkit.subscriptions.subscription_updates import LiveSubscription

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView
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
        self._gate = PaymentMethodGate(self.api)
        self._pricer = ChangePricer(self.store)

    async def change_plan(
        self, customer: str, wanted: Plan, started: asyncio.Event
    ) -> tuple[PricedChange, str | None]:
        """Change the plan, now or when the period ends; return the cost.

        And a client secret, if the customer must confirm the payment first. Sets ``started`` before it does
        anything that another call can finish.
        """
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        live, known, current = await self.fetch_payable(customer)
        writer = await self._terms_writer_for(customer)
        had = await self._plans_of_period(customer, known, current)
        planner = self._planner_for(known, current, in_use)
        when = self._time_of_change(known, current, wanted, had)
        change = planner.to_change(planner.change_plan(wanted, when))
        target, later = change.target, change.later
        cost = await self._pricer.price(live, writer, known, change)
        priced = PricedChange(cost, self._ended_by(known, wanted))
        await refuse_unpaid_credit(self.api(), live.found, cost.net_cents)
        pending = known.pending_plan if live.schedule is not None else None
        course = self._course_of_change(known, current, wanted, pending, had)
        if wanted.key == current.key:
            if course == "unschedule":
                await writer.restore_plan(live, target, planner.with_present_plan)
            # Items that others changed at Stripe become those of the plan again.
            started.set()
            async with self._cut_if_metered(customer, live, target, current):
                await writer.apply_now(live, target)
            return priced, None
        await self._require_method(live, known, current, wanted, course)
        if course == "period_end":
            await writer.schedule(live, known, target)
        elif course == "now":
            await check_paid(customer, live, _OWING)
            is_paid_now = ends_trial(known, current, wanted, self.store.now_ms())
            started.set()
            async with self._cut_if_metered(customer, live, target, current):
                secret = await writer.apply_if_paid(live, target, ends_trial=is_paid_now)
            if secret is not None:
                return priced, secret
            if live.schedule is not None:
                await self._replace_schedule(customer, (live, target), later)
        return priced, None

    async def _replace_schedule(
        self, customer: str, done: tuple[LiveSubscription, PlanTerms], later: PlanTerms | None
    ) -> None:
        """Cancel what was scheduled before a change of plan; fewer add-ons stay scheduled.

        Args:
            customer: the customer's id.
            done: the subscription before the change, and its terms since.
            later: those from the next period on, with fewer add-ons; None: the same.
        """
        before, target = done
        writer = await self._terms_writer_for(customer)
        if later is None:
            changed = await LiveSubscription.fetch(self.api(), before.id)
            if changed is not None:
                await writer.cancel_scheduled(changed, target)
            return
        live, known = await self._fetch_live(customer)
        await writer.schedule(live, known, later)

    async def set_addons(self, customer: str, given: Mapping[str, int]) -> tuple[Proration, str | None]:
        """Change quantities of add-ons: more now, if that is paid, fewer when the period ends.

        Return the cost, and a client secret if the customer must confirm the payment first: nothing has
        changed then.
        """
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        live, known, current = await self.fetch_payable(customer)
        writer = await self._terms_writer_for(customer)
        held = known.addons_at(self.store.now_ms())
        is_trial = live.found["status"] == "trialing"
        checked = check_addons(given, current, self._catalog, held, is_trial=is_trial)
        is_more = any(n > dict(current.bought).get(addon, 0) for addon, n in checked.items())
        if is_trial and is_more and current.payment_method == "required":
            await self._require_method_on(live, current)
        planner = self._planner_for(known, current, in_use)
        planned = planner.change_addons(planner.keep(), checked)
        change, has_waiting = planner.to_change(planned), planned.is_waiting
        cost = await self._pricer.price(live, writer, known, change)
        await refuse_unpaid_credit(self.api(), live.found, cost.net_cents)
        if has_waiting:
            refuse_ending(live)
        target = change.target
        is_changed = target.addons != current.bought or gives_up_unlisted(given, current, held)
        if change.when == "now" and is_changed:
            await check_paid(customer, live, _OWING)
            async with self._cut_if_metered(customer, live, target, current):
                secret = await writer.apply_if_paid(live, target)
            if secret is not None:
                return cost, secret
            live, known = await self._fetch_live(customer)

        def with_given(terms: PlanTerms) -> PlanTerms:
            return planner.with_addons(terms, merge_addons(terms.addons, checked))

        if has_waiting:
            await writer.schedule_addons(live, known, with_given)
        elif live.schedule is not None:
            await writer.reschedule(live, live.schedule, with_given)
        return cost, None

    @asynccontextmanager
    async def set_seats(self, customer: str, seats: int) -> AsyncGenerator[Proration]:
        """Change the number of seats now; yield the cost. In the block, fetch the subscription.

        Until then none of the seats that are given up can be taken.
        """
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        if seats < in_use:
            raise SeatsInUseError(customer, seats=seats, used=in_use)
        async with self._hold_given_up(customer, seats):
            live, known, current = await self.fetch_payable(customer)
            writer = await self._terms_writer_for(customer)
            await check_paid(customer, live, _OWING)
            planner = self._planner_for(known, current, in_use)
            change = planner.to_change(planner.change_seats(planner.keep(), current, seats))
            target = change.target
            cost = await self._pricer.price(live, writer, known, change)
            await refuse_unpaid_credit(self.api(), live.found, cost.net_cents)
            if live.schedule is None:
                async with self._cut_if_metered(customer, live, target, current):
                    await writer.apply_now(live, target)
            else:
                await writer.update_phases(
                    live,
                    live.schedule,
                    lambda terms: planner.carry_seats(terms.plan, target),
                    current=target,
                )
            yield cost

    async def cancel(self, customer: str, *, immediately: bool, give_back: bool) -> None:
        """End the subscription, now or with its period."""
        live, known = await self._fetch_live(customer)
        end_s = known.end_ms // 1000
        if immediately or live.found["status"] == "incomplete":
            await self.deliver(customer)
            await live.end(give_back=give_back)
        elif not live.is_ending_at(end_s):
            await live.cancel_at_end(end_s)

    async def resume(self, customer: str) -> None:
        """Resume an ending subscription, and one whose trial has ended in a pause."""
        live, _ = await self._fetch_live(customer)
        if is_paused_after_trial(live.found):
            if not await self._gate.can_charge(live.found):
                await self._refuse_without_method(live, f"the subscription {live.id} is paused")
            await live.end_pause()
        if live.is_ending or live.released_schedule:
            await live.resume(self.store.now_ms() // 1000)

    async def preview(
        self, customer: str, plan: str | None, seats: int | None, addons: Mapping[str, int] | None
    ) -> Preview:
        """Price a change, and find the gauges above its limits, by the subscription at Stripe."""
        _, state = await self._states.read(customer)
        self._require_subscription(customer, state)
        live, known = await self._fetch_live(customer)
        if (key := self._new_key(live, known)) is not None:
            known = replace(known, plan=key)
        current = self._require_plan(customer, known)
        levels = await self._read_gauge_levels(customer)
        in_use = self._seats_in_use(levels)
        wanted = current if plan is None else check_sold(plan, self._catalog)
        held = known.addons_at(self.store.now_ms())
        ends_now = plan is not None and ends_trial(known, current, wanted, self.store.now_ms())
        is_trial = live.found["status"] == "trialing" and not ends_now
        given = check_addons(addons, wanted, self._catalog, held, is_trial=is_trial)
        planner = self._planner_for(known, current, in_use)
        planned = planner.keep()
        if plan is not None:
            had = await self._plans_of_period(customer, known, current)
            planned = planner.change_plan(wanted, self._time_of_change(known, current, wanted, had))
        if seats is not None:
            planned = planner.change_seats(planned, wanted, seats)
        change = planner.to_change(planner.change_addons(planned, given))
        last = change.later or change.target
        shown = last if last.plan.key == wanted.key else change.target
        writer = await self._terms_writer_for(customer)
        return Preview(
            proration=await self._pricer.price(live, writer, known, change),
            over_limit=over_limit(self._catalog, shown.plan, shown.seats, levels),
            ended_addons=self._ended_by(known, wanted) if plan is not None else {},
        )

    async def estimate(self, customer: str, wanted: Plan) -> PricedChange:
        """Estimate the cost of a plan by the stored subscription, while Stripe does not answer."""
        _, state = await self._states.read(customer)
        known = self._require_subscription(customer, state)
        current = self._require_plan(customer, known)
        in_use = self._seats_in_use(await self._read_gauge_levels(customer))
        had = await self._plans_of_period(customer, known, current)
        planner = self._planner_for(known, current, in_use)
        when = self._time_of_change(known, current, wanted, had)
        cost = self._pricer.estimate(known, planner.to_change(planner.change_plan(wanted, when)))
        return PricedChange(cost, self._ended_by(known, wanted))

    async def fetch_payable(self, customer: str) -> tuple[LiveSubscription, SubscriptionState, Plan]:
        """Fetch a subscription that can be changed, its stored state, and its plan."""
        live, known = await self._fetch_live(customer)
        if (plan := self._new_key(live, known)) is not None:
            await self._take_new_key(customer, known, plan)
            live, known = await self._fetch_live(customer)
        if live.found.get(AWAITS_METHOD):
            await self._refuse_without_method(live, f"the subscription {live.id} is not active")
        await check_paid(customer, live, _UNPAID)
        return live, known, self._require_plan(customer, known)

    async def _fetch_live(self, customer: str) -> tuple[LiveSubscription, SubscriptionState]:
        """Fetch the active subscription, then read its state."""
        await self.fetch(customer)
        _, state = await self._states.read(customer)
        known = self._require_subscription(customer, state)
        live = await LiveSubscription.fetch(self.api(), known.id)
        if live is None or live.found["status"] in ENDED:
            raise NoSubscriptionError(customer)
        if known.status == "incomplete" and known.awaits_payment_method:
            live = replace(live, found=hold_back(live.found))
        return live, known

    def _new_key(self, live: LiveSubscription, known: SubscriptionState) -> str | None:
        """The plan of the plans file whose price the items have, if the file lacks the stored plan."""
        sold = plan_of(live.found, self._catalog)
        return None if sold is None or known.plan in self._catalog.plans else sold.key

    async def _take_new_key(self, customer: str, known: SubscriptionState, plan: str) -> None:
        """Store the new key of a plan.

        A sync keeps the stored one, as its plans file may be older than that plan. Who changes a subscription
        by this file means this file.
        """

        def take(state: CustomerState) -> CustomerState:
            stored = state.subscription
            if stored is None or (stored.id, stored.plan) != (known.id, known.plan):
                return state
            return replace(state, subscription=replace(stored, plan=plan))

        await self._states.change(customer, take, cause="api")

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

    @asynccontextmanager
    async def _hold_given_up(self, customer: str, seats: int) -> AsyncGenerator[None]:
        def given_up(view: CustomerView) -> dict[str, int]:
            if gauge is None:
                return {}
            fewer = entitlements_of(replace(view.effective, seats=seats), view.catalog)
            now, later = GaugeLimit.of(view.entitlements[gauge]), GaugeLimit.of(fewer[gauge])
            count = 0 if now is None or later is None else now.most - later.most
            return {gauge: count} if count > 0 else {}

        gauge = None if self.store.is_off else self._seat_meter
        async with held_meanwhile(self.store, customer, given_up) as (decision, _):
            if decision.gauge is not None and not decision.allowed:
                raise SeatsInUseError(customer, seats=seats, used=decision.gauge.used)
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

    def _planner_for(self, known: SubscriptionState, current: Plan, in_use: int) -> TermsPlanner:
        return TermsPlanner(
            catalog=self._catalog.in_currency(known.currency),
            known=known,
            current=current,
            in_use=in_use,
            now_ms=self.store.now_ms(),
        )

    def _ended_by(self, known: SubscriptionState, wanted: Plan) -> dict[str, int]:
        """Add-ons that end with a change to a plan, with their quantities."""
        return ended_addons(known.addons_at(self.store.now_ms()), wanted, self._catalog)

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
        """The plan of a subscription in its currency, with its add-ons. Raises SubscriptionError if none."""
        now_ms, catalog = self.store.now_ms(), self._catalog.in_currency(known.currency)
        plan = catalog.plans.get(known.plan_at(now_ms) or "")
        if plan is None:
            raise SubscriptionError(
                f"customer {customer!r} has subscription {known.id}, of a price that no plan of the plans"
                " file has: put the plan that sold it back into the file, beside the one that replaces it; or"
                " give the price to a plan as its `stripe_price`, or change the subscription at Stripe"
            )
        return with_addons(plan, known.addons_at(now_ms), catalog)

    async def _require_method(
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
        await self._require_method_on(live, wanted)

    async def _require_method_on(self, live: LiveSubscription, plan: Plan) -> None:
        """Raise PaymentMethodMissingError if no payment method is saved, which a plan requires."""
        if not await self._gate.can_charge(live.found):
            await self._refuse_without_method(live, f"plan {plan.key!r} requires a payment method")

    async def _refuse_without_method(self, live: LiveSubscription, why: str) -> NoReturn:
        await refuse_without_method(self.store, self.api(), id_in(live.found, "customer"), why)

"""Changes of subscriptions that are in force: decided by what Stripe has now, and done there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.seats import seat_meter
from meterkit.decisions.subscription import ENDED
from meterkit.errors import NoSubscriptionError, SeatsInUseError, StripeError, SubscriptionError
from meterkit.store.state_changes import States
from meterkit.subscriptions.at_stripe.items import are_of, next_items, updates
from meterkit.subscriptions.at_stripe.live import LiveSubscription, prices_of
from meterkit.subscriptions.at_stripe.once import persistently
from meterkit.subscriptions.rules.asked import check_seats, check_seats_sold, check_sold
from meterkit.subscriptions.rules.changes import course_of, over_limit, paid_seats, seats_on
from meterkit.subscriptions.rules.costs import Terms, cost_of, ends_trial
from meterkit.subscriptions.service.results import Preview

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.rules.proration import Proration

__all__ = ["Changing"]

_NEEDS_CUSTOMER: Final = "subscription_payment_intent_requires_action"
_UNPAID: Final = frozenset({"incomplete", "paused", "unpaid"})
# What is changed at once gives back what was never paid; the invoice of it, once paid, would end the dunning.
_OWING: Final = _UNPAID | {"past_due"}


class Changing:
    """Changes subscriptions; what each method does and raises says :class:`meterkit.Subscriptions`.

    Args:
        store: where customers are kept.
        api: the way to Stripe.
        fetch: fetches a customer's subscription from Stripe into the store.
        deliver: delivers what a customer has used, and waits until Stripe has it.
    """

    def __init__(
        self,
        store: Store,
        api: Callable[[], StripeApi],
        *,
        fetch: Callable[[str], Awaitable[object]],
        deliver: Callable[[str], Awaitable[object]],
    ) -> None:
        self._store = store
        self._states = States(store)
        self._api = api
        self._fetch = fetch
        self._deliver = deliver

    async def preview(self, customer: str, plan: str | None, seats: int | None) -> Preview:
        """What a change would cost and what would be above its limits, from what is known here."""
        _, state = await self._states.read(customer)
        known = self._in_force(customer, state)
        current = self._plan_of(customer, known)
        wanted = current if plan is None else check_sold(plan, self._catalog)
        target = self._terms(known, current, wanted, seats)
        return Preview(
            proration=self._cost(known, current, target),
            over_limit=over_limit(self._catalog, wanted, target.seats, await self._levels(customer)),
        )

    async def change_plan(self, customer: str, wanted: Plan) -> tuple[Proration, str | None]:
        """Put the subscription on another plan, now or when its period ends; what that costs.

        And the client secret, where the customer has to confirm the payment first.
        """
        costs: list[Proration] = []

        async def attempt(again: int) -> str | None:
            live, known, current = await self._payable(customer, again)
            target = self._terms(known, current, wanted, None)
            costs.append(self._cost(known, current, target))
            if live.awaited is not None:
                if are_of(live.awaited, await self._items(live, target)):
                    return live.client_secret
                await live.forget_awaited()
            pending = known.pending_plan if live.schedule is not None else None
            course = course_of(current, wanted, pending=pending, changes=self._catalog.billing.changes)
            if course == "take_back":
                await live.release()
            elif course == "period_end":
                await self._arrange(live, known, target)
            elif course == "now":
                self._check_paid(customer, live, _OWING)
                is_paid_now = ends_trial(known, current, wanted, self._store.now_ms())
                return await self._upgrade(live, target, ends_trial=is_paid_now)
            return None

        secret = await persistently(attempt)
        return costs[0], secret  # Later tries may have found it done.

    async def set_seats(self, customer: str, seats: int) -> Proration:
        """Have another number of seats now; what that costs."""
        meter, levels = self._seat_meter, await self._levels(customer)
        in_use = 0 if meter is None else levels[meter]
        if seats < in_use:
            raise SeatsInUseError(customer, seats=seats, used=in_use)
        costs: list[Proration] = []

        async def attempt(again: int) -> None:
            live, known, current = await self._payable(customer, again)
            self._check_paid(customer, live, _OWING)
            target = self._terms(known, current, current, seats)
            costs.append(self._cost(known, current, target))
            await live.forget_awaited()
            later = self._catalog.plans.get(known.pending_plan or "")
            if live.schedule is not None and later is not None:
                after = Terms(plan=later, seats=self._seats_on(later, target))
                if (known.seats, known.pending_seats) != (target.seats, after.seats):
                    await self._arrange(live, known, after, now=target)
            else:
                items = await self._updates(live, target)
                if items:
                    await live.update({"items": items, "proration_behavior": "create_prorations"})

        await persistently(attempt)
        return costs[0]

    async def cancel(self, customer: str, *, immediately: bool, give_back: bool) -> None:
        """End the subscription, now or with its period."""

        async def attempt(again: int) -> None:
            live, _ = await self._live(customer, again)
            if immediately or live.found["status"] == "incomplete":
                await self._deliver(customer)
                await live.end(give_back=give_back)
            elif not live.found.get("cancel_at_period_end"):
                await live.forget_awaited()
                await live.cancel_at_end()

        await persistently(attempt)

    async def resume(self, customer: str) -> None:
        """Have a subscription that is to end go on."""

        async def attempt(again: int) -> None:
            live, _ = await self._live(customer, again)
            if live.is_ending:
                await live.resume()

        await persistently(attempt)

    @property
    def _catalog(self) -> Catalog:
        return self._store.catalog

    @property
    def _seat_meter(self) -> str | None:
        return seat_meter(self._catalog.meters)

    async def _levels(self, customer: str) -> dict[str, int]:
        """How far each gauge is filled, what is held included."""
        used = (await self._store.usage(customer))["meters"]
        return {
            name: used[name]["used"] for name, meter in self._catalog.meters.items() if meter.kind == "gauge"
        }

    def _terms(self, known: SubscriptionState, current: Plan, wanted: Plan, seats: int | None) -> Terms:
        """What the subscription is to have; without a number of seats those that were bought stay."""
        before = Terms(plan=current, seats=known.seats_at(self._store.now_ms()))
        if seats is not None:
            check_seats_sold(wanted, self._seat_meter, check_seats(seats))
            before = Terms(plan=wanted, seats=seats)
        elif wanted is current:
            return before
        return Terms(plan=wanted, seats=self._seats_on(wanted, before))

    def _seats_on(self, plan: Plan, before: Terms) -> int:
        paid = paid_seats(before.plan, self._seat_meter, before.seats)
        return seats_on(plan, self._seat_meter, paid=paid, seats=before.seats)

    def _cost(self, known: SubscriptionState, current: Plan, target: Terms) -> Proration:
        changes = self._catalog.billing.changes
        course = course_of(current, target.plan, pending=None, changes=changes)
        now_ms = self._store.now_ms()
        return cost_of(
            known,
            Terms(plan=current, seats=known.seats_at(now_ms)),
            target,
            when="period_end" if course == "period_end" else "now",
            seat_meter=self._seat_meter,
            currency=self._catalog.currency,
            now_ms=now_ms,
        )

    def _in_force(self, customer: str, state: CustomerState) -> SubscriptionState:
        known = state.subscription
        if known is None or known.status_at(self._store.now_ms()) in ENDED:
            raise NoSubscriptionError(customer)
        return known

    def _plan_of(self, customer: str, known: SubscriptionState) -> Plan:
        plan = self._catalog.plans.get(known.plan_at(self._store.now_ms()) or "")
        if plan is None:
            raise SubscriptionError(
                f"customer {customer!r} has subscription {known.id}, of a price that no plan of the plans"
                " file has: give it to a plan as its `stripe_price`, or change the subscription at Stripe"
            )
        return plan

    async def _live(self, customer: str, again: int) -> tuple[LiveSubscription, SubscriptionState]:
        """The subscription in force as Stripe has it now, and what is known of it after that."""
        await self._fetch(customer)
        _, state = await self._states.read(customer)
        known = self._in_force(customer, state)
        live = await LiveSubscription.fetch(self._api(), known.id, again)
        if live is None or live.found["status"] in ENDED:
            raise NoSubscriptionError(customer)
        return live, known

    async def _payable(self, customer: str, again: int) -> tuple[LiveSubscription, SubscriptionState, Plan]:
        """The same of a subscription that can be changed, and its plan."""
        live, known = await self._live(customer, again)
        self._check_paid(customer, live, _UNPAID)
        return live, known, self._plan_of(customer, known)

    def _check_paid(self, customer: str, live: LiveSubscription, refused: frozenset[str]) -> None:
        status = live.found["status"]
        if status in refused:
            raise SubscriptionError(
                f"the subscription {live.id} of customer {customer!r} is {status}:"
                " it has to be paid for first"
            )

    async def _upgrade(self, live: LiveSubscription, target: Terms, *, ends_trial: bool) -> str | None:
        """Bring the items to what they are to be once that is paid; what is scheduled is taken back then.

        The client secret, where the customer has to confirm the payment first.
        """
        params: dict[str, Parameter] = {
            "items": await self._updates(live, target),
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
        }
        if ends_trial:
            params["trial_end"] = "now"
        try:
            if params["items"]:
                await live.update(params)
        except StripeError as error:
            if error.code != _NEEDS_CUSTOMER or error.is_replayed or live.schedule is not None:
                raise
            return await self._await_customer(live, params, error)
        await live.release()
        return None

    @staticmethod
    async def _await_customer(
        live: LiveSubscription, params: Mapping[str, Parameter], refused: StripeError
    ) -> str | None:
        """Have an upgrade wait until its customer has confirmed the payment; the client secret of that."""
        try:
            return await live.update_once_paid(params)
        except StripeError as error:
            if error.type == "invalid_request_error":  # Not every change can wait at Stripe.
                raise refused from error
            raise

    async def _updates(self, live: LiveSubscription, target: Terms) -> list[dict[str, Parameter]]:
        """What brings the items to what they are to be; empty where nothing is to be done."""
        prices = await prices_of(self._api(), target.plan)
        paid = paid_seats(target.plan, self._seat_meter, target.seats)
        return updates(live.items, self._catalog, prices, paid)

    async def _arrange(
        self, live: LiveSubscription, known: SubscriptionState, later: Terms, *, now: Terms | None = None
    ) -> None:
        """Have the items be what they are to be later when the period ends, and now what is given."""
        if live.is_ending:
            raise SubscriptionError(f"the subscription {live.id} is to end: resume it before it is changed")
        await live.arrange(
            await self._items(live, later),
            now=None if now is None else await self._items(live, now),
            change_s=known.end_ms // 1000,
            interval=later.plan.price.interval,
        )

    async def _items(self, live: LiveSubscription, terms: Terms) -> list[dict[str, Parameter]]:
        prices = await prices_of(self._api(), terms.plan)
        paid = paid_seats(terms.plan, self._seat_meter, terms.seats)
        return next_items(live.items, self._catalog, prices, paid)

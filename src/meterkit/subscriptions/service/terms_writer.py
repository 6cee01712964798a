"""Write the terms of a subscription at Stripe (plan, seats, add-ons): now, if paid, or by its schedule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterkit.catalog.addons import with_addons
from meterkit.catalog.meters import billed_meters
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.customer_state import is_billed_by_lines, seat_meter
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.errors import StripeError, SubscriptionError
from meterkit.outbox.meters_or_lines import with_usage_billed
from meterkit.subscriptions.change_rules import paid_seats, total_seats
from meterkit.subscriptions.drift_comparison import paid_seats_in, plan_in
from meterkit.subscriptions.item_changes import (
    CREATE_PRORATIONS,
    PlanPrices,
    addons_in,
    changes_metered,
    next_items,
    trial_settings_change,
    updates,
)
from meterkit.subscriptions.override_prices import customer_prices, with_metered
from meterkit.subscriptions.plan_prices import METERS, is_of_another_plan, meters_of_file
from meterkit.subscriptions.proration_estimate import PlanTerms
from meterkit.subscriptions.schedule_phases import cut_phases, has_custom_terms, present_phases
from meterkit.subscriptions.service.payment_pages import find_remedy
from meterkit.subscriptions.stripe_objects import LOOKUP_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem
    from meterkit.subscriptions.schedule_phases import PhaseDraft
    from meterkit.subscriptions.subscription_updates import LiveSubscription


def terms_in(items: Sequence[LiveItem], plan: Plan, catalog: Catalog) -> PlanTerms:
    """The terms that items have: their plan with its add-ons, and the seats."""
    composed = with_addons(plan, addons_in(items, catalog), catalog)
    paid = paid_seats_in(items, plan, catalog)
    return PlanTerms(plan=composed, seats=total_seats(composed, seat_meter(catalog.meters), paid))


class TermsWriter:
    """Writes plan, seats and add-ons to the subscription of one customer at Stripe.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses, or does not answer.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        state: the customer's: the prices of its overrides replace the plan's. It says whether metered
            prices or invoice lines bill usage.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], state: CustomerState) -> None:
        self._store = store
        self._api = api
        self._state = state
        self._catalog = store.catalog.in_currency(state.currency)

    async def apply_now(self, live: LiveSubscription, target: PlanTerms) -> None:
        """Change the items now; the difference is on the next invoice."""
        items = await self.plan_item_changes(live, target)
        params = trial_settings_change(live.found, target.plan)
        if items:
            params |= {"items": items, "proration_behavior": CREATE_PRORATIONS}
        if params:
            await live.update(params)

    async def apply_if_paid(
        self, live: LiveSubscription, target: PlanTerms, *, ends_trial: bool = False
    ) -> str | None:
        """Change the items now if that is paid; a scheduled change stays.

        Returns:
            None: it is done. Otherwise nothing has changed, and the customer must authenticate the card with
            this client secret of a SetupIntent before the caller asks again.

        Raises:
            SubscriptionError: the customer needs a payment method, or another one.
        """
        params: dict[str, Parameter] = {
            "items": await self.plan_item_changes(live, target),
            "proration_behavior": "always_invoice",
            "payment_behavior": "error_if_incomplete",
            "off_session": True,  # Without the customer's browser: the saved card must suffice.
        }
        if ends_trial:
            params["trial_end"] = "now"
        else:
            params |= trial_settings_change(live.found, target.plan)
        try:
            if params["items"]:
                await live.update(params)
        except StripeError as error:
            return await find_remedy(self._store, live, params, error)
        return None

    async def plan_item_changes(
        self, live: LiveSubscription, target: PlanTerms
    ) -> list[dict[str, Parameter]]:
        """Plan the changes of items that lead to a plan with seats and add-ons; empty if there are none.

        If the plan stays, so do the metered prices that an operator has given the customer.
        """
        prices, paid, addons = await self._read_prices(live, target)
        prices = await self._with_operator_prices(live, prices)
        return updates(live.items, self._catalog, prices, paid, addons)

    async def cancel_scheduled(self, live: LiveSubscription, target: PlanTerms) -> None:
        """Cancel a scheduled change of plan: release the schedule, or give its phases the current plan.

        The latter keeps a schedule with terms of its own, such as an operator's future phases.
        """
        if live.schedule is None:
            return
        if has_custom_terms(live.schedule):
            await self.update_phases(live, live.schedule, lambda _: target, current=target)
        else:
            await live.release()

    async def restore_plan(
        self, live: LiveSubscription, target: PlanTerms, change: Callable[[PlanTerms], PlanTerms]
    ) -> None:
        """Give the phases of other plans the current one; cancel a schedule that then changes nothing.

        Phases of the current plan stay: they change add-ons or seats.

        Args:
            live: the subscription.
            target: its present terms.
            change: returns the terms of a phase with the current plan.
        """
        if live.schedule is None:
            return
        current, *later = drafts = present_phases(live.schedule, live.found)
        plans = [plan_in(draft.items, self._catalog) for draft in later]
        ours = [
            terms_in(draft.items, plan, self._catalog)
            for draft, plan in zip(later, plans, strict=True)
            if plan is not None
        ]
        if all(terms.plan.key == target.plan.key for terms in ours):
            return
        if all(change(terms) == target for terms in ours):
            await self.cancel_scheduled(live, target)
            return
        phases = [current.lines()]
        for draft, plan in zip(later, plans, strict=True):
            is_left = plan is None or plan.key == target.plan.key
            phases.append(draft.lines() if is_left else await self._change_lines(live, draft, change))
        await self._send_if_different(live, live.schedule, drafts, phases)

    async def plan_scheduled_changes(
        self, live: LiveSubscription, later: PlanTerms
    ) -> list[dict[str, Parameter]]:
        """Plan the changes of licensed items that lead to a scheduled plan, at the prices of its phase."""
        drafts = [] if live.schedule is None else present_phases(live.schedule, live.found)[1:]
        for draft in drafts:
            plan = plan_in(draft.items, self._catalog)
            if plan is not None and plan.key == later.plan.key:
                priced = await self._read_prices(live, later)
                lines = next_items(draft.items, self._catalog, *priced, draft.settings)
                gone: list[dict[str, Parameter]] = [{"id": item.id, "deleted": True} for item in live.items]
                return gone + [line for line in lines if "quantity" in line]
        return await self.plan_item_changes(live, later)

    async def changes_metered_items(self, live: LiveSubscription, target: PlanTerms) -> bool:
        """Whether a plan needs other metered items than the present ones."""
        return changes_metered(live.items, await self.plan_item_changes(live, target))

    async def schedule(self, live: LiveSubscription, known: SubscriptionState, later: PlanTerms) -> None:
        """Schedule a plan for the end of the period; all phases from then on get its items.

        Raises:
            SubscriptionError: the subscription is ending.
        """
        refuse_ending(live)
        change_s, interval = known.end_ms // 1000, later.plan.price.interval
        schedule = await live.open_schedule(change_s)
        priced = await self._read_prices(live, later, known.end_ms)
        drafts = cut_phases(schedule, live.found, change_s=change_s, interval=interval)
        phases = [
            draft.to_params(
                next_items(draft.items, self._catalog, *priced, draft.settings)
                if draft.is_later
                else draft.lines()
            )
            for draft in drafts
        ]
        await live.send_phases(schedule, phases)

    async def schedule_addons(
        self,
        live: LiveSubscription,
        known: SubscriptionState,
        change: Callable[[PlanTerms], PlanTerms],
    ) -> None:
        """Schedule other add-ons for the end of the period, in each phase from then on.

        Args:
            live: the subscription.
            known: as it is stored.
            change: returns the terms of a phase by its present ones.

        Raises:
            SubscriptionError: the subscription is ending.
        """
        refuse_ending(live)
        change_s, current = known.end_ms // 1000, plan_in(live.items, self._catalog)
        interval = "month" if current is None else current.price.interval
        schedule = await live.open_schedule(change_s)
        drafts = cut_phases(schedule, live.found, change_s=change_s, interval=interval)
        phases = [
            await self._change_lines(live, draft, change, known.end_ms, keeps_prices=True)
            if draft.is_later
            else draft.lines()
            for draft in drafts
        ]
        if live.schedule is not None and len(drafts) == len(present_phases(schedule, live.found)):
            await self._send_if_different(live, schedule, drafts, phases)
        else:
            sent = [draft.to_params(lines) for lines, draft in zip(phases, drafts, strict=True)]
            await live.send_phases(schedule, sent)

    async def reschedule(
        self,
        live: LiveSubscription,
        schedule: Mapping[str, Any],
        change: Callable[[PlanTerms], PlanTerms],
    ) -> None:
        """Give the phases after the current one other terms; release a schedule that changes nothing then."""
        current, *later = drafts = present_phases(schedule, live.found)
        if not later:
            return
        phases = [current.lines()]
        phases += [await self._change_lines(live, draft, change, keeps_prices=True) for draft in later]
        changes = [lines for lines in phases if _quantities(lines) != _quantities(phases[0])]
        if changes or has_custom_terms(schedule):
            await self._send_if_different(live, schedule, drafts, phases)
        else:
            await live.release()

    async def move_usage(self, live: LiveSubscription, known: SubscriptionState, *, by_lines: bool) -> None:
        """Schedule the end of metered items for the end of the period, or their beginning.

        Plans, seats and add-ons of all phases stay.

        Raises:
            SubscriptionError: the subscription is ending, or Stripe lacks a metered price.
        """
        catalog, current = self._catalog, plan_in(live.items, self._catalog)
        if current is None or live.is_ending:
            raise SubscriptionError(f"the subscription {live.id} is ending, or has no plan")
        if by_lines:
            await self._refuse_foreign_meters(live)
        change_s = known.end_ms // 1000
        schedule = await live.open_schedule(change_s)
        phases: list[dict[str, Parameter]] = []
        interval = current.price.interval
        for draft in cut_phases(schedule, live.found, change_s=change_s, interval=interval):
            plan, lines = plan_in(draft.items, catalog), draft.lines()
            if draft.is_later and plan is not None:
                terms = terms_in(draft.items, plan, catalog)
                priced = await self._read_prices(live, terms, known.end_ms, by_lines=by_lines)
                if not by_lines:
                    refuse_unpriced(priced[0], catalog)
                lines = next_items(draft.items, catalog, *priced, draft.settings)
            phases.append(draft.to_params(lines))
        await live.send_phases(schedule, phases)

    async def update_phases(
        self,
        live: LiveSubscription,
        schedule: Mapping[str, Any],
        change: Callable[[PlanTerms], PlanTerms] = lambda terms: terms,
        *,
        current: PlanTerms | None = None,
    ) -> None:
        """Give every phase with a plan other terms, the current phase included.

        The current phase keeps its metered prices; later phases get the customer's prices at their start.

        Args:
            live: the subscription.
            schedule: its schedule.
            change: returns the terms of a later phase by its present ones; default: these.
            current: the terms of the current phase; None: its present ones.
        """
        drafts = present_phases(schedule, live.found)
        phases = [
            await self._change_lines(live, draft, change)
            if place
            else await self._change_lines(live, draft, lambda terms: current or terms, keeps_prices=True)
            for place, draft in enumerate(drafts)
        ]
        await self._send_if_different(live, schedule, drafts, phases)

    async def _send_if_different(
        self,
        live: LiveSubscription,
        schedule: Mapping[str, Any],
        drafts: Sequence[PhaseDraft],
        phases: Sequence[Sequence[Mapping[str, Parameter]]],
    ) -> None:
        """Send the phases of a schedule with other items, unless all have these."""
        if any(_are_different(lines, draft.lines()) for lines, draft in zip(phases, drafts, strict=True)):
            sent = [draft.to_params(lines) for lines, draft in zip(phases, drafts, strict=True)]
            await live.send_phases(schedule, sent)

    async def _change_lines(
        self,
        live: LiveSubscription,
        draft: PhaseDraft,
        change: Callable[[PlanTerms], PlanTerms],
        at_ms: int = 0,
        *,
        keeps_prices: bool = False,
    ) -> list[dict[str, Parameter]]:
        """Items of a phase with changed terms; a phase without a plan stays as it is.

        Args:
            live: the subscription.
            draft: the phase.
            change: returns its terms by its present ones.
            at_ms: when the change takes effect; 0: when the phase begins.
            keeps_prices: whether its metered prices stay.
        """
        catalog = self._catalog
        plan = plan_in(draft.items, catalog)
        if plan is None:
            return draft.lines()
        begins_s = draft.params.get("start_date")
        begins_ms = 1000 * begins_s if isinstance(begins_s, int) else 0
        target = change(terms_in(draft.items, plan, catalog))
        prices, paid, addons = await self._read_prices(live, target, max(at_ms, begins_ms))
        if keeps_prices:
            prices = _keep_metered_prices(draft.items, prices)
        else:
            prices = await self._with_operator_prices(live, prices)
        return next_items(draft.items, catalog, prices, paid, addons, draft.settings)

    async def _with_operator_prices(self, live: LiveSubscription, prices: PlanPrices) -> PlanPrices:
        """Prices with the metered ones that an operator has given the customer, if the plan stays."""
        current = plan_in(live.items, self._catalog)
        if current is None or current.key != prices.plan:
            return prices
        return with_metered(prices, await self._find_operator_prices(live, prices))

    async def _find_operator_prices(self, live: LiveSubscription, prices: PlanPrices) -> dict[str, str]:
        """Find metered items with a price that an operator made by hand: meter to price."""
        times = Counter(item.meter for item in live.items)
        overridden = {prices.metered[price] for price in prices.overridden}
        return {
            item.meter: item.price
            for item in live.items
            if item.meter is not None
            and item.meter in prices.meters
            and item.meter not in overridden
            and times[item.meter] == 1
            and item.price not in prices.metered
            and not item.key.startswith(LOOKUP_MARK)
            and not await is_of_another_plan(self._api(), self._catalog, item, prices.plan)
        }

    async def _refuse_foreign_meters(self, live: LiveSubscription) -> None:
        """Refuse to move usage beside metered items that the plans file does not have: they would stay."""
        own = meters_of_file(await self._api().list(METERS), self._catalog)
        foreign = [item.price for item in live.items if item.meter is not None and item.meter not in own]
        if foreign:
            raise SubscriptionError(
                f"the subscription {live.id} has metered items that are not of the plans file"
                f" ({', '.join(foreign)}): remove them at Stripe first"
            )

    async def _read_prices(
        self, live: LiveSubscription, target: PlanTerms, at_ms: int = 0, *, by_lines: bool | None = None
    ) -> tuple[PlanPrices, int, Bought]:
        """Read the customer's prices on a plan at an instant, or now, and count paid seats and add-ons.

        Args:
            live: the subscription.
            target: the plan with its add-ons and seats.
            at_ms: the instant.
            by_lines: whether invoice lines bill usage then; None: as it is known.
        """
        catalog, at_ms = self._catalog, max(at_ms, await self._store.clock_ms(HOOKS_SHARD))
        if by_lines is None:
            by_lines = is_billed_by_lines(self._state, catalog, at_ms)
        paid = paid_seats(target.plan, seat_meter(catalog.meters), target.seats)
        given = overrides_at(self._state.overrides, at_ms).meters
        own = with_usage_billed(catalog, by_lines=by_lines)
        prices = await customer_prices(self._api(), own, target.plan, given, live.prices)
        current = plan_in(live.items, catalog)
        if by_lines and any(item.meter for item in live.items):
            meters = await self._api().list(METERS)
            prices = replace(prices, meters=meters_of_file(meters, catalog))  # Items of these are removed.
        elif own is not catalog and (current is None or current.key != target.plan.key):
            refuse_unpriced(prices, catalog)
        return prices, paid, target.addons


def refuse_ending(live: LiveSubscription) -> None:
    """Raise SubscriptionError if a subscription is ending: no later phase would begin."""
    if live.is_ending:
        advice = "The subscription is ending. Resume it before you change it."
        raise SubscriptionError(
            f"the subscription {live.id} is ending: resume it before it is changed", advice=advice
        )


def refuse_unpriced(prices: PlanPrices, catalog: Catalog) -> None:
    """Raise SubscriptionError if Stripe lacks a metered price of a plan: its usage would be on no invoice."""
    events = {prices.meters.get(meter or "") for meter in prices.metered.values()}
    for meter in billed_meters(catalog.meters, catalog.plans[prices.plan]):
        if meter.stripe is not None and meter.stripe.event_name not in events:
            cure = (
                "bill the customer's usage by lines first: `meterkit plans migrate --usage lines`"
                if catalog.billing.is_by_lines
                else "`meterkit stripe sync` makes it"
            )
            raise SubscriptionError(
                f"plan {prices.plan} has no metered price for {meter.name} at Stripe: {cure}"
            )


def _keep_metered_prices(items: Sequence[LiveItem], prices: PlanPrices) -> PlanPrices:
    """Replace metered prices by those of present items: usage is cut before they change."""
    metered = {item.price: item.meter for item in items if item.meter in prices.meters}
    return replace(prices, metered=metered, overridden=frozenset(metered))


def _are_different(
    lines: Sequence[Mapping[str, Parameter]], others: Sequence[Mapping[str, Parameter]]
) -> bool:
    """Whether items differ, regardless of their order."""
    return sorted(lines, key=_price_of_line) != sorted(others, key=_price_of_line)


def _quantities(lines: Iterable[Mapping[str, Parameter]]) -> set[tuple[Parameter, Parameter]]:
    return {(line["price"], line.get("quantity")) for line in lines}


def _price_of_line(line: Mapping[str, Parameter]) -> str:
    return str(line["price"])

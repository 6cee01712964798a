"""Write the terms of a subscription at Stripe (plan, seats, proration): now, if paid, or by its schedule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from meterkit.catalog.meters import billed_meters
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.customer_state import seat_meter
from meterkit.errors import StripeError, SubscriptionError
from meterkit.outbox.billed_usage_terms import is_billed_by_lines, with_usage_billed
from meterkit.subscriptions.change_rules import paid_seats
from meterkit.subscriptions.drift_comparison import plan_in
from meterkit.subscriptions.item_changes import (
    CREATE_PRORATIONS,
    PlanPrices,
    changes_metered,
    next_items,
    trial_settings_change,
    updates,
)
from meterkit.subscriptions.live_subscription import LiveSubscription
from meterkit.subscriptions.plan_prices import (
    METERS,
    customer_prices,
    is_of_another_plan,
    meters_of_file,
    with_metered,
)
from meterkit.subscriptions.schedule_phases import cut_phases, has_custom_terms, present_phases
from meterkit.subscriptions.service.payment_pages import find_remedy
from meterkit.subscriptions.stripe_objects import LOOKUP_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import LiveItem
    from meterkit.subscriptions.proration_estimate import PlanTerms


class TermsWriter:
    """Writes plan and seats to the subscription of one customer at Stripe.

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

    async def apply_now(self, live: LiveSubscription, target: PlanTerms) -> None:
        """Change the items now; the difference is on the next invoice."""
        items = await self.plan_item_changes(live, target)
        params = trial_settings_change(live.found, target.plan)
        if items:
            params |= {"items": items, "proration_behavior": CREATE_PRORATIONS}
        if params:
            await live.update(params)

    async def apply_if_paid(
        self, live: LiveSubscription, target: PlanTerms, *, ends_trial: bool
    ) -> str | None:
        """Change the items now if that is paid, and cancel a scheduled change.

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
            if error.is_replayed:
                raise
            return await find_remedy(self._store, live, params, error)
        changed = live if live.schedule is None else await LiveSubscription.fetch(self._api(), live.id)
        if changed is not None:
            await self.cancel_scheduled(changed, target)
        return None

    async def plan_item_changes(
        self, live: LiveSubscription, target: PlanTerms
    ) -> list[dict[str, Parameter]]:
        """Plan the changes of items that lead to a plan with its seats; empty if there are none.

        If the plan stays, so do the metered prices that an operator has given the customer.
        """
        prices, paid = await self._read_prices(live, target)
        current = plan_in(live.items, self._store.catalog)
        if current is not None and current.key == prices.plan:
            prices = with_metered(prices, await self._find_operator_prices(live, prices))
        return updates(live.items, self._store.catalog, prices, paid)

    async def cancel_scheduled(self, live: LiveSubscription, target: PlanTerms) -> None:
        """Cancel a scheduled change of plan: release the schedule, or give its phases the current plan.

        The latter keeps a schedule with terms of its own, such as an operator's future phases.
        """
        if live.schedule is None:
            return
        if has_custom_terms(live.schedule):
            await self.update_phases(live, live.schedule, lambda _: target)
        else:
            await live.release()

    async def plan_scheduled_changes(
        self, live: LiveSubscription, later: PlanTerms
    ) -> list[dict[str, Parameter]]:
        """Plan the changes of licensed items that lead to a scheduled plan, at the prices of its phase."""
        drafts = [] if live.schedule is None else present_phases(live.schedule, live.found)[1:]
        for draft in drafts:
            plan = plan_in(draft.items, self._store.catalog)
            if plan is not None and plan.key == later.plan.key:
                priced = await self._read_prices(live, later)
                lines = next_items(draft.items, self._store.catalog, *priced, draft.settings)
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
        if live.is_ending:
            raise SubscriptionError(f"the subscription {live.id} is ending: resume it before it is changed")
        change_s, interval = known.end_ms // 1000, later.plan.price.interval
        schedule = await live.open_schedule(change_s)
        priced = await self._read_prices(live, later, known.end_ms)
        drafts = cut_phases(schedule, live.found, change_s=change_s, interval=interval)
        phases = [
            draft.to_params(
                next_items(draft.items, self._store.catalog, *priced, draft.settings)
                if draft.is_later
                else draft.lines()
            )
            for draft in drafts
        ]
        await live.send_phases(schedule, phases)

    async def move_usage(
        self,
        live: LiveSubscription,
        known: SubscriptionState,
        terms_of: Callable[[Plan], PlanTerms],
        *,
        by_lines: bool,
    ) -> None:
        """Schedule the end of metered items for the end of the period, or their beginning.

        Plans and seats of all phases stay.

        Raises:
            SubscriptionError: the subscription is ending, or Stripe lacks a metered price.
        """
        catalog, current = self._store.catalog, plan_in(live.items, self._store.catalog)
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
                prices, paid = await self._read_prices(live, terms_of(plan), known.end_ms, by_lines=by_lines)
                if not by_lines:
                    refuse_unpriced(prices, catalog)
                lines = next_items(draft.items, catalog, prices, paid, draft.settings)
            phases.append(draft.to_params(lines))
        await live.send_phases(schedule, phases)

    async def update_phases(
        self,
        live: LiveSubscription,
        schedule: Mapping[str, Any],
        terms_of: Callable[[Plan], PlanTerms],
    ) -> None:
        """Give every phase with a plan the terms of that plan, the current phase included.

        The current phase keeps its metered prices; later phases get the customer's prices at their start.
        """
        drafts = present_phases(schedule, live.found)
        phases: list[list[dict[str, Parameter]]] = []
        for draft in drafts:
            plan = plan_in(draft.items, self._store.catalog)
            lines = draft.lines()
            if plan is not None:
                begins_s = draft.params.get("start_date")
                begins_ms = 1000 * begins_s if isinstance(begins_s, int) else 0
                prices, paid = await self._read_prices(live, terms_of(plan), begins_ms)
                prices = prices if phases else _keep_metered_prices(draft.items, prices)
                lines = next_items(draft.items, self._store.catalog, prices, paid, draft.settings)
            phases.append(lines)
        if any(_are_different(lines, draft.lines()) for lines, draft in zip(phases, drafts, strict=True)):
            sent = [draft.to_params(lines) for lines, draft in zip(phases, drafts, strict=True)]
            await live.send_phases(schedule, sent)

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
            and not await is_of_another_plan(self._api(), self._store.catalog, item, prices.plan)
        }

    async def _refuse_foreign_meters(self, live: LiveSubscription) -> None:
        """Refuse to move usage beside metered items that the plans file does not have: they would stay."""
        own = meters_of_file(await self._api().list(METERS), self._store.catalog)
        foreign = [item.price for item in live.items if item.meter is not None and item.meter not in own]
        if foreign:
            raise SubscriptionError(
                f"the subscription {live.id} has metered items that are not of the plans file"
                f" ({', '.join(foreign)}): remove them at Stripe first"
            )

    async def _read_prices(
        self, live: LiveSubscription, target: PlanTerms, at_ms: int = 0, *, by_lines: bool | None = None
    ) -> tuple[PlanPrices, int]:
        """Read the customer's prices on a plan at an instant, or now, and count the paid seats.

        Args:
            live: the subscription.
            target: the plan and its seats.
            at_ms: the instant.
            by_lines: whether invoice lines bill usage then; None: as it is known.
        """
        catalog, at_ms = self._store.catalog, max(at_ms, self._store.now_ms())
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
        return prices, paid


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


def _price_of_line(line: Mapping[str, Parameter]) -> str:
    return str(line["price"])

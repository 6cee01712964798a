"""Overrides with a price: make it the customer's own price at Stripe, then store the override.

No schedule of Stripe ends such a price: a phase that changes a metered price bills usage that Stripe does not
have yet at the new one.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from meterkit.catalog import override
from meterkit.catalog.value_parsers import date_and_time
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import (
    has_price,
    next_end_ms,
    overrides_at,
    with_overage_until,
    without_ended,
)
from meterkit.decisions.customer_state import entitlements_on, is_billed_by_lines, is_subscribed
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import from_ms
from meterkit.decisions.price_segments import ended_labels, unit_amount_decimal
from meterkit.decisions.subscription import NEVER_MS
from meterkit.errors import (
    MeterkitError,
    NoSubscriptionError,
    SettingsError,
    StoreError,
    StripeUnavailableError,
    SubscriptionBusyError,
    SubscriptionError,
)
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.subscriptions.item_changes import changes_metered
from meterkit.subscriptions.override_prices import (
    override_prices,
    why_unbilled,
    why_unlike_tiers,
)
from meterkit.subscriptions.plan_prices import METERS, meters_of_file
from meterkit.subscriptions.proration_estimate import PlanTerms
from meterkit.subscriptions.service.change_lease import due_prices, hold_change_lease
from meterkit.subscriptions.service.terms_writer import TermsWriter
from meterkit.subscriptions.subscription_updates import LiveSubscription
from meterkit.subscriptions.wanted_prices import WantedPrice, metered_price, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from decimal import Decimal

    from meterkit.catalog import Catalog, Entitlement, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.subscriptions.override_prices import Given
    from meterkit.subscriptions.service.subscription_changer import SubscriptionChanger

_logger = logging.getLogger("meterkit.subscriptions")
_jitter = SystemRandom().uniform
_EVERY_S: Final = 2.0
_TIMEOUT_S: Final = 50.0
_SOON_MS: Final = 30_000
_LATER_MS: Final = 3_600_000
_LOGGED_EVERY_S: Final = 24 * HOUR_S
_UNKNOWN_MS: Final = 120_000
"""A change whose outcome is unknown is made, or not, by then."""


@dataclass(eq=False)
class OverrideRepricer:
    """Stores overrides once Stripe has their prices, and ends such prices when they expire.

    Args:
        store: of the kit.
        changer: changes active subscriptions.
    """

    store: Store
    changer: SubscriptionChanger

    def __post_init__(self) -> None:
        self._states = CustomerStates(self.store)
        self._due = due_prices(self.store)
        self._throttle = Throttle(_LOGGED_EVERY_S)

    async def override(
        self, customer: str, meters: Collection[str], change: Callable[[CustomerState], CustomerState]
    ) -> None:
        """Store an override; if it changes a price, once the customer's items at Stripe have that price.

        Args:
            customer: the customer's id.
            meters: those that the override names.
            change: applies the override to a state.

        Raises:
            MeterkitError: no invoice can bill the price that it gives.
            SubscriptionError: the subscription cannot be changed now.
            StripeError: Stripe refuses, or does not answer; ask again.
        """
        # A meter that has left the plans file is on no item: its override is only taken back.
        meters = [name for name in meters if name in self._catalog.meters]
        (_, state), now_ms = await self._states.read(customer), await self._states.clock_ms(customer)
        before, after = (overrides_at(one.overrides, now_ms).meters for one in (state, change(state)))
        priced = [name for name in meters if has_price(after.get(name, {}))]
        withdrawn = [name for name in meters if has_price(before.get(name, {})) and name not in priced]
        has_subscription = is_subscribed(state, now_ms)
        self._refuse_unlike_tiers(state, after, meters, now_ms)
        if priced or (withdrawn and has_subscription):
            self._refuse_without_stripe(customer, (*priced, *withdrawn)[0], is_subscribed=has_subscription)
            async with hold_change_lease(self.store, customer):
                await self._switch_items(customer, meters, change)
        else:
            await self._states.change(customer, change)

    async def run(self) -> None:
        """Make the price changes that are due, every two seconds, until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await asyncio.sleep(_EVERY_S * _jitter(0.8, 1.2))
            await self.settle_due()

    async def settle_due(self) -> None:
        """Make the price changes that are due, once.

        Raises:
            StoreError: the store does not answer.
        """
        await self._due.handle_due(self._settle_customer, "the change of an override's price")

    async def _settle_customer(self, customer: str) -> None:
        # First, so that other processes, and this one after a crash, do not try meanwhile.
        await self._due.put_in(customer, int(1000 * _TIMEOUT_S))
        why = ""
        try:
            async with asyncio.timeout(_TIMEOUT_S), hold_change_lease(self.store, customer):
                await self._switch_items(customer, (), _unchanged)
        except (StripeUnavailableError, SubscriptionBusyError, TimeoutError):
            await self._due.put_in(customer, _SOON_MS)
        except NoSubscriptionError:
            await self._due.remove(customer)
        except StoreError:
            raise
        except MeterkitError as error:
            why = str(error)
        if why:
            await self._due.put_in(customer, _LATER_MS)
        if why and self._throttle.is_due((customer, why)):
            _logger.error(
                "an override cannot change the overage price of customer %r at Stripe now; it is retried"
                " every hour: %s",
                customer,
                why,
            )

    async def _switch_items(
        self, customer: str, meters: Collection[str], change: Callable[[CustomerState], CustomerState]
    ) -> None:
        """Change a state and give the items at Stripe its prices, after a cut of the usage until now."""
        live, known, current = await self.changer.fetch_payable(customer)
        (_, state), now_ms = await self._states.read(customer), await self._states.clock_ms(customer)
        self._refuse_unbilled(current, overrides_at(change(state).overrides, now_ms).meters, meters)
        by_lines = is_billed_by_lines(state, self._catalog, now_ms)
        if meters and by_lines != self._catalog.billing.is_by_lines:
            raise _refusal_before_move(customer, self._catalog.billing.usage)
        if by_lines:
            rates = {name: self._unit_in_force(current, state, name, now_ms) for name in meters}
        else:
            rates = await self._read_unit_prices(live, known, meters) if meters else {}
        states = state, change(state)
        later = self._later_overages(rates, known, current, states, now_ms, by_lines=by_lines)

        def settle(state: CustomerState) -> CustomerState:
            after = change(state)
            overrides = after.overrides
            for name, overage in later.items():
                overrides = with_overage_until(overrides, name, overage, until_ms=known.end_ms)
            if by_lines:  # The change of the state ends the prices of ended ones.
                overrides = without_ended(overrides, now_ms)
            return replace(after, overrides=overrides)

        settled = settle(state)
        writer = TermsWriter(self.store, self.changer.api, settled)
        target = PlanTerms(plan=current, seats=known.seats_at(now_ms))
        changed = await writer.plan_item_changes(live, target)
        if changes_metered(live.items, changed):
            kept = await self._list_kept_tokens(live, {str(one.get("id")) for one in changed})
            ended = self._ended_labels(current, state, settled, now_ms)
            # If this process dies between Stripe and the store, the next run makes both agree.
            await self._due.put_in(customer, _UNKNOWN_MS)
            async with self.changer.cut(customer, {of: ended[of] for of in ended if of not in kept}):
                await writer.apply_now(live, target)
                await self._states.change(customer, settle)
                await self.changer.fetch(customer)
        else:
            await self._states.change(customer, settle)
        if live.schedule is not None:
            await self._reschedule_phases(known.id, writer)
        next_ms = next_end_ms(settled.overrides, now_ms)
        await (self._due.remove(customer) if next_ms == NEVER_MS else self._due.put(customer, next_ms))

    async def _list_kept_tokens(self, live: LiveSubscription, changed: Collection[str]) -> set[str]:
        """Tokens of the meters whose items do not change: an invoice has one line for the whole period."""
        events = meters_of_file(await self.changer.api().list(METERS), self._catalog)
        kept = {events.get(item.meter or "", "") for item in live.items if item.id not in changed} - {""}
        return {meter_token(name) for name in self._catalog.meters if _event(self._catalog, name) in kept}

    async def _reschedule_phases(self, subscription: str, writer: TermsWriter) -> None:
        """Give scheduled phases the prices that the customer has at their beginning."""
        live = await LiveSubscription.fetch(self.changer.api(), subscription)
        if live is not None and live.schedule is not None:
            await writer.update_phases(live, live.schedule)

    async def _read_unit_prices(
        self, live: LiveSubscription, known: SubscriptionState, meters: Collection[str]
    ) -> dict[str, Decimal | None]:
        """Read the unit price on the customer's items, by meter; None: it has no single price."""
        events = meters_of_file(await self.changer.api().list(METERS), self._catalog)
        flat = [price for price in live.prices if price.get("billing_scheme") != "tiered"]
        shapes = [shape for shape in map(shape_of, flat) if not shape.is_odd and shape.divide_by == 1]
        # Items show a price of several currencies in its default one; the state has their own amounts.
        own = {one.event_name: one.label for one in known.prices if one.is_exact and not one.free}
        units: dict[str | None, Decimal | None] = {}
        for shape in shapes:
            event, label = events.get(shape.meter or ""), own.get(events.get(shape.meter or "", ""))
            is_own = shape.currency == (known.currency or shape.currency)
            units[event] = shape.unit if is_own else None if label is None else unit_amount_decimal(label)
        return {name: units.get(_event(self._catalog, name)) for name in meters}

    def _later_overages(
        self,
        units: Mapping[str, Decimal | None],
        known: SubscriptionState,
        plan: Plan,
        states: tuple[CustomerState, CustomerState],
        now_ms: int,
        *,
        by_lines: bool,
    ) -> dict[str, object]:
        """Find the meters whose price changes when the period ends, each with its overage until then.

        A falling price is an upgrade, a rising one a downgrade; a price without a counterpart changes now.
        """
        after = overrides_at(states[1].overrides, now_ms)
        changes, found = self._catalog.billing.changes, dict[str, object]()
        for name, old in units.items():
            if by_lines:
                new = self._unit_in_force(plan, states[1], name, now_ms)
            else:
                new = self._unit_after(plan, after.meters, name)
            if old is None or new is None or old == new:
                continue
            if (changes.upgrade if new < old else changes.downgrade) == "now":
                continue
            own_end = after.ends.get(name, NEVER_MS)
            if own_end <= known.end_ms:
                raise MeterkitError(
                    f"override of {name}: its price would take effect when the period ends, at"
                    f" {date_and_time(from_ms(known.end_ms))} (`billing.changes`), and the override ends by"
                    " then: give a later `until`, or none"
                )
            found[name] = self._overage_until(plan, states[0], after.meters, name, now_ms, by_lines=by_lines)
        return found

    def _unit_after(self, plan: Plan, given: Given, name: str) -> Decimal | None:
        """Unit price on a plan with overrides; None: nothing, or only Stripe has it."""
        wanted = override_prices(self._catalog, plan, given).get(_event(self._catalog, name))
        if wanted is not None:
            return wanted.shape.unit
        entitlement = override(self._catalog, plan, given)[name]
        if entitlement.overage.mode != "bill":
            return None
        return self._unit_of(plan, plan.entitlements[name], name)

    def _unit_of(self, plan: Plan, entitlement: Entitlement, name: str) -> Decimal | None:
        """Unit price of an entitlement; None: nothing, or only Stripe has it."""
        if entitlement.overage.mode != "bill":
            return None
        wanted = metered_price(self._catalog, plan, self._catalog.meters[name], entitlement)
        return wanted.shape.unit if isinstance(wanted, WantedPrice) else None

    def _unit_in_force(self, plan: Plan, state: CustomerState, name: str, now_ms: int) -> Decimal | None:
        """Unit price of invoice lines: of an override, else the one that the subscription has kept."""
        given = entitlements_on(plan, state, self._catalog, now_ms)
        return self._unit_of(plan, given[name], name)

    def _overage_until(
        self, plan: Plan, state: CustomerState, after: Given, name: str, now_ms: int, *, by_lines: bool
    ) -> object:
        """The overage of a meter until its price changes: the price of before, and the cap of now."""
        cap = override(self._catalog, plan, after)[name].overage.cap
        bill: dict[str, object] = {} if cap is None else {"cap": cap}
        before = overrides_at(state.overrides, now_ms).meters
        if by_lines:
            was = entitlements_on(plan, state, self._catalog, now_ms)[name].overage
        else:
            was = override(self._catalog, plan, before)[name].overage
        if by_lines or has_price(before.get(name, {})):
            bill |= {"per": was.per, "amount_cents": was.amount_cents}
        return {"bill": bill} if bill else "bill"

    def _ended_labels(
        self, plan: Plan, before: CustomerState, after: CustomerState, now_ms: int
    ) -> dict[str, str]:
        """The labels of the prices that end with a switch, by the tokens of their meters."""
        given = entitlements_on(plan, before, self._catalog, now_ms)
        then = entitlements_on(plan, after, self._catalog, now_ms, own_prices=False)
        return ended_labels(given, then, self._catalog)

    def _refuse_unlike_tiers(
        self, state: CustomerState, given: Given, meters: Collection[str], now_ms: int
    ) -> None:
        known = state.subscription
        plan = None if known is None else self._catalog.find_plan(known.plan_at(now_ms))
        if plan is None or not is_subscribed(state, now_ms):
            return
        if (why := why_unlike_tiers(self._catalog, plan, given, meters)) is not None:
            raise MeterkitError(why)

    def _refuse_without_stripe(self, customer: str, name: str, *, is_subscribed: bool) -> None:
        try:
            self.changer.api()
        except SettingsError as error:
            raise MeterkitError(
                f"override of {name}: Stripe bills overage, so its price has to be one at Stripe, and no"
                " Stripe key is set here: set METERKIT_STRIPE_API_KEY, or override limits without `per` and"
                " `amount_cents`"
            ) from error
        if not is_subscribed:
            raise NoSubscriptionError(
                customer,
                f"override of {name}: customer {customer!r} has no active subscription, and a price of its"
                " own needs one: begin a subscription first, or override limits without `per` and"
                " `amount_cents`",
            )

    def _refuse_unbilled(self, plan: Plan, given: Given, meters: Collection[str]) -> None:
        for name in meters:
            if (
                has_price(given.get(name, {}))
                and (why := why_unbilled(self._catalog, plan, given, name)) is not None
            ):
                raise MeterkitError(f"override of {name}: Stripe cannot bill this price: {why}")

    @property
    def _catalog(self) -> Catalog:
        return self.store.catalog


def _event(catalog: Catalog, name: str) -> str:
    """The event name of a meter; empty: it has none."""
    stripe = catalog.meters[name].stripe if name in catalog.meters else None
    return "" if stripe is None else stripe.event_name


def _refusal_before_move(customer: str, usage: str) -> SubscriptionError:
    """Explain why an override cannot change a price yet: items and state would differ."""
    return SubscriptionError(
        f"the usage of customer {customer!r} is not billed by {usage} yet, so no override can change its"
        f" price: `meterkit plans migrate --usage {usage}` moves it at the end of its period"
    )


def _unchanged(state: CustomerState) -> CustomerState:
    return state

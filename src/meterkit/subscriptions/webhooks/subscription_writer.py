"""Store a fetched subscription; usage that missed a price change or the end of its period becomes late."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

from meterkit.catalog.value_parsers import date_and_time
from meterkit.customers.grants import move_grants
from meterkit.customers.late_usage_on_price_change import (
    PriceSwitch,
    hold_usage,
    mark_usage_late,
    next_minute_ms,
    release_usage,
)
from meterkit.customers.period_carryover import read_cut, read_spent
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import effective_plan, with_subscription
from meterkit.decisions.periods import DAY_MS, SHORTEST_MS, from_ms, to_ms
from meterkit.decisions.plan_shares import cut_of, uncut_period
from meterkit.decisions.subscription import ENDED, meters_switched_by_others
from meterkit.decisions.subscription_periods import is_cut_short
from meterkit.decisions.told_terms import with_terms
from meterkit.errors import StripeError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.close_queue import (
    RENEWAL,
    STAMPED_AHEAD_MS,
    InvoiceEnd,
    finalized_ms,
    note_ends,
    note_renewal,
    store_invoice_end,
)
from meterkit.stripe.request import KEY_REFUSALS
from meterkit.subscriptions.invoice_payments import is_rest_paid
from meterkit.subscriptions.metered_prices import line_price_changes
from meterkit.subscriptions.stripe_objects import items_in, part_of, text_in
from meterkit.subscriptions.subscription_reading import (
    addons_of,
    is_of_other_items,
    keep_shown_line_terms,
    metered_of,
    plan_of,
)
from meterkit.terms.cuts import cuts_of
from meterkit.terms.rows import ADDONS, CUT, PLAN, SOLD, SPENT, last_ms, tell

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
    from typing import TypeAlias

    from meterkit.catalog import Bought, Catalog
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.terms.cuts import Cut
    from meterkit.terms.rows import Terms

    EndUsage: TypeAlias = Callable[[str, Mapping[int, int]], Awaitable[None]]
    """Called with the customer, and the ends of periods at Stripe with their first instants (ms)."""


_logger = logging.getLogger("meterkit.subscriptions")
FLUSH: Final = "flush"
"""The cause of a sync by the flusher."""
_HELD_MS: Final = 60_000
_UPDATED: Final = "customer.subscription.updated"
_PAYING: Final = frozenset({"active", "past_due"})


class UnlinkedError(Exception):
    """The customer was unlinked or deleted meanwhile."""


class SubscriptionWriter:
    """Stores a customer's fetched subscription, and moves usage that it affects.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        end_usage: makes usage of a customer's periods late, whose invoices are final.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], end_usage: EndUsage) -> None:
        self._store = store
        self._api = api
        self._end_usage = end_usage
        self._failures = Throttle(HOUR_S)
        self._states = CustomerStates(store)

    async def write(
        self,
        customer: str,
        linked: str,
        subscription: SubscriptionState | None,
        found: Sequence[Mapping[str, Any]],
        cause: str,
        *,
        currency: str | None,
        events: Mapping[str, int] | None = None,
    ) -> SubscriptionState | None:
        """Store a subscription; return the one known before.

        Args:
            customer: the customer's id.
            linked: its Stripe customer.
            subscription: the chosen one; None: there is none.
            found: all of the Stripe customer, with ``latest_invoice`` expanded.
            cause: for the ledger.
            currency: that Stripe bills the customer in; empty: none yet; None: not known, it stays.
            events: ids of the events that report changes of its items, and when these were made (ms).

        Raises:
            UnlinkedError: the customer has another Stripe customer meanwhile, or none.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        rev, before = await self._states.read(customer)
        known = before.subscription
        if subscription is not None:
            nothing: Mapping[str, Any] = {}
            shown = next((one for one in found if one["id"] == subscription.id), nothing)
            subscription = keep_shown_line_terms(subscription, before, shown, self._store.catalog)
        apply_to = partial(_subscription_change, linked, subscription, self._store.catalog, currency)
        catalog, now_ms = self._store.catalog, self._store.now_ms()
        after = with_terms(before, apply_to()(before), catalog, now_ms, told_ms=now_ms, source="stripe")
        changes = await read_changes(self._store, self._api(), before, subscription, cause, events or {})
        # Of a period that was cut short, they had a part.
        had = replace(before, terms=_with_changes(before.terms, changes, now_ms))
        cycle = await self._read_cycle(customer, had, after, found)
        apply_subscription = apply_to(cycle, changes[:-1], now_ms)
        if _is_running(known) and _is_running(subscription):
            await move_grants(self._store, customer, self._bounds(before), self._bounds(after))
        final, moved = await self._store_invoice_ends(
            customer, after, period_ends(found, known, subscription)
        )
        at_ms = changes[-1].at_ms if changes else None
        store_state = partial(
            self._states.change, customer, apply_subscription, cause=cause, changed_ms=at_ms
        )
        switched = meters_switched_by_others(known, subscription, self._store.now_ms())
        if subscription is None or moved or not switched:
            await store_state()
        else:
            change = PriceSwitch(
                rev=rev,
                events=await self._read_event_names(switched),
                changed_ms=await self._priced_since_ms(subscription.id, subscription.metered, cause),
                cause=cause,
            )
            await self._change_prices(customer, before, after, change, store_state)
        is_free_over = self._is_free_period_over(customer, before, after)
        # A running flush handles usage of a period that had ended before: its report names it.
        if moved or is_free_over or (final and cause != FLUSH):
            await self._end_usage(customer, final | moved)
            await note_ends(self._store, customer, final | moved)
        if subscription is not None:
            await self._write_line_prices(subscription, found)
        await note_renewal(self._store, customer, after, known=known)
        return known

    async def _write_line_prices(
        self, subscription: SubscriptionState, found: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the prices at which lines bill usage into the subscription's metadata, unless it has them.

        If Stripe refuses, or does not answer, the next sync writes them.
        """
        shown = next((one for one in found if one["id"] == subscription.id), None)
        changes = {} if shown is None else line_price_changes(shown, subscription)
        if not changes:
            return
        try:
            await self._api().post(f"/v1/subscriptions/{subscription.id}", {"metadata": changes})
        except StripeError as error:
            if self._failures.is_due(type(error)):
                text = "the prices of usage of subscription %s are not in its metadata at Stripe yet: %s"
                _logger.warning(text, subscription.id, error)

    async def _read_cycle(
        self,
        customer: str,
        before: CustomerState,
        after: CustomerState,
        found: Sequence[Mapping[str, Any]],
    ) -> Mapping[str, Cut | None]:
        """Read what was used in a period that a subscription has begun or ended, or another cycle."""
        cycle: dict[str, Cut | None] = {CUT: await self._read_cut(customer, before, after, found)}
        subscription = after.subscription
        if before.plan is None and _is_running(subscription) != _is_running(before.subscription):
            began_ms = subscription.created_ms if _is_running(subscription) else None
            cycle[SPENT] = await read_spent(self._store, customer, before, began_ms)
        return cycle

    async def _read_cut(
        self,
        customer: str,
        before: CustomerState,
        after: CustomerState,
        found: Sequence[Mapping[str, Any]],
    ) -> Cut | None:
        """Read what was used of a period that was cut short, or the last one of a subscription; else None."""
        known = before.subscription
        shown = next((one for one in found if known is not None and one["id"] == known.id), None)
        cut_ms = 0 if known is None or shown is None else last_edge_ms(shown, known, after.subscription)
        if known is None or shown is None or not cut_ms or before.plan is not None:
            return None
        last_ms = max(cut_ms - 1, known.start_ms)  # It may end in the second in which it begins.
        start_ms, end_ms = uncut_period(before, self._store.catalog, last_ms)
        has_ended = shown["status"] in ENDED
        if not has_ended and cut_ms <= known.usage_period[0]:
            return None  # That was decided when its beginning became known.
        if known.status_at(last_ms) not in _PAYING or not start_ms <= cut_ms:
            return None
        if not has_ended and not start_ms < cut_ms <= self._bounds(after).start_ms:
            return None
        since_ms = min(known.start_ms, start_ms)
        if cut_ms < end_ms and not await self._is_rest_paid(shown, since_ms, cut_ms):
            return await read_cut(self._store, customer, before, last_ms, cut_ms)
        is_over = cut_ms < end_ms or (has_ended and cuts_of(before.terms))
        return cut_of(before, self._store.catalog, last_ms, cut_ms, None) if is_over else None

    async def _is_rest_paid(self, shown: Mapping[str, Any], since_ms: int, cut_ms: int) -> bool:
        """Whether the money for the rest of a period was kept; also if the key may not read invoices."""
        try:
            return await is_rest_paid(
                self._api(), shown, self._store.catalog, since_ms=since_ms, cut_ms=cut_ms
            )
        except StripeError as error:
            if error.status not in KEY_REFUSALS:
                raise
            _logger.warning(
                "subscription %s ended before its period, and the key may not read whether the rest was paid"
                " (%s): the period counts as paid; allow the key to read invoices, invoice items and prices",
                shown["id"],
                error,
            )
            return True

    async def _store_invoice_ends(
        self, customer: str, after: CustomerState, ends: Sequence[PeriodEnd]
    ) -> tuple[dict[int, int], dict[int, int]]:
        """Store until when invoices take usage.

        That is stored before the state moves the period, so that no process seals usage for a final invoice.

        Returns:
            Ends of periods at Stripe with their first instants (ms): ended before, with an invoice that is
            final only now; and ended by the new state.
        """
        store, final, moved = self._store, dict[int, int](), dict[int, int]()
        for at_ms, invoice in ends:
            (usage,) = await store.usage_of_many([customer], at_ms=at_ms - 1, former=True)
            start_ms, end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
            is_open = end_ms > store.now_ms()
            is_moved = is_open and self._bounds(after).start_ms >= max(at_ms, start_ms + SHORTEST_MS)
            if not is_moved and (is_open or not at_ms <= end_ms < at_ms + STAMPED_AHEAD_MS):
                continue
            is_new = await store_invoice_end(store, customer, start_ms, invoice)
            if invoice.final_ms and (is_moved or is_new):
                (moved if is_moved else final)[at_ms] = start_ms
        return final, moved

    def _is_free_period_over(self, customer: str, before: CustomerState, after: CustomerState) -> bool:
        """Whether a trial or a pause has ended earlier than known: usage until now is sealed as free.

        Logs a trial's end that was learned late: no invoice bills the usage since then.
        """
        known, subscription, now_ms = before.subscription, after.subscription, self._store.now_ms()
        if known is None or subscription is None or known.id != subscription.id:
            return False
        status = known.status_at(now_ms)
        if status not in {"trialing", "paused"} or subscription.status_at(now_ms) != "active":
            return False
        ended_ms = subscription.trial_end_ms or now_ms
        if status == "trialing" and now_ms > ended_ms + _HELD_MS:
            _logger.warning(
                "the trial of customer %r ended at Stripe at %s, and meterkit has learned of that at %s:"
                " usage recorded in between and not sent yet counts as usage of the trial, on no invoice",
                customer,
                *(date_and_time(from_ms(at_ms)) for at_ms in (ended_ms, now_ms)),
            )
        return True

    def _bounds(self, state: CustomerState) -> Bounds:
        """The current period by a state."""
        return effective_plan(state, self._store.catalog, self._store.now_ms()).bounds

    async def _read_event_names(self, meters: Collection[str]) -> set[str]:
        """Event names of meters, by their ids at Stripe."""
        found = await self._api().list("/v1/billing/meters")
        return {meter["event_name"] for meter in found if meter["id"] in meters}

    async def _change_prices(
        self,
        customer: str,
        before: CustomerState,
        after: CustomerState,
        change: PriceSwitch,
        store_state: Callable[[], Awaitable[object]],
    ) -> None:
        """Store a subscription whose metered prices were changed elsewhere; usage that missed it is late."""
        store = self._store
        # Sealed now, usage could be stamped before the change.
        await hold_usage(store, customer, till_ms=store.now_ms() + _HELD_MS)
        # If the process dies after this, the next one finds the same change, and the usage late already.
        await mark_usage_late(store, customer, before, after, change)
        await store_state()
        await release_usage(store, customer, changed_ms=next_minute_ms(store.now_ms()))

    async def _priced_since_ms(self, subscription: str, metered: str, cause: str) -> int:
        """Since when a subscription has its metered prices at the latest, by Stripe's events of a day."""
        changed_ms = now_ms = self._store.now_ms()
        day_ago_ms = now_ms - DAY_MS
        try:
            async for event in _latest_updates(self._api()):
                shown = _metered_in(event, subscription)
                if _at_ms(event) < day_ago_ms or shown not in {None, metered}:
                    break
                changed_ms = changed_ms if shown is None else min(changed_ms, _at_ms(event))
            else:
                event = await _read_update(self._api(), cause)
                if _metered_in(event, subscription) == metered and _at_ms(event) >= day_ago_ms:
                    changed_ms = min(changed_ms, _at_ms(event))
        except StripeError as error:
            if error.status not in KEY_REFUSALS:
                raise
        return changed_ms


def _is_running(subscription: SubscriptionState | None) -> TypeGuard[SubscriptionState]:
    """Whether a subscription has begun and not ended: its periods are consecutive."""
    return subscription is not None and subscription.has_begun and subscription.status not in ENDED


def _subscription_change(
    linked: str,
    subscription: SubscriptionState | None,
    catalog: Catalog,
    currency: str | None,
    cycle: Mapping[str, Cut | None] | None = None,
    changes: Sequence[SoldChange] = (),
    now_ms: int = 0,
) -> Callable[[CustomerState], CustomerState]:
    def change(state: CustomerState) -> CustomerState:
        if state.stripe_customer != linked:
            raise UnlinkedError
        changed = with_subscription(state, subscription, catalog.plans, catalog.addons)
        if currency is not None:
            changed = replace(changed, currency=currency)
        terms = changed.terms
        for name, cut in (cycle or {}).items():
            terms = terms if cut is None else tell(terms, {name: cut}, cut.cut_ms, now_ms, "stripe")
        return replace(changed, terms=_with_changes(terms, changes, now_ms))

    return change


def _with_changes(terms: Terms, changes: Sequence[SoldChange], told_ms: int) -> Terms:
    for one in changes:
        terms = tell(terms, dict(zip((PLAN, ADDONS), one.has, strict=True)), one.at_ms, told_ms, "stripe")
    return terms


_EVENT: Final = "evt_"
_PAGES_MAX: Final = 3


class SoldChange(NamedTuple):
    """A change of what a subscription sells: the key of its plan, and its add-ons.

    Attributes:
        at_ms: when it was made.
        had: what was sold until then.
        has: what is sold from then on.
    """

    at_ms: int
    had: tuple[str | None, Bought]
    has: tuple[str | None, Bought]


async def read_changes(
    store: Store,
    api: StripeApi,
    state: CustomerState,
    found: SubscriptionState | None,
    cause: str,
    events: Mapping[str, int],
) -> list[SoldChange]:
    """The changes of plan or add-ons at Stripe since the last known one, the oldest first.

    Empty: there was none, or Stripe has no event of the last one.

    Args:
        store: of the kit.
        api: the Stripe client.
        state: of the customer, as it is stored.
        found: the fetched subscription.
        cause: the id of the event that requested the sync, or a word.
        events: ids of events that report changes, and when these were made (ms); unless they lead to what it
            sells, the latest are read.

    Raises:
        StripeError: Stripe does not answer, or refuses for another reason than the rights of the key.
    """
    known, now_ms, catalog = state.subscription, store.now_ms(), store.catalog
    if known is None or found is None or known.id != found.id:
        return []
    had, has = (known.plan_at(now_ms), known.addons_at(now_ms)), (found.plan, found.addons)
    since_ms, changes = last_ms(state.terms, SOLD), list[SoldChange]()
    unknown = [name for name, at_ms in events.items() if at_ms > since_ms]
    if had == has and not unknown:
        return []
    try:
        for name in unknown or [cause]:
            if (change := _change_in(await _read_update(api, name), found, catalog)) is not None:
                changes.append(change)
        changes.sort(key=attrgetter("at_ms"))
        if had != has and not (changes and changes[-1].has == has):
            changes.clear()
            async for event in _latest_updates(api):
                if (change := _change_in(event, found, catalog)) is not None and (
                    changes or change.has == has
                ):
                    changes.insert(0, change)
                    if change.had == had:
                        break
    except StripeError as error:
        if error.status not in KEY_REFUSALS:
            raise
    return [one for one in changes if one.at_ms > since_ms] if changes and changes[-1].has == has else []


async def _read_update(api: StripeApi, cause: str) -> dict[str, Any]:
    """The event that requested a sync; empty unless it updated a subscription."""
    event = await api.find(f"/v1/events/{cause}") if cause.startswith(_EVENT) else None
    return event if event is not None and event.get("type") == _UPDATED else {}


async def _latest_updates(api: StripeApi) -> AsyncGenerator[dict[str, Any]]:
    """The latest events that updated subscriptions, newest first.

    Stripe lists no events of one subscription, and a busy account has more updates in a day than a sync has
    time for.
    """
    pages = 0
    async for page in api.pages("/v1/events", {"type": _UPDATED}):
        for event in page:
            yield event
        pages += 1
        if pages == _PAGES_MAX:
            return


def _metered_in(event: Mapping[str, Any], subscription: str) -> str | None:
    """The metered prices that an event shows of a subscription; None: it is of another one."""
    shown = part_of(part_of(event, "data"), "object")
    return metered_of(shown) if shown.get("id") == subscription else None


def _at_ms(event: Mapping[str, Any]) -> int:
    return int(event["created"]) * 1000


def _change_in(event: Mapping[str, Any], found: SubscriptionState, catalog: Catalog) -> SoldChange | None:
    """The change that an event reports; None: it reports none, or one of another subscription."""
    data = part_of(event, "data")
    shown = part_of(data, "object")
    if text_in(shown, "id") != found.id:
        return None
    has, had = (
        _sold_by({**shown, **previous}, catalog) for previous in ({}, part_of(data, "previous_attributes"))
    )
    return None if has[0] is None or has == had else SoldChange(_at_ms(event), had, has)


def _sold_by(shown: Mapping[str, Any], catalog: Catalog) -> tuple[str | None, Bought]:
    plan = plan_of(shown, catalog)
    return None if plan is None else plan.key, addons_of(shown, catalog)


_SECOND_MS: Final = 1_000


class PeriodEnd(NamedTuple):
    """The end of a billing period at Stripe.

    Attributes:
        at_ms: first instant after the period.
        invoice: until when its invoice takes usage.
    """

    at_ms: int
    invoice: InvoiceEnd


def period_ends(
    found: Sequence[Mapping[str, Any]], before: SubscriptionState | None, after: SubscriptionState | None
) -> list[PeriodEnd]:
    """The latest ends of periods with a known invoice, or certainly without one.

    A renewal makes a draft that takes usage. A period ended elsewhere has its invoice at once, or none: after
    a reset of the billing cycle, a trial of a paid subscription, a cancellation or a pause amid its period.
    A renewal amid the period of the plan's usage is that of other items, and bills none of it.

    Args:
        found: all subscriptions of a Stripe customer, with ``latest_invoice`` expanded.
        before: the customer's stored subscription.
        after: the fetched one.
    """
    ends: dict[int, InvoiceEnd] = {}
    ids = {one.id for one in (before, after) if one is not None}
    for shown in found:
        if shown.get("id") not in ids:
            continue
        if before is not None and shown["id"] == before.id and (at_ms := _cut_ms(shown, before, after)):
            ends[at_ms] = InvoiceEnd(final_ms=at_ms)
        renewal = _renewal_of(shown)
        if renewal is not None and not _is_of_other_items(shown, after):
            ends[renewal.at_ms] = renewal.invoice
    return [PeriodEnd(at_ms, invoice) for at_ms, invoice in sorted(ends.items())]


def _is_of_other_items(shown: Mapping[str, Any], after: SubscriptionState | None) -> bool:
    if after is None or after.id != shown["id"]:
        return False
    return is_of_other_items(part_of(shown, "latest_invoice"), after.usage_period)


def _cut_ms(shown: Mapping[str, Any], before: SubscriptionState, after: SubscriptionState | None) -> int:
    """The instant at which a period of the known subscription was cut short; 0: it was not."""
    at_ms = last_edge_ms(shown, before, after)
    return at_ms if at_ms and is_cut_short(before, at_ms) else 0


def last_edge_ms(shown: Mapping[str, Any], before: SubscriptionState, after: SubscriptionState | None) -> int:
    """The end of the known subscription, or the beginning of its present period; 0: not known."""
    if shown.get("status") in ENDED:
        return int(shown.get("ended_at") or 0) * _SECOND_MS
    if after is None or after.id != before.id:
        return 0
    start_ms, end_ms = after.usage_period
    return end_ms if after.status == "paused" else start_ms


def _renewal_of(shown: Mapping[str, Any]) -> PeriodEnd | None:
    """The end of the period whose usage the latest invoice bills; None: it bills no period, or a trial."""
    invoice = part_of(shown, "latest_invoice")
    at_s = invoice.get("period_end")
    if text_in(invoice, "billing_reason") != RENEWAL or not isinstance(at_s, int):
        return None
    if int(shown.get("trial_start") or 0) < at_s <= int(shown.get("trial_end") or 0):
        return None
    held_s = invoice.get("automatically_finalizes_at") if invoice.get("auto_advance") is True else None
    if (
        finalized_ms(invoice) == 0
        and invoice.get("auto_advance") is False
        and shown.get("status") not in ENDED
    ):
        # A draft that waits for a person. After the next renewal no sync of the subscription shows it.
        held_s = min((int(item.get("current_period_end") or 0) for item in items_in(shown)), default=0)
    # One that a person has voided says nothing of usage that it did not have.
    is_paused = text_in(part_of(shown, "pause_collection"), "behavior") == "void"
    is_void = is_paused and text_in(invoice, "status") == "void"
    end = InvoiceEnd(held_ms=int(held_s or 0) * _SECOND_MS, final_ms=finalized_ms(invoice), is_void=is_void)
    return PeriodEnd(at_s * _SECOND_MS, end)

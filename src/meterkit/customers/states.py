"""Stored states of customers: list, read, and change by compare-and-set with an entry in the history.

Scheduled transitions are changes that the clock alone makes, such as the end of a trial.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from dataclasses import astuple, dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.customers.period_carryover import with_unlimited_use
from meterkit.decisions.customer_overrides import overridden_label, without_amounts
from meterkit.decisions.customer_state import (
    NO_STATE,
    CustomerState,
    EffectivePlan,
    effective_plan,
    entitlements_of,
    entitlements_on,
    is_billed_by_lines,
    line_switches,
    overrides_in_force,
    with_learned_prices,
)
from meterkit.decisions.gauges import GaugeLimit
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import FORMAT, meter_token
from meterkit.decisions.periods import from_ms, iso
from meterkit.decisions.price_segments import NOT_BILLED, billed_labels, ended_labels, is_same_price
from meterkit.decisions.subscription import NEVER_MS
from meterkit.decisions.told_terms import with_terms
from meterkit.decisions.transitions import (
    TermsInForce,
    Transition,
    find_transitions,
    manual_entries,
    notices_of,
    reminders_of,
    transition_entries,
)
from meterkit.errors import MeterkitError, StoreError
from meterkit.outbox.meters_or_lines import end_dropped_prices
from meterkit.store.event_names import ReportedMeter, read_meters, with_former_names
from meterkit.store.input_checks import check_customer
from meterkit.store.plan_definitions import read_unknown_plans
from meterkit.store.unreadable_data import UNREADABLE, is_of_the_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.decisions.customer_overrides import Overrides
    from meterkit.decisions.item_prices import ItemPrices
    from meterkit.decisions.keys import Keys
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.transitions import StateNotice, TransitionEntry
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store
    from meterkit.terms.rows import Source


_logger = logging.getLogger("meterkit.store")
_TRIES: Final = 32
_FROM_NOW_ON: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """The stored state of a customer.

    Attributes:
        rev: of the state.
        state: the state.
        force: what was active when that was entered last; None: nothing was.
        force_text: the same, as it is stored.
    """

    rev: str
    state: CustomerState
    force: TermsInForce | None
    force_text: str


class CustomerStates:
    """Reads and changes stored states."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, customer: str) -> tuple[str, CustomerState]:
        """A customer's rev and state."""
        found = await self.find(customer)
        return found.rev, found.state

    async def find(self, customer: str) -> StoredState:
        """Read the stored state of a customer."""
        (found,) = await self.find_many([customer])
        return found

    async def find_many(self, customers: Sequence[str]) -> list[StoredState]:
        """Read the stored states of several customers in one round trip."""
        admin, keys = await self._store.admin(), map(self._store.keys.customer, customers)
        replies = await admin.ask_all(("hmget", one.state, ["rev", "data", "force"]) for one in keys)
        found = [
            StoredState(
                rev=(rev or NO_STATE.encode()).decode(),
                state=CustomerState.parse(data or b""),
                force=TermsInForce.parse(force or b""),
                force_text=(force or b"").decode(),
            )
            for rev, data, force in replies
        ]
        await read_unknown_plans(admin, self._store, (key for one in found for key in one.state.plan_keys))
        return found

    async def change(
        self,
        customer: str,
        change: Callable[[CustomerState], CustomerState],
        *,
        cause: str = "operator",
        changed_ms: int | None = None,
    ) -> CustomerState:
        """Change a state by compare-and-set; the next decision of every process uses it.

        Changes for the customer are entered into the history and sent to the app's handlers.

        Args:
            customer: the customer's id.
            change: computes the new state; it is called again if another process was faster.
            cause: for the ledger: the id of an event of Stripe's, ``operator``, ``api``, ``reconcile``.
            changed_ms: when the plan changed, where that is known to be before now.

        Raises:
            CustomerError: the id is not allowed.
            StoreError: others changed it again and again.
        """
        customer = check_customer(customer)
        for _ in range(_TRIES):
            found, now_ms = await self.find(customer), await self.clock_ms(customer)
            after = in_its_currency(found.state, change(found.state), self._store.catalog)
            if after != found.state:
                at_ms = now_ms if changed_ms is None else min(now_ms, changed_ms)
                source: Source = "operator" if cause == "operator" else "app"
                after = with_terms(
                    found.state, after, self._store.catalog, at_ms, told_ms=now_ms, source=source
                )
                after = await with_unlimited_use(self._store, customer, found.state, after)
            if (
                after == found.state
                and found.rev != NO_STATE
                and not self._has_unrecorded_transitions(found, now_ms)
            ):
                return found.state
            if await self._store_if_unchanged(customer, found, after, cause, now_ms):
                drop_allotments(self._store, customer)
                _log_lost_amounts(customer, found.state, after, self._store.catalog)
                return after
        raise StoreError(
            f"customer {customer!r} changed {_TRIES} times while it was being changed; try again"
        )

    async def clock_ms(self, customer: str) -> int:
        """The clock of the server that has the customer. Raises StoreError."""
        return await self._store.clock_ms(self._store.keys.customer(customer).shard)

    async def catch_up(self, customer: str) -> None:
        """Record and report transitions by the clock, or by another plans file, since the last time."""
        for _ in range(_TRIES):
            found, now_ms = await self.find(customer), await self.clock_ms(customer)
            if found.rev == NO_STATE or await self._store_if_unchanged(
                customer, found, found.state, "", now_ms
            ):
                return

    def _has_unrecorded_transitions(self, found: StoredState, now_ms: int) -> bool:
        """Check for transitions by the clock, or by another plans file, not yet recorded."""
        steps, _ = find_transitions(found.force, found.state, self._store.catalog, now_ms)
        return bool(steps)

    async def _store_if_unchanged(
        self, customer: str, found: StoredState, changed: CustomerState, cause: str, now_ms: int
    ) -> bool:
        """Store a state, its history and notices, unless another process was faster."""
        store, keys = self._store, self._store.keys.customer(customer)
        steps, force = find_transitions(found.force, found.state, store.catalog, now_ms)
        dunning, known = store.catalog.dunning, found.state.subscription
        before = found.force or force
        entries = [entry for step in steps for entry in transition_entries(step)]
        notices = [
            notice
            for step in steps
            for notice in (*notices_of(customer, step), *reminders_of(customer, step, known, dunning))
        ]
        if changed != found.state:
            step = Transition(
                force, TermsInForce.of(changed, store.catalog, max(now_ms, force.at_ms), force), cause
            )
            force = step.after
            entries += [*transition_entries(step), *manual_entries(found.state, changed, force.at_ms, cause)]
            notices += [
                *notices_of(customer, step),
                *reminders_of(customer, step, changed.subscription, dunning),
            ]
        effective = effective_plan(changed, store.catalog, now_ms)
        admin = await store.admin()
        shard, ended = keys.shard, _ended_prices(before, force, (found.state, changed), store.catalog)
        linked, remembered = _linked_now(found.state, changed), dict[str, ReportedMeter]()
        has_ended = bool(ended.labels and changed != found.state and ended.switches)
        if has_ended or linked == _FROM_NOW_ON:
            remembered |= await read_meters(admin, store.keys, store.catalog)
        if has_ended:
            overrides = overrides_in_force(found.state, now_ms)
            labels = with_former_names(ended.labels, remembered, store.catalog, overrides)
            ended = ended._replace(labels=labels)
        reply: list[Any] = await admin.run(
            store.scripts["amend_state"],
            [
                *(keys.counters, keys.state, store.keys.shard(shard, "customers"), keys.dirty, keys.unlinked),
                *(store.keys.turns(shard), keys.history, keys.notices, keys.levels, keys.totals),
                keys.over,
            ],
            found.rev,
            found.rev if changed == found.state and found.rev != NO_STATE else f"{FORMAT}:{token_hex(8)}",
            changed.dump(),
            customer,
            linked,
            now_ms,
            found.force_text,
            force.dump(),
            0 if force.turn_ms == NEVER_MS else force.turn_ms,
            _serialize_changes(
                entries,
                notices,
                _gauge_limits(effective, store.catalog),
                ended,
                effective.bounds,
                {token: one.meter for token, one in remembered.items()},
            ),
        )
        if reply[0]:
            return False
        if notices:
            store.on_notice(shard)
        _log_expired(customer, [text.decode() for text in reply[1:]])
        return True


def _linked_now(before: CustomerState, after: CustomerState) -> int:
    """Whether a customer is linked (1) or not (0), or from now on; see ``amend_state.lua``."""
    if after.stripe_customer is None:
        return 0
    return _FROM_NOW_ON if before.stripe_customer is None else 1


def _log_expired(customer: str, expired: Sequence[str]) -> None:
    """Log usage that a link was too late for; each text has the first instant of a period, then units."""
    if expired:
        parts = (text.partition(" ") for text in expired)
        found = ", ".join(f"{units} of the period from {iso(from_ms(int(at)))}" for at, _, units in parts)
        _logger.warning(
            "customer %r was linked more than 35 days after these periods, so no invoice bills %s",
            customer,
            found,
        )


def in_its_currency(before: CustomerState, after: CustomerState, catalog: Catalog) -> CustomerState:
    """A state without amounts of the currency that the customer had before.

    Amounts of overrides are gone: what they are in another currency is not known.
    """
    if catalog.in_currency(before.currency) is catalog.in_currency(after.currency):
        return after
    return replace(after, overrides=without_amounts(after.overrides))


def _log_lost_amounts(customer: str, before: CustomerState, after: CustomerState, catalog: Catalog) -> None:
    was, own = (catalog.in_currency(state.currency).currency for state in (before, after))
    if was != own and without_amounts(before.overrides) != before.overrides:
        _logger.warning(
            "customer %r is billed in %s now; its overrides had amounts in %s, which are gone: set them anew",
            customer,
            own.upper(),
            was.upper(),
        )


def drop_allotments(store: Store, customer: str) -> None:
    """Drop this process's allotments of a customer: the next request asks the store.

    Other processes use theirs until their term of 250 ms is over.
    """
    view = store.cache.named.find(customer)
    if view is not None:
        view.forget()


def _gauge_limits(effective: EffectivePlan, catalog: Catalog) -> list[tuple[str, int]]:
    """List the included level of each gauge now; -1: unlimited."""
    given = entitlements_of(effective, catalog)
    limits = {
        name: GaugeLimit.of(given[name]) for name, meter in catalog.meters.items() if meter.kind == "gauge"
    }
    return [(name, -1 if limit is None else limit.included) for name, limit in limits.items()]


class _EndedPrices(NamedTuple):
    """Prices that end with a change: when (ms), and their labels by token; see ``amend_state.lua``."""

    at: str
    labels: Mapping[str, str]
    switches: tuple[int, ...]
    is_free: bool
    prices: Mapping[str, str]


def _ended_prices(
    before: TermsInForce, after: TermsInForce, states: tuple[CustomerState, CustomerState], catalog: Catalog
) -> _EndedPrices:
    """Labels of the prices that end with this change, and when (ms).

    A scheduled change ended them at its own instant: usage since then has the new prices already. In another
    currency none ends: the open period has the new prices.
    """
    old, new = states
    plan, labels, at_ms = catalog.find_plan(before.plan), dict[str, str](), after.at_ms
    then = entitlements_on(catalog.plan_or_default(after.plan), new, catalog, after.at_ms)
    is_free = _loses_free_usage(old, new, catalog, at_ms)
    has_same_currency = catalog.in_currency(old.currency) is catalog.in_currency(new.currency)
    scheduled_ms = None if old.subscription is None else old.subscription.pending_at_ms
    if scheduled_ms is not None and before.at_ms < scheduled_ms <= after.at_ms:
        at_ms = scheduled_ms
    if is_free or has_same_currency:
        learned = with_learned_prices(old, new)
        if plan is None:
            labels = _labels_of_lost_plan(learned.prices_on(before.plan, before.at_ms), then, catalog)
        else:
            given = entitlements_on(plan, learned, catalog, before.at_ms)
            labels = billed_labels(given, catalog) if is_free else ended_labels(given, then, catalog)
        had, has = overrides_in_force(old, before.at_ms), overrides_in_force(new, after.at_ms)
        labels |= _labels_of_gone_meters(had, has, catalog)
    if is_free or has_same_currency:
        labels = end_dropped_prices(labels, (old, before), (new, after), catalog)
    if before.missing_plan == after.plan != before.plan and is_billed_by_lines(old, catalog, at_ms):
        # Another process lacks the plan. Units for invoices are of processes that have it, at its prices.
        labels = {token: label for token, label in labels.items() if label != NOT_BILLED}
    prices = billed_labels(then, catalog) if is_billed_by_lines(old, catalog, at_ms) else {}
    prices = prices if has_same_currency else dict.fromkeys(prices, "")
    return _EndedPrices(str(at_ms), labels, line_switches(old, catalog), is_free, prices)


def _labels_of_lost_plan(
    prices: ItemPrices, then: Mapping[str, Entitlement], catalog: Catalog
) -> dict[str, str]:
    """Labels of the prices that end with a plan that the plans file has lost, by its items at Stripe."""
    following = billed_labels(then, catalog)
    return {
        token: price.label
        for name, price in prices_by_meter(prices, catalog).items()
        if price.is_exact and (token := meter_token(name)) in following
        if not is_same_price(price.label, following[token])
    }


def _labels_of_gone_meters(had: Overrides, has: Overrides, catalog: Catalog) -> dict[str, str]:
    """Labels of the prices that overrides gave meters which have left the plans file, where they end."""
    return {
        meter_token(name): label
        for name in had.meters.keys() - catalog.meters.keys()
        if (label := overridden_label(had, name)) and label != overridden_label(has, name)
    }


def _loses_free_usage(old: CustomerState, new: CustomerState, catalog: Catalog, now_ms: int) -> bool:
    """Whether usage that costs nothing waits for its line, and its subscription is forgotten."""
    known = old.subscription
    if known is None or new.subscription is not None or not is_billed_by_lines(old, catalog, now_ms):
        return False
    is_voided = known.is_unpaid_at(known.end_ms)
    return known.status_at(now_ms) in {"trialing", "paused"} or is_voided


def _serialize_changes(
    entries: Sequence[TransitionEntry],
    notices: Sequence[StateNotice],
    gauges: Sequence[tuple[str, int]],
    ended: _EndedPrices,
    period: Bounds,
    names: Mapping[str, str],
) -> str:
    return json.dumps(
        {
            "ended": ended._asdict(),
            "entries": [[*map(str, astuple(entry))] for entry in entries],
            "gauges": gauges,
            "names": names,
            "notices": [(notice.kind, json.dumps(dict(notice.data), sort_keys=True)) for notice in notices],
            "period": (period.start_ms, period.end_ms),
        },
        separators=(",", ":"),
    )


_LOOK_EVERY_S: Final = 15.0
_SHARDS_AT_ONCE: Final = 16
_PAGE: Final = 100


async def make_scheduled_transitions(store: Store, *, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Run scheduled transitions four times a minute, until cancelled.

    Decisions do not wait for that: what is scheduled binds them at its millisecond.

    Args:
        store: where the customers are.
        is_wanted: whether this process is to look; asked each time.

    Raises:
        StoreError: the store does not answer.
    """
    while True:
        if is_wanted():
            await sweep_scheduled_transitions(store)
        await asyncio.sleep(_LOOK_EVERY_S)


async def sweep_scheduled_transitions(store: Store) -> int:
    """Record and report due transitions, each once; the number of customers with one.

    Raises:
        StoreError: the store does not answer.
    """
    admin, states, caught_up = await store.admin(), CustomerStates(store), 0
    for first in range(0, store.keys.shards, _SHARDS_AT_ONCE):
        shards = range(first, min(first + _SHARDS_AT_ONCE, store.keys.shards))
        now_ms = await store.clock_ms(first)
        due = admin.client.pipeline(transaction=False)
        for shard in shards:
            due.zrangebyscore(store.keys.turns(shard), "-inf", now_ms, start=0, num=_PAGE)
        for found in await admin.ask(due.execute()):
            for member in found:
                caught_up += await _catch_up(admin, states, member.decode())
    return caught_up


async def _catch_up(admin: Admin, states: CustomerStates, customer: str) -> bool:
    try:
        await states.catch_up(customer)
    except (ValueError, TypeError, MeterkitError) as error:  # Another release, or another program, wrote it.
        if is_of_the_store(error):
            raise
        admin.warn_once(f"what the clock changes for customer {customer!r} cannot be entered: {error}")
        return False
    return True


async def list_customers(admin: Admin, keys: Keys) -> AsyncGenerator[str]:
    """The ids of all customers that have a record, in no order, a few shards at once.

    Raises:
        StoreError: the store does not answer.
    """
    for first in range(0, keys.shards, _SHARDS_AT_ONCE):
        members = admin.client.pipeline(transaction=False)
        for shard in range(first, min(first + _SHARDS_AT_ONCE, keys.shards)):
            members.smembers(keys.shard(shard, "customers"))
        for found in await admin.ask(members.execute()):
            for member in found:
                yield member.decode()


async def list_customer_pages(admin: Admin, keys: Keys, most: int) -> AsyncGenerator[list[str]]:
    """List the same ids in pages of at most so many.

    Raises:
        StoreError: the store does not answer.
    """
    page: list[str] = []
    async with aclosing(list_customers(admin, keys)) as customers:
        async for customer in customers:
            page.append(customer)
            if len(page) == most:
                yield page
                page = []
    if page:
        yield page


async def read_states(admin: Admin, keys: Keys, customers: Sequence[str]) -> dict[str, CustomerState]:
    """Read the states of customers in one round trip; one without a record has the state of a new one.

    A customer whose state cannot be read is left out, with a warning once for each.

    Raises:
        StoreError: the store does not answer.
    """
    if not customers:
        return {}
    replies = await admin.ask_each(("hget", keys.customer(customer).state, "data") for customer in customers)
    found: dict[str, CustomerState] = {}
    for customer, reply in zip(customers, replies, strict=True):
        state = _parse_state(reply)
        if isinstance(state, CustomerState):
            found[customer] = state
            continue
        admin.warn_once(f"the state of customer {customer!r} cannot be read: {state}")
    return found


async def list_states(
    admin: Admin, keys: Keys, most: int, unreadable: list[str] | None = None
) -> AsyncGenerator[tuple[str, CustomerState]]:
    """List all customers with their states, ``most`` in a round trip.

    Those whose state cannot be read are left out, logged once each, and added to ``unreadable``.

    Raises:
        StoreError: the store does not answer.
    """
    async with aclosing(list_customer_pages(admin, keys, most)) as pages:
        async for page in pages:
            states = await read_states(admin, keys, page)
            if unreadable is not None:
                unreadable += set(page) - states.keys()
            for customer, state in states.items():
                yield customer, state


def _parse_state(reply: bytes | Exception | None) -> CustomerState | Exception:
    """The state in a reply, or why there is none."""
    if isinstance(reply, Exception):
        return reply
    try:
        return CustomerState.parse(reply or b"")
    except UNREADABLE as error:
        return error

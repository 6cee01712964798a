"""Find changes that no webhook has delivered: sweep Stripe's events, and sync each customer nightly."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.meters import is_sold
from meterkit.customers.states import read_states
from meterkit.decisions.periods import DAY_MS
from meterkit.errors import MeterkitError, StoreError, StripeError
from meterkit.store.task_lease import TaskLease
from meterkit.stripe.request import KEY_REFUSALS
from meterkit.subscriptions.plan_prices import prices_by_key
from meterkit.subscriptions.stripe_objects import base_key
from meterkit.subscriptions.webhooks.customer_sync import NIGHTLY
from meterkit.subscriptions.webhooks.stripe_events import TYPES, hint_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.webhooks.stripe_events import SyncHint
    from meterkit.subscriptions.webhooks.sync_queue import SyncQueue

_NIGHT_MS: Final = 6 * 3_600_000
_LATE_MS: Final = 600_000


@dataclass(frozen=True, slots=True, order=True)
class NightlyTurn:
    """The nightly sync of one shard.

    Attributes:
        day: since 1970.
        shard: its customers are synced.
    """

    day: int
    shard: int

    def dump(self) -> str:
        """Serialize it as text."""
        return f"{self.day} {self.shard}"

    @classmethod
    def parse(cls, text: str) -> NightlyTurn | None:
        """Parse the result of :meth:`dump`; None of an empty text."""
        return cls(*map(int, text.split())) if text else None


def due_shards(done: NightlyTurn | None, now_ms: int, shards: int) -> Iterator[tuple[NightlyTurn, int]]:
    """The turns that have begun and are not done, in order, and the time (ms) over which each is spread.

    A day without a running process is skipped. A late turn is spread over the length of a night: entries are
    processed in order of their time, and events would wait behind all customers.

    Args:
        done: the last turn that was done.
        now_ms: the current time.
        shards: number of shards.
    """
    day, into_ms = divmod(now_ms, DAY_MS)
    span_ms = max(1, _NIGHT_MS // shards)
    first = done.shard + 1 if done is not None and done.day == day else 0
    if done is not None and done.day > day:
        return  # Written by a clock that was ahead.
    for shard in range(first, min(shards, into_ms // span_ms + 1)):
        is_late = into_ms >= (shard + 1) * span_ms + _LATE_MS
        yield NightlyTurn(day, shard), _NIGHT_MS if is_late else span_ms


_logger = logging.getLogger("meterkit.subscriptions")
_random = SystemRandom()
_EVERY_S: Final = 30.0
_SWEEP_MS: Final = 300_000
# Stripe's list lags behind, and the clocks of hosts differ.
_OVERLAP_S: Final = 900
_FIRST_S: Final = 3_600
_LIST_DAYS_S: Final = 30 * 86_400
_LEASE_MS: Final = 600_000
_CHECK_AGAIN_MS: Final = 3_600_000
_KEPT_MS: Final = 400 * 86_400_000
_PAGE: Final = 200


class EventSweeper:
    """Queues syncs that no webhook has requested; one process at a time, by a lease.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        queue: the sync queue.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], queue: SyncQueue) -> None:
        self._store = store
        self._api = api
        self._queue = queue
        self._lease = TaskLease(store, store.keys.hooks("sweep"), lasts_ms=_LEASE_MS)
        self._has_logged = False
        self._has_prices = False
        self._checked_ms = -_CHECK_AGAIN_MS

    async def run(self) -> None:
        """Sweep every five minutes, and sync each customer once a night; until cancelled."""
        while True:
            await self.run_once()
            await asyncio.sleep(_EVERY_S * _random.uniform(0.8, 1.2))

    async def run_once(self) -> None:
        """Sweep if it is due, unless another process does. Raises nothing but cancellation."""
        try:
            if await self._has_sales():
                async with self._lease.held() as is_held:
                    if is_held:
                        await self._sweep_if_due()
                        await self._queue_customers()
            self._has_logged = False
        except (StripeError, StoreError) as error:
            if not self._has_logged:
                _logger.warning("events that were not delivered are looked for later: %s", error)
            self._has_logged = True
        except MeterkitError:
            _logger.exception("events that were not delivered are looked for later")

    async def sweep(self) -> int:
        """Queue the events since the last sweep; return how many were new.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        now_s = self._store.now_ms() // 1000
        cursor_s = int(await self._read_mark("cursor") or now_s - _FIRST_S)
        since_s = max(cursor_s - _OVERLAP_S, now_s - _LIST_DAYS_S)
        asked: dict[str, Parameter] = {"types": list(TYPES), "created": {"gte": since_s}}
        new, newest_s = 0, cursor_s
        async for page in self._api().pages("/v1/events", asked):
            for event in page:
                newest_s = max(newest_s, int(event.get("created") or 0))
                hint = hint_of(event)
                new += hint is not None and await self._queue_event(hint, event)
        # Later events may not be listed yet.
        await self._write_mark("cursor", min(newest_s, now_s))
        if new:
            _logger.info("%d events of Stripe were found that no webhook had delivered", new)
        return new

    async def _queue_event(self, hint: SyncHint, event: Mapping[str, Any]) -> bool:
        """Queue the sync of an event; whether it is new."""
        noted = await self._queue.add(hint, alarm=str(event["type"]) if hint.alarm else "")
        if hint.alarm is not None and noted != "duplicate":
            _logger.error("%s", hint.alarm)
        return noted != "duplicate"

    async def _sweep_if_due(self) -> None:
        now_ms = self._store.now_ms()
        last_ms = int(await self._read_mark("swept") or 0)
        if not last_ms <= now_ms < last_ms + _SWEEP_MS:
            await self.sweep()
            await self._write_mark("swept", now_ms)

    async def _queue_customers(self) -> None:
        """Queue the linked customers of due shards, at random times of their turns."""
        done = NightlyTurn.parse(await self._read_mark("night") or "")
        for turn, span_ms in due_shards(done, self._store.now_ms(), self._store.keys.shards):
            await self._queue_shard(turn.shard, span_ms)
            await self._write_mark("night", turn.dump())

    async def _queue_shard(self, shard: int, span_ms: int) -> None:
        admin, keys = await self._store.admin(), self._store.keys
        members: set[bytes] = await admin.ask(admin.client.smembers(keys.shard(shard, "customers")))
        customers = sorted(member.decode() for member in members)
        for start in range(0, len(customers), _PAGE):
            page = customers[start : start + _PAGE]
            states = await read_states(admin, keys, page)
            for state in states.values():
                if state.stripe_customer is not None:
                    delay_ms = _random.randrange(span_ms)
                    await self._queue.request(state.stripe_customer, NIGHTLY, delay_ms=delay_ms)

    async def _has_sales(self) -> bool:
        """Whether top-ups are sold, or Stripe has a price of a plan: otherwise there are no payments to find.

        For a plans file without price ids, Stripe is asked once an hour. A key that may not read prices sells
        nothing.
        """
        plans = self._store.catalog.plans.values()
        if find_top_ups(self._store.catalog.credits) is not None:
            return True
        if any(plan.price.stripe_price is not None for plan in plans):
            return True
        sold, now_ms = [base_key(plan.key) for plan in plans if is_sold(plan)], self._store.now_ms()
        if sold and not self._checked_ms <= now_ms < self._checked_ms + _CHECK_AGAIN_MS:
            try:
                self._has_prices = bool(await prices_by_key(self._api(), sold))
            except StripeError as error:
                if error.status not in KEY_REFUSALS:
                    raise
                self._has_prices = False
            self._checked_ms = now_ms
        return bool(sold) and self._has_prices

    async def _read_mark(self, name: str) -> str:
        found: bytes | None = await self._store.ask("get", self._store.keys.hooks(name))
        return (found or b"").decode()

    async def _write_mark(self, name: str, value: int | str) -> None:
        await self._store.ask("set", self._store.keys.hooks(name), str(value), px=_KEPT_MS)

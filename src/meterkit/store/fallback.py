"""Fallback while the store is away: count rates in this process, decide by each customer's last known state.

The minutes in which a process decided that way are stored afterwards, in a hash for each day.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.in_process import EMPTY, NOTHING_LEFT, advance, weigh
from meterkit.decisions.keys import HOOKS_SHARD, rate_field
from meterkit.decisions.policies import rate_numbers
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.catalog import Route
    from meterkit.decisions.in_process import Window
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.idempotency import Prepare
    from meterkit.store.views import CustomerView, PreparedDecision

_CUSTOMERS_MAX: Final = 10_000


class Weighed(NamedTuple):
    """How a request was decided without the store.

    Attributes:
        decided: what was asked of the plan.
        reply: as the decision script's.
    """

    decided: PreparedDecision
    reply: list[int]

    @property
    def plan(self) -> str:
        """The key of the plan by which that was."""
        return self.decided.view.effective.plan.key


class Fallback:
    """Decides in place of a store that is away, for one process.

    By the plan as it was last known, and by the rates of the default plan where nothing is. Rates begin anew;
    what they have counted is kept of ten thousand customers, and as many addresses: who has asked for nothing
    for longest is forgotten first. May be asked from several threads.

    Args:
        now_ms: this process's clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._counted: dict[bool, dict[str, dict[str, Window]]] = {False: {}, True: {}}
        self._lock = Lock()

    def decide(self, view: CustomerView, route: Route, prepare: Prepare | None) -> Weighed:
        """Decide a request of a line; it is counted in rates where that allows it.

        ``prepare`` makes what is asked; None: what the line asks of each request.
        """
        now_ms = self._now_ms()
        view = view.cache.newest(view)
        effective = view.effective
        if now_ms >= effective.valid_until_ms or now_ms >= effective.bounds.end_ms:
            # Derive the state again: a trial, a grace or a period has ended since the last look.
            view = view.cache.learn(view, [0, now_ms, view.rev.encode(), view.state.dump().encode()])
        decided = view.prepare(route) if prepare is None else prepare(view, "d")
        view = decided.view
        with self._lock:
            known = self._known(view)
            reply, counts = weigh(decided.exact(), known, view.left or NOTHING_LEFT, now_ms)
            known.update(counts)
        return Weighed(decided, reply)

    def count(self, view: CustomerView, quantities: Mapping[str, int]) -> None:
        """Count usage that was not requested at admission into the rates of its meters."""
        now_ms = self._now_ms()
        with self._lock:
            known = self._known(view)
            for meter, quantity in quantities.items():
                for rate in view.entitlements[meter].rates:
                    field = rate_field(meter, rate.window_ms, rate.algorithm)
                    kind, window, _, refill = rate_numbers(rate, meter)
                    found, _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
                    slot, counted, before = found
                    known[field] = slot, counted + quantity, before

    def _known(self, view: CustomerView) -> dict[str, Window]:
        customers = self._counted[view.anonymous]
        known = customers.pop(view.customer, None)
        if known is None:
            known = {}
            if len(customers) >= _CUSTOMERS_MAX:
                del customers[next(iter(customers))]
        customers[view.customer] = known
        return known


def is_known(view: CustomerView) -> bool:
    """Whether the plan is the customer's own, and not the default of a customer not looked up yet."""
    return view.anonymous or view.rev != NO_STATE or view.left is not None


_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_KEPT_MS: Final = 36 * _DAY_MS
_SEND_EVERY_S: Final = 5.0
_KEPT_MOST: Final = 10_000


class DegradedMinutes:
    """Counts of this process, sent to the store once it answers again.

    They are in memory until then: a process that ends while the store is away takes its counts along.

    Args:
        keys: of the store.
        admin: gives a client of the store.
        now_ms: the clock.
    """

    def __init__(self, keys: Keys, admin: Callable[[], Awaitable[Admin]], now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._admin = admin
        self._now_ms = now_ms
        self._requests: Counter[int] = Counter()

    def note(self) -> None:
        """Count a request that is decided without the store."""
        minute = self._now_ms() // _MINUTE_MS
        if minute in self._requests or len(self._requests) < _KEPT_MOST:
            self._requests[minute] += 1

    async def run(self) -> None:
        """Send the counts every five seconds, until cancelled; while the store is away they wait."""
        while True:
            if self._requests:
                with suppress(StoreError):  # The outage itself is being counted.
                    await self.send()
            await asyncio.sleep(_SEND_EVERY_S)

    async def send(self) -> None:
        """Send the counts.

        Raises:
            StoreError: the store does not answer; they are sent again, so that a minute may have more.
        """
        # Taken first: another event loop of this process may send, too.
        sent, self._requests = self._requests, Counter()
        try:
            admin = await self._admin()
            pipe = admin.client.pipeline(transaction=False)
            for minute, requests in sent.items():
                key = self._key(minute)
                pipe.hincrby(key, str(minute), requests)
                pipe.pexpire(key, _KEPT_MS)
            await admin.ask(pipe.execute())
        except BaseException:
            self._requests += sent
            raise

    async def read(self, days: int) -> Mapping[int, int]:
        """By minute since 1970 how many requests all processes decided so, the latest first.

        Args:
            days: of so many days, today included.

        Raises:
            StoreError: the store does not answer.
        """
        admin, now = await self._admin(), self._now_ms() // _MINUTE_MS
        pipe = admin.client.pipeline(transaction=False)
        for back in range(days):
            pipe.hgetall(self._key(now - back * _DAY_MS // _MINUTE_MS))
        found: dict[int, int] = {}
        for kept in await admin.ask(pipe.execute()):
            found |= {int(minute): int(requests) for minute, requests in kept.items()}
        return dict(sorted(found.items(), reverse=True))

    def _key(self, minute: int) -> str:
        return self._keys.shard(HOOKS_SHARD, f"degraded:{minute * _MINUTE_MS // _DAY_MS}")

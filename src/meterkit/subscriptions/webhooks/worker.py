"""The worker: syncs the Stripe customers that events hinted at, with retries."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal

from meterkit.cancellation import start_task
from meterkit.errors import CustomerError, MeterkitError, StoreError, StripeError, StripeUnavailableError
from meterkit.stripe.breaker import Breaker
from meterkit.subscriptions.webhooks.customer_sync import LostError
from meterkit.subscriptions.webhooks.sync_queue import SyncEntry

if TYPE_CHECKING:
    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.customer_sync import CustomerSyncer
    from meterkit.subscriptions.webhooks.sync_queue import SyncQueue

ATTEMPTS_MAX: Final = 12
"""After so many attempts that Stripe refused, or that could not be understood, a look is given up."""
_FIRST_MS: Final = 5_000
_MOST_MS: Final = 3_600_000
_NOT_OF_IT: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """What becomes of an entry.

    Attributes:
        step: ``later`` or ``dead``.
        scope: what else would fail so: this ``entry`` only, or whatever is asked of Stripe: it does not
            ``answer``, or refuses the ``key``.
        delay_ms: later: in how long, at most; half of it at least.
        counts: later: whether it counts as an attempt.
    """

    step: Literal["later", "dead"]
    scope: Literal["entry", "answer", "key"]
    delay_ms: int = 0
    counts: bool = True


def decide_retry(error: Exception, attempts: int) -> RetryDecision:
    """The next step after an error of a sync.

    Nothing is given up because Stripe is away, or because its key is refused: that says nothing of the entry.

    Args:
        error: what the look raised.
        attempts: how often it was tried before.
    """
    delay_ms = min(_MOST_MS, _FIRST_MS * 2 ** min(attempts, 20))
    if isinstance(error, StripeUnavailableError | TimeoutError):
        return RetryDecision(step="later", scope="answer", delay_ms=delay_ms)
    if isinstance(error, StripeError) and error.status in _NOT_OF_IT:
        return RetryDecision(step="later", scope="key", delay_ms=_FIRST_MS, counts=False)
    if isinstance(error, CustomerError) or attempts + 1 >= ATTEMPTS_MAX:
        return RetryDecision(step="dead", scope="entry")
    return RetryDecision(step="later", scope="entry", delay_ms=delay_ms)


_logger = logging.getLogger("meterkit.subscriptions")
_jitter = SystemRandom().uniform
_AT_ONCE: Final = 8
_PAUSE_S: Final = 1 / 15  # Below the 20 a second that Stripe is asked in a sandbox: others ask, too.
_POLL_S: Final = 1.0
_PATIENCE_S: Final = 45.0  # Less than the lease of an entry.
_WAIT_S: Final = 60.0
_AGAIN_S: Final = (0.02, 0.06)
_ANSWER_MS: Final = (1_000, 60_000)
_KEY_MS: Final = (60_000, 600_000)


class SyncWorker:
    """Works off the queue, in one event loop.

    Args:
        store: whose clock it goes by.
        queue: what there is to do.
        looker: does it.
    """

    def __init__(self, store: Store, queue: SyncQueue, looker: CustomerSyncer) -> None:
        self._store = store
        self._queue = queue
        self._looker = looker
        self._breaker = Breaker(is_tried=False)
        self._at_work: set[asyncio.Task[None]] = set()
        self._next_s = 0.0

    async def run(self) -> None:
        """Work until cancelled. What was begun then is given back, for the next worker."""
        has_failed = False
        try:
            while True:
                try:
                    is_busy = await self._begin()
                    has_failed = False
                except StoreError as error:
                    is_busy = False
                    if not has_failed:
                        _logger.warning("Stripe's events are worked off later: %s", error)
                    has_failed = True
                if not is_busy:
                    await self._queue.wait_for_work(_POLL_S * _jitter(0.8, 1.2))
        finally:
            for task in self._at_work:
                task.cancel()
            await asyncio.gather(*self._at_work, return_exceptions=True)

    async def idle(self) -> None:
        """Work off what is due now, and wait until that is done."""
        self._queue.check_all_shards()
        while await self._begin() or self._at_work:
            if self._at_work:
                await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)

    async def sync(self, stripe_customer: str, cause: str) -> None:
        """Sync a Stripe customer now, or wait for a sync that began after this call.

        Raises:
            CustomerError: it cannot be linked to whom Stripe names.
            StripeError: Stripe refuses, or does not answer. It is tried again later.
            StoreError: the store does not answer, or others have it again and again.
        """
        await self._queue.request(stripe_customer, cause)
        deadline = monotonic() + _WAIT_S
        while monotonic() < deadline:
            entry = await self._queue.lease_one(stripe_customer)
            if entry == "gone":
                return
            if isinstance(entry, SyncEntry):
                await self._look(entry, is_waited_for=True)
                return
            await asyncio.sleep(_jitter(*_AGAIN_S))
        raise StoreError(f"Stripe customer {stripe_customer} is being looked at by others; try again")

    async def _begin(self) -> bool:
        """Begin what is due, as far as there is room and Stripe answers; whether there may be more."""
        admitted = self._breaker.admits(self._store.now_ms())
        room = _AT_ONCE if admitted == "all" else int(admitted == "one")
        free = room - len(self._at_work)
        if free <= 0:
            return False
        entries = await self._queue.lease_due(free)
        for entry in entries:
            task = start_task(self._work(entry))
            self._at_work.add(task)
            task.add_done_callback(self._ended)
        return len(entries) == free

    async def _work(self, entry: SyncEntry) -> None:
        at = max(monotonic(), self._next_s)
        self._next_s = at + _PAUSE_S
        try:
            await asyncio.sleep(at - monotonic())
            with suppress(MeterkitError, TimeoutError):  # It was logged, and waits for its next turn.
                await self._look(entry, is_waited_for=False)
        except asyncio.CancelledError:
            with suppress(StoreError):  # Else another takes it when the lease is over.
                await self._queue.retry(entry, "the worker was stopped", delay_ms=0, counts=False)
            raise

    async def _look(self, entry: SyncEntry, *, is_waited_for: bool) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._looker.look(entry)
        except (LostError, StoreError):
            # The worker that has it, or takes it after the lease, begins anew.
            if is_waited_for:
                raise StoreError(
                    f"Stripe customer {entry.stripe_customer}: the look was lost; try again"
                ) from None
            raise StoreError("the look was lost") from None
        except Exception as error:
            await self._failed(entry, error)
            raise
        self._breaker.succeeded()
        await self._queue.complete(entry, entry.notes)

    async def _failed(self, entry: SyncEntry, error: Exception) -> None:
        next_ = decide_retry(error, entry.attempts)
        self._note(next_, error)
        if next_.scope == "answer" and self._breaker.admits(self._store.now_ms()) != "all":
            # It is not the entry's fault, and the breaker sees to it that Stripe is asked rarely.
            next_ = replace(next_, delay_ms=min(next_.delay_ms, _ANSWER_MS[1]), counts=False)
        why = str(error) or type(error).__name__
        # No other code logs an error that is not ours.
        unexpected = None if isinstance(error, MeterkitError | TimeoutError) else error
        if next_.step == "dead":
            await self._queue.give_up(entry, why)
            _logger.error(
                "Stripe customer %s is given up: %s; once that is mended: meterkit webhooks redrive %s",
                entry.stripe_customer,
                why,
                entry.stripe_customer,
                exc_info=unexpected,
            )
            return
        delay_ms = int(next_.delay_ms * _jitter(0.5, 1.0))
        await self._queue.retry(entry, why, delay_ms=delay_ms, counts=next_.counts)
        if next_.scope == "entry":
            _logger.warning(
                "Stripe customer %s is synced again later: %s",
                entry.stripe_customer,
                why,
                exc_info=unexpected,
            )

    def _note(self, next_: RetryDecision, error: Exception) -> None:
        """A failure that concerns all syncs; an alert is logged once, and each hour while it lasts."""
        now_ms = self._store.now_ms()
        if next_.scope == "entry":
            self._breaker.succeeded()  # Stripe was there.
            return
        if next_.scope == "key":
            self._breaker.trip(now_ms, first_ms=_KEY_MS[0], most_ms=_KEY_MS[1])
        else:
            self._breaker.failed(now_ms, first_ms=_ANSWER_MS[0], most_ms=_ANSWER_MS[1])
        if self._breaker.is_alert_due(now_ms):
            _logger.error("Stripe's events wait, and none is lost: %s", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        self._queue.wake()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _logger.error("a look at a Stripe customer failed; it is begun anew", exc_info=error)

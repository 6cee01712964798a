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
from meterkit.store.unreadable_data import is_of_the_store
from meterkit.stripe.circuit_breaker import CircuitBreaker
from meterkit.subscriptions.webhooks.customer_sync import LostError
from meterkit.subscriptions.webhooks.sync_queue import SyncEntry

if TYPE_CHECKING:
    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.customer_sync import CustomerSyncer
    from meterkit.subscriptions.webhooks.sync_queue import SyncQueue

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
ATTEMPTS_MAX: Final = 12
"""A sync is given up after so many attempts that Stripe refused, or whose response could not be read."""

_WAIT_FIRST_MS: Final = 5_000
_WAIT_MAX_MS: Final = 3_600_000
_WAIT_RIGHT_MS: Final = 600_000


class SyncWorker:
    """Syncs due Stripe customers, in one event loop.

    Args:
        store: of the kit, for its clock.
        queue: the sync queue.
        syncer: syncs one customer.
    """

    def __init__(self, store: Store, queue: SyncQueue, syncer: CustomerSyncer) -> None:
        self._store = store
        self._queue = queue
        self._syncer = syncer
        self._breaker = CircuitBreaker(is_tried=False)
        self._running: set[asyncio.Task[None]] = set()
        self._next_s = 0.0

    async def run(self) -> None:
        """Sync until cancelled; then release the leased entries for the next worker."""
        has_failed = False
        try:
            while True:
                try:
                    is_busy = await self._start_due()
                    has_failed = False
                except StoreError as error:
                    is_busy = False
                    if not has_failed:
                        _logger.warning("Stripe's events are processed later: %s", error)
                    has_failed = True
                if not is_busy:
                    await self._queue.wait_for_work(_POLL_S * _jitter(0.8, 1.2))
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def run_until_idle(self) -> None:
        """Sync what is due now, and wait until that is done."""
        self._queue.check_all_shards()
        while await self._start_due() or self._running:
            if self._running:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def sync(self, stripe_customer: str, cause: str) -> None:
        """Sync a Stripe customer now, or wait for a sync that began after this call.

        Raises:
            CustomerError: it cannot be linked to whom Stripe names.
            StripeError: Stripe refuses, or does not answer. It is retried later.
            StoreError: the store does not answer, or other workers have the entry for a minute.
        """
        await self._queue.request(stripe_customer, cause)
        deadline = monotonic() + _WAIT_S
        while monotonic() < deadline:
            entry = await self._queue.lease_one(stripe_customer)
            if entry == "gone":
                return
            if isinstance(entry, SyncEntry):
                await self._sync_entry(entry, is_waited_for=True)
                return
            await asyncio.sleep(_jitter(*_AGAIN_S))
        raise StoreError(f"Stripe customer {stripe_customer} is being synced by other workers; try again")

    async def _start_due(self) -> bool:
        """Start due syncs while Stripe answers, at most eight at once; whether there may be more."""
        admitted = self._breaker.admits(self._store.now_ms())
        room = _AT_ONCE if admitted == "all" else int(admitted == "one")
        free = room - len(self._running)
        if free <= 0:
            return False
        entries = await self._queue.lease_due(free)
        for entry in entries:
            task = start_task(self._sync_paced(entry))
            self._running.add(task)
            task.add_done_callback(self._on_task_done)
        return len(entries) == free

    async def _sync_paced(self, entry: SyncEntry) -> None:
        """Sync an entry in the background, below Stripe's rate limit."""
        at = max(monotonic(), self._next_s)
        self._next_s = at + _PAUSE_S
        try:
            await asyncio.sleep(at - monotonic())
            with suppress(MeterkitError, TimeoutError):  # Logged, and queued for a retry.
                await self._sync_entry(entry, is_waited_for=False)
        except asyncio.CancelledError:
            with suppress(StoreError):  # Otherwise another worker leases it when this lease ends.
                await self._queue.retry(entry, "the worker was stopped", delay_ms=0, counts=False)
            raise

    async def _sync_entry(self, entry: SyncEntry, *, is_waited_for: bool) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._syncer.sync(entry)
        except (LostError, StoreError) as error:
            if isinstance(error, StoreError) and not is_of_the_store(error):
                await self._schedule_retry(entry, error)  # The stored data of the customer is damaged.
                raise
            # The worker that leases it next syncs it.
            if is_waited_for:
                raise StoreError(
                    f"Stripe customer {entry.stripe_customer}: the sync lost its lease; try again"
                ) from None
            raise StoreError("the sync lost its lease") from None
        except Exception as error:
            await self._schedule_retry(entry, error)
            raise
        self._breaker.succeeded()
        await self._queue.complete(entry, entry.notes)

    async def _schedule_retry(self, entry: SyncEntry, error: Exception) -> None:
        """Release an entry for a retry, or give it up, and log that."""
        decision = decide_retry(error, entry.attempts)
        self._update_breaker(decision, error, entry.attempts)
        admitted = self._breaker.admits(self._store.now_ms())
        if (decision.scope == "answer" and admitted != "all") or (
            decision.scope == "right" and admitted == "none"
        ):
            # The entry is not at fault, and the breaker limits the requests.
            decision = replace(decision, delay_ms=min(decision.delay_ms, _ANSWER_MS[1]), counts=False)
        why = str(error) or type(error).__name__
        # No other code logs an error that is not ours.
        unexpected = None if isinstance(error, MeterkitError | TimeoutError) else error
        if decision.step == "dead":
            if not await self._queue.give_up(entry, why):
                return  # An event that came meanwhile has it synced again.
            _logger.error(
                "the sync of %s is given up: %s; once that is fixed: meterkit webhooks redrive %s",
                entry.stripe_customer,
                why,
                entry.stripe_customer,
                exc_info=unexpected,
            )
            return
        delay_ms = int(decision.delay_ms * _jitter(0.5, 1.0))
        await self._queue.retry(entry, why, delay_ms=delay_ms, counts=decision.counts)
        if decision.scope in {"entry", "right"}:
            _logger.warning(
                "the sync of %s is tried again later: %s",
                entry.stripe_customer,
                why,
                exc_info=unexpected,
            )

    def _update_breaker(self, decision: RetryDecision, error: Exception, attempts: int) -> None:
        """Trip the circuit breaker on a failure of all requests; log an alert once, then hourly."""
        now_ms = self._store.now_ms()
        if decision.scope == "entry":
            self._breaker.succeeded()  # Stripe was there.
            return
        if decision.scope == "key":
            self._breaker.trip(now_ms, first_ms=_KEY_MS[0], most_ms=_KEY_MS[1])
        elif decision.scope == "right":
            # Others may need no such right: only many entries in a row without it trip the breaker.
            if not attempts:
                self._breaker.failed(now_ms, first_ms=_KEY_MS[0], most_ms=_KEY_MS[1], by_trial=False)
            if self._breaker.admits(now_ms) != "none":
                return
        else:
            self._breaker.failed(now_ms, first_ms=_ANSWER_MS[0], most_ms=_ANSWER_MS[1])
        if self._breaker.is_alert_due(now_ms):
            _logger.error("Stripe's events wait, and none is lost: %s", error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._queue.wake()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _logger.error("the sync of a Stripe customer failed; it is retried", exc_info=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """The next step of a failed sync.

    Attributes:
        step: retry it ``later``, or give it up (``dead``).
        scope: of the failure: this ``entry`` only; all requests, as Stripe does not ``answer`` or refuses the
            ``key``; or those that need a ``right`` which the key lacks: only some entries may need it.
        delay_ms: longest delay of the retry; the shortest is half of it.
        counts: whether it counts as an attempt.
    """

    step: Literal["later", "dead"]
    scope: Literal["entry", "answer", "key", "right"]
    delay_ms: int = 0
    counts: bool = True


def decide_retry(error: Exception, attempts: int) -> RetryDecision:
    """Decide the next step after an error of a sync.

    No sync is given up because Stripe is down or refuses the key: the entry is not at fault.

    Args:
        error: of the sync.
        attempts: failed attempts before.
    """
    delay_ms = min(_WAIT_MAX_MS, _WAIT_FIRST_MS * 2 ** min(attempts, 20))
    if isinstance(error, StripeUnavailableError | TimeoutError):
        return RetryDecision(step="later", scope="answer", delay_ms=delay_ms)
    if isinstance(error, StripeError) and error.status == HTTPStatus.UNAUTHORIZED:
        return RetryDecision(step="later", scope="key", delay_ms=_WAIT_FIRST_MS, counts=False)
    if isinstance(error, StripeError) and error.status == HTTPStatus.FORBIDDEN:
        return RetryDecision(step="later", scope="right", delay_ms=min(delay_ms, _WAIT_RIGHT_MS))
    if isinstance(error, CustomerError) or attempts + 1 >= ATTEMPTS_MAX:
        return RetryDecision(step="dead", scope="entry")
    return RetryDecision(step="later", scope="entry", delay_ms=delay_ms)

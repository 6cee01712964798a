"""The flusher: seals pending usage and delivers it to Stripe, from any number of processes at once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from meterkit.cancellation import start_task
from meterkit.delivery.flush_report import FlushReport, Unsealed, count_refused, count_undelivered
from meterkit.delivery.intent_comparer import IntentComparer
from meterkit.delivery.late_usage_withdrawal import LateIntents, report_late
from meterkit.delivery.restored_store_comparer import RestoredStoreComparer
from meterkit.delivery.sender import IntentSender, ShardLease, group_calls, stopwatch
from meterkit.delivery.sync_before_delivery import WAITED_MS, SyncBeforeDelivery
from meterkit.errors import MeterkitError, StoreError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import REPORTED, collect_late_usage
from meterkit.store.settlement_spool import NO_SPOOLS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping

    from meterkit.delivery.late_usage_items import InvoiceItemMaker
    from meterkit.delivery.sender import Transport
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.outbox.intents import IntentMove, SendAttempt
    from meterkit.outbox.journal import Journal
    from meterkit.outbox.sealer import SealResult
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

_T = TypeVar("_T")

_jitter = SystemRandom().uniform

_CUSTOMERS_PER_SEAL: Final = 50
_INTENTS_PER_PAGE: Final = 64
_CALLS_PER_PAGE: Final = 5
_SETTLED_AT_ONCE: Final = 32
_SHARDS_AT_ONCE: Final = 8
_IDLE_FIRST_S: Final = 0.2
_IDLE_MAX_S: Final = 5.0
_YOUNG_S: Final = 2.1
_COMPARE_EVERY_MS: Final = 60_000
_SPOOLS_S: Final = 30.0
"""Time in which the store may take nothing from spools, at least."""
_ITEMS_S: Final = 10.0
"""Time for invoice items in a background flush, so that meter events need not wait longer."""


@dataclass(slots=True, kw_only=True)
class FlushPass:
    """State of one flush: its report, the intents it has tried, and the lines it sends last.

    Attributes:
        retries: whether intents that wait for a retry are sent now.
        tried: the intents that were sent in this round.
        unseen: customers that could not be synced: their waiting usage is not sent.
        is_young: whether an intent was not on disk for long enough.
        withdrawn: number of intents whose usage is pending again.
        put_off: shards whose suspect lines are sent last; true: only repeats may be sent.
        are_suspects_next: whether suspect lines are being sent.
    """

    outbox: Outbox
    retries: bool
    tried: set[str] = field(default_factory=set[str])
    unseen: set[str] = field(default_factory=set[str])
    is_young: bool = False
    withdrawn: int = 0
    put_off: dict[int, bool] = field(default_factory=dict[int, bool])
    are_suspects_next: bool = False
    report: FlushReport = field(default_factory=FlushReport)

    @property
    def progress(self) -> tuple[int, ...]:
        """Counts of completed steps: they change if anything was done that need not be repeated."""
        report = self.report
        return (report.sealed, report.delivered, report.dead, report.parked, len(report.late), self.withdrawn)

    async def settle(self, shard: int, moves: list[IntentMove]) -> None:
        """Put sent intents into their next states, and empty the list."""
        sent, report = moves.copy(), self.report
        moves.clear()
        for move in await self.outbox.settle(shard, sent):
            if move.state in {"delivered", "parked", "dead"}:
                setattr(report, move.state, getattr(report, move.state) + 1)
            elif move.why:
                report.retried += 1
                report.why = move.why

    def report_unsealed(self, seal_result: SealResult, logged: set[tuple[str, str]]) -> None:
        """Report usage that could not be sealed; log it once for each customer and meter.

        Args:
            seal_result: the result of a seal.
            logged: customers and meters that were logged; updated here.
        """
        logged.difference_update((customer, "") for customer in seal_result.sealed_customers)
        unsealed = [
            Unsealed(customer=customer, meter="", quantity=None, why=why)
            for customer, why in seal_result.unreadable.items()
        ]
        unsealed += [
            Unsealed(
                customer=nameless.customer,
                meter=nameless.meter_token,
                quantity=nameless.quantity,
                why="its meter is not in the plans file, and how it was billed is not known: put it back",
            )
            for nameless in seal_result.without_event_name
        ]
        self.report.unsealed += unsealed
        for one in unsealed:
            if (one.customer, one.meter) not in logged:
                logged.add((one.customer, one.meter))
                what = "usage" if one.quantity is None else f"{one.quantity} units of {one.meter}"
                _logger.error(
                    "%s of customer %r cannot be sealed; all else is delivered: %s",
                    what,
                    one.customer,
                    one.why,
                    extra=REPORTED,
                )


class Flusher:
    """Seals pending usage and delivers it to Stripe.

    A flusher works on a shard while it holds the shard's lease. It sends the intents that another process
    left behind again, under the same identifier: Stripe counts an identifier once within 24 hours.

    Args:
        store: counts the usage.
        transport: delivers intents.
        calls_per_s: at most so many calls to Stripe per second.
        calls_at_once: at most so many calls to Stripe in flight.
        timeout_s: how long the transport may take for one call.
        summaries: tell whether Stripe has an intent that was first tried long ago; None: it stays parked.
        look: syncs a customer's subscription from Stripe before usage that has waited is sent; None: no sync.
        journal: the journal of deliveries; None: there is none.
        items: makes invoice items of late usage; None: they wait.
    """

    def __init__(
        self,
        store: Store,
        transport: Transport,
        *,
        calls_per_s: float = 800.0,
        calls_at_once: int = 128,
        timeout_s: float = 10.0,
        summaries: StripeSummaries | None = None,
        look: Callable[[str], Awaitable[object]] | None = None,
        journal: Journal | None = None,
        items: InvoiceItemMaker | None = None,
    ) -> None:
        self._store, self._items = store, items
        self._comparer = None if summaries is None else IntentComparer(store, summaries, journal)
        self._compared_ms = 0
        self._restarts = None if summaries is None else RestoredStoreComparer(store, summaries, journal)
        self._late = LateIntents(store)
        self._sync = SyncBeforeDelivery(store, look)
        self._sender = IntentSender(
            store, transport, calls_per_s=calls_per_s, calls_at_once=calls_at_once, timeout_s=timeout_s
        )
        self._one_at_a_time = asyncio.Lock()
        self._logged_unsealed: set[tuple[str, str]] = set()
        self._failures, self.report = Throttle(HOUR_S), FlushReport()

    def stop(self) -> None:
        """Send nothing more. Calls in flight are waited for: at most the time that one call may take."""
        self._sender.stopping.set()

    async def run(self, *, every_s: float, told: Callable[[FlushReport], None] | None = None) -> None:
        """Flush again and again, until cancelled or told to stop; ``told`` gets each report.

        Raises:
            Exception: what ``told`` raises; nothing else ends it.
        """
        await self._run_logged(self._log_refusal())
        while not self._sender.stopping.is_set():
            report = await self._run_logged(self._run_flush())
            if report is not None:
                self._failures.forget()
                if told is not None:
                    told(report)
            await self._idle(_jitter(0.8, 1.2) * every_s)

    async def _run_logged(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Await a pass; if it fails, log each kind of error once an hour and return None."""
        result: _T | BaseException = (await asyncio.gather(start_task(work), return_exceptions=True))[0]
        if not isinstance(result, BaseException):
            return result
        if self._failures.is_due(type(result)):
            # No other code logs an error that is not ours.
            unexpected = None if isinstance(result, MeterkitError) else result
            message = "this flush failed; the next one continues: %s"
            _logger.error(message, result, exc_info=unexpected)
        return None

    async def _log_refusal(self) -> None:
        refusal = await Outbox(self._store, await self._store.admin()).refusal()
        if refusal is not None:
            _logger.error("%s", refusal)

    async def flush(self, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport:
        """Seal and send what is due; or everything, spools included, waiting for what may not be sent yet.

        Raises:
            StoreError: the store does not answer.
        """
        within_s = max(timeout_s, _SPOOLS_S)
        spools = await self._store.send_spools(within_s=within_s) if everything else NO_SPOOLS
        report = await self._run_flush(everything=everything, timeout_s=timeout_s, is_alone=True)
        report.spooled, report.spools_left = spools.sent, list(spools.refused)
        return await count_undelivered(self._store, report)

    async def _run_flush(
        self, *, everything: bool = False, timeout_s: float = 0.0, is_alone: bool = False
    ) -> FlushReport:
        flush = FlushPass(outbox=Outbox(self._store, await self._store.admin()), retries=everything)
        self.report = flush.report
        self._sender.refusals.clear()
        with collect_late_usage(flush.report.late):
            await self._run_pass(flush, monotonic() + timeout_s, everything=everything, is_alone=is_alone)
        flush.report.blocked = await count_refused(flush.outbox, self._sender.refusals)
        if flush.report.retried and flush.report.why and not is_alone:  # Else the caller has the report.
            retried = flush.report.retried
            what = "1 intent is" if retried == 1 else f"{retried} intents are"
            _logger.warning("%s tried again later: %s", what, flush.report.why)
        return flush.report

    async def _run_pass(self, flush: FlushPass, deadline: float, *, everything: bool, is_alone: bool) -> None:
        """Compare with Stripe, seal, send, and make invoice items."""
        await self._compare_due(flush.report, is_alone=is_alone)
        if everything:
            await self._until_all_is_done(flush, deadline)
        else:
            done = await self._run_round(flush, due_ms=self._store.now_ms())
            if done == "nothing" and is_alone and flush.is_young:
                # The store does not say what is on its disk: give new intents time to get there.
                await asyncio.sleep(_YOUNG_S)
                await self._run_round(flush, due_ms=self._store.now_ms())
        if self._items is not None:
            until = max(deadline, monotonic() + _ITEMS_S)
            lease_shard = partial(self._shard_lease, flush.outbox, at_once=asyncio.Semaphore(_SHARDS_AT_ONCE))
            await self._unless_stopping(
                self._items.make_due(
                    flush.report, everything=everything, lease_shard=lease_shard, deadline=until
                )
            )

    async def _until_all_is_done(self, flush: FlushPass, deadline: float) -> None:
        """Seal and send everything, waiting until the deadline for what may not be sent yet.

        It ends earlier if Stripe refuses all that is left until an operator acts.
        """
        idle_s = _IDLE_FIRST_S
        while (done := await self._run_round(flush, due_ms=None)) != "over":
            if done == "something":
                idle_s = _IDLE_FIRST_S
                continue
            if monotonic() >= deadline or await self._is_blocked(flush.outbox):
                return
            await self._idle(min(idle_s, max(0.0, deadline - monotonic())))
            idle_s = min(2 * idle_s, _IDLE_MAX_S)

    async def _is_blocked(self, outbox: Outbox) -> bool:
        """Whether Stripe refuses all that is left until an operator acts."""
        refusals = self._sender.refusals
        if not refusals or "" in refusals:
            return bool(refusals)
        for item in await outbox.work(due_ms=None):
            if item.dirty or await outbox.due(item.shard, due_ms=None, most=1, closed=refusals):
                return False
        return True

    async def _run_round(
        self, flush: FlushPass, *, due_ms: int | None
    ) -> Literal["something", "nothing", "over"]:
        """Seal and send once what is due, or all (None).

        Returns:
            Whether that did something that need not be done again; ``over``: there was nothing left to do, or
            nothing more is to be sent.
        """
        before = flush.progress
        work = await flush.outbox.work(due_ms=due_ms, is_flush=True)
        if self._restarts is not None:  # By now there is a connection to the server as it is.
            await self._restarts.begin(flush.outbox, flush.report)
        flush.report.unsealed.clear()
        flush.tried.clear()
        at_once = asyncio.Semaphore(_SHARDS_AT_ONCE)
        try:
            await _gather_all(self._flush_shard(flush, item.shard, due_ms, at_once) for item in work)
        except StoreError:  # Of a cluster one server is down: the others go on.
            await self._send_suspects(flush, at_once)
            raise
        await self._send_suspects(flush, at_once)
        # Retries were due at once in this pass; from now on they wait as scheduled.
        flush.retries = False
        if not work or self._sender.stopping.is_set():
            return "over"
        return "nothing" if before == flush.progress else "something"

    async def _compare_due(self, report: FlushReport, *, is_alone: bool) -> None:
        """Compare due intents with Stripe's summaries; in the background once a minute."""
        now_ms = self._store.now_ms()
        if self._comparer is not None and (is_alone or now_ms >= self._compared_ms + _COMPARE_EVERY_MS):
            self._compared_ms = now_ms
            await self._unless_stopping(self._comparer.compare_due(report))

    async def _unless_stopping(self, asking: Coroutine[Any, Any, _T]) -> _T | None:
        """Await a call that may take minutes; cancel it and return None when the flusher stops."""
        work, stop = start_task(asking), start_task(self._sender.stopping.wait())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)

    async def _idle(self, span_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._sender.stopping.wait(), span_s)

    @asynccontextmanager
    async def _shard_lease(
        self, outbox: Outbox, shard: int, at_once: asyncio.Semaphore
    ) -> AsyncGenerator[ShardLease | None]:
        """Hold the shard's lease during the block; None: another flusher has it, or nothing more is sent."""
        async with at_once:
            lease = ShardLease(outbox, shard, clock=self._store.clock)
            try:
                is_held = not self._sender.stopping.is_set() and await lease.outlives(0)
                yield lease if is_held else None
            finally:
                # Also if taking the lease was cancelled. The lease of another process stays as it is.
                with suppress(StoreError):  # It expires by itself.
                    await outbox.lease(shard, ttl_ms=0)

    async def _flush_shard(
        self, flush: FlushPass, shard: int, due_ms: int | None, at_once: asyncio.Semaphore
    ) -> None:
        """Seal and send what is due of a shard, except suspect lines."""
        outbox = flush.outbox
        async with self._shard_lease(outbox, shard, at_once) as lease:
            if lease is None:
                return
            seal_result = await outbox.seal(
                shard, due_ms=due_ms, most=_CUSTOMERS_PER_SEAL, first=partial(self._sync_first, flush)
            )
            flush.report.sealed += seal_result.intents
            flush.report_unsealed(seal_result, self._logged_unsealed)
            if seal_result.late:
                report_late(seal_result.late, await outbox.meters())
            is_known = self._restarts is None or await self._unless_stopping(
                self._restarts.may_send_all(outbox, shard, flush.report)
            )
            await self._sender.suspects.read(outbox, shard)
            flush.put_off[shard] = not is_known
            now_ms = max(seal_result.now_ms, self._store.now_ms())
            await self._send_due(flush, lease, now_ms, only_repeats=not is_known)

    async def _send_suspects(self, flush: FlushPass, at_once: asyncio.Semaphore) -> None:
        """Send the suspect lines of all flushed shards, least tried first."""

        async def send(shard: int) -> None:
            async with self._shard_lease(flush.outbox, shard, at_once) as lease:
                if lease is not None:
                    only_repeats = flush.put_off[shard]
                    await self._send_due(flush, lease, self._store.now_ms(), only_repeats=only_repeats)

        keys = self._store.keys
        attempts = self._sender.suspects.attempts_by_shard(lambda customer: keys.customer(customer).shard)
        shards = [shard for shard in attempts if shard in flush.put_off]
        flush.are_suspects_next = True
        # The least tried one goes alone: it shows whether Stripe answers the others.
        for part in (shards[:1], shards[1:]):
            await _gather_all(map(send, part))
        flush.are_suspects_next = False
        flush.put_off.clear()

    async def _sync_first(self, flush: FlushPass, since_ms: Mapping[str, int]) -> bool:
        """Sync customers whose usage has waited; whether any of them had no recent sync."""
        waited_ms = self._store.now_ms() - WAITED_MS
        waited = [customer for customer, at_ms in since_ms.items() if at_ms <= waited_ms]
        if not (waited := self._sync.without_recent_sync(waited)):
            return False
        if waited := [customer for customer in waited if customer not in flush.unseen]:
            unseen = await self._unless_stopping(self._sync.sync_customers(waited))
            flush.unseen |= set(waited) if unseen is None else unseen
        return True

    async def _send_due(
        self, flush: FlushPass, lease: ShardLease, now_ms: int, *, only_repeats: bool
    ) -> None:
        """Send the due intents of a shard, page by page; a single one as the probe of an open breaker."""
        due_ms, sender = None if flush.retries else now_ms, self._sender
        send_page = partial(self._send_page, flush, lease, due_ms, only_repeats=only_repeats)
        while not sender.stopping.is_set():
            admitted = sender.breaker.admits(self._store.now_ms())
            if admitted == "none":
                return
            if admitted == "all":
                if not await send_page(alone=False):
                    return
                continue
            async with self._one_at_a_time:
                if sender.breaker.admits(self._store.now_ms()) != "one":
                    continue  # Another probe has closed the breaker, or opened it.
                if not await send_page(alone=True):
                    return

    async def _send_page(
        self, flush: FlushPass, lease: ShardLease, due_ms: int | None, *, alone: bool, only_repeats: bool
    ) -> bool:
        """Send a page of intents, or a single one (``alone``); whether there were any."""
        outbox, closed = flush.outbox, self._sender.closed_meters()
        per_call, suspects = self._sender.events_per_call, self._sender.suspects
        most = _CALLS_PER_PAGE * per_call if per_call > 1 else _INTENTS_PER_PAGE
        found = await outbox.due(
            lease.shard,
            due_ms=due_ms,
            most=most,
            tried=flush.tried,
            closed=closed,
            put_off=() if flush.are_suspects_next else suspects,
            only_repeats=only_repeats,
        )
        if not found:
            return False
        found.sort(key=suspects.attempts_of)
        if alone:
            found = found[:1]
        if await self._sync_first(flush, {sealed.customer: sealed.sealed_ms for sealed in reversed(found)}):
            flush.tried.update(sealed.identifier for sealed in found if sealed.customer in flush.unseen)
            return True  # The sync may have made the sealed usage late.
        due, withdrawn, parked = await self._late.divert(lease.shard, found)
        flush.withdrawn, flush.report.parked = flush.withdrawn + withdrawn, flush.report.parked + parked
        if not due:
            flush.tried.update(sealed.identifier for sealed in found)
            return True
        asked = stopwatch(self._store.clock)
        attempts = await outbox.attempt(lease.shard, due)
        flush.is_young = flush.is_young or len(attempts) < len(due)
        flush.tried.update(attempt.intent.identifier for attempt in attempts)
        moves: list[IntentMove] = []

        async def send(calls: list[list[SendAttempt]]) -> None:
            for call in calls:
                made = await self._sender.send(lease, call, asked, alone=alone)
                flush.report.retried += len(call) - len(made)  # The lease was lost before these were sent.
                moves.extend(made)
                if len(moves) >= _SETTLED_AT_ONCE:
                    await flush.settle(lease.shard, moves)

        try:
            await _gather_all(
                send(calls) for calls in group_calls(attempts, events_per_call=per_call, apart=suspects)
            )
        finally:
            await flush.settle(lease.shard, moves)
        return bool(attempts)


async def _gather_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait until all have ended, then raise the first error."""
    for failed in filter(None, await asyncio.gather(*map(start_task, works), return_exceptions=True)):
        raise failed

"""The flusher: seals pending usage and delivers it to Stripe, from any number of processes at once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from random import SystemRandom
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from meterkit.delivery.outcomes import Outcome
from meterkit.delivery.transport import Intent
from meterkit.errors import MeterkitError, StoreError
from meterkit.store.keys import meter_token
from meterkit.store.outbox import Attempt, Outbox, Sealed

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from meterkit.delivery.transport import Transport
    from meterkit.store.store import Store

__all__ = ["FlushReport", "Flusher"]

_logger = logging.getLogger("meterkit.delivery")

_jitter = SystemRandom().uniform

_LEASE_MS: Final = 60_000
_CUSTOMERS_PER_SEAL: Final = 50
_INTENTS_PER_BATCH: Final = 200
_SHARDS_AT_ONCE: Final = 8
_AMBIGUOUS_MS: Final = 23 * 3_600_000
_RETRY_FIRST_MS: Final = 1_000
_RETRY_MAX_MS: Final = 600_000
_SYSTEMIC_RETRY_MS: Final = 60_000
_CLOCK_ALARM_S: Final = 60
_CLOCK_STOP_S: Final = 240
_IDLE_S: Final = 0.2
_CLOCKS_APART: Final = Outcome(
    kind="systemic", detail="not sent: this host's clock and Stripe's differ too much"
)


@dataclass(slots=True, kw_only=True)
class FlushReport:
    """What a flush did, and what it left.

    Attributes:
        sealed: intents made from pending usage.
        delivered: intents that Stripe has accepted, now or earlier.
        retried: tries that are to be repeated.
        parked: intents that wait for a person.
        dead: intents that Stripe will never accept.
        left: customers with pending usage and intents on their way, of linked customers, at the end.
        why: what the last try that is to be repeated came to; empty where there was none.
        unlinked: customers whose usage waits for a link to Stripe.
    """

    sealed: int = 0
    delivered: int = 0
    retried: int = 0
    parked: int = 0
    dead: int = 0
    left: int = 0
    why: str = ""
    unlinked: list[str] = field(default_factory=list[str])


class Flusher:
    """Seals and delivers.

    A shard is worked on by one flusher at a time, who holds its lease. What another left behind is tried
    again under the same identifier, which Stripe counts once within 24 hours.

    Args:
        store: where usage is counted.
        transport: how it is sent.
        calls_per_s: at most so many calls to Stripe per second.
        calls_at_once: at most so many calls to Stripe in flight.
        timeout_s: how long the transport may take for one call.
    """

    def __init__(
        self,
        store: Store,
        transport: Transport,
        *,
        calls_per_s: float = 800.0,
        calls_at_once: int = 32,
        timeout_s: float = 10.0,
    ) -> None:
        self._store = store
        self._transport = transport
        self._pause_s = 1 / calls_per_s
        self._next_call = 0.0
        self._waits_until = 0.0
        self._calls = asyncio.Semaphore(calls_at_once)
        self._timeout_s = timeout_s

    async def run(self, *, every_s: float) -> None:
        """Flush again and again, until cancelled."""
        refusal = await Outbox(self._store, await self._store.admin()).refusal()
        if refusal is not None:
            _logger.error("%s", refusal)
        while True:
            (result,) = await asyncio.gather(self._flush(), return_exceptions=True)
            if isinstance(result, BaseException):
                # Nobody else would hear of an error that is not ours: this runs until the process ends.
                unexpected = None if isinstance(result, MeterkitError) else result
                _logger.error(
                    "this flush failed, the next one goes on from there: %s", result, exc_info=unexpected
                )
            await asyncio.sleep(_jitter(0.8, 1.2) * every_s)

    async def flush(self, *, everything: bool = False, timeout_s: float = 300.0) -> FlushReport:
        """Do what is due; or everything, also what is still open, waiting for what may not be sent yet.

        Raises:
            StoreError: the store does not answer.
        """
        report = await self._flush(everything=everything, timeout_s=timeout_s)
        report.unlinked = await Outbox(self._store, await self._store.admin()).unlinked()
        return report

    async def _flush(self, *, everything: bool = False, timeout_s: float = 0.0) -> FlushReport:
        now_ms = None if everything else self._store.now_ms()
        outbox = Outbox(self._store, await self._store.admin())
        flush = _Pass(outbox=outbox, seal_ms=now_ms, send_ms=now_ms)
        report = flush.report
        deadline = monotonic() + timeout_s
        while work := await outbox.work(due_ms=flush.seal_ms):
            before = (report.sealed, report.delivered, report.dead, report.parked)
            gate = asyncio.Semaphore(_SHARDS_AT_ONCE)
            await _all(self._shard(flush, item.shard, gate) for item in work)
            if not everything:
                break
            # What waits for a retry was tried at once; from now on it waits as it should.
            flush.send_ms = self._store.now_ms()
            if before == (report.sealed, report.delivered, report.dead, report.parked):
                if monotonic() >= deadline:
                    break
                await asyncio.sleep(_IDLE_S)
        report.left = sum(item.dirty + item.outbox for item in await outbox.work(due_ms=None))
        if report.why:
            _logger.warning("%d intents are tried again later: %s", report.retried, report.why)
        return report

    async def _shard(self, flush: _Pass, shard: int, gate: asyncio.Semaphore) -> None:
        outbox = flush.outbox
        async with gate:
            asked = monotonic()
            if not await outbox.lease(shard, ttl_ms=_LEASE_MS):
                return
            lease = _Lease(outbox, shard, asked)
            try:
                sealed = await outbox.seal(shard, due_ms=flush.seal_ms, most=_CUSTOMERS_PER_SEAL)
                flush.report.sealed += sealed
                due = await outbox.due(shard, due_ms=flush.send_ms, most=_INTENTS_PER_BATCH)
                if due:
                    asked = monotonic()
                    attempts = await outbox.attempt(shard, due)
                    await _all(self._deliver(lease, attempt, asked, flush.report) for attempt in attempts)
            finally:
                with suppress(StoreError):  # It runs out by itself.
                    await outbox.lease(shard, ttl_ms=0)

    async def _deliver(self, lease: _Lease, attempt: Attempt, asked: float, report: FlushReport) -> None:
        """Send one intent, unless that might count it twice. ``asked``: when it was leased (monotonic)."""
        sealed = attempt.intent
        async with self._calls:
            await self._pace()
            if not await lease.outlives(self._timeout_s):
                report.retried += 1
            elif attempt.now_ms - attempt.first_ms + (monotonic() - asked) * 1000 > _AMBIGUOUS_MS:
                # Stripe remembers an identifier for 24 hours only: a further try might be counted twice.
                why = "first tried more than 23 hours ago; whether Stripe has it is not known"
                _logger.error(
                    "intent %s of customer %r is parked: %s", sealed.identifier, sealed.customer, why
                )
                moved = await lease.outbox.move(lease.shard, sealed, "parked", why=why)
                report.parked += moved
            elif monotonic() < self._waits_until:
                await self._again(lease, attempt, _CLOCKS_APART, report)
            else:
                outcome = await self._transport.send(self._intent(sealed))
                self._check_clock(outcome)
                await self._conclude(lease, attempt, outcome, report)

    async def _conclude(self, lease: _Lease, attempt: Attempt, outcome: Outcome, report: FlushReport) -> None:
        sealed = attempt.intent
        if outcome.alert:
            _logger.error("intent %s of customer %r: %s", sealed.identifier, sealed.customer, outcome.detail)
        if outcome.delivered:
            moved = await lease.outbox.move(lease.shard, sealed, "delivered")
            report.delivered += moved
        elif outcome.step == "dead" and monotonic() >= self._waits_until:
            moved = await lease.outbox.move(lease.shard, sealed, "dead", why=outcome.detail)
            report.dead += moved
        elif outcome.step == "park" and monotonic() >= self._waits_until:
            moved = await lease.outbox.move(lease.shard, sealed, "parked", why=outcome.detail)
            report.parked += moved
        else:
            await self._again(lease, attempt, outcome, report)

    async def _again(self, lease: _Lease, attempt: Attempt, outcome: Outcome, report: FlushReport) -> None:
        """Have it tried again later; a refusal that time alone does not cure waits longer."""
        sealed = attempt.intent
        wait_ms = _SYSTEMIC_RETRY_MS if outcome.alert else _RETRY_FIRST_MS
        wait_ms = min(_RETRY_MAX_MS, wait_ms * 2 ** min(attempt.attempts - 1, 10))
        moved = await lease.outbox.move(
            lease.shard,
            sealed,
            "queued",
            delay_ms=int(wait_ms * _jitter(0.5, 1.0)),
            key=f"{sealed.identifier}-{token_hex(4)}" if outcome.new_key else None,
            # What was refused for certain, Stripe need not remember.
            untried=outcome.refused and attempt.first_ms == attempt.now_ms,
            why=outcome.detail,
        )
        report.retried += moved
        report.why = outcome.detail

    def _intent(self, sealed: Sealed) -> Intent:
        meters = self._store.catalog.meters
        named = {meter_token(name): name for name in meters}
        return Intent(
            identifier=sealed.identifier,
            event_name=sealed.event_name,
            stripe_customer=sealed.stripe_customer,
            value=sealed.value,
            timestamp=sealed.timestamp,
            idempotency_key=sealed.key,
            customer=sealed.customer,
            meter=named.get(sealed.meter_token, sealed.event_name),
            period=sealed.period,
        )

    async def _pace(self) -> None:
        now = monotonic()
        at = max(now, self._next_call)
        self._next_call = at + self._pause_s
        if at > now:
            await asyncio.sleep(at - now)

    def _check_clock(self, outcome: Outcome) -> None:
        if outcome.server_time_s is None:
            return
        apart = abs(outcome.server_time_s - self._store.clock())
        if apart > _CLOCK_ALARM_S:
            _logger.error("this host's clock and Stripe's differ by %d s", apart)
        # Stripe refuses timestamps that are more than five minutes ahead of its own time.
        self._waits_until = monotonic() + _SYSTEMIC_RETRY_MS / 1000 if apart > _CLOCK_STOP_S else 0.0


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One flush: by when due (ms of the store's clock; None: whenever) it seals and sends."""

    outbox: Outbox
    seal_ms: int | None
    send_ms: int | None
    report: FlushReport = field(default_factory=FlushReport)


class _Lease:
    """A shard's lease, by this process's monotonic clock."""

    def __init__(self, outbox: Outbox, shard: int, asked: float) -> None:
        self.outbox = outbox
        self.shard = shard
        self._ends = asked + _LEASE_MS / 1000
        self._renewing = asyncio.Lock()

    async def outlives(self, span_s: float) -> bool:
        """Whether the lease is held for that long, renewed if need be."""
        async with self._renewing:
            if self._ends - monotonic() > span_s + 1:
                return True
            asked = monotonic()
            if not await self.outbox.lease(self.shard, ttl_ms=_LEASE_MS):
                return False
            self._ends = asked + _LEASE_MS / 1000
            return True


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait until all have ended, then raise what the first of them raised."""
    for failed in filter(None, await asyncio.gather(*works, return_exceptions=True)):
        raise failed

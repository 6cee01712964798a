"""Comparison with Stripe after the store was restarted, restored or replaced: before its intents are sent."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from meterkit.delivery.delivery_outcome import log_not_comparable, log_parked
from meterkit.delivery.intent_comparer import CAUSE
from meterkit.delivery.late_usage_withdrawal import report_late
from meterkit.delivery.lost_deliveries import DeliveryGap, LostDeliveries, group_by_line
from meterkit.errors import StoreError, StripeError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.intents import RESTORED, read_intents_in
from meterkit.outbox.invoice_item_queue import InvoiceItemQueue
from meterkit.outbox.operator_commands import change_state
from meterkit.outbox.sealer import REPORTED
from meterkit.store.server_restarts import ServerLives
from meterkit.store.unreadable_data import is_of_the_store, skip_unreadable
from meterkit.stripe.request import UNKNOWN_CUSTOMER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.lost_deliveries import Deliveries, IntentLine
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal
    from meterkit.outbox.outbox import Outbox
    from meterkit.outbox.sealer import SealResult
    from meterkit.store.server_restarts import ServerLife
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

# Summaries are "eventually consistent" (https://docs.stripe.com/api/billing/meter-event-summary).
_LAG_MS: Final = 120_000
# The gap that is assumed if the time of the shard's last delivery is not known.
_GAP_MS: Final = 3_600_000
# Usage pending at the restart is sealed by then: it waited for a free minute, or for the end of its period.
_SEALED_MS: Final = 300_000
# Intents tried before are sent first; the others wait for so long at most.
_PATIENCE_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardComparison:
    """Comparison of a shard's waiting intents with Stripe.

    Attributes:
        gap: when deliveries may have been forgotten.
        names: event names by meter token.
        deliveries: that the store knows of.
        taken_s: minutes (s) of undelivered intents, by Stripe customer and event name.
        report: of the flush.
    """

    gap: DeliveryGap
    names: Mapping[str, str]
    deliveries: Deliveries
    taken_s: Mapping[tuple[str, str], Collection[int]]
    report: FlushReport


class RestoredStoreComparer:
    """Compares a shard's waiting intents with Stripe after the store was restarted, restored or replaced.

    Such a server may lack its last writes: delivered usage is pending once more, under an identifier that
    Stripe does not know. Waiting intents are sent only if Stripe has not counted more than the store says was
    delivered. Intents tried before are sent nevertheless: Stripe counts their identifiers once.

    Args:
        store: the store that is delivered from.
        summaries: what Stripe has counted.
        journal: the journal of deliveries; None: there is none.
    """

    def __init__(self, store: Store, summaries: StripeSummaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._lives = ServerLives(store)
        self._lost = LostDeliveries(store, summaries, journal)
        self._compare_in_ms = None if journal is None else 0
        self._has_begun = False
        self._logged_lives: set[str | None] = set()
        self._failures = Throttle(HOUR_S)

    async def begin(self, outbox: Outbox, report: FlushReport) -> None:
        """Record the life of a new store's server; seal pending usage when another server is met.

        Raises:
            StoreError: the store does not answer.
        """
        if not self._has_begun:
            await self._lives.begin()
            self._has_begun = True
        for shard, life in (await self._lives.find_unnoticed(outbox.admin)).items():
            await self._notice_restart(outbox, shard, life, report)

    async def may_send_all(self, outbox: Outbox, shard: int, report: FlushReport) -> bool:
        """Whether all intents of a shard may be sent; otherwise, only those tried before.

        The caller holds the shard's lease.

        Raises:
            StoreError: the store does not answer.
        """
        life, now_ms = await self._lives.read_life(shard), self._store.now_ms()
        if life.is_known:
            return True
        if not life.known:
            await self._lives.confirm(shard, life)
            return True
        if not life.is_noticed:
            await self._notice_restart(outbox, shard, life, report)
            return False
        if now_ms < life.noticed_ms + _LAG_MS:
            return False
        try:
            return await self._compare_shard(outbox, shard, life, report)
        except StripeError as error:
            if self._failures.is_due(life.now):  # Each pass asks again for each shard of the server.
                _logger.warning(
                    "shard %d is not delivered, and others may not be, because Stripe cannot be compared: %s",
                    shard,
                    error,
                )
            return False

    async def _notice_restart(
        self, outbox: Outbox, shard: int, life: ServerLife, report: FlushReport
    ) -> None:
        """Seal pending usage: usage recorded later gets other intents, which Stripe certainly lacks."""
        noticed_ms = self._store.now_ms()
        seal_result = await _seal_all(outbox, shard, report)
        await InvoiceItemQueue(self._store, outbox.admin).mark_tried(shard)
        is_sealed = not seal_result.waiting_lines and not seal_result.unreadable
        await self._lives.record_noticed(shard, life, noticed_ms, is_sealed=is_sealed)
        if life.now not in self._logged_lives:  # A server may have a hundred shards.
            self._logged_lives.add(life.now)
            # An embedded server starts and stops with its app.
            is_usual = self._store.address.kind == "embedded"
            _logger.log(
                logging.INFO if is_usual else logging.WARNING,
                "the store has started since the last delivery, and may lack its last writes (found at shard"
                " %d): intents that wait in this server's shards are sent in two minutes, after a comparison"
                " with Stripe",
                shard,
            )

    async def _compare_shard(self, outbox: Outbox, shard: int, life: ServerLife, report: FlushReport) -> bool:
        """Compare the shard's waiting intents line by line; False: it is too early."""
        seal_result = await _seal_all(outbox, shard, report)
        waiting = await self._read_intents(shard, "outbox")
        passed_ms = self._store.now_ms() - life.noticed_ms
        is_tried = any(intent.first_ms for intent in waiting)
        if (seal_result.waiting_lines and passed_ms < _SEALED_MS) or (is_tried and passed_ms < _PATIENCE_MS):
            return False
        if waiting or not self._store.catalog.billing.is_by_lines:
            await self._summaries.refresh()
        names = {token: counted.event_name for token, counted in (await outbox.meters()).items()}
        sealed_ms = life.sealed_ms or self._store.now_ms()
        lines = group_by_line(
            intent for intent in waiting if not intent.first_ms and int(intent.fields["at"]) <= sealed_ms
        )
        taken_s = await self._taken_minutes(shard, waiting, life.noticed_ms)
        comparison = _ShardComparison(
            gap=DeliveryGap(
                from_ms=life.seen_ms or life.noticed_ms - _GAP_MS, till_ms=life.till_ms or life.noticed_ms
            ),
            names=names,
            deliveries=await self._lost.read_deliveries(lines[0].customer) if lines else {},
            taken_s=taken_s,
            report=report,
        )
        for line in lines:
            async with skip_unreadable(line.customer, partial(self._park_damaged, line, comparison)):
                await self._compare_line(line, comparison)
        await self._lives.confirm(shard, life)
        return True

    async def _read_intents(self, shard: int, *places: str) -> list[StoredIntent]:
        admin = (await self._store.admin()).for_delivery()
        return [
            intent
            for place in places
            async for page in read_intents_in(self._store, admin, shard, place)
            for intent in page
        ]

    async def _taken_minutes(
        self, shard: int, waiting: Iterable[StoredIntent], noticed_ms: int
    ) -> Mapping[tuple[str, str], set[int]]:
        """Read the minutes (s) of undelivered intents that were sealed before the restart was noticed."""
        found = defaultdict[tuple[str, str], set[int]](set)
        for intent in (*waiting, *await self._read_intents(shard, "parked", "dead")):
            if int(intent.fields["at"]) < noticed_ms:
                found[intent.fields["stripe"], intent.fields["event"]].add(intent.minute_s)
        return found

    async def _compare_line(self, line: IntentLine, comparison: _ShardComparison) -> None:
        """Leave a line to be sent if Stripe has none of it; otherwise find the intents that it may have."""
        try:
            unknown = await self._lost.count_unknown(
                line,
                gap=comparison.gap,
                names=comparison.names,
                deliveries=comparison.deliveries,
                taken_s=comparison.taken_s[line.stripe_customer, line.event_name],
            )
            if unknown > 0:
                await self._settle_by_minute(line, unknown, comparison)
        except StripeError as error:
            if error.status not in UNKNOWN_CUSTOMER:
                raise
            why = f"the store was restarted, and Stripe does not say whether it has this: {error}"
            for intent in await self._park_intents(line.intents, why, comparison):
                log_parked(intent.identifier, line.customer, why)

    async def _park_damaged(
        self, line: IntentLine, comparison: _ShardComparison, customer: str, error: Exception
    ) -> None:
        """Park the line of a customer whose stored data are damaged; the other lines go on."""
        log_not_comparable(line.intents[0].identifier, customer, error)
        try:
            why = f"the store was restarted, and this cannot be compared: {error}"
            await self._park_intents(line.intents, why, comparison)
        except StoreError as refused:
            # While the customer's totals are damaged, the line is not sent either.
            if is_of_the_store(refused):
                raise

    async def _settle_by_minute(self, line: IntentLine, unknown: int, comparison: _ShardComparison) -> None:
        """Count intents as delivered whose own minute has just their units at Stripe; park the others."""
        left: list[StoredIntent] = []
        for intent in line.intents:
            if await self._lost.read_minute(intent) != intent.value:
                left.append(intent)
                continue
            why = f"delivered: the store lost it, and Stripe's summary of its minute says {intent.value}"
            if await change_state(self._store, intent, "delivered", cause=CAUSE, after=why):
                unknown -= intent.value
                comparison.report.delivered += 1
        if unknown <= 0:
            return
        why = (
            f"the store was restarted, and Stripe has {unknown} units of {line.event_name} more than it knows"
            " of: this may be among them"
        )
        parked = await self._park_intents(left, why, comparison)
        _logger.error(
            "the store has lost records of customer %r: Stripe has %d units of %s more than it knows of; %d"
            " waiting units are parked. The journal of deliveries settles them; `meterkit recover` settles"
            " the others",
            line.customer,
            unknown,
            line.event_name,
            sum(intent.value for intent in parked),
            extra=REPORTED,
        )

    async def _park_intents(
        self, intents: Iterable[StoredIntent], why: str, comparison: _ShardComparison
    ) -> list[StoredIntent]:
        """Park intents for the journal of deliveries or `meterkit recover`; return the parked ones."""
        fields = {"why": why, RESTORED: comparison.gap.dump()}
        parked = [
            intent
            for intent in intents
            if await change_state(
                self._store,
                intent,
                "parked",
                cause=CAUSE,
                after=f"parked: {why}",
                compare_in_ms=self._compare_in_ms,
                fields=fields,
            )
        ]
        comparison.report.parked += len(parked)
        return parked


async def _seal_all(outbox: Outbox, shard: int, report: FlushReport) -> SealResult:
    """Seal all pending usage of a shard, and log what is late."""
    seal_result = await outbox.seal(shard, due_ms=None, most=-1)
    report.sealed += seal_result.intents
    if seal_result.late:
        report_late(seal_result.late, await outbox.meters())
    return seal_result

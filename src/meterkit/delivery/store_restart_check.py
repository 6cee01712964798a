"""After the store has begun anew what Stripe has is compared with our books, before more is sent."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.delivery.intent_comparer import CAUSE
from meterkit.delivery.late_usage import report_late
from meterkit.delivery.lost_deliveries import DeliveryGap, LostDeliveries
from meterkit.errors import StoreError, StripeError
from meterkit.outbox.intents import RESTORED, read_intents_in
from meterkit.outbox.operator_commands import change_state
from meterkit.outbox.sealer import REPORTED
from meterkit.redis.server import is_key_error
from meterkit.store.server_restarts import ServerLives
from meterkit.throttle import HOUR_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.delivery.flush_report import FlushReport
    from meterkit.delivery.lost_deliveries import Deliveries
    from meterkit.delivery.summaries import Summaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal
    from meterkit.outbox.outbox import Outbox
    from meterkit.store.server_restarts import ServerLife
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

# Summaries are "eventually consistent" (https://docs.stripe.com/api/billing/meter-event-summary).
_LAG_MS: Final = 120_000
# The gap that is assumed where the time of the shard's last delivery is not known.
_GAP_MS: Final = 3_600_000
# Usage pending then is sealed by now: it waited for a free minute, or for the end of its period.
_SEALED_MS: Final = 300_000
# Intents tried before are sent first; the others wait so long.
_PATIENCE_MS: Final = 3_600_000
_NO_GAP: Final = DeliveryGap(from_ms=0, till_ms=0)
_OF_THE_CUSTOMER: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


@dataclass(slots=True)
class _Line:
    """Waiting intents of one customer, event name and Stripe customer; as far as we know, none was tried.

    That may be of two meters: one may have had another name in the plans file.

    Attributes:
        unknown: how much Stripe has that the store does not know of.
        gap: when deliveries may have been forgotten.
        taken_s: minutes (s) of intents that are not delivered.
    """

    customer: str
    event_name: str
    stripe_customer: str
    waiting: list[StoredIntent] = field(default_factory=list["StoredIntent"])
    unknown: int = 0
    taken_s: Collection[int] = ()
    gap: DeliveryGap = _NO_GAP


class StoreRestartCheck:
    """Says whether a shard may be delivered from, and sees to it that it may be.

    A server that was restarted, restored from a backup or taken over by another may lack what it knew last:
    usage that was delivered is pending once more, under no identifier that Stripe knows. So what waits then
    is sent only where Stripe has not counted more than the store says was delivered. What was tried before is
    sent nevertheless: Stripe counts its identifier once.

    Args:
        store: what is delivered from.
        summaries: what Stripe says.
        journal: has what Stripe has accepted; None: there is none.
    """

    def __init__(self, store: Store, summaries: Summaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._lives = ServerLives(store)
        self._forgotten = LostDeliveries(store, summaries, journal)
        self._compare_in_ms = None if journal is None else 0
        self._has_begun = False
        self._logged_lives: set[str | None] = set()
        self._waits = Throttle(HOUR_S)

    async def begin(self, outbox: Outbox, report: FlushReport) -> None:
        """Have a new store know in which life it is, and seal what was pending when another server is met.

        Raises:
            StoreError: the store does not answer.
        """
        if not self._has_begun:
            await self._lives.begin()
            self._has_begun = True
        for shard, life in (await self._lives.unmet(outbox.admin)).items():
            await self._notice_restart(outbox, shard, life, report)

    async def are_over(self, outbox: Outbox, shard: int, report: FlushReport) -> bool:
        """Whether all may be sent; else only what was tried before. For the holder of the shard's lease.

        Raises:
            StoreError: the store does not answer.
        """
        life, now_ms = await self._lives.of(shard), self._store.now_ms()
        if life.is_known:
            return True
        if not life.known:
            await self._lives.confirm(shard, life)
            return True
        if not life.is_met:
            await self._notice_restart(outbox, shard, life, report)
            return False
        if now_ms < life.noticed_ms + _LAG_MS:
            return False
        try:
            return await self._compare_shard(outbox, shard, life, report)
        except StripeError as error:
            self._log_stripe_failure(shard, life, error)
            return False

    async def _notice_restart(
        self, outbox: Outbox, shard: int, life: ServerLife, report: FlushReport
    ) -> None:
        """Seal what was pending: Stripe certainly lacks what is recorded from now on, under other intents."""
        noticed_ms = self._store.now_ms()
        sealing = await outbox.seal(shard, due_ms=None, most=-1)
        report.sealed += sealing.made
        if sealing.late:
            report_late(sealing.late, await outbox.meters())
        is_sealed = not sealing.later and not sealing.aside
        await self._lives.notice(shard, life, noticed_ms, is_sealed=is_sealed)
        self._log_restart(shard, life)

    def _log_restart(self, shard: int, life: ServerLife) -> None:
        """Once of a server, which may have a hundred shards."""
        if life.now not in self._logged_lives:
            self._logged_lives.add(life.now)
            _logger.warning(
                "the store was restarted, restored or taken over, as shard %d says: what waits there and in"
                " the server's other shards is sent in two minutes, once Stripe has said that it has nothing"
                " of it",
                shard,
            )

    def _log_stripe_failure(self, shard: int, life: ServerLife, error: StripeError) -> None:
        """Once of a server, and each hour: each pass asks again for each shard."""
        if self._waits.is_due(life.now):
            _logger.warning(
                "shard %d waits, and others may, as Stripe does not say what it has: %s", shard, error
            )

    async def _compare_shard(self, outbox: Outbox, shard: int, life: ServerLife, report: FlushReport) -> bool:
        sealing = await outbox.seal(shard, due_ms=None, most=-1)
        report.sealed += sealing.made
        waiting = await self._waiting(shard)
        passed_ms = self._store.now_ms() - life.noticed_ms
        is_tried = any(kept.first_ms for kept in waiting)
        if (sealing.later and passed_ms < _SEALED_MS) or (is_tried and passed_ms < _PATIENCE_MS):
            return False
        await self._summaries.refresh()
        names = {token: counted.event_name for token, counted in (await outbox.meters()).items()}
        gap = DeliveryGap(
            from_ms=life.seen_ms or life.noticed_ms - _GAP_MS, till_ms=life.till_ms or life.noticed_ms
        )
        lines, taken_s = (
            _lines(waiting, life.sealed_ms or self._store.now_ms()),
            await self._taken_minutes(shard, waiting, life.noticed_ms),
        )
        deliveries: Deliveries = await self._forgotten.delivered(lines[0].customer) if lines else {}
        for line in lines:
            line.gap, line.taken_s = gap, taken_s[line.stripe_customer, line.event_name]
            await self._compare_line(line, names, deliveries, report)
        await self._lives.confirm(shard, life)
        return True

    async def _waiting(self, shard: int) -> list[StoredIntent]:
        """Intents that are queued, or were being sent."""
        admin = (await self._store.admin()).for_delivery()
        return [kept async for page in read_intents_in(self._store, admin, shard, "outbox") for kept in page]

    async def _taken_minutes(
        self, shard: int, waiting: Iterable[StoredIntent], noticed_ms: int
    ) -> Mapping[tuple[str, str], set[int]]:
        """Minutes (s) of undelivered intents sealed before, by Stripe customer and event name."""
        admin = (await self._store.admin()).for_delivery()
        found = defaultdict[tuple[str, str], set[int]](set)
        apart = [
            kept
            for place in ("parked", "dead")
            async for page in read_intents_in(self._store, admin, shard, place)
            for kept in page
        ]
        for kept in (*waiting, *apart):
            if int(kept.fields["at"]) >= noticed_ms:
                continue  # It was sealed after all that may be forgotten.
            found[kept.fields["stripe"], kept.fields["event"]].add(kept.minute_s)
        return found

    async def _compare_line(
        self, line: _Line, names: Mapping[str, str], deliveries: Deliveries, report: FlushReport
    ) -> None:
        """Leave a line to be sent if Stripe has none of it; else find the intents that it may have."""
        try:
            line.unknown = await self._forgotten.unknown(
                line.customer,
                line.event_name,
                line.stripe_customer,
                since_ms=min(int(kept.fields["period"]) for kept in line.waiting),
                gap=line.gap,
                names=names,
                deliveries=deliveries,
                taken_s=line.taken_s,
            )
            if line.unknown > 0:
                await self._settle_by_minute(line, report)
        except StripeError as error:
            if error.status not in _OF_THE_CUSTOMER:
                raise
            why = f"the store has come back, and Stripe does not say whether it has this: {error}"
            for kept in await self._park_intents(line, line.waiting, why, report):
                _logger.warning(
                    "intent %s of customer %r is parked: %s",
                    kept.identifier,
                    line.customer,
                    why,
                    extra=REPORTED,
                )
        except (StoreError, ValueError, TypeError) as error:
            if not _is_damage(error):
                raise
            await self._park_damaged(line, error, report)

    async def _park_damaged(self, line: _Line, error: Exception, report: FlushReport) -> None:
        """Leave a line to a person: what is kept of its customer is damaged, and the others go on."""
        _logger.warning(
            "intent %s of customer %r cannot be compared: %s",
            line.waiting[0].identifier,
            line.customer,
            error,
            extra=REPORTED,
        )
        try:
            why = f"the store has come back, and this cannot be compared: {error}"
            await self._park_intents(line, line.waiting, why, report)
        except StoreError as refused:
            if not _is_damage(refused):
                raise
            # Its totals cannot be counted in: until they can, it is not sent either.

    async def _settle_by_minute(self, line: _Line, report: FlushReport) -> None:
        """Tell what Stripe has by the summary of its minute; the rest is parked while it may be there."""
        left: list[StoredIntent] = []
        for kept in line.waiting:
            counted = await self._summaries.counted(
                line.event_name, line.stripe_customer, kept.minute_s, kept.minute_s + 60
            )
            if counted != kept.value:
                left.append(kept)
                continue
            why = f"delivered: the store forgot it, Stripe's summary of its minute says {kept.value}"
            if await change_state(self._store, kept, "delivered", cause=CAUSE, after=why):
                line.unknown -= kept.value
                report.delivered += 1
        if line.unknown <= 0:
            return
        why = (
            f"since the store came back, Stripe has {line.unknown} more of {line.event_name} than it says was"
            " delivered: this may be among them"
        )
        parked = await self._park_intents(line, left, why, report)
        _logger.error(
            "the store has lost what it knew of customer %r: Stripe has %d more of %s than the store says was"
            " delivered; %d that wait are parked: `meterkit recover` settles those that the journal of"
            " deliveries does not",
            line.customer,
            line.unknown,
            line.event_name,
            sum(kept.value for kept in parked),
            extra=REPORTED,
        )

    async def _park_intents(
        self, line: _Line, intents: Iterable[StoredIntent], why: str, report: FlushReport
    ) -> list[StoredIntent]:
        """Leave intents to the journal of deliveries, or to `meterkit recover`; those that were as read."""
        after, more = f"parked: {why}", {"why": why, RESTORED: line.gap.dump()}
        parked = [
            kept
            for kept in intents
            if await change_state(
                self._store,
                kept,
                "parked",
                cause=CAUSE,
                after=after,
                compare_in_ms=self._compare_in_ms,
                fields=more,
            )
        ]
        report.parked += len(parked)
        return parked


def _is_damage(error: Exception) -> bool:
    """Whether an error says how what is kept of one customer is, and not that the store does not answer."""
    return error.__cause__ is None or is_key_error(error.__cause__)


def _lines(waiting: Iterable[StoredIntent], sealed_ms: int) -> Sequence[_Line]:
    """Untried intents that were sealed by then, line by line."""
    lines: dict[tuple[str, str, str], _Line] = {}
    for kept in waiting:
        if not kept.first_ms and int(kept.fields["at"]) <= sealed_ms:
            fields = kept.fields
            names = (kept.customer, fields["event"], fields["stripe"])
            lines.setdefault(names, _Line(*names)).waiting.append(kept)
    return list(lines.values())

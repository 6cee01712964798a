"""Lost deliveries: units that Stripe has and that a restarted or restored store does not know of."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

from meterkit.cancellation import start_task
from meterkit.customers.history import is_relinked
from meterkit.customers.links import read_recent_deliveries
from meterkit.decisions.periods import from_ms, stamped_span_s
from meterkit.errors import MeterkitError
from meterkit.log_throttle import HOUR_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from decimal import Decimal

    from meterkit.customers.links import DeliveryRecord
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.outbox.intents import StoredIntent
    from meterkit.outbox.journal import Journal, JournalRow
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")

_DELIVERED: Final = re.compile(rb"(\d+)\|(....)([dD])")
_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
_AT_ONCE: Final = 8
# Delivery waits for the comparison, so a database that hangs is asked once a minute.
_JOURNAL_S: Final = 10.0
_JOURNAL_PAUSE_S: Final = 60.0
# A seal uses a free minute as timestamp: the previous one, or up to three ahead.
_BEFORE_S: Final = _MINUTE_S
_BEHIND_S: Final = 4 * _MINUTE_S
# Identifiers accepted so long before the gap are not needed to find the deliveries of the gap.
_NEAR_MS: Final = 2 * 86_400_000
# The store keeps deliveries for a day longer.
_KEPT_MS: Final = 35 * 86_400_000
# Longer gaps are compared by the hour.
_BY_MINUTES_S: Final = 6 * _HOUR_S
_EXACT_S: Final = 36 * _HOUR_S

Deliveries: TypeAlias = "Mapping[tuple[str, str, str], Sequence[DeliveryRecord]]"
"""Deliveries that a shard knows of, by customer, event name and Stripe customer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryGap:
    """Span in which a store may have lost deliveries.

    Attributes:
        from_ms: an instant at which the store knew of all deliveries.
        till_ms: when it was met as another server.
    """

    from_ms: int
    till_ms: int

    def dump(self) -> str:
        """Serialize it for a field of an intent."""
        return f"{self.from_ms}-{self.till_ms}"

    @classmethod
    def read(cls, text: str) -> DeliveryGap:
        """Parse it; the inverse of :meth:`dump`."""
        first, last = text.split("-")
        return cls(from_ms=int(first), till_ms=int(last))


@dataclass(slots=True)
class IntentLine:
    """Intents of one customer, event name and Stripe customer.

    They may be of two meters: one may have had another name in the plans file.
    """

    customer: str
    event_name: str
    stripe_customer: str
    intents: list[StoredIntent] = field(default_factory=list["StoredIntent"])

    @property
    def names(self) -> tuple[str, str, str]:
        """Customer, event name and Stripe customer."""
        return self.customer, self.event_name, self.stripe_customer

    @property
    def since_ms(self) -> int:
        """The first instant of their earliest period."""
        return min(int(intent.fields["period"]) for intent in self.intents)


def group_by_line(intents: Iterable[StoredIntent]) -> list[IntentLine]:
    """Group intents into lines, in the order of their first intents."""
    lines: dict[tuple[str, str, str], IntentLine] = {}
    for intent in intents:
        names = (intent.customer, intent.fields["event"], intent.fields["stripe"])
        lines.setdefault(names, IntentLine(*names)).intents.append(intent)
    return list(lines.values())


class LostDeliveries:
    """Counts units that Stripe has and the store does not know of.

    Args:
        store: the store that may have lost deliveries.
        summaries: what Stripe has counted.
        journal: the journal of deliveries; None: there is none.
    """

    def __init__(self, store: Store, summaries: StripeSummaries, journal: Journal | None = None) -> None:
        self._store = store
        self._summaries = summaries
        self._journal = journal
        self._journal_fails = Throttle(HOUR_S)
        self._journal_again_s = 0.0

    @property
    def is_journal_down(self) -> bool:
        """Whether the journal has just failed to answer; it is asked again a minute later."""
        return self._journal is not None and monotonic() < self._journal_again_s

    async def read_minute(self, intent: StoredIntent) -> Decimal | None:
        """Read Stripe's summary of an intent's minute; None: there is no such meter.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        names = intent.fields["event"], intent.fields["stripe"]
        return await self._summaries.counted(*names, intent.minute_s, intent.minute_s + _MINUTE_S)

    async def read_deliveries(self, customer: str) -> Deliveries:
        """Read all deliveries that the store has of a customer's shard.

        Raises:
            StoreError: the store does not answer.
        """
        admin = (await self._store.admin()).for_delivery()
        found: dict[tuple[str, str, str], list[DeliveryRecord]] = {}
        async for one in read_recent_deliveries(
            admin, self._store.keys, self._store.keys.customer(customer).shard
        ):
            found.setdefault((one.customer, one.event_name, one.stripe_customer), []).append(one)
        return found

    async def count_unknown(
        self,
        line: IntentLine,
        *,
        gap: DeliveryGap,
        names: Mapping[str, str],
        is_exact: bool = False,
        deliveries: Deliveries | None = None,
        taken_s: Collection[int] | None = None,
    ) -> int:
        """Count the units that Stripe has and the store does not know of; 0 or less: none.

        In a sum, negative events hide delivered units. Each intent has its own minute, so the minutes of the
        gap show them; the journal shows them by their identifiers. Either may be incomplete: the larger
        number counts, so that nothing is billed twice.

        Args:
            line: its periods are compared, from the earliest on.
            gap: when deliveries may have been lost.
            names: the event names of the meters that the store knows, by token.
            is_exact: whether the number must be exact; otherwise, it need only show whether there are any.
            deliveries: of the customer's shard; None: they are read.
            taken_s: minutes (s) of the line's undelivered intents; None: not known, and more calls are made.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        if deliveries is None:
            deliveries = await self.read_deliveries(line.customer)
        known, since_ms = deliveries.get(line.names, ()), line.since_ms
        units_in_journal, _ = await self._compare_journal(line, gap, known)
        if units_in_journal > 0 and not is_exact:
            return units_in_journal
        now_ms = self._store.now_ms()
        is_other = await is_relinked(self._store, line.customer, from_ms(since_ms))
        # Totals are not kept by Stripe customer, and deliveries are kept for a shorter time.
        span_s = stamped_span_s(max(since_ms, now_ms - _KEPT_MS) if is_other else since_ms, now_ms)
        counted = await self._summaries.counted(line.event_name, line.stripe_customer, *span_s)
        if counted is None:
            return units_in_journal
        made: dict[int, int] = {}
        for one in known:
            made[one.time_s] = made.get(one.time_s, 0) + one.value
        if is_other:
            total = sum(units for minute_s, units in made.items() if minute_s >= span_s[0])
        else:
            total = await self._delivered_total(line, names)
        unknown = int(counted) - total
        if unknown > 0 and not is_exact:
            return unknown
        minutes = _MinuteTotals(self._summaries, line, made)
        kept = replace(gap, from_ms=self._kept_since_ms(gap))
        extra = await minutes.count_extra(kept, unknown, taken_s, is_exact=is_exact)
        return max(unknown, units_in_journal, extra)

    async def _delivered_total(self, line: IntentLine, names: Mapping[str, str]) -> int:
        """Sum the units delivered since the line's first period, less those taken back, by the totals."""
        admin, since_ms = (await self._store.admin()).for_delivery(), line.since_ms
        totals: dict[bytes, bytes] = await admin.ask(
            admin.client.hgetall(self._store.keys.customer(line.customer).totals)
        )
        return sum(
            # Negative events have totals of their own.
            int(value) * (1 if match[3] == b"d" else -1)
            for name, value in totals.items()
            if value.isdigit()
            and (match := _DELIVERED.fullmatch(name))
            and int(match[1]) >= since_ms
            # All meters of the event name count: one may have had another name in the plans file.
            and names.get(match[2].decode()) == line.event_name
        )

    async def _compare_journal(
        self, line: IntentLine, gap: DeliveryGap, known: Sequence[DeliveryRecord]
    ) -> tuple[int, int]:
        """Sum the units under identifiers of the gap that only the journal has, and that only the store has.

        A comparison may have counted units as delivered under another identifier than the journal has: the
        store knows that identifier, and the journal lacks it.
        """
        rows = await self._read_journal(line.customer, line.event_name, gap.from_ms - _NEAR_MS)
        written = {row.identifier for row in rows}
        known_identifiers = {one.identifier for one in known}
        since_ms = self._kept_since_ms(gap) - _BEFORE_S * 1000
        forgotten = sum(
            row.value
            for row in rows
            if row.value > 0
            and row.stripe_customer == line.stripe_customer
            and row.delivered_at_ms >= since_ms
            and row.identifier not in known_identifiers
        )
        lacking = [
            one.value
            for one in known
            if one.value > 0 and one.identifier not in written and one.time_s * 1000 >= since_ms
        ]
        if rows and lacking and self._journal_fails.is_due("lacks"):
            _logger.warning(
                "the journal of deliveries lacks units that the store knows as delivered, for example %d of"
                " customer %r; Stripe's sums decide",
                sum(lacking),
                line.customer,
            )
        return max(0, forgotten - sum(lacking)), sum(lacking)

    def _kept_since_ms(self, gap: DeliveryGap) -> int:
        """The start of a gap, or the instant from which on the store keeps deliveries.

        Older ones are not lost: they are no longer kept.
        """
        return max(gap.from_ms, self._store.now_ms() - _KEPT_MS)

    async def units_in_journal(
        self, line: IntentLine, gap: DeliveryGap, enough: int | None = None
    ) -> int | None:
        """Sum the units of the gap that only the journal has.

        None: they are fewer than ``enough``, and the journal may be incomplete.

        Raises:
            StoreError: the store does not answer.
        """
        known = (await self.read_deliveries(line.customer)).get(line.names, ())
        units, lacking = await self._compare_journal(line, gap, known)
        if self._journal is None or self.is_journal_down:
            return None
        if enough is not None and units >= enough:
            return units
        try:
            async with asyncio.timeout(_JOURNAL_S):
                begun_ms = await self._journal.begun_ms()
        except (MeterkitError, TimeoutError):
            self._journal_again_s = monotonic() + _JOURNAL_PAUSE_S
            return None
        return None if lacking or begun_ms is None or begun_ms > gap.from_ms else units

    async def units_of_other_customers(
        self, customer: str, event_name: str, stripe_customer: str, span_s: tuple[int, int]
    ) -> int:
        """Sum the units of a span that were sent to other Stripe customers, by the journal."""
        start_s, end_s = span_s
        rows = await self._read_journal(customer, event_name, start_s * 1000)
        return sum(
            row.value
            for row in rows
            if row.stripe_customer != stripe_customer and start_s <= row.minute_s < end_s
        )

    async def _read_journal(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        """Read the journal; nothing if it fails, and for a minute after that."""
        if self._journal is None or self.is_journal_down:
            return ()
        try:
            async with asyncio.timeout(_JOURNAL_S):
                return await self._journal.read(customer, event_name, since_ms)
        except (MeterkitError, TimeoutError) as error:
            self._journal_again_s = monotonic() + _JOURNAL_PAUSE_S
            if self._journal_fails.is_due("read"):
                why = str(error) or f"it has not answered within {_JOURNAL_S:g} s"
                _logger.warning(
                    "the journal of deliveries cannot be read; Stripe's sums alone are compared: %s", why
                )
            return ()


class _MinuteTotals:
    """Compares the minutes of a gap: units that Stripe has counted with units delivered.

    Args:
        summaries: what Stripe has counted.
        line: has the event name and the Stripe customer.
        made: delivered units by minute (s).
    """

    def __init__(self, summaries: StripeSummaries, line: IntentLine, made: Mapping[int, int]) -> None:
        self._summaries = summaries
        self._of = line.event_name, line.stripe_customer
        self._made = made
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def count_extra(
        self, gap: DeliveryGap, unknown: int, taken_s: Collection[int] | None, *, is_exact: bool
    ) -> int:
        """Sum the units that single minutes have at Stripe beyond the delivered ones.

        A seal uses a later minute only if the one before is taken, or if prices change. So minutes after the
        gap are read only if the last minute of the gap is taken, or if the sums do not match.

        Args:
            gap: when deliveries may have been lost.
            unknown: unknown units in all minutes.
            taken_s: minutes (s) of undelivered intents; None: not known.
            is_exact: whether long gaps are compared by the minute, too.
        """
        first_s = (gap.from_ms // 1000 - _BEFORE_S) // _MINUTE_S * _MINUTE_S
        till_s = gap.till_ms // 1000 // _MINUTE_S * _MINUTE_S
        last_s = till_s + _BEHIND_S
        if last_s - first_s > (_EXACT_S if is_exact else _BY_MINUTES_S):
            return sum(max(0, one) for one in await self._extra_by_step(first_s, last_s, _HOUR_S))
        found = await self._extra_by_step(first_s, till_s + _MINUTE_S, _MINUTE_S)
        is_taken = taken_s is None or till_s in taken_s or till_s in self._made or any(found[-1:])
        if is_taken or is_exact or unknown != sum(found):
            found += await self._extra_by_step(till_s + _MINUTE_S, last_s, _MINUTE_S)
        return sum(max(0, one) for one in found)

    async def _extra_by_step(self, first_s: int, last_s: int, step_s: int) -> list[int]:
        return list(
            await asyncio.gather(
                *(start_task(self._extra_units(start, step_s)) for start in range(first_s, last_s, step_s))
            )
        )

    async def _extra_units(self, start_s: int, step_s: int) -> int:
        async with self._at_once:
            counted = await self._summaries.counted(*self._of, start_s, start_s + step_s)
        made = sum(self._made.get(one, 0) for one in range(start_s, start_s + step_s, _MINUTE_S))
        return int(counted or 0) - made

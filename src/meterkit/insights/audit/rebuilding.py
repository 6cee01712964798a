"""Rebuild counters from the audit log after the store has lost data or was restored from a backup."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from secrets import token_hex
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meterkit.catalog.value_parsers import micros_per_minor_unit
from meterkit.customers.corrections import CustomerDataError, run_on_newest_view
from meterkit.customers.late_usage_on_price_change import missed_terms
from meterkit.decisions.compiled_decision import has_flat_price
from meterkit.decisions.customer_state import CustomerState, is_billed_by_lines
from meterkit.decisions.keys import HEAD_FIELD, meter_token
from meterkit.decisions.packed import CounterHead, byte_fields, text_fields
from meterkit.decisions.periods import DAY_MS, aware_ms, stamped_span_s, to_ms
from meterkit.decisions.price_segments import (
    billed_labels,
    ended_marks,
    is_split,
    price_label,
    unit_cents,
)
from meterkit.errors import MeterkitError, StoreError, StripeError
from meterkit.insights.audit.entries import NOTHING_UNSENT, RECORDED
from meterkit.insights.audit.rebuild_results import (
    MissingUnits,
    RebuildResult,
    describe_past_period,
    describe_rebuilt,
    describe_skipped,
    describe_unknown_periods,
    find_cheaper_units,
    find_missing_units,
)
from meterkit.outbox.invoice_item_queue import usage_key_of
from meterkit.outbox.sealer import counter_ttl_ms
from meterkit.redis.daemon_thread import in_thread
from meterkit.redis.server import is_key_error
from meterkit.store.customer_usage import UsageReply, find_gone_tokens, read_usage_reply
from meterkit.store.event_names import ReportedMeter, read_former_meters, read_meters
from meterkit.store.input_checks import check_customer
from meterkit.store.unreadable_data import UNREADABLE
from meterkit.stripe.request import UNKNOWN_CUSTOMER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from meterkit.customers.corrections import ScriptCall
    from meterkit.insights.audit.database import LoggedPrices, PeriodSums, UnsentByMeter
    from meterkit.insights.audit.draining import AuditDrainer
    from meterkit.insights.audit.entries import UnsentUnits
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView


_logger = logging.getLogger("meterkit.audit")

_LEASE_S: Final = 35.0
_TRIES: Final = 8
_SAME_PERIOD_MS: Final = 120_000  # A period that begins later than that after another is another one.
_LONGEST_MS: Final = 400 * DAY_MS  # More than any period.
_MONTH_MS: Final = 31 * DAY_MS
_LONG_OVER_MS: Final = 36 * DAY_MS  # No process waits for the close of such a period.
_OF_COUNTERS: Final = (*RECORDED, "late")
_PARKED, _LEFT = 7, 8  # Among the numbers of a meter; see rebuild_counters.lua.
_WAITS, _OTHER_PERIOD, _NO_MINUTE = 1, 5, 6


class SummaryReader(Protocol):
    """Reads Stripe's summaries and invoice items; see ``meterkit.delivery.summaries.StripeSummaries``."""

    async def refresh(self) -> None:
        """Fetch the list of meters."""
        ...

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """Read Stripe's count of a customer's units from one whole minute to another."""
        ...

    async def item_units(self, stripe_customer: str, since_ms: int) -> Mapping[str, int]:
        """Sum the units of invoice items for late usage, by their usage keys."""
        ...


@dataclass(slots=True, kw_only=True)
class _RebuildRun:
    """The common terms of one rebuild.

    Attributes:
        known: the meters of the present customer that go to Stripe, by token.
        at_ms: an instant of the period; None: the one that is open.
        is_refreshed: whether Stripe was asked which meters there are.
    """

    at_ms: int | None
    by: str
    dry: bool
    known: Mapping[str, ReportedMeter] = field(default_factory=dict[str, ReportedMeter])
    is_refreshed: bool = False

    def is_sole(self, event: str) -> bool:
        """Whether one meter has an event name."""
        return sum(one.event_name == event for one in self.known.values()) == 1

    def event_of(self, meter: str) -> str:
        """The event name of a meter; empty: none is known."""
        counted = self.known.get(_token_of(meter, self.known))
        return "" if counted is None else counted.event_name


@dataclass(slots=True, kw_only=True)
class _CustomerBooks:
    """Stored usage of a customer at one instant.

    Attributes:
        usage_at: the usage of the period of any instant (``at_ms``; None: now).
        stripe_customer: the one that is linked.
        is_by_lines: whether invoice lines bill the period of an instant (ms).
        counted_ms: the first instants of the periods that have counts.
        sums: of the log.
        unsent: units that no meter event bills: by the log, and once :meth:`add_items` was called, by Stripe.
        has_items: whether it was.
    """

    customer: str
    usage_at: Callable[..., CustomerUsage]
    stripe_customer: str | None
    is_by_lines: Callable[[int], bool]
    counted_ms: Collection[int]
    sums: PeriodSums
    unsent: UnsentByMeter
    has_items: bool = False

    def unsent_of(self, start_ms: int, meter: str) -> UnsentUnits:
        """Units of a meter in a period that no meter event bills."""
        return self.unsent.get((start_ms, meter), NOTHING_UNSENT)

    def add_items(self, units: Mapping[str, int], known: Mapping[str, ReportedMeter]) -> None:
        """Add the units that invoice items bill, by usage key, to those of the log's periods and meters."""
        self.has_items = True
        for start_ms, meters in self.sums.items():
            for meter in meters:
                key, found = usage_key_of(self.customer, _token_of(meter, known), start_ms), self.unsent_of
                if key in units:
                    unsent = found(start_ms, meter)._replace(by_item=units[key])
                    self.unsent[start_ms, meter] = unsent

    def knows(self, start_ms: int) -> bool:
        """Whether a period begins then, by what is kept or by the subscription."""
        begun = self.usage_at(at_ms=start_ms + _SAME_PERIOD_MS)["period"]["start"]
        return start_ms in self.counted_ms or abs(to_ms(begun) - start_ms) < _SAME_PERIOD_MS

    def ends_ms(self, start_ms: int) -> int:
        """End of a period by its start (ms), at the earliest if that is no longer known."""
        known = self.usage_at(at_ms=start_ms + _SAME_PERIOD_MS)["period"]["end"]
        return max(to_ms(known), start_ms + _MONTH_MS)


class _StripeCounts(NamedTuple):
    """Units of the open period that Stripe has.

    Attributes:
        by_event: by event name.
        before: by event name and price, those with earlier timestamps than the first unit at that price.
    """

    by_event: dict[str, int]
    before: dict[tuple[str, Fraction], int]

    def before_price(self, event: str, of_unit: Fraction) -> int:
        """The units with earlier timestamps than the first one at a price; all, if the log has none at it."""
        return self.before.get((event, of_unit), self.by_event.get(event, 0))


_NOT_COUNTED: Final = _StripeCounts({}, {})


class CounterRebuilder:
    """Compares the counters of open periods with the audit log, and raises those that are lower.

    None is ever lowered. What the log has more of that goes to Stripe is never pending again: as far as
    Stripe's summaries show more than was delivered by the counters it counts as delivered, and the rest is
    parked. Where invoice lines bill the period, it is pending: they are written after its end.

    Args:
        store: where usage is counted.
        drainer: of its audit log.
        summaries: reads Stripe's summaries; None: Stripe cannot be asked, and all of it is parked.
    """

    def __init__(self, store: Store, drainer: AuditDrainer, summaries: SummaryReader | None) -> None:
        self._store = store
        self._drainer = drainer
        self._summaries = summaries
        self._is_journal_lost = False

    async def rebuild(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        dry_run: bool = False,
        by: str = "api",
        found: list[RebuildResult] | None = None,
    ) -> Sequence[RebuildResult]:
        """Rebuild counters; what was waiting for the database is drained first.

        A customer with unreadable records, or one that cannot be rebuilt just now, is
        named with the reason; the others are rebuilt.

        Args:
            customer: whose; default: of all.
            at: an instant of a period (aware); of one that is over it is only said what is missing.
                Default: the open period is rebuilt, and the periods of the last 400 days are compared.
            dry_run: say what would be done.
            by: who does it, for the ledger of the customer.
            found: collects the results customer by customer, also if the call ends early.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used; another process drains; or the database
                fails.
            StripeError: Stripe refuses all that it is asked, or does not answer.
            StoreError: the store does not answer.
        """
        at_ms = None if at is None else aware_ms("at", at)
        if customer is not None:
            customer = check_customer(customer)
        drainer = self._drainer
        async with drainer.lease.held(within_s=_LEASE_S) as is_held:
            if not is_held:
                raise MeterkitError("another process drains the audit log; try again in a minute")
            await drainer.drain()
            run = _RebuildRun(at_ms=at_ms, by=by, dry=dry_run)
            names = [customer] if customer else await asyncio.to_thread(drainer.database.customers)
            found = [] if found is None else found
            for name in names:
                try:
                    found += await self._rebuild_customer(name, run)
                except (MeterkitError, *UNREADABLE) as error:
                    found.append(describe_skipped(name, _explain_skip(error)))
            return found

    async def _rebuild_customer(self, customer: str, run: _RebuildRun) -> list[RebuildResult]:
        store, drainer = self._store, self._drainer
        run.known = await read_meters(await store.admin(), store.keys, store.catalog, customer)
        counted: _StripeCounts | None = None
        missing: Mapping[str, Sequence[int]] | None = None
        for _ in range(_TRIES):
            await drainer.drain_shard(store.keys.customer(customer).shard)
            since_ms = (store.now_ms() if run.at_ms is None else run.at_ms) - _LONGEST_MS
            sums, last_ms = await asyncio.to_thread(drainer.database.sums, customer, since_ms)
            books = await self._read_books(customer, sums, since_ms)
            usage = books.usage_at(at_ms=None)
            start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
            others = [one for one in sorted(sums) if abs(one - start_ms) >= _SAME_PERIOD_MS]
            over = [one for one in others if last_ms[one] < start_ms or books.knows(one)]
            past = [one for one in over if one < start_ms]
            if run.at_ms is not None and not start_ms <= run.at_ms < end_ms:
                asked = [one for one in past if one <= run.at_ms < books.ends_ms(one)][-1:]
                return await self._compare_periods(books, (*past, start_ms), asked, run)
            told: list[RebuildResult] = []
            if run.at_ms is None:
                told = await self._compare_periods(books, (*past, start_ms), past, run)
            told += describe_unknown_periods(usage, {one: sums[one] for one in others if one not in over})
            period_ms = next((one for one in sums if one not in others), None)
            if period_ms is None:
                return told
            if counted is None:
                missing = await self._raise_counters(books, period_ms, _NOT_COUNTED, run, dry=True)
                if missing is None:
                    continue
                counted = await self._count_events(books, period_ms, missing, run)
            if missing and any(units[_PARKED] for units in missing.values()):
                await self._read_items(books, run)
            done = await self._raise_counters(books, period_ms, counted, run, dry=run.dry)
            if done is not None:
                units = sums[period_ms]
                told += [
                    describe_rebuilt(usage, units, name, lacks, is_named=bool(run.event_of(name)))
                    for name, lacks in done.items()
                ]
                return told
        raise CustomerDataError(
            "entries of its shard still wait for the database of the audit log: usage comes too fast just"
            " now, or one cannot be read"
        )

    async def _read_items(self, books: _CustomerBooks, run: _RebuildRun) -> None:
        """Read the invoice items for late usage, once: Stripe's meters have none of their units."""
        if books.has_items:
            return
        if self._summaries is not None and books.stripe_customer is not None and books.sums:
            units = await self._summaries.item_units(books.stripe_customer, min(books.sums))
            books.add_items(units, run.known)

    async def _read_books(self, customer: str, sums: PeriodSums, since_ms: int) -> _CustomerBooks:
        store, admin, keys = self._store, await self._store.admin(), self._store.keys.customer(customer)
        names = [keys.counters, keys.state, keys.totals, keys.grants, keys.levels]
        reply = UsageReply(*await admin.run(store.scripts["read_usage"], names))
        tokens = find_gone_tokens(store.catalog, reply)
        (gone,) = await read_former_meters([tokens], admin, store.keys, store.catalog, former=True)
        state, totals = CustomerState.parse(reply.state), text_fields(reply.totals)
        head = CounterHead.read(byte_fields(reply.counters).get(HEAD_FIELD))
        return _CustomerBooks(
            customer=customer,
            usage_at=partial(read_usage_reply, customer, store.catalog, reply, gone),
            stripe_customer=state.stripe_customer,
            is_by_lines=partial(is_billed_by_lines, state, store.catalog),
            counted_ms={head.begins_ms, *(int(name[:-2]) for name in totals if name.endswith("|e"))},
            sums=sums,
            unsent=await asyncio.to_thread(self._drainer.database.unsent, customer, since_ms),
        )

    async def _compare_periods(
        self,
        books: _CustomerBooks,
        starts_ms: Sequence[int],
        asked: Collection[int],
        run: _RebuildRun,
    ) -> list[RebuildResult]:
        """Compare ended periods: units missing from the books, and Stripe's share of them.

        Args:
            books: what the store and the log have.
            starts_ms: of all periods that the log knows, up to the one that is open.
            asked: of those that are to be compared.
            run: this one.
        """
        found = list[RebuildResult]()
        for one, next_ms in pairwise(starts_ms):
            if one not in asked:
                continue
            usage = books.usage_at(at_ms=one + _SAME_PERIOD_MS)
            is_long_over = run.at_ms is None and self._store.now_ms() - next_ms > _LONG_OVER_MS
            found_lacking = _find_lacking(books, usage, one)
            if not (is_long_over or books.has_items) and any(
                lacks.reported for lacks in found_lacking.values()
            ):
                await self._read_items(books, run)
                found_lacking = _find_lacking(books, usage, one)
            # Else Stripe's units may belong to a meter whose event name is unknown.
            are_named = all(run.event_of(meter) for meter, lacks in found_lacking.items() if lacks.reported)
            left: dict[str, int | None] = {}  # By event name: one of its meters after the other takes of it.
            for meter, lacks in found_lacking.items():
                if not lacks.recorded and not lacks.reported:
                    continue
                event = run.event_of(meter)
                if lacks.reported and are_named and not is_long_over and event not in left:
                    # Until the next one that the log knows of there was nothing.
                    counted = await self._count_event(books, event, (one, next_ms), run)
                    known = {name for name in usage["meters"] if run.event_of(name) == event}
                    delivered = sum(usage["meters"][name]["delivered"] for name in known)
                    left[event] = None if counted is None else max(0, counted - delivered)
                unknown = left.get(event)
                units = books.sums[one][meter]
                told = describe_past_period(
                    usage, one, meter, units, lacks, unknown=unknown, is_long_over=is_long_over
                )
                if unknown is not None:
                    left[event] = unknown - told.delivered
                found.append(told)
        return found

    async def _raise_counters(
        self,
        books: _CustomerBooks,
        period_ms: int,
        counted: _StripeCounts,
        run: _RebuildRun,
        *,
        dry: bool,
    ) -> dict[str, list[int]] | None:
        """Raise the counters; missing units by meter. None: drain the log and try again."""
        store, customer, known = self._store, books.customer, run.known
        usage, logged = books.usage_at(at_ms=None), partial(_describe_logged, books, period_ms, run, counted)
        prices = await asyncio.to_thread(self._drainer.database.prices, customer, period_ms)
        tokens = {name: _token_of(name, known) for name in books.sums[period_ms]}

        async def call(view: CustomerView) -> ScriptCall:
            keys, state = view.keys, view.state
            wanted = {
                "dry": int(dry),
                "period": to_ms(usage["period"]["start"]),
                "stripe": state.stripe_customer or "",
                "id": token_hex(16),
                "by": run.by,
                "minutes": state.minutes_taken_ms,
                "meters": logged(prices, view),
                "events": {token: counted.event_name for token, counted in known.items()},
                "counted": counted.by_event,
                "by_lines": is_billed_by_lines(state, store.catalog, to_ms(usage["period"]["start"])),
            }
            names = [keys.counters, keys.state, keys.totals]
            names += [
                store.keys.shard(keys.shard, name) for name in ("intents", "parked", "compare", "audit")
            ]
            names += [keys.history, keys.dirty]
            return names, (view.rev, view.terms(counter_ttl_ms(view)), customer, json.dumps(wanted))

        reply = await run_on_newest_view(
            store, store.scripts["rebuild_counters"], customer, call, done="rebuilt"
        )
        if reply[0] in {_WAITS, _OTHER_PERIOD}:
            return None
        if reply[0] == _NO_MINUTE:
            raise CustomerDataError(
                "its period ends within minutes, and what goes to Stripe has no place left in it; compare it"
                " when it is over"
            )
        by_token: dict[str, str] = json.loads(reply[2])
        return {
            name: [int(units) for units in by_token[token].split(" ")]
            for name, token in tokens.items()
            if token in by_token
        }

    async def _count_events(
        self, books: _CustomerBooks, period_ms: int, missing: Mapping[str, Sequence[int]], run: _RebuildRun
    ) -> _StripeCounts:
        """Stripe's counts of the event names that may have the missing units.

        None if these may belong to a meter whose event name is unknown.
        """
        if any(units[_LEFT] and not run.event_of(name) for name, units in missing.items()):
            return _NOT_COUNTED
        period = books.usage_at(at_ms=None)["period"]
        start_ms, end_ms = to_ms(period["start"]), to_ms(period["end"])
        asked = {run.event_of(name): name for name, units in missing.items() if units[_PARKED]}
        prices = await asyncio.to_thread(self._drainer.database.prices, books.customer, period_ms)
        counted = _StripeCounts({}, {})
        for event, meter in sorted(asked.items()):
            counted.by_event[event] = await self._count_event(books, event, (start_ms, end_ms), run) or 0
            sold = prices.get(meter, ()) if run.is_sole(event) else ()
            for one in sold if len(sold) > 1 else ():
                span_ms = start_ms, one.first_minute_ms
                counted.before[event, one.of_unit] = await self._count_event(books, event, span_ms, run) or 0
        return counted

    async def _count_event(
        self, books: _CustomerBooks, event: str, span_ms: tuple[int, int], run: _RebuildRun
    ) -> int | None:
        """Stripe's count of an event name between two instants; None: Stripe cannot be asked."""
        start_ms, end_ms = span_ms
        if books.is_by_lines(start_ms):  # Stripe has no events of it.
            return None
        start_s, end_s = stamped_span_s(start_ms, self._store.now_ms(), end_ms=end_ms)
        if self._summaries is None or books.stripe_customer is None or not event or start_s >= end_s:
            return None
        if not run.is_refreshed:
            await self._summaries.refresh()
            run.is_refreshed = True
        counted = int(await self._summaries.counted(event, books.stripe_customer, start_s, end_s) or 0)
        return max(counted, await self._count_journaled(books.customer, event, (start_s, end_s)))

    async def _count_journaled(self, customer: str, event: str, span_s: tuple[int, int]) -> int:
        """Sum the journal's deliveries, for any Stripe customer of the units."""
        start_s, end_s = span_s
        read = partial(self._drainer.database.deliveries, customer, event, start_s * 1000)
        try:
            rows = await in_thread(read)
        except MeterkitError as error:
            if not self._is_journal_lost:
                _logger.warning(
                    "the journal of deliveries cannot be read; Stripe's sums alone are compared: %s", error
                )
            self._is_journal_lost = True
            return 0
        return sum(row.value for row in rows if start_s <= row.minute_s < end_s)


def _find_lacking(books: _CustomerBooks, usage: CustomerUsage, start_ms: int) -> dict[str, MissingUnits]:
    """By meter, what the books lack of an ended period."""
    return {
        meter: find_missing_units(usage, meter, units, books.unsent_of(start_ms, meter))
        for meter, units in books.sums[start_ms].items()
    }


def _describe_logged(
    books: _CustomerBooks,
    period_ms: int,
    run: _RebuildRun,
    counted: _StripeCounts,
    prices: LoggedPrices,
    view: CustomerView,
) -> Mapping[str, object]:
    """Describe the meters that the log has in a period, for rebuild_counters.lua."""
    catalog, labels = view.catalog, billed_labels(view.entitlements, view.catalog)
    per_cent, found = micros_per_minor_unit(catalog.currency), dict[str, object]()
    by_lines = books.is_by_lines(period_ms)
    for name, units in books.sums[period_ms].items():
        token, unsent, event = (
            _token_of(name, run.known),
            books.unsent_of(period_ms, name),
            run.event_of(name),
        )
        is_charged = name in catalog.meters and catalog.meters[name].charges is not None
        sold, label = () if is_charged else prices.get(name, ()), labels.get(token, "")
        cents, cheaper = unit_cents(label), dict[Fraction, int]()
        if cents is not None and not by_lines and _is_flat(name, view):
            of_unit = cents * per_cent
            before = counted.before_price(event, of_unit) if run.is_sole(event) else 0
            cheaper = find_cheaper_units(sold, of_unit, by_item=unsent.by_item, before=before)
        missed = {of_unit / per_cent: quantity for of_unit, quantity in cheaper.items()}
        found[token] = {
            "name": name,
            "units": [max(0, units[one]) for one in (*_OF_COUNTERS, "reported")],
            "unsent": unsent,
            "missed": _describe_missed(event, missed, view),
            "prices": ended_marks(
                ((one.of_unit / per_cent, one.units) for one in sold),
                label=label,
                unsent=unsent.late + unsent.by_item,
                missed=missed,
            ),
        }
    return found


def _is_flat(name: str, view: CustomerView) -> bool:
    """Whether Stripe gets a meter's overage, all of it, under its own event."""
    meter = view.catalog.meters.get(name)
    if meter is None or is_split(name, view.catalog.meters):
        return False
    return has_flat_price(view.entitlements.get(name), meter)


def _describe_missed(
    event: str, missed: Mapping[Fraction, int], view: CustomerView
) -> list[tuple[int, dict[str, str]]]:
    """Describe units whose price has ended: how many, and fields of their parked intent."""
    now_ms, found = view.cache.now_ms(), list[tuple[int, dict[str, str]]]()
    for cents, units in missed.items():
        terms = missed_terms(view.state, view.catalog, event, price_label(cents), now_ms=now_ms)
        if terms is not None:
            found.append((units, terms))
    return found


def _token_of(name: str, known: Mapping[str, ReportedMeter]) -> str:
    """The token of a meter; the log itself has the token if the name was unknown at draining."""
    return name if name in known else meter_token(name)


def _explain_skip(error: Exception) -> str:
    """Explain why one customer is skipped; raise the error if it concerns all customers."""
    if isinstance(error, CustomerDataError):
        return str(error)
    if isinstance(error, StripeError) and error.status in UNKNOWN_CUSTOMER:
        return f"Stripe does not say what it has: {error}"
    if isinstance(error, StoreError) and is_key_error(error.__cause__):
        return f"what the store keeps of it cannot be read: {error}"
    if isinstance(error, MeterkitError):
        raise error
    return f"what the store keeps of it cannot be read: {error!r:.200}"

"""Rebuild counters from the audit log after the store has lost data or was restored from a backup."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from meterkit.customers.corrections import CustomerDataError, run_on_newest_view
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import check_aware, from_ms, stamped_span_s, to_ms
from meterkit.errors import MeterkitError, StoreError, StripeError
from meterkit.insights.audit.entries import RECORDED
from meterkit.outbox.meters_or_lines import is_billed_by_lines
from meterkit.outbox.sealer import counter_ttl_ms
from meterkit.redis.daemon_thread import in_thread
from meterkit.redis.server import is_key_error
from meterkit.store.customer_usage import find_gone_tokens, read_usage_reply
from meterkit.store.event_names import ReportedMeter, read_former_meters, read_meters
from meterkit.store.input_checks import check_customer
from meterkit.stripe.request import UNKNOWN_CUSTOMER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from meterkit.customers.corrections import ScriptCall
    from meterkit.insights.audit.database import PeriodSums
    from meterkit.insights.audit.draining import AuditDrainer
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

    Units = Mapping[str, int]

    """Of a meter, by class."""


_TO_BE_LINKED: Final = (
    "it goes to Stripe and the customer is not linked: `meterkit customers link`, then rebuild again"
)
_TO_BE_NAMED: Final = (
    "it goes to Stripe and its event name is not known: start a process with the plans file that had this"
    " meter, then rebuild again"
)
_TO_BE_COMPARED: Final = (
    "Stripe may have the parked units: they are compared with Stripe's summaries after two hours, by"
    " a process that delivers or by `meterkit reconcile --repair`"
)
_OF_GRANTS: Final = (
    "grants or credits paid for some of it, and what they have left is not rebuilt: add them again by their"
    " ids (`meterkit grants list`)"
)
_IS_OVER: Final = "the period is over, and is not rebuilt: "
_PLACES: Final = ("pending", "unlinked", "queued", "leased", "parked", "delivered", "late", "dead")


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """A customer, meter and period that the audit log has more of than the counters, in the meter's unit.

    Attributes:
        meter: empty: nothing could be done for the customer, and ``advice`` says why.
        period_start: of the billing period; None: nothing could be done for the customer.
        recorded: what the counters had.
        audited: what the audit log has.
        raised: how many units are recorded now that were not; with ``dry_run`` those that would be.
        delivered: how many of those that go to Stripe it has, by its own summaries.
        parked: how many of those it may have.
        advice: what to do; empty: nothing.
        is_done: whether nothing is left to be done here.
    """

    customer: str
    meter: str
    period_start: datetime | None
    recorded: int = 0
    audited: int = 0
    raised: int = 0
    delivered: int = 0
    parked: int = 0
    advice: str
    is_done: bool


def describe_rebuilt(
    usage: CustomerUsage, sums: Mapping[str, Units], meter: str, units: Sequence[int], *, is_named: bool
) -> RebuildResult:
    """The missing units of a meter in its period, ``units`` as in rebuild_counters.lua.

    ``is_named``: whether its event name is known.
    """
    *classes, _, delivered, parked, left = units
    _, granted, credited, *_ = classes
    advices = (
        (_TO_BE_LINKED if is_named else _TO_BE_NAMED) if left else _TO_BE_COMPARED if parked else "",
        _OF_GRANTS if granted + credited and not left else "",
    )
    return RebuildResult(
        customer=usage["customer"],
        meter=meter,
        period_start=usage["period"]["start"],
        recorded=_count_recorded(usage, meter),
        audited=_count_audited(sums[meter]),
        raised=0 if left else sum(classes),
        delivered=delivered,
        parked=parked,
        advice="; ".join(filter(None, advices)),
        is_done=not left,
    )


class MissingUnits(NamedTuple):
    """Missing units of a meter in the books of an ended period.

    Attributes:
        recorded: units that were recorded.
        reported: units that were to go to Stripe and are nowhere on the way there.
    """

    recorded: int
    reported: int


def find_missing_units(usage: CustomerUsage, meter: str, units: Units) -> MissingUnits:
    """Compare the usage of an ended period with the audit log."""
    counts: Mapping[str, Any] = usage["meters"].get(meter) or {}
    reported = units["reported"] - sum(counts.get(place, 0) for place in _PLACES)
    recorded = _count_audited(units) - counts.get("recorded", 0)
    return MissingUnits(max(0, recorded), max(0, reported))


def describe_past_period(
    usage: CustomerUsage,
    start_ms: int,
    meter: str,
    units: Units,
    lacks: MissingUnits,
    *,
    unknown: int | None,
    is_long_over: bool,
) -> RebuildResult:
    """A meter of a past period with more units in the log than in the books: the difference.

    ``unknown``: what Stripe has of its event name that the books do not know of; None: it was not asked.
    """
    delivered = min(lacks.reported, unknown or 0)
    unbilled = lacks.reported - delivered
    if not lacks.reported:
        advice = "nothing that is missing was to be billed"
    elif not unbilled:
        advice = "Stripe has all of it that was to be billed"
    elif unknown is None:
        advice = f"compare the {lacks.reported} units that were to be billed with its invoice"
    else:
        advice = f"Stripe lacks {unbilled} units that were to be billed: bill them by an invoice item"
    return RebuildResult(
        customer=usage["customer"],
        meter=meter,
        period_start=from_ms(start_ms),
        recorded=_count_audited(units) - lacks.recorded,
        audited=_count_audited(units),
        delivered=delivered,
        advice=_IS_OVER + advice,
        is_done=not unbilled or is_long_over,
    )


def describe_unknown_periods(
    usage: CustomerUsage, sums: Mapping[int, Mapping[str, Units]], last_ms: Mapping[int, int]
) -> list[RebuildResult]:
    """Units recorded in a period that the store does not know, because it lost the customer."""
    start = usage["period"]["start"]
    advice = (
        f"its period begins {start:%Y-%m-%dT%H:%MZ} by the store: have its subscription or plan known again"
        " first (`meterkit customers show`), then rebuild"
    )
    return [
        RebuildResult(
            customer=usage["customer"],
            meter=meter,
            period_start=from_ms(period_ms),
            recorded=_count_recorded(usage, meter) if period_ms == to_ms(start) else 0,
            audited=_count_audited(units),
            advice=advice,
            is_done=False,
        )
        for period_ms, meters in sums.items()
        if last_ms[period_ms] >= to_ms(start)
        for meter, units in meters.items()
    ]


def describe_skipped(customer: str, why: str) -> RebuildResult:
    """A customer for whom nothing could be done."""
    return RebuildResult(
        customer=customer,
        meter="",
        period_start=None,
        advice=f"nothing is rebuilt of this customer: {why}",
        is_done=False,
    )


def _count_recorded(usage: CustomerUsage, meter: str) -> int:
    found = usage["meters"].get(meter)
    return 0 if found is None else found["recorded"]


def _count_audited(units: Units) -> int:
    return sum(units[name] for name in RECORDED)


_logger = logging.getLogger("meterkit.audit")

_LEASE_S: Final = 35.0
_TRIES: Final = 8
_SAME_PERIOD_MS: Final = 120_000  # A period that begins later than that after another is another one.
_DAY_MS: Final = 86_400_000
_LONGEST_MS: Final = 400 * _DAY_MS  # More than any period.
_MONTH_MS: Final = 31 * _DAY_MS
_LONG_OVER_MS: Final = 36 * _DAY_MS  # No process waits for the close of such a period.
_OF_COUNTERS: Final = (*RECORDED, "late")
_PARKED, _LEFT = 7, 8  # Among the numbers of a meter; see rebuild_counters.lua.
_WAITS, _OTHER_PERIOD, _NO_MINUTE = 1, 5, 6
_UNREADABLE: Final = (ValueError, TypeError, AttributeError, LookupError)


class SummaryReader(Protocol):
    """Reads Stripe's meter event summaries; see :class:`meterkit.delivery.summaries.StripeSummaries`."""

    async def refresh(self) -> None:
        """Fetch the list of meters."""
        ...

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """Read Stripe's count of a customer's units from one whole minute to another."""
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

    def event_of(self, meter: str) -> str:
        """The event name of a meter; empty: none is known."""
        counted = self.known.get(_token_of(meter, self.known))
        return "" if counted is None else counted.event_name


@dataclass(frozen=True, slots=True, kw_only=True)
class _CustomerBooks:
    """Stored usage of a customer at one instant.

    Attributes:
        usage_at: the usage of the period of any instant (``at_ms``; None: now).
        stripe_customer: the one that is linked.
        is_by_lines: whether invoice lines bill the period of an instant (ms).
    """

    customer: str
    usage_at: Callable[..., CustomerUsage]
    stripe_customer: str | None
    is_by_lines: Callable[[int], bool]

    def ends_ms(self, start_ms: int) -> int:
        """End of a period by its start (ms), at the earliest if that is no longer known."""
        known = self.usage_at(at_ms=start_ms + _SAME_PERIOD_MS)["period"]["end"]
        return max(to_ms(known), start_ms + _MONTH_MS)


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
        if at is not None:
            check_aware("at", at)
        if customer is not None:
            check_customer(customer)
        drainer = self._drainer
        async with drainer.lease.held(within_s=_LEASE_S) as is_held:
            if not is_held:
                raise MeterkitError("another process drains the audit log; try again in a minute")
            await drainer.drain()
            run = _RebuildRun(at_ms=None if at is None else to_ms(at), by=by, dry=dry_run)
            names = [customer] if customer else await asyncio.to_thread(drainer.database.customers)
            found = [] if found is None else found
            for name in names:
                try:
                    found += await self._rebuild_customer(name, run)
                except (MeterkitError, *_UNREADABLE) as error:
                    why = _explain_skip(error)
                    if why is None:
                        raise
                    found.append(describe_skipped(name, why))
            return found

    async def _rebuild_customer(self, customer: str, run: _RebuildRun) -> list[RebuildResult]:
        store, drainer = self._store, self._drainer
        admin = await store.admin()
        run.known = await read_meters(admin, store.keys, store.catalog, customer)
        counted: dict[str, int] | None = None
        for _ in range(_TRIES):
            await drainer.drain_shard(store.keys.customer(customer).shard)
            since_ms = (store.now_ms() if run.at_ms is None else run.at_ms) - _LONGEST_MS
            sums, last_ms = await asyncio.to_thread(drainer.database.sums, customer, since_ms)
            books = await self._read_books(customer)
            usage = books.usage_at(at_ms=None)
            start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
            begun_ms = start_ms - _SAME_PERIOD_MS
            past = [one for one in sorted(sums) if one <= begun_ms and last_ms[one] < start_ms]
            if run.at_ms is not None and not start_ms <= run.at_ms < end_ms:
                asked = [one for one in past if one <= run.at_ms < books.ends_ms(one)][-1:]
                return await self._compare_periods(books, sums, (*past, start_ms), asked, run)
            told: list[RebuildResult] = []
            if run.at_ms is None:
                told = await self._compare_periods(books, sums, (*past, start_ms), past, run)
            period_ms = next((one for one in sums if abs(one - start_ms) < _SAME_PERIOD_MS), None)
            if period_ms is None:
                return [*told, *describe_unknown_periods(usage, sums, last_ms)]
            if counted is None:
                missing = await self._raise_counters(usage, sums[period_ms], {}, run, dry=True)
                if missing is None:
                    continue
                counted = await self._count_events(books, missing, run)
            done = await self._raise_counters(usage, sums[period_ms], counted, run, dry=run.dry)
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

    async def _read_books(self, customer: str) -> _CustomerBooks:
        store, admin, keys = self._store, await self._store.admin(), self._store.keys.customer(customer)
        names = [keys.counters, keys.state, keys.totals, keys.grants, keys.levels]
        reply = await admin.run(store.scripts["read_usage"], names)
        tokens = find_gone_tokens(store.catalog, reply)
        (gone,) = await read_former_meters([tokens], admin, store.keys, store.catalog, former=True)
        state = CustomerState.parse(reply[2])
        return _CustomerBooks(
            customer=customer,
            usage_at=partial(read_usage_reply, customer, store.catalog, reply, gone),
            stripe_customer=state.stripe_customer,
            is_by_lines=partial(is_billed_by_lines, state, store.catalog),
        )

    async def _compare_periods(
        self,
        books: _CustomerBooks,
        sums: PeriodSums,
        starts_ms: Sequence[int],
        asked: Collection[int],
        run: _RebuildRun,
    ) -> list[RebuildResult]:
        """Compare ended periods: units missing from the books, and Stripe's share of them.

        Args:
            books: what the store has.
            sums: of the log.
            starts_ms: of all periods that the log knows, up to the one that is open.
            asked: of those that are to be compared.
            run: this one.
        """
        found: list[RebuildResult] = []
        for one, next_ms in pairwise(starts_ms):
            if one not in asked:
                continue
            usage = books.usage_at(at_ms=one + _SAME_PERIOD_MS)
            is_long_over = run.at_ms is None and self._store.now_ms() - next_ms > _LONG_OVER_MS
            found_lacking = {
                meter: find_missing_units(usage, meter, units) for meter, units in sums[one].items()
            }
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
                units = sums[one][meter]
                told = describe_past_period(
                    usage, one, meter, units, lacks, unknown=unknown, is_long_over=is_long_over
                )
                if unknown is not None:
                    left[event] = unknown - told.delivered
                found.append(told)
        return found

    async def _raise_counters(
        self,
        usage: CustomerUsage,
        sums: Mapping[str, Mapping[str, int]],
        counted: Mapping[str, int],
        run: _RebuildRun,
        *,
        dry: bool,
    ) -> dict[str, list[int]] | None:
        """Raise the counters; missing units by meter. None: drain the log and try again."""
        store, customer, known = self._store, usage["customer"], run.known
        tokens = {name: _token_of(name, known) for name in sums}
        meters = {
            tokens[name]: {
                "name": name,
                "units": [max(0, units[one]) for one in (*_OF_COUNTERS, "reported")],
            }
            for name, units in sums.items()
        }

        async def call(view: CustomerView) -> ScriptCall:
            keys, state = view.keys, view.state
            wanted = {
                "dry": int(dry),
                "period": to_ms(usage["period"]["start"]),
                "stripe": state.stripe_customer or "",
                "id": token_hex(16),
                "by": run.by,
                "minutes": state.minutes_taken_ms,
                "meters": meters,
                "events": {token: counted.event_name for token, counted in known.items()},
                "counted": counted,
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
        self, books: _CustomerBooks, missing: Mapping[str, Sequence[int]], run: _RebuildRun
    ) -> dict[str, int]:
        """Stripe's counts of the event names that may have the missing units.

        None if these may belong to a meter whose event name is unknown.
        """
        if any(units[_LEFT] and not run.event_of(name) for name, units in missing.items()):
            return {}
        period = books.usage_at(at_ms=None)["period"]
        span_ms = to_ms(period["start"]), to_ms(period["end"])
        asked = {run.event_of(name) for name, units in missing.items() if units[_PARKED]}
        return {event: await self._count_event(books, event, span_ms, run) or 0 for event in sorted(asked)}

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


def _token_of(name: str, known: Mapping[str, ReportedMeter]) -> str:
    """The token of a meter; the log itself has the token if the name was unknown at draining."""
    return name if name in known else meter_token(name)


def _explain_skip(error: Exception) -> str | None:
    """Explain why one customer is skipped; None: the error concerns all customers."""
    if isinstance(error, CustomerDataError):
        return str(error)
    if isinstance(error, StripeError):
        return f"Stripe does not say what it has: {error}" if error.status in UNKNOWN_CUSTOMER else None
    if isinstance(error, StoreError):
        is_kept = is_key_error(error.__cause__)
        return f"what the store keeps of it cannot be read: {error}" if is_kept else None
    if isinstance(error, MeterkitError):
        return None
    return f"what the store keeps of it cannot be read: {error!r:.200}"

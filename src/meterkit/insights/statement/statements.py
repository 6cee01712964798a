"""Statements (``kit.statement``): join invoices, the audit log and the ledger of grants."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.billed_usage import price_overage, read_totals, read_uninvoiced
from meterkit.customers.grants import Grants
from meterkit.customers.history import known_subscriptions, read_all_links, read_billed_links, read_history
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import is_billed_by_lines
from meterkit.decisions.item_prices import base_interval
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import from_ms, period_ms, to_ms
from meterkit.decisions.subscription import ENDED
from meterkit.errors import MeterkitError
from meterkit.insights.audit.async_database import open_database
from meterkit.insights.simulation.plan_costs import plan_cost, read_tenures
from meterkit.insights.statement.lines import (
    BalanceEntry,
    EventSelection,
    Statement,
    StatementLine,
    UnitsElsewhere,
    billed_later,
    build_invoice,
    explain_lack,
    explain_lines,
    never_billed,
    price_line,
    select_events,
    unbilled,
    without_amount,
)
from meterkit.insights.statement.period_invoices import PeriodInvoices
from meterkit.outbox.close_queue import STAMPED_AHEAD_MS
from meterkit.outbox.invoice_item_queue import usage_key_of
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.event_names import find_former_events, read_meters
from meterkit.store.input_checks import check_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from meterkit.customers.billed_usage import OverageCost
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.insights.audit.database import Database
    from meterkit.settings import Settings
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi


EVENTS: Final = 100
"""Default number of events that are read of each line."""
EVENTS_MAX: Final = 10_000
_AT_ONCE: Final = 1_000
_FORMER: Final = "usage of the period before: the statement of that period has its events"
_ENDED_WITHIN: Final = timedelta(days=1)
"""Time after the end of a subscription within which the ledger has it."""


class Statements:
    """Makes statements; ``kit.statement`` is one of these, and is called.

    Args:
        store: where usage is counted.
        settings: name the database of the audit log, and the Stripe key.
        api: the way to Stripe; made when it is first needed.
    """

    def __init__(self, store: Store, settings: Settings, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._settings = settings
        self._api = api

    async def __call__(
        self,
        customer: str,
        period: datetime | str | None = None,
        *,
        line: str | None = None,
        after: str = "",
        most: int = EVENTS,
    ) -> Statement:
        """The bill of a period, each line with its events: what, when, at which price and why.

        Lines are those of the period's invoices: of changes in it and of the renewal at its end. Until the
        renewal's invoice has it, usage is a line for each meter with the overage and the cost of the
        counters, as on the usage page; its note says how many units have no event.
        Without an invoice, plan and seats are priced as on the usage page, too.

        Args:
            customer: the customer's id.
            period: an aware instant in the period, or its id; None: this period.
            line: give this line alone, by its id; None: all.
            after: give the events after this place, which a line of an earlier statement has as ``after``.
            most: so many events of each line, from 0 to 10,000.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used, or the database does not answer.
            SettingsError: there is no audit log.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        if type(most) is not int or not 0 <= most <= EVENTS_MAX:
            raise MeterkitError(f"most: found {most!r:.40}; allowed is an integer from 0 to {EVENTS_MAX}")
        found, made, wanted = await self._build_statement(customer, period)
        shown = [one for one in found.lines if line is None or one.id == line]
        if not shown and line is not None:
            raise MeterkitError(f"line: found {line!r:.80}; the statement has no such line")
        return replace(
            found, lines=tuple([await made.with_events(one, wanted, after, most) for one in shown])
        )

    async def pages(
        self, customer: str, period: datetime | str | None = None
    ) -> AsyncGenerator[StatementLine]:
        """All lines of a statement with all their events, for a stream: Stripe and the store are asked once.

        A line with more than 1,000 events comes again with the next ones. Raises as the call does.
        """
        found, made, wanted = await self._build_statement(customer, period)
        for line in found.lines:
            page = await made.with_events(line, wanted, "", _AT_ONCE)
            yield page
            while page.after:
                page = await made.with_events(line, wanted, page.after, _AT_ONCE)
                yield page

    async def _build_statement(
        self, customer: str, period: datetime | str | None
    ) -> tuple[Statement, _StatementBuilder, dict[str, EventSelection]]:
        """A statement without events, and what finds those of its lines."""
        customer = check_customer(customer)
        database = open_database(self._settings, "a statement is")
        at_ms = None if period is None else period_ms(period)
        (usage,) = await self._store.usage_of_many([customer], at_ms=at_ms, former=True)
        _, state = await CustomerStates(self._store).read(customer)
        made = _StatementBuilder(self._store, database, usage, state)
        end_ms = made.renewal_ms()
        reader = await self._read_invoices(state, usage)
        all_invoices = [] if reader is None else await reader.of_period()
        invoices = [one for one in all_invoices if one["status"] != "void"]
        # What a void renewal had billed is never paid.
        is_void = _has_renewal(all_invoices, end_ms) and not _has_renewal(invoices, end_ms)
        is_invoiced = bool(invoices) or is_void
        has_ended = end_ms <= self._store.now_ms()
        elsewhere: Mapping[str, Sequence[UnitsElsewhere]] = {}
        if has_ended:
            elsewhere = await self._read_elsewhere(reader, usage, state, [one["id"] for one in all_invoices])
        lines, wanted = await made.lines(
            invoices, reader if is_invoiced else None, elsewhere, is_void=is_void
        )
        is_amid_year = has_ended and not _has_renewal(all_invoices, end_ms)
        later = await self._read_later_lines(reader, usage, made) if reader and is_amid_year else []
        missed: Mapping[str, int] = await read_uninvoiced(self._store, usage) if has_ended else {}
        lines = [never_billed(billed_later(line, later), missed) for line in lines]
        # Amid a paid year, or after the end of a subscription, no invoice comes where nothing is due.
        is_paid = not any(line.amount_cents for line in lines if line.invoice is None)
        is_settled = bool(later) or any(missed.values()) or not await made.is_renewal_due()
        is_over = is_paid and has_ended and is_settled
        currency = str(invoices[0]["currency"]) if invoices else usage["currency"]
        if currency != usage["currency"]:
            lines = [without_amount(line, usage["currency"]) for line in lines]
        totals = [int(one["total"]) for one in invoices if one["currency"] == currency]
        totals += [line.amount_cents for line in lines if line.invoice is None]
        found = Statement(
            customer=customer,
            period_id=usage["period"]["id"],
            period_start=usage["period"]["start"],
            period_end=usage["period"]["end"],
            currency=currency,
            is_final=_is_final(invoices, end_ms, is_over=is_void or is_over) and not made.waiting_meters(),
            invoices=tuple(map(build_invoice, invoices)),
            lines=tuple(lines),
            total_cents=sum(totals),
            balance=tuple(await self._balance(usage)),
        )
        return found, made, wanted

    async def _read_invoices(self, state: CustomerState, usage: CustomerUsage) -> PeriodInvoices | None:
        """Make the reader of a period's invoices; None: no invoice can be read."""
        start_s, end_s = (to_ms(usage["period"][edge]) // 1000 for edge in ("start", "end"))
        customer, linked = usage["customer"], state.stripe_customer
        links = await read_billed_links(self._store, customer, linked, start_s, end_s)
        if self._settings.stripe_api_key is None or not links:
            return None
        known = known_subscriptions(state, await read_history(self._store, customer), end_s * 1000)
        # An earlier link may have been a mistake, and its invoices those of another customer.
        owners = {one.stripe_customer: None if one.stripe_customer == linked else customer for one in links}
        return PeriodInvoices(self._api(), owners, (start_s, end_s), known)

    async def _read_elsewhere(
        self,
        reader: PeriodInvoices | None,
        usage: CustomerUsage,
        state: CustomerState,
        shown: Collection[str],
    ) -> Mapping[str, Sequence[UnitsElsewhere]]:
        """Read where units of an ended period are billed that its invoices lack, by meter."""
        store, customer, start_ms = self._store, usage["customer"], to_ms(usage["period"]["start"])
        by_lines = is_billed_by_lines(state, store.catalog, start_ms)
        late = [name for name, counts in usage["meters"].items() if counts["late"]]
        if not late and not by_lines:
            return {}
        found = dict[str, list[UnitsElsewhere]]()
        if reader is not None:
            keys = {usage_key_of(customer, meter_token(name), start_ms): name for name in usage["meters"]}
            links = await read_all_links(store, customer, state.stripe_customer)
            found = await reader.units_elsewhere(keys, links, shown)
        # What metered prices bill is recorded again in the period that bills it.
        letters = "abt" if by_lines else "ab"
        for name, (waiting, *refused) in (await read_totals(store, usage, late, letters)).items():
            units = {
                "the next invoice": int(waiting or 0),
                "no invoice": sum(int(one or 0) for one in refused),
            }
            more = [UnitsElsewhere(count, place) for place, count in units.items() if count]
            if more:
                found.setdefault(name, []).extend(more)
        return found

    async def _read_later_lines(
        self, reader: PeriodInvoices, usage: CustomerUsage, made: _StatementBuilder
    ) -> list[StatementLine]:
        """The lines of later invoices that bill usage of the period, as that of a year does."""
        start: datetime = usage["period"]["start"]
        end: datetime = usage["period"]["end"]
        meters = {event: of[0] for event, of in (await made.by_event()).items()}
        found = await reader.later_lines(meters)
        return [line for line in found if line.start < end and start < line.end]

    async def _balance(self, usage: CustomerUsage) -> list[BalanceEntry]:
        """Changes of balances in money: usage of the period, and all entries of its grants."""
        start, end, customer = usage["period"]["start"], usage["period"]["end"], usage["customer"]
        credits_, grants = self._store.catalog.credits, Grants(self._store)
        made = {one.grant_id: one.created_at for one in await grants.list(customer)}
        found: list[BalanceEntry] = []
        is_of = False
        for one in await grants.ledger(customer):
            if one.kind != "credit" or one.name not in credits_ or not credits_[one.name].is_money:
                continue
            at = made.get(one.grant_id)
            if one.period_start is not None:
                is_of = one.period_start == start
            elif one.grant_id:  # The second line of a repayment names no grant: it goes with the first.
                is_of = at is not None and start <= at < end
            if is_of:
                found.append(
                    BalanceEntry(
                        credit=one.name,
                        entry=one.entry,
                        grant_id=one.grant_id,
                        amount_micros=one.quantity,
                        meter=one.meter,
                        at=at if one.entry == "grant" else None,
                    )
                )
        return found


class _StatementBuilder:
    """One statement in the making.

    Args:
        store: where usage is counted.
        database: of the audit log.
        usage: of the period.
        state: the customer's.
    """

    def __init__(self, store: Store, database: Database, usage: CustomerUsage, state: CustomerState) -> None:
        self._store = store
        self._database = database
        self._usage = usage
        self._state = state
        self._events: Any = import_module("meterkit.insights.statement.audit_rows")  # SQLAlchemy is an extra.
        self._start_ms = to_ms(usage["period"]["start"])

    async def lines(
        self,
        invoices: Sequence[Mapping[str, Any]],
        reader: PeriodInvoices | None,
        elsewhere: Mapping[str, Sequence[UnitsElsewhere]],
        *,
        is_void: bool,
    ) -> tuple[list[StatementLine], dict[str, EventSelection]]:
        """The lines without events, and by id which events each has.

        ``elsewhere``: units that the invoices lack, by meter. ``is_void``: the renewal's invoice is void.
        """
        by_event = await self.by_event()
        meters = {event: of[0] for event, of in by_event.items()}
        is_by_lines = is_billed_by_lines(self._state, self._store.catalog, self._start_ms)
        # Meters that share an event share metered lines; a line that meterkit writes is of one meter.
        shared = [[name] for of in by_event.values() for name in of] if is_by_lines else by_event.values()
        names = {of[0]: (*of, *map(meter_token, of)) for of in shared}
        has_invoice = reader is not None
        read = [] if reader is None else await reader.lines_of(invoices, meters)
        # An invoice that begins this period has the usage of the one before: its events are not in this one.
        start = self._usage["period"]["start"]
        former = [line for line in read if line.kind == "usage" and line.end <= start]
        found = [line for line in read if line not in former]
        is_renewed = _has_renewal(invoices, self.renewal_ms())
        found += [] if is_renewed else self._rest_lines(found)
        wanted = select_events(found, names, await self._plan_changes())
        waiting = self.waiting_meters() if is_renewed else frozenset[str]()
        used = sorted({*await self._used_meters(counted=not is_renewed), *waiting, *elsewhere})
        own = [line.meter for line in found if line.meter and line.late_since is None]
        without = {name for meter in own for name in names.get(meter, ())}
        without |= {one.name for one in self._store.catalog.meters.values() if one.is_spend}
        for meter in used:
            if meter not in without:
                line = self._usage_line(meter)
                found.append(line)
                wanted[line.id] = EventSelection((meter, meter_token(meter)))
        sums = await self._query(self._events.sums_of, wanted)
        lack, since = explain_lack(self._usage["meters"]), self._usage["period"]["start"]
        lines = explain_lines(found, wanted, sums, elsewhere, lack, since)
        if waiting or not is_renewed:
            costs = await price_overage(self._store, self._usage, self._state)
            lines = [
                one
                if one.id not in wanted or (is_renewed and one.meter not in waiting)
                else self._price_line(one, wanted[one.id].meters, costs, lines, has_invoice=has_invoice)
                for one in lines
            ]
        if is_void:
            lines = [one if one.meter in self.waiting_meters() else unbilled(one) for one in lines]
        found = [one for one in lines if not self._is_empty(one, has_invoice=has_invoice)]
        if reader is None:
            found = [*await self._fixed_lines(), *found]
        return [*(replace(one, note=_FORMER if one.quantity else "") for one in former), *found], wanted

    def renewal_ms(self) -> int:
        """The first instant at which the period may end at Stripe: one cut short ends earlier there."""
        end_ms = to_ms(self._usage["period"]["end"])
        is_over = end_ms + STAMPED_AHEAD_MS <= self._store.now_ms()
        return end_ms - STAMPED_AHEAD_MS if is_over else end_ms

    async def _used_meters(self, *, counted: bool) -> list[str]:
        """Names of meters with events in the audit log; ``counted``: also those that only counters have."""
        of_usage, meters = self._usage["meters"], self._store.catalog.meters
        logged: list[str] = await self._query(self._events.meters_of)
        names = {meter_token(name): name for name in of_usage}
        found = {names.get(name, name) for name in logged}
        if counted:
            kept = (name for name in of_usage if name not in meters or meters[name].kind == "counter")
            found |= {name for name in kept if of_usage[name]["recorded"]}
        return sorted(found)

    def waiting_meters(self) -> frozenset[str]:
        """Meters whose usage waits for an invoice line; none where metered prices bill it."""
        if not is_billed_by_lines(self._state, self._store.catalog, self._start_ms):
            return frozenset()
        counted = self._usage["meters"].items()
        return frozenset(name for name, one in counted if one["pending"] + one["unlinked"] + one["queued"])

    def _rest_lines(self, lines: Sequence[StatementLine]) -> list[StatementLine]:
        """A line for each meter that the invoice of a change has, with its usage since then."""
        ends = {
            line.meter: line.end
            for line in sorted(lines, key=lambda line: line.end)
            if line.meter and line.kind == "usage" and line.late_since is None
        }
        return [
            replace(self._usage_line(meter), start=end)
            for meter, end in ends.items()
            if end < self._usage["period"]["end"]
        ]

    def _is_empty(self, line: StatementLine, *, has_invoice: bool) -> bool:
        """Whether nothing is on a line, or Stripe never sees its meter and no unit is on it alone."""
        meter = self._store.catalog.meters.get(line.meter or "")
        if line.invoice is not None:
            return False
        if meter is None or meter.stripe is not None:
            return not (line.event_count or line.quantity or line.amount_cents or line.note)
        # Units at the default price by model are on the invoice line of their source.
        is_twice = has_invoice and meter.is_row
        return is_twice or not (line.included or line.granted or line.credited or line.overage or line.note)

    async def with_events(
        self, line: StatementLine, wanted: Mapping[str, EventSelection], after: str, most: int
    ) -> StatementLine:
        """A line with a page of its events."""
        if line.id not in wanted or not most or not line.event_count:
            return line
        events, ends = await self._query(self._events.page_of, wanted[line.id], after, most)
        return replace(line, events=events, after=ends)

    async def _query(self, call: Callable[..., Any], *more: object) -> Any:
        """Ask the database for something of the customer's period."""
        return await in_thread(partial(call, self._database, self._usage["customer"], self._start_ms, *more))

    async def by_event(self) -> dict[str, list[str]]:
        """By event name, the meters that share it."""
        found: dict[str, list[str]] = {}
        store, admin = self._store, await self._store.admin()
        at_ms = min(to_ms(self._usage["period"]["end"]) - 1, store.now_ms())
        known = await read_meters(admin, store.keys, store.catalog, self._usage["customer"], at_ms=at_ms)
        for one in known.values():
            found.setdefault(one.event_name, []).append(one.meter)
        for event, former in find_former_events(self._state, store.catalog, self._start_ms).items():
            found |= {name: found[event] for name in former if event in found and name not in found}
        return found

    async def _plan_changes(self) -> list[datetime]:
        start, end = self._usage["period"]["start"], self._usage["period"]["end"]
        entries = await read_history(self._store, self._usage["customer"])
        return [one.at for one in entries if one.kind == "plan" and start < one.at < end]

    def _plain_line(self, name: str, kind: Any, words: str, **more: Any) -> StatementLine:
        span = self._usage["period"]
        return StatementLine(
            id=name, invoice=None, kind=kind, description=words, start=span["start"], end=span["end"], **more
        )

    def _usage_line(self, meter: str) -> StatementLine:
        known = self._store.catalog.meters.get(meter)
        words = f"Usage of {meter}" if known is None else known.title
        return self._plain_line(f"usage/{meter}", "usage", words, meter=meter)

    async def _fixed_lines(self) -> list[StatementLine]:
        """Prices of plan, seats and add-ons, by the subscription's items, otherwise by the plans file."""
        customer, catalog = self._usage["customer"], self._store.catalog.in_currency(self._usage["currency"])
        had = await read_tenures(self._store, self._start_ms, {customer: self._start_ms}, customer=customer)
        tenure = had[customer]
        plan = catalog.plan_or_default(tenure.charged_plan)
        cost = plan_cost(catalog, plan, tenure.seats, tenure.fixed, tenure.addons)
        if not self._is_due(cost.base.interval) or await self._ends_subscription():
            return []
        priced = [("plan", f"{plan.name}, per {cost.base.interval}", cost.base, 1)]
        if cost.seat is not None:
            priced.append(("seats", f"Seats of {plan.name}", cost.seat, cost.paid_seats))
        priced += [(f"addon/{addon.key}", addon.name, addon.price, addon.quantity) for addon in cost.addons]
        return [
            self._plain_line(
                line,
                "subscription",
                words,
                quantity=quantity,
                unit_amount=f"{price.cents()}",
                amount_cents=price.cents(quantity),
            )
            for line, words, price, quantity in priced
            if price.cents(quantity)
        ]

    def _is_due(self, interval: str) -> bool:
        """Whether the price of a plan is due when the period ends: that of a year in its last month only."""
        subscription = self._state.subscription
        if interval != "year" or subscription is None:
            return True
        end: datetime = self._usage["period"]["end"]
        return end.month == from_ms(subscription.anchor_ms).month

    async def is_renewal_due(self) -> bool:
        """Whether the price of a plan is due when the period ends."""
        base = "" if self._state.subscription is None else self._state.subscription.base_price
        return self._is_due(base_interval(base) or "month") and not await self._ends_subscription()

    async def _ends_subscription(self) -> bool:
        """Whether the subscription ends with the period, so that no renewal charges the next one."""
        span, subscription = self._usage["period"], self._state.subscription
        start, end = span["start"], span["end"]
        if subscription is not None and to_ms(start) < subscription.ends_ms() <= to_ms(end):
            return True
        entries = await read_history(self._store, self._usage["customer"])
        ended = (one.at for one in entries if one.kind == "status" and one.after in ENDED)
        return any(start < at <= end + _ENDED_WITHIN for at in ended)

    def _price_line(
        self,
        line: StatementLine,
        names: Sequence[str],
        costs: Mapping[str, OverageCost],
        lines: Sequence[StatementLine],
        *,
        has_invoice: bool,
    ) -> StatementLine:
        """A usage line that no invoice has, at its cost; a line of an invoice stays as it is.

        ``names``: the meters of its events. ``lines``: of the statement.
        """
        if line.invoice is not None or line.meter is None:
            return line
        known = [name for name in names if name in costs]
        recorded = sum(self._usage["meters"][name]["recorded"] for name in known)
        if has_invoice:  # Units at the default price by model are on the line of their source.
            meters = self._store.catalog.meters.values()
            known += [
                row.name for row in meters if row.is_row and row.stripe is None and row.source == line.meter
            ]
        own = [one for one in lines if (one.kind, one.meter, one.late_since) == ("usage", line.meter, None)]
        return price_line(line, [costs[name] for name in known], recorded, own)


def _has_renewal(invoices: Sequence[Mapping[str, Any]], end_ms: int) -> bool:
    """Whether the invoice of the renewal at the period's end is there."""
    return max((int(one["period_end"]) for one in invoices), default=0) >= end_ms // 1000


def _is_final(invoices: Sequence[Mapping[str, Any]], end_ms: int, *, is_over: bool) -> bool:
    """Whether the invoice of the renewal is there, or none is to come, and none is a draft."""
    is_renewed = is_over or _has_renewal(invoices, end_ms)
    return is_renewed and all(one["status"] != "draft" for one in invoices)

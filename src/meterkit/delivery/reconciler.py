"""``kit.reconcile``: recorded, delivered and counted units of each customer, our books against Stripe's."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.billed_usage import UnitsByPrice, price_usage, read_negative_units, read_uninvoiced
from meterkit.customers.history import is_relinked, read_billed_links
from meterkit.customers.sorted_customers import customers_with_counts
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import is_billed_by_lines
from meterkit.decisions.periods import aware_ms, to_ms
from meterkit.delivery.flush_report import FlushReport
from meterkit.delivery.intent_comparer import CAUSE, IntentComparer
from meterkit.delivery.invoices import InvoiceReader, read_period_billing
from meterkit.delivery.line_books import line_books
from meterkit.delivery.reconcile_findings import EventBooks, advice_on_event, advice_on_prices, mispriced
from meterkit.delivery.stripe_books import StripeBooks, item_books
from meterkit.delivery.summaries import StripeSummaries
from meterkit.outbox.intents import can_resend, is_refused
from meterkit.outbox.operator_commands import Intents
from meterkit.store.event_names import read_meters
from meterkit.store.input_checks import check_customer
from meterkit.store.unreadable_data import UnreadableDataError, read_each, skip_unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from datetime import datetime

    from meterkit.customers.history import LinkSpan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.outbox.journal import Journal
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_AT_ONCE: Final = 100
_SENT_WITHIN: Final = timedelta(days=35)
"""Time after a period within which Stripe takes its usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """One customer, meter and period: our books and Stripe's, in the meter's unit.

    Attributes:
        stripe_customer: linked when the period ended, or later; None: there was none.
        event_name: of the meter at Stripe.
        period_start, period_end: of the billing period.
        is_closed: whether the period is over: then this is its close report.
        recorded: all recorded units, those that do not go to Stripe included.
        waiting: pending, unlinked, queued or being sent.
        parked: Stripe may have them, or an operator must decide.
        taking_back: units of negative events that wait or are parked; they are subtracted there.
        delivered: accepted by Stripe, by our books.
        confirmed: units of the event name by Stripe's summaries; None: it has no such customer or meter.
        difference: ``confirmed`` less the delivered units of all meters that have had this event name, such
            as a renamed one, counted late units included; None if ``confirmed`` is.
        invoiced: units of the event name on invoice lines of this period, and in pending invoice items; None:
            no invoice will have them, or the lines do not show units.
        invoice: ``final``, or ``draft`` while one of those invoices may change; ``pending`` while invoice
            items wait for an invoice, as in a pause; ``none``: there is no such line; ``unknown``: lines do
            not show units; empty: nothing is invoiced, as in a trial.
        invoiced_cents: the amount of these lines, before discounts and taxes; None: not known.
        mispriced: units of the event name on lines of another price than their recorded one; 0 also if the
            prices are not known.
        late: recorded when the period was closed or its invoice final, or on no invoice.
        by_item: late units that invoice items bill, at their recorded price.
        dead: never accepted, or dropped.
        advice: for the operator; empty: the books agree.
    """

    customer: str
    stripe_customer: str | None
    meter: str
    event_name: str
    period_start: datetime
    period_end: datetime
    is_closed: bool
    recorded: int
    waiting: int
    parked: int
    taking_back: int
    delivered: int
    confirmed: int | None
    difference: int | None
    invoiced: int | None
    invoice: str
    invoiced_cents: int | None = None
    mispriced: int
    late: int
    by_item: int = 0
    dead: int
    advice: str

    @property
    def agrees(self) -> bool:
        """Whether Stripe has counted all delivered units, and none is parked."""
        return not self.advice


class Reconciler:
    """Compares our books with Stripe's.

    Args:
        store: counts the usage.
        api: the way to Stripe; made when it is first needed.
        journal: the journal of deliveries; None: there is none.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], journal: Journal | None = None) -> None:
        self._store = store
        self._api = api
        self._journal = journal
        self._prices: dict[str, Any] = {}

    def invoices(self) -> InvoiceReader:
        """Make a reader of invoices, which caches them during one comparison.

        Raises:
            SettingsError: no Stripe key is set.
        """
        return InvoiceReader(self._api(), self._prices, self._store.catalog.currency)

    async def __call__(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[Reconciled]:
        """Compare our books with Stripe's, for each customer and meter with usage for Stripe in a period.

        Args:
            customer: only this customer; default: all.
            at: an instant of the period (aware), of the last 400 days; default: now.
            repair: compare ambiguous intents with the summaries of their minutes, and settle them: see
                :meth:`meterkit.Intents.redrive`. That takes two comparisons, ten minutes apart.
            progress: called with the number of customers that are done, and the number of all.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used.
            SettingsError: no Stripe key is set.
            UnreadableDataError: the stored data of some customers cannot be read; the message names them.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        skipped = list[str]()
        compared = self.pages(customer, at=at, repair=repair, progress=progress, skipped=skipped)
        async with aclosing(compared) as pages:
            found = [one async for page in pages for one in page]
        if skipped:
            names = ", ".join(map(repr, skipped))
            raise UnreadableDataError(f"the stored data of these customers cannot be read: {names}")
        return found

    async def pages(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
        skipped: list[str],
    ) -> AsyncGenerator[list[Reconciled]]:
        """Compare as :meth:`reconcile` does, in pages of customers, so that memory need not hold all.

        Customers whose stored data cannot be read are logged, and added to ``skipped``.

        Raises:
            MeterkitError: as :meth:`reconcile` does, or the temporary folder has no room for the ids.
        """
        at_ms = None if at is None else aware_ms("at", at)
        summaries = StripeSummaries(self._api())
        if repair or not self._store.catalog.billing.is_by_lines:
            await summaries.refresh()
        compare = partial(
            self._compare_page,
            at_ms=at_ms,
            summaries=summaries,
            invoices=self.invoices(),
            progress=progress or (lambda _done, _of: None),
            skipped=skipped,
        )
        if customer is not None:
            customer = check_customer(customer)
            if repair:
                await self._repair_ambiguous(customer, summaries)
            yield await compare([customer], 0, 1)
            return
        async with customers_with_counts(self._store) as customers:
            await customers.add_set_up(await self._store.admin(), self._store.keys)
            if repair:
                await self._repair_ambiguous(None, summaries)
            done, count = 0, len(customers)
            async for names in customers.names(_AT_ONCE):
                yield await compare(names, done, count)
                done += len(names)

    async def _compare_page(
        self,
        customers: Sequence[str],
        done: int,
        count: int,
        *,
        at_ms: int | None,
        summaries: StripeSummaries,
        invoices: InvoiceReader,
        progress: Callable[[int, int], object],
        skipped: list[str],
    ) -> list[Reconciled]:
        async def skip(customer: str, error: Exception) -> None:
            await self._store.log_unreadable("comparison with Stripe", customer, error)
            skipped.append(customer)

        found: list[Reconciled] = []
        read = partial(self._store.usage_of_many, at_ms=at_ms, former=True)
        for place, usage in enumerate(await read_each(customers, read, skip), start=done + 1):
            async with skip_unreadable(usage["customer"], skip):
                found += await self.of_customer(usage, summaries, invoices)
            progress(place, count)
        return found

    async def _repair_ambiguous(self, customer: str | None, summaries: StripeSummaries) -> None:
        """Make ambiguous intents due for comparison, and compare due ones with Stripe's summaries."""
        outbox, now_ms = Intents(self._store), self._store.now_ms()
        for intent in await outbox.list(state="parked", customer=customer, limit=100_000):
            first = intent.first_attempt_at
            is_open = first is not None and not can_resend(to_ms(first), now_ms)
            if (is_open or is_refused(intent.identifier)) and intent.compared_at is None:
                await outbox.redrive(intent.identifier, by=CAUSE)
        await IntentComparer(self._store, summaries, self._journal).compare_due(FlushReport())

    async def of_customer(
        self,
        usage: CustomerUsage,
        summaries: StripeSummaries,
        invoices: InvoiceReader,
        *,
        is_closing: bool = False,
    ) -> list[Reconciled]:
        """Compare one customer's usage of a period, of all present and former meters, with Stripe's books.

        Meters without own usage are compared if Stripe has units of them; at a close, only if invoices do.
        """
        store = self._store
        _, state = await CustomerStates(store).read(usage["customer"])
        if is_billed_by_lines(state, store.catalog, to_ms(usage["period"]["start"])):
            return await self._lines_of_customer(usage, state, invoices, is_closing=is_closing)
        await summaries.refresh_once()
        events = await self._read_events(usage)
        links = await self._read_links(usage, state)
        back, late = await read_negative_units(store, usage), await read_uninvoiced(store, usage)
        used_meters = {name for name in events if any(back[name]) or _goes_to_stripe(usage["meters"][name])}
        used_events = {events[name] for name in used_meters}
        invoicing = None
        if used_events or state.subscription is not None:
            invoicing = await read_period_billing(store, self._api(), usage, state)
        books = StripeBooks(store, usage, state, links, summaries, None if invoicing is None else invoices)
        foreign = await books.sent_by_others({*events.values()}, used_events, is_closing=is_closing)
        newest_last = sorted(events, key=store.catalog.meters.__contains__)
        shown = used_meters | {
            name for event, name in {events[name]: name for name in newest_last}.items() if event in foreign
        }
        meters = [name for name in usage["meters"] if name in shown]
        sides: dict[str, EventBooks] = {}
        priced = await price_usage(store, usage, state, meters if invoicing is not None else (), late)
        for event in dict.fromkeys(events[name] for name in meters):
            named = {name: usage["meters"][name] for name in meters if events[name] == event}
            confirmed = await books.confirmed(event)
            sides[event] = EventBooks(
                confirmed=confirmed,
                invoiced=await books.invoiced(event, confirmed or 0),
                recorded=_sum_priced([priced.get(name) for name in named]),
                invoice_ms=None if invoicing is None else invoicing.made_ms,
                price="" if invoicing is None else invoicing.price_of(next(iter(named)), store.catalog),
                delivered=sum(counts["delivered"] for counts in named.values()),
                parked=sum(counts["parked"] + back[name].parked for name, counts in named.items()),
                parked_back=sum(back[name].parked for name in named),
                taken_back=sum(back[name].delivered for name in named),
                uninvoiced=sum(late[name] for name in named),
            )
        advices = {event: await self._advise_on_event(usage, side) for event, side in sides.items()}
        items = await item_books(store, self._api(), usage, state.stripe_customer, meters, invoices)
        return [
            Reconciled(
                stripe_customer=_last_link(links),
                event_name=events[name],
                is_closed=to_ms(usage["period"]["end"]) <= store.now_ms(),
                taking_back=back[name].left,
                by_item=items[name].units if name in items else 0,
                advice=advices[events[name]] or (items[name].advice if name in items else ""),
                **_recorded_side(usage, name),
                **_stripe_side(sides[events[name]]),
            )
            for name in meters
        ]

    async def _read_events(self, usage: CustomerUsage) -> Mapping[str, str]:
        """Read the event name of each meter of a usage, in its period."""
        store, end_ms = self._store, to_ms(usage["period"]["end"])
        admin, at_ms = await store.admin(), min(end_ms - 1, store.now_ms())
        known = await read_meters(admin, store.keys, store.catalog, usage["customer"], at_ms=at_ms)
        return {one.meter: one.event_name for one in known.values() if one.meter in usage["meters"]}

    async def _lines_of_customer(
        self, usage: CustomerUsage, state: CustomerState, invoices: InvoiceReader, *, is_closing: bool
    ) -> list[Reconciled]:
        """Compare one customer's usage of a period with the invoice lines that meterkit writes."""
        counts, links = usage["meters"], await self._read_links(usage, state)
        meters = [name for name in counts if _goes_to_stripe(counts[name])]
        read_books = partial(line_books, self._store, usage, state.stripe_customer, meters, invoices)
        books = await read_books(all_lines=not is_closing)
        if is_closing and any(book.there != book.written for book in books.values()):
            books = await read_books()
        is_closed = to_ms(usage["period"]["end"]) <= self._store.now_ms()
        billed = [name for name, book in books.items() if book.prices and is_closed]
        recorded = await price_usage(self._store, usage, state, billed, Counter())
        other = {name: mispriced(recorded[name], books[name].prices) for name in recorded}
        return [
            Reconciled(
                stripe_customer=_last_link(links),
                event_name="",
                is_closed=is_closed,
                taking_back=0,
                confirmed=book.there,
                difference=None if book.there is None else book.there - book.written,
                invoiced=book.there,
                invoice=book.state,
                invoiced_cents=book.cents,
                mispriced=sum(one.units for one in other.get(name, ())),
                advice=book.advise(usage["currency"])
                or advice_on_prices(other.get(name, ()), book.invoices, usage["currency"])
                or self._advise_on_gone(usage, name),
                **_recorded_side(usage, name),
            )
            for name, book in books.items()
        ]

    async def _read_links(self, usage: CustomerUsage, state: CustomerState) -> Sequence[LinkSpan]:
        """Read which Stripe customers got the usage of a period."""
        span_s = [to_ms(usage["period"][edge]) // 1000 for edge in ("start", "end")]
        return await read_billed_links(self._store, usage["customer"], state.stripe_customer, *span_s)

    def _advise_on_gone(self, usage: CustomerUsage, meter: str) -> str:
        """Advise on units of a meter without a line, whose price left the plans file with it."""
        is_closed = to_ms(usage["period"]["end"]) <= self._store.now_ms()
        units = usage["meters"][meter]["pending"]
        if not (is_closed and units) or meter in self._store.catalog.meters:
            return ""
        return (
            f"{units} units wait for a line, and {meter} is not in the plans file: if the next flush writes"
            " none, no price of them is known; put the meter back"
        )

    async def _advise_on_event(self, usage: CustomerUsage, side: EventBooks) -> str:
        """Advise the operator; empty: the books agree."""
        store, customer, period = self._store, usage["customer"], usage["period"]
        advice, sent_until = (
            advice_on_event(side, usage["currency"], store.now_ms()),
            period["end"] + _SENT_WITHIN,
        )
        if (
            advice
            and side.difference is not None
            and await is_relinked(store, customer, period["start"], sent_until)
        ):
            return "the link has changed: units of its time may be with either Stripe customer"
        return advice


def _last_link(links: Sequence[LinkSpan]) -> str | None:
    return links[-1].stripe_customer if links else None


def _sum_priced(priced: Sequence[UnitsByPrice | None]) -> UnitsByPrice | None:
    """Sum units by price over all meters of an event name; None: one is not known."""
    return None if None in priced else sum(filter(None, priced), UnitsByPrice())


def _recorded_side(usage: CustomerUsage, meter: str) -> dict[str, Any]:
    """Fields of a comparison that come from our books."""
    counts, period = usage["meters"][meter], usage["period"]
    return {
        "customer": usage["customer"],
        "meter": meter,
        "period_start": period["start"],
        "period_end": period["end"],
        "waiting": _count_waiting(counts),
        **{name: counts[name] for name in ("recorded", "parked", "delivered", "late", "dead")},
    }


def _stripe_side(side: EventBooks) -> dict[str, Any]:
    """Fields of a comparison that come from Stripe's books."""
    found = side.invoiced
    is_known = found is not None and found.state != "unknown"
    return {
        "confirmed": side.confirmed,
        "difference": side.difference,
        "invoiced": int(found.quantity) if found is not None and is_known else None,
        "invoice": "" if found is None else found.state,
        "invoiced_cents": None if found is None else found.cents,
        "mispriced": sum(one.units for one in side.mispriced),
    }


def _count_waiting(counts: MeterUsage) -> int:
    """Count the units of a meter that wait or are being sent."""
    return counts["pending"] + counts["unlinked"] + counts["queued"] + counts["leased"]


def _goes_to_stripe(counts: MeterUsage) -> bool:
    """Whether any usage of a meter goes to Stripe, or should."""
    return bool(
        _count_waiting(counts) or counts["parked"] or counts["delivered"] or counts["late"] or counts["dead"]
    )

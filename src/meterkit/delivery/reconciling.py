"""``kit.reconcile``: what was recorded, delivered by our books, and counted by Stripe, to the unit."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.history import is_relinked
from meterkit.customers.sorting import customers_with_counts
from meterkit.customers.states import States
from meterkit.customers.usage import Priced, priced_usage, taken_back, uninvoiced
from meterkit.decisions.ambiguity import may_be_sent_again
from meterkit.decisions.periods import check_aware, stamped_span_s, to_ms
from meterkit.delivery.comparing import CAUSE, Comparer
from meterkit.delivery.difference_advice import OfEvent, advice_on_difference, parked_in_words
from meterkit.delivery.invoice_advice import advice_on_invoices, advice_on_prices, mispriced
from meterkit.delivery.invoices import Invoices, invoicing_of
from meterkit.delivery.report import FlushReport
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import StripeError
from meterkit.outbox.intents import is_refused
from meterkit.outbox.operator_commands import Intents
from meterkit.store.arguments import check_customer
from meterkit.store.event_names import former_events, read_meters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from datetime import datetime

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.delivery.invoice_advice import Mispriced
    from meterkit.delivery.invoices import Invoiced
    from meterkit.delivery.summaries import Summaries
    from meterkit.outbox.journal import Journal
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_AT_ONCE: Final = 100
_NOT_THERE: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """One customer, meter and period: our books and Stripe's, in the meter's unit.

    Attributes:
        stripe_customer: None: the customer is not linked.
        event_name: of the meter at Stripe.
        period_start, period_end: of the billing period.
        is_closed: whether that is over: then this is its close report.
        recorded: all that was recorded, what does not go to Stripe included.
        waiting: pending, unlinked, queued or being sent.
        parked: Stripe may have it, or a person must decide.
        taking_back: units that wait or are parked to take others back; they are subtracted there.
        delivered: accepted by Stripe, by our books.
        confirmed: what Stripe's summaries say that it has counted of the event name; None: it has no such
            customer or meter.
        difference: ``confirmed`` less what was delivered of all meters that have had this event name, such as
            one that was renamed, late units that Stripe has counted included; None where ``confirmed`` is.
        invoiced: units of the event name on invoice lines of this period; None: no invoice is to have them,
            or the lines do not show units.
        invoice: ``final``, or ``draft`` while one of those invoices may change; ``none``: there is no such
            line; ``unknown``: lines do not show units; empty: nothing is to be invoiced, as in a trial.
        mispriced: units of the event name that are on lines of another price than that at which they were
            recorded; 0 as well where the prices are not known.
        late: came for this period when it was closed, or when its invoice was final, or is on no invoice.
        dead: never accepted, or dropped.
        advice: what to do; empty: nothing, the books agree.
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
    mispriced: int
    late: int
    dead: int
    advice: str

    @property
    def agrees(self) -> bool:
        """Whether Stripe has counted what was delivered, and nothing is parked."""
        return not self.advice


class Reconciler:
    """Compares our books with Stripe's.

    Args:
        store: where usage is counted.
        api: the way to Stripe; made when it is first needed.
        journal: has what Stripe has accepted; None: there is none.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi], journal: Journal | None = None) -> None:
        self._store = store
        self._api = api
        self._journal = journal
        self._prices: dict[str, Any] = {}

    def invoices(self) -> Invoices:
        """What asks for invoices during one look.

        Raises:
            SettingsError: no Stripe key is set.
        """
        return Invoices(self._api(), self._prices, self._store.catalog.currency)

    async def reconcile(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sequence[Reconciled]:
        """Each customer and meter that something of a period goes to Stripe of, compared with Stripe's books.

        Args:
            customer: whose; default: of all.
            at: an instant of the period (aware), of the last 400 days; default: now.
            repair: have what Stripe may have compared with the summary of its minute, and do what follows:
                see :meth:`meterkit.Intents.redrive`. That takes two looks, ten minutes apart.
            progress: called with how many customers are done, and of how many.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used.
            SettingsError: no Stripe key is set.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        async with aclosing(self.pages(customer, at=at, repair=repair, progress=progress)) as pages:
            return [one async for page in pages for one in page]

    async def pages(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> AsyncGenerator[list[Reconciled]]:
        """The same in pages of some customers, so that memory need not hold all.

        Raises:
            MeterkitError: as :meth:`reconcile` does, or the temporary folder has no room for the ids.
        """
        if at is not None:
            check_aware("at", at)
        summaries = StripeSummaries(self._api())
        await summaries.refresh()
        compare = partial(
            self._compare,
            at_ms=None if at is None else to_ms(at),
            summaries=summaries,
            invoices=self.invoices(),
            progress=progress or (lambda _done, _of: None),
        )
        if customer is not None:
            check_customer(customer)
            if repair:
                await self._repair(customer, summaries)
            yield await compare([customer], 0, 1)
            return
        async with customers_with_counts(self._store) as customers:
            if repair:
                await self._repair(None, summaries)
            done, count = 0, len(customers)
            async for names in customers.names(_AT_ONCE):
                yield await compare(names, done, count)
                done += len(names)

    async def _compare(
        self,
        customers: Sequence[str],
        done: int,
        count: int,
        *,
        at_ms: int | None,
        summaries: Summaries,
        invoices: Invoices,
        progress: Callable[[int, int], object],
    ) -> list[Reconciled]:
        found: list[Reconciled] = []
        usages = await self._store.usage_of_many(customers, at_ms=at_ms, former=True)
        for place, usage in enumerate(usages, start=done + 1):
            found += await self.of_customer(usage, summaries, invoices)
            progress(place, count)
        return found

    async def _repair(self, customer: str | None, summaries: StripeSummaries) -> None:
        """Have what Stripe may have compared, and compare what is due."""
        outbox, now_ms = Intents(self._store), self._store.now_ms()
        for intent in await outbox.list(state="parked", customer=customer, limit=100_000):
            first = intent.first_attempt_at
            is_open = first is not None and not may_be_sent_again(to_ms(first), now_ms)
            if (is_open or is_refused(intent.identifier)) and intent.compared_at is None:
                await outbox.redrive(intent.identifier, by=CAUSE)
        await Comparer(self._store, summaries, self._journal).compare_due(FlushReport())

    async def of_customer(
        self, usage: CustomerUsage, summaries: Summaries, invoices: Invoices
    ) -> list[Reconciled]:
        """The same of one customer, by its usage of a period, of all meters ever, and what Stripe says."""
        store = self._store
        _, state = await States(store).read(usage["customer"])
        admin = await store.admin()
        at_ms = min(to_ms(usage["period"]["end"]) - 1, store.now_ms())
        known = await read_meters(admin, store.keys, store.catalog, usage["customer"], at_ms=at_ms)
        events = {counted.meter: counted.event_name for counted in known.values()}
        back, late = await taken_back(store, usage), await uninvoiced(store, usage)
        meters = [
            name
            for name, counts in usage["meters"].items()
            if name in events and (any(back[name]) or _goes_to_stripe(counts))
        ]
        former = former_events(state, store.catalog, to_ms(usage["period"]["start"]))
        sides: dict[str, OfEvent] = {}
        invoicing = await invoicing_of(store, self._api(), usage, state) if meters else None
        priced = await priced_usage(store, usage, state, meters if invoicing is not None else (), late)
        for event in dict.fromkeys(events[name] for name in meters):
            named = [(usage["meters"][name], back[name]) for name in meters if events[name] == event]
            invoiced, carried = None, (event, *former.get(event, ()))
            if invoicing is not None:
                invoiced = await self._invoiced(usage, carried, state, summaries, invoices)
            sides[event] = OfEvent(
                confirmed=await self._confirmed(usage, carried, state.stripe_customer, summaries),
                invoiced=invoiced,
                mispriced=_mispriced(
                    [priced.get(name) for name in meters if events[name] == event], invoiced
                ),
                invoicing=invoicing,
                meter=next(name for name in meters if events[name] == event),
                delivered=sum(counts["delivered"] for counts, _ in named),
                parked=sum(counts["parked"] + taken.parked for counts, taken in named),
                parked_back=sum(taken.parked for _, taken in named),
                taken_back=sum(taken.delivered for _, taken in named),
                uninvoiced=sum(late[name] for name in meters if events[name] == event),
            )
        advices = {event: await self._advice(usage, side) for event, side in sides.items()}
        period, end_ms = usage["period"], to_ms(usage["period"]["end"])
        return [
            Reconciled(
                customer=usage["customer"],
                stripe_customer=state.stripe_customer,
                meter=name,
                event_name=events[name],
                period_start=period["start"],
                period_end=period["end"],
                is_closed=end_ms <= store.now_ms(),
                recorded=counts["recorded"],
                waiting=_waiting(counts),
                parked=counts["parked"],
                taking_back=back[name].left,
                delivered=counts["delivered"],
                confirmed=sides[events[name]].confirmed,
                difference=sides[events[name]].difference,
                **_as_invoiced(sides[events[name]].invoiced),
                mispriced=sum(one.units for one in sides[events[name]].mispriced),
                late=counts["late"],
                dead=counts["dead"],
                advice=advices[events[name]],
            )
            for name, counts in ((name, usage["meters"][name]) for name in meters)
        ]

    async def _confirmed(
        self,
        usage: CustomerUsage,
        event_names: Sequence[str],
        stripe_customer: str | None,
        summaries: Summaries,
    ) -> int | None:
        """What Stripe has counted of event names in a period; None: it has no such customer or meter."""
        start_ms, end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
        start_s, end_s = stamped_span_s(start_ms, self._store.now_ms(), end_ms=end_ms)
        if stripe_customer is None or start_s >= end_s:
            return None
        try:
            counted = [
                await summaries.counted(event_name, stripe_customer, start_s, end_s)
                for event_name in event_names
            ]
        except StripeError as error:
            if error.status not in _NOT_THERE:
                raise
            return None
        known = [one for one in counted if one is not None]
        return int(sum(known)) if known else None

    async def _invoiced(
        self,
        usage: CustomerUsage,
        event_names: Sequence[str],
        state: CustomerState,
        summaries: Summaries,
        invoices: Invoices,
    ) -> Invoiced | None:
        """Units on invoice lines of event names in a period; None: Stripe has no such customer."""
        if state.stripe_customer is None:
            return None
        start_s, end_s = (to_ms(usage["period"][edge]) // 1000 for edge in ("start", "end"))
        try:
            meters = [meter for event_name in event_names for meter in summaries.meter_ids(event_name)]
            return await invoices.invoiced(state.stripe_customer, meters, start_s, end_s)
        except StripeError as error:
            if error.status not in _NOT_THERE:
                raise
            return None

    async def _advice(self, usage: CustomerUsage, side: OfEvent) -> str:
        """What a person must do; empty: nothing."""
        difference, parked = side.difference, parked_in_words(side)
        if difference is None:
            gone = "Stripe has no such meter or customer, or the customer is not linked any more"
            return gone * bool(side.delivered or parked)
        agree = not difference and not parked
        advice = self._on_invoices(side) if agree else advice_on_difference(side, difference, parked)
        if advice and await is_relinked(self._store, usage["customer"], usage["period"]["start"]):
            return (
                "the link has changed in this period: what went to the other Stripe customer is not seen here"
            )
        return advice

    def _on_invoices(self, side: OfEvent) -> str:
        if side.invoiced is None or side.invoicing is None or side.confirmed is None:
            return ""
        advice = advice_on_invoices(
            side.invoiced,
            side.confirmed,
            late=side.uninvoiced,
            price=side.invoicing.price_of(side.meter, self._store.catalog),
            made_ms=side.invoicing.made_ms,
            now_ms=self._store.now_ms(),
        )
        currency = self._store.catalog.currency
        return advice or advice_on_prices(side.mispriced, side.invoiced.invoices, currency)


def _mispriced(priced: Sequence[Priced | None], invoiced: Invoiced | None) -> Sequence[Mispriced]:
    """Units on invoice lines at other prices than they were recorded at, of all meters of an event name."""
    if invoiced is None or invoiced.prices is None or None in priced:
        return ()
    return mispriced(sum(filter(None, priced), Priced()), invoiced.prices)


def _as_invoiced(found: Invoiced | None) -> dict[str, Any]:
    if found is None:
        return {"invoiced": None, "invoice": ""}
    is_known = found.state != "unknown"
    return {"invoiced": int(found.quantity) if is_known else None, "invoice": found.state}


def _waiting(counts: MeterUsage) -> int:
    """How much of a meter is on its way."""
    return counts["pending"] + counts["unlinked"] + counts["queued"] + counts["leased"]


def _goes_to_stripe(counts: MeterUsage) -> bool:
    """Whether anything of a meter goes there, or should."""
    return bool(
        _waiting(counts) or counts["parked"] or counts["delivered"] or counts["late"] or counts["dead"]
    )

"""Stripe's books of a customer in a billing period: counted units, invoice lines and invoice items."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from meterkit.catalog.value_parsers import money, rounded_cents
from meterkit.customers.billed_usage import read_totals
from meterkit.customers.history import read_all_links
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import MINUTE_MS, first_minute_s, stamped_span_s, to_ms
from meterkit.decisions.price_segments import item_segments, unit_amount_decimal
from meterkit.decisions.subscription import NEVER_MS
from meterkit.decisions.subscription_periods import stops_billing_ms
from meterkit.delivery.invoices import InvoicedUnits, join_invoiced, units_of
from meterkit.delivery.late_usage_items import late_units_at_stripe
from meterkit.errors import StripeError
from meterkit.outbox.invoice_item_queue import usage_key_of
from meterkit.store.event_names import find_former_events
from meterkit.stripe.request import UNKNOWN_CUSTOMER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from meterkit.customers.history import LinkSpan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.price_segments import PriceSegment
    from meterkit.delivery.invoices import InvoiceReader
    from meterkit.delivery.summaries import StripeSummaries
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_T = TypeVar("_T")


class StripeBooks:
    """Reads Stripe's books of one customer and period.

    Each method raises :class:`~meterkit.errors.StripeError` if Stripe refuses, or does not answer.

    Args:
        store: gives the clock.
        usage: of the customer in the period.
        state: the customer's.
        links: that got the usage; see :func:`~meterkit.customers.history.read_billed_links`.
        summaries: give counted units.
        invoices: give invoice lines; None: no invoice bills the period.
    """

    def __init__(
        self,
        store: Store,
        usage: CustomerUsage,
        state: CustomerState,
        links: Sequence[LinkSpan],
        summaries: StripeSummaries,
        invoices: InvoiceReader | None,
    ) -> None:
        self._currency = usage["currency"]
        self._now_ms = store.now_ms()
        self._start_ms, self._end_ms = (to_ms(usage["period"][edge]) for edge in ("start", "end"))
        self._state = state
        self._links = links
        self._former = find_former_events(state, store.catalog, self._start_ms)
        self._summaries = summaries
        self._invoices = invoices

    async def confirmed(self, event_name: str) -> int | None:
        """Sum the counted units of an event name and its former ones; None: Stripe has no such meter."""
        counted = [await self._counted(event_name, link) for link in self._links]
        known = [one for one in counted if one is not None]
        return sum(known) if known else None

    async def _counted(self, event_name: str, link: LinkSpan) -> int | None:
        """Sum the counted units of a link; None: Stripe has no such meter, or no minute of it has begun."""
        start_s, end_s = stamped_span_s(self._start_ms, self._now_ms, end_ms=self._end_ms)
        if link is not self._links[0]:
            start_s = max(start_s, link.since_s // 60 * 60)
        if link is not self._links[-1]:  # Its last intents may be stamped ahead.
            end_s = min(end_s, stamped_span_s(self._start_ms, 1000 * link.until_s)[1])
        if start_s >= end_s:
            return None
        counted = [
            await none_if_gone(self._summaries.counted(name, link.stripe_customer, start_s, end_s))
            for name in self._names(event_name)
        ]
        known = [one for one in counted if one is not None]
        return int(sum(known)) if known else None

    async def invoiced(self, event_name: str, counted: int) -> InvoicedUnits | None:
        """Sum the units of an event name on invoice lines; None: there is no such customer, or no invoice.

        Args:
            event_name: of the meter.
            counted: units that Stripe has counted in the period.
        """
        if self._invoices is None:
            return None
        found = list[InvoicedUnits]()
        for link in self._links:
            of_link = counted if len(self._links) == 1 else await self._counted(event_name, link) or 0
            one = await none_if_gone(
                self._read_invoiced(link.stripe_customer, self._invoices, event_name, of_link)
            )
            found += [] if one is None else [one]
        return join_invoiced(found) if found else None

    async def _read_invoiced(
        self, linked: str, invoices: InvoiceReader, event_name: str, counted: int
    ) -> InvoicedUnits:
        """Read the units of an event name on the invoices of the period.

        In our books, a shortened period ends after the timestamps of all its events. Stripe's next invoice
        has the units of the minutes between: they count for the period that recorded them. After a
        subscription's last period, no invoice has them.
        """
        names, start_ms, end_ms = self._names(event_name), self._start_ms, self._end_ms
        meters = [meter for name in names for meter in self._summaries.meter_ids(name)]
        first_s, last_s = await invoices.edges(linked, meters, *self._span_s)
        found = await invoices.invoiced(
            linked, meters, start_ms // 1000, last_s, counted=counted, currency=self._currency
        )
        if found.state in {"none", "unknown"}:
            return found

        async def units(from_ms: int, until_ms: int) -> int:
            first_s, end_s = first_minute_s(from_ms), until_ms // MINUTE_MS * 60
            if first_s >= end_s:
                return 0
            found = [await self._summaries.counted(name, linked, first_s, end_s) for name in names]
            return int(sum(filter(None, found)))

        subscription, stops_ms = self._state.subscription, NEVER_MS
        if subscription is not None and subscription.created_ms <= start_ms:
            stops_ms = stops_billing_ms(subscription)
        on_next = await units(1000 * last_s, end_ms) if 1000 * last_s < stops_ms else 0
        of_former = await units(1000 * first_s, start_ms)
        return replace(found, quantity=found.quantity + on_next - of_former)

    async def sent_by_others(self, events: set[str], used: set[str], *, is_closing: bool) -> set[str]:
        """Find event names without own usage that Stripe has units of.

        Args:
            events: all event names.
            used: event names with own usage.
            is_closing: whether only invoice lines are read, as they need no further call.
        """
        subscription = self._state.subscription
        unused = events - {name for event in used for name in self._names(event)}
        if not unused:
            return set()
        billed: set[str] = set()
        reader = self._invoices
        for link, invoices in ((link, reader) for link in self._links if reader is not None):
            asked = invoices.usage_meters(link.stripe_customer, *self._span_s)
            billed |= await none_if_gone(asked) or set()
        found = {event for event in unused if not billed.isdisjoint(self._summaries.meter_ids(event))}
        if is_closing or subscription is None:
            return found
        items = {item.partition("=")[0] for item in subscription.metered.split()}
        for event in sorted(unused - found):
            is_item = not items.isdisjoint(self._summaries.meter_ids(event))
            if is_item and await self.confirmed(event):
                found.add(event)
        return found

    def _names(self, event_name: str) -> Sequence[str]:
        """List an event name, and the former ones of its meter in the period."""
        return event_name, *self._former.get(event_name, ())

    @property
    def _span_s(self) -> tuple[int, int]:
        return self._start_ms // 1000, self._end_ms // 1000


async def none_if_gone(asked: Awaitable[_T]) -> _T | None:
    """Await a response; None: Stripe has no such customer or meter."""
    try:
        return await asked
    except StripeError as error:
        if error.status not in UNKNOWN_CUSTOMER:
            raise
        return None


class ItemBook(NamedTuple):
    """Units of a meter and period that invoice items bill.

    Attributes:
        units: by the store, queued items included.
        advice: for the operator; empty: none.
    """

    units: int
    advice: str


async def item_books(
    store: Store,
    api: StripeApi,
    usage: CustomerUsage,
    stripe_customer: str | None,
    meters: Sequence[str],
    invoices: InvoiceReader,
) -> Mapping[str, ItemBook]:
    """Compare the units that invoice items bill, by meter; meters without any are left out.

    Args:
        store: counts the units.
        api: the way to Stripe, asked only if there are any.
        usage: of a customer in a period.
        stripe_customer: the linked customer at Stripe; None: there is none.
        meters: by name.
        invoices: reads the customer's invoices, asked only if items are on some.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    customer, start_ms = usage["customer"], to_ms(usage["period"]["start"])
    if not (late := [name for name in meters if usage["meters"][name]["late"]]):
        return {}
    totals = await read_totals(store, usage, late, "afn")
    counts = {name: (int(waiting or 0), int(made or 0)) for name, (waiting, made, _) in totals.items()}
    ours = {name: ItemBook(sum(units), "") for name, units in counts.items() if any(units)}
    links = await read_all_links(store, customer, stripe_customer)
    shown = [await none_if_gone(late_units_at_stripe(api, linked, start_ms)) for linked in links]
    known = [one for one in shown if one is not None]
    if not known:
        return ours
    books: dict[str, ItemBook] = {}
    for name, (waiting, made) in counts.items():
        key = usage_key_of(customer, meter_token(name), start_ms)
        there = [item for found in known for item in found.get(key, ())]
        if waiting or made or there:
            advice = _advice_on_items(waiting, made, int(sum(map(units_of, there))))
            terms = ItemTerms(start_ms // 1000, usage["currency"], item_segments(totals[name][2]))
            advice = advice or _advice_on_terms(terms, there)
            books[name] = ItemBook(waiting + made, advice or await _advice_on_void(invoices, there, start_ms))
    return books


async def _advice_on_void(invoices: InvoiceReader, there: Sequence[Mapping[str, Any]], start_ms: int) -> str:
    """Advise on items at Stripe whose invoice was voided; empty: no advice."""
    on_invoices = [item for item in there if item.get("invoice")]
    if not on_invoices:
        return ""
    customers = {str(item["customer"]) for item in on_invoices}
    made = [one for name in sorted(customers) for one in await invoices.made(name, start_ms // 1000)]
    void = {invoice["id"] for invoice in made if invoice.get("status") == "void"}
    lost = [item for item in on_invoices if item["invoice"] in void]
    if not lost:
        return ""
    names = ", ".join(dict.fromkeys(str(item["invoice"]) for item in lost))
    units = int(sum(map(units_of, lost)))
    return f"{units} late units are on {names}, which is void: check who voided it, and why"


class ItemTerms(NamedTuple):
    """The terms of the invoice items for the late usage of a meter and period.

    Attributes:
        start_s: the first second of the period.
        currency: of their prices.
        priced: their units by price.
    """

    start_s: int
    currency: str
    priced: Sequence[PriceSegment]


def _advice_on_terms(terms: ItemTerms, there: Sequence[Mapping[str, Any]]) -> str:
    """Advise on items at Stripe whose amount, currency or period was changed; empty: no advice."""
    names = ", ".join(str(item["id"]) for item in there)
    other = next((item["currency"] for item in there if item["currency"] != terms.currency), None)
    if other is not None:
        return (
            f"the invoice items {names} are in {other}, and not in {terms.currency}: check who changed them"
        )
    cents = sum(int(item["amount"]) for item in there)
    due = sum(
        (Fraction(unit_amount_decimal(one.label)) * one.overage for one in terms.priced), start=Fraction(0)
    )
    if abs(due - cents) > Fraction(len(there), 2):
        exact = money(rounded_cents(due), terms.currency)
        return (
            f"the invoice items {names} for late units have {money(cents, terms.currency)}, and their price"
            f" comes to {exact}: check who changed them"
        )
    if any(item["period"]["start"] != terms.start_s for item in there):
        return f"the invoice items {names} for late units name another period: check who changed them"
    return ""


def _advice_on_items(waiting: int, made: int, at_stripe: int) -> str:
    """Advise on missing or surplus invoice items of a meter and period; empty: no advice."""
    if waiting:
        return f"{waiting} late units wait for their invoice item: `meterkit flush` makes it, or says why not"
    if at_stripe < made:
        return (
            f"invoice items at Stripe have {at_stripe} of {made} late units: one was deleted there; if that"
            " was a mistake, bill the rest by an invoice item"
        )
    if at_stripe > made:
        return f"invoice items at Stripe have {at_stripe} late units, and {made} were billed: credit the rest"
    return ""

"""The operator's lists of spikes, degraded minutes, and usage against invoices."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.decisions.periods import from_ms
from meterkit.insights.overview.rows import DELIVERY
from meterkit.pages.listing import Asked, Column, Listing, Row, Rows, as_of, first_of, made_of, page_of
from meterkit.store.closes import Closes
from meterkit.store.customer_id import check_customer
from meterkit.store.spikes_today import SpikesToday

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from meterkit.delivery.reconciling import Reconciled
    from meterkit.insights.overview.overview import Overview
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

__all__ = ["DAY_MINUTES", "DEGRADED_DAYS", "MINUTE_MS", "BooksKit", "book_lists"]

DEGRADED_DAYS: Final = 30
MINUTE_MS: Final = 60_000
DAY_MINUTES: Final = 1_440

_MOST: Final = 10_000
_SPIKES: Final = (
    Column("customer", "Customer", opens="ledger"),
    Column("meter", "Meter"),
    Column("at", "Found (UTC)", "time"),
    Column("span", "Span"),
    Column("used", "Used", "number"),
    Column("usual", "Usual", "number"),
)
_DEGRADED: Final = (
    Column("minute", "Minute (UTC)", "time"),
    Column("requests", "Requests decided without the store", "number"),
)
_USAGE: Final = (
    Column("customer", "Customer", opens="books"),
    Column("meter", "Meter"),
    *(Column(state, state.capitalize(), "number") for state in DELIVERY),
)
_UNCONFIRMED: Final = (
    Column("customer", "Customer", opens="books"),
    Column("period_end", "Period ended (UTC)", "time"),
)
_COMPARED: Final = ("recorded", "waiting", "parked", "delivered", "confirmed", "difference", "invoiced")
_BOOKS: Final = (
    Column("meter", "Meter"),
    Column("period_start", "Period from (UTC)", "time"),
    Column("period_end", "Period until (UTC)", "time"),
    *(Column(name, name.capitalize(), "number") for name in _COMPARED),
    Column("invoice", "Invoice"),
    Column("mispriced", "Mispriced", "number"),
    Column("late", "Late", "number"),
    Column("dead", "Dead", "number"),
    Column("advice", "Advice"),
)


class BooksKit(Protocol):
    """What these lists read of :class:`meterkit.MeterKit`."""

    store: Store

    async def usage(self, customer: str) -> CustomerUsage:
        """The usage of a customer in this period."""
        ...

    async def reconcile(self, customer: str, *, at: datetime) -> Sequence[Reconciled]:
        """A customer's books and Stripe's, in the period of an instant."""
        ...


def book_lists(kit: BooksKit, overview: Overview) -> Mapping[str, Listing]:
    """Spikes, degraded minutes, usage by state, unconfirmed closes, and the books of a customer."""
    found = _Books(kit, overview)
    listings = (
        ("spiking", "Usage far above the usual today", _SPIKES, found.spiking, "No spike was found today."),
        ("degraded", "Degraded minutes", _DEGRADED, found.degraded, "The store decided all requests."),
        ("delivered", "Usage: {of}", _USAGE, found.usage, "No customer has such usage."),
        (
            "unconfirmed",
            "Periods whose usage no invoice confirms",
            _UNCONFIRMED,
            found.unconfirmed,
            "All periods that ended are confirmed, or are not due.",
        ),
        ("books", "Delivered and invoiced: {of}", _BOOKS, found.books, "Nothing of this customer is billed."),
    )
    return {
        name: Listing(
            name=name,
            title=title,
            columns=columns,
            read=read,
            empty=empty,
            needs_of=name in {"delivered", "books"},
        )
        for name, title, columns, read, empty in listings
    }


class _Books:
    def __init__(self, kit: BooksKit, overview: Overview) -> None:
        self._kit = kit
        self._overview = overview

    async def spiking(self, asked: Asked) -> Rows:
        found = await SpikesToday(self._kit.store).all()
        names = [column.name for column in _SPIKES if column.name != "at"]
        rows: list[Row] = [
            {"at": from_ms(one.at_ms), **{name: getattr(one, name) for name in names}} for one in found
        ]
        return page_of(rows, asked)

    async def degraded(self, asked: Asked) -> Rows:
        """Of ``day``: the last 24 hours; else all that is kept."""
        found = await self._kit.store.degraded.read(DEGRADED_DAYS)
        since = self._kit.store.now_ms() // MINUTE_MS - DAY_MINUTES if asked.of == "day" else 0
        rows: list[Row] = [
            {"minute": from_ms(minute * MINUTE_MS), "requests": requests}
            for minute, requests in found.items()
            if minute > since
        ]
        return page_of(rows, asked)

    async def usage(self, asked: Asked) -> Rows:
        """Of a state and a meter."""
        state, _, meter = asked.of.partition(" ")
        made = await made_of(self._overview)
        if state not in DELIVERY:
            return Rows([])
        found = await self._overview.usage(made, meter, state, after=asked.after, most=asked.most)
        after = found[-1].customer if len(found) == asked.most else ""
        return Rows([row._asdict() for row in found], after, as_of(made))

    async def unconfirmed(self, asked: Asked) -> Rows:
        store = self._kit.store
        found = await Closes(store, (await store.admin()).for_delivery()).told(most=_MOST)
        rows: list[Row] = [{"customer": one.customer, "period_end": from_ms(one.end_ms)} for one in found]
        return first_of(rows, asked, len(found) == _MOST)

    async def books(self, asked: Asked) -> Rows:
        """Of a customer: the period before this one, then this one. Stripe is asked."""
        period = (await self._kit.usage(check_customer(asked.of)))["period"]
        instants = (period["start"] - timedelta(milliseconds=1), period["start"])
        found = [one for at in instants for one in await self._kit.reconcile(asked.of, at=at)]
        return Rows([_row(one) for one in found])


def _row(found: Reconciled) -> Row:
    return {column.name: getattr(found, column.name) for column in _BOOKS}

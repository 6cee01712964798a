"""The lists of the operator pages, by name: customers, spikes, degraded minutes, invoices."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.decisions.periods import from_ms
from meterkit.insights.overview.rows import DELIVERY
from meterkit.notify.spikes import SpikesToday
from meterkit.outbox.closes import Closes
from meterkit.pages.listing import Asked, Column, Listing, Row, Rows, as_of, first_of, made_of, page_of
from meterkit.store.arguments import check_customer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from meterkit.delivery.reconciling import Reconciled
    from meterkit.insights.overview.overview import Overview
    from meterkit.insights.overview.rows import CustomerRow
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store

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
        return Rows([_book_row(one) for one in found])


def _book_row(found: Reconciled) -> Row:
    return {column.name: getattr(found, column.name) for column in _BOOKS}


MOVES: Final = ("new", "expansion", "reactivation", "contraction", "churn")
"""As :mod:`meterkit.insights.revenue.lists`, which imports SQLAlchemy, names them."""
_PLACE: Final = re.compile(r"(-?[0-9]{1,18}) (.+)", re.DOTALL)
"""Of a customer: the share used, and the id."""
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_CUSTOMER: Final = Column("customer", "Customer", opens="ledger")
_CUSTOMERS: Final = (
    _CUSTOMER,
    Column("plan", "Plan"),
    Column("status", "Status"),
    Column("access", "Access"),
    Column("meter", "Nearest limit"),
    Column("used", "Used", "number"),
    Column("ceiling", "Limit", "number"),
    Column("per_mille", "Share used", "per_mille"),
    Column("unlinked", "Waiting for a link", "number"),
)
_PAYING: Final = (
    _CUSTOMER,
    Column("plan", "Plan"),
    Column("currency", "Currency"),
    Column("mrr", "Per month", "micro"),
)
_MOVED: Final = (
    *_PAYING[:3],
    Column("move", "Movement"),
    Column("before", "Before", "micro"),
    Column("after", "After", "micro"),
    Column("change", "Change", "micro"),
)
_CHANGED: Final = (_CUSTOMER, Column("day", "Day (UTC)"), *_MOVED[1:])
_KEPT: Final = (
    *_PAYING[:3],
    Column("before", "A month before", "micro"),
    Column("after", "Now", "micro"),
)
_CHARGED: Final = (
    _CUSTOMER,
    Column("day", "Period ended"),
    Column("currency", "Currency"),
    Column("amount", "Amount", "micro"),
)
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "all": ("Customers", "There are no customers."),
    "near": ("Customers near a limit", "No customer has used 80 % of a limit."),
    "past_due": ("Customers past due", "No customer is past due."),
    "unlinked": ("Customers whose usage waits for a link to Stripe", "No usage waits for a link."),
    "plan": ("Customers on the plan {of}", "No customer is on this plan."),
    "status": ("Customers whose subscription is {of}", "There are no such customers."),
    "access": ("Customers whose access is {of}", "There are no such customers."),
}


def customer_lists(overview: Overview) -> Mapping[str, Listing]:
    """The lists of customers that the last snapshot has."""

    def listing(name: str, title: str, empty: str) -> Listing:
        async def read(asked: Asked) -> Rows:
            made = await made_of(overview)
            place = _PLACE.fullmatch(asked.after)
            if asked.after and place is None:
                return Rows([], "", as_of(made))
            after = () if place is None else place.groups()
            found = await overview.customers(made, name, asked.of, after=after, most=asked.most)
            last = f"{found[-1].per_mille} {found[-1].customer}" if len(found) == asked.most else ""
            return Rows([_row(row) for row in found], last, as_of(made))

        needs_of = name in {"plan", "status", "access"}
        return Listing(name=name, title=title, columns=_CUSTOMERS, read=read, empty=empty, needs_of=needs_of)

    return {name: listing(name, *words) for name, words in _LISTS.items()}


def revenue_lists(overview: Overview) -> Mapping[str, Listing]:
    """Who pays, whose payment changed, and what usage costs."""
    found = _OfRevenue(overview)
    listings = (
        ("paying", "Paying customers: {of}", _PAYING, found.paying, "No customer pays."),
        ("moves", "Changes of revenue: {of}", _MOVED, found.moves, "No customer's revenue changed so."),
        (
            "changes",
            "Changes of revenue in the last month: {of}",
            _CHANGED,
            found.changes,
            "No customer's revenue changed so.",
        ),
        ("kept", "Customers of a month before: {of}", _KEPT, found.kept, "No customer paid a month before."),
        ("usage", "Usage billed in the last month: {of}", _CHARGED, found.usage, "No usage was billed."),
    )
    return {
        name: Listing(name=name, title=title, columns=columns, read=read, empty=empty, needs_of=True)
        for name, title, columns, read, empty in listings
    }


class _OfRevenue:
    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    async def paying(self, asked: Asked) -> Rows:
        """Of a currency, of a currency and a plan, or of a day and a currency."""
        if (day := await self._day()) is None:
            return Rows([])
        currency, _, plan = asked.of.partition(" ")
        if (of_day := _day_in(currency)) is not None:
            day, currency, plan = of_day, plan, ""
        found = await self._overview.payments(day, currency, plan, after=asked.after, most=asked.most)
        return _page([row._asdict() for row in found], asked.most, "customer")

    async def moves(self, asked: Asked) -> Rows:
        """Of a day, a currency and a movement."""
        day, currency, move = (*asked.of.split(" "), "", "")[:3]
        if await self._day() is None or (at := _day_in(day)) is None or move not in MOVES:
            return Rows([])
        found = await self._overview.moves(at, currency, move, after=asked.after, most=asked.most)
        return _page([row._asdict() for row in found], asked.most, "customer")

    async def changes(self, asked: Asked) -> Rows:
        """Of a currency and movements."""
        currency, *named = asked.of.split(" ")
        moves = [move for move in MOVES if move in named]
        if (day := await self._day()) is None or not moves:
            return Rows([])
        after = (*asked.after.split(" ", 2), "", "")[:3] if asked.after else ()
        found = await self._overview.changes(day, currency, moves, after=after, most=asked.most)
        return Rows([{"day": at, **one._asdict()} for at, one in found.rows], " ".join(found.after))

    async def kept(self, asked: Asked) -> Rows:
        """Of a currency."""
        if (day := await self._day()) is None:
            return Rows([])
        found = await self._overview.kept(day, asked.of, after=asked.after, most=asked.most)
        return _page([row._asdict() for row in found], asked.most, "customer")

    async def usage(self, asked: Asked) -> Rows:
        """Of a currency."""
        if (day := await self._day()) is None:
            return Rows([])
        ended, _, customer = asked.after.partition(" ")
        after = (customer, ended) if asked.after else ()
        found = await self._overview.usage_charges(day, asked.of, after=after, most=asked.most)
        return _page([row._asdict() for row in found], asked.most, "day", "customer")

    async def _day(self) -> date | None:
        """The day that the revenue of the last snapshot is of; None: there is none."""
        revenue = (await made_of(self._overview)).figures["revenue"]
        return None if revenue is None else date.fromisoformat(revenue["day"])


def _day_in(text: str) -> date | None:
    """The day that a text names; None: it names none."""
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _page(rows: Sequence[Row], most: int, *place: str) -> Rows:
    after = " ".join(str(rows[-1][name]) for name in place) if len(rows) == most else ""
    return Rows(rows, after)


def _row(found: CustomerRow) -> Row:
    return dict(found._asdict())

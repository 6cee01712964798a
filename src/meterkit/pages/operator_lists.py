"""Lists of the operator pages: rows, pages and exports; customers, spikes, revenue, invoices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError
from meterkit.insights.overview.rows import DELIVERY, NO_END_MS
from meterkit.insights.revenue.revenue_formulas import MOVES
from meterkit.notify.spikes import SpikesToday
from meterkit.outbox.close_queue import CloseQueue
from meterkit.pages.refusal_words import until_words
from meterkit.redis.daemon_thread import in_thread
from meterkit.store.daily_counts import DEGRADED_DAYS
from meterkit.store.excess_units import ExcessUnits, describe_units
from meterkit.store.input_checks import check_customer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from meterkit.insights.overview.overview import CustomerOverview
    from meterkit.insights.overview.tables import OverviewSnapshot
    from meterkit.insights.revenue.tables import RevenueLists
    from meterkit.pages.usage_figures import PagesKit

Row = dict[str, object]

_EXPORT_PAGE: Final = 2_000
_OFFSET: Final = re.compile(r"[0-9]{1,9}")


class Column(NamedTuple):
    """A column.

    Attributes:
        name: of the value in a row, and in exports.
        heading: on the page.
        kind: how the page shows it; ``micro``: millionths of the smallest unit of the row's currency;
            ``units``: a quantity of the row's ``unit``, which may be money; ``unit``: that unit;
            ``change``: a value of a ledger entry of the row's ``kind``.
        opens: the list that a value opens, given the value.
    """

    name: str
    heading: str
    kind: Literal["text", "number", "micro", "per_mille", "time", "units", "unit", "change"] = "text"
    opens: str = ""


class PageRequest(NamedTuple):
    """A request for a page of a list.

    Attributes:
        of: the plan, day or the like; empty if the list needs none.
        after: position of the last row of the previous page; empty: the first page.
        most: the number of rows.
    """

    of: str
    after: str
    most: int


class Rows(NamedTuple):
    """A page of rows.

    Attributes:
        after: position of its last row; empty: there are no more.
        note: a note on the page, such as the time of the snapshot.
    """

    rows: Sequence[Row]
    after: str = ""
    note: str = ""


def as_of(made: OverviewSnapshot) -> str:
    """Format the time of the snapshot for a page."""
    return f"As of {from_ms(made.at_ms):%Y-%m-%d %H:%M} UTC."


async def made_of(overview: CustomerOverview) -> OverviewSnapshot:
    """Read the last snapshot.

    Raises:
        MeterkitError: there is no snapshot yet, or it cannot be read.
    """
    made = await overview.last()
    if made is None:
        raise MeterkitError("The first figures over all customers are being computed. Try again in a minute.")
    return made


def page_of(rows: Sequence[Row], asked: PageRequest) -> Rows:
    """Cut a page from all rows; the position of a row is its index."""
    first = int(asked.after) if _OFFSET.fullmatch(asked.after) else 0
    end = first + asked.most
    return Rows(rows[first:end], str(end) if end < len(rows) else "")


def first_of(rows: Sequence[Row], asked: PageRequest, is_cut: bool) -> Rows:
    """Cut a page from all rows, with a note if more exist than were read."""
    note = f"Only the first {len(rows):,} are listed." if is_cut else ""
    return page_of(rows, asked)._replace(note=note)


@dataclass(frozen=True, slots=True)
class OperatorList:
    """A list that a figure opens.

    Attributes:
        name: in the URL.
        title: on the page; ``{of}`` stands for the requested plan, day or the like.
        columns: of each row.
        read: reads a page.
        empty: the text of a list without rows.
        action: the action on a row, identified by its first column; empty: none.
        needs_of: the list needs a plan, day or the like.
    """

    name: str
    title: str
    columns: Sequence[Column]
    read: Callable[[PageRequest], Awaitable[Rows]]
    empty: str
    action: str = ""
    needs_of: bool = False

    async def pages(self, of: str) -> AsyncGenerator[Sequence[Row]]:
        """Yield all rows, page by page."""
        after = ""
        while True:
            found = await self.read(PageRequest(of, after, _EXPORT_PAGE))
            yield found.rows
            after = found.after
            if not after:
                return


MINUTE_MS: Final = 60_000
DAY_MINUTES: Final = 1_440
_MOST: Final = 10_000
_SPIKES: Final = (
    Column("customer", "Customer", opens="ledger"),
    Column("meter", "Meter"),
    Column("at", "Found (UTC)", "time"),
    Column("span", "Span"),
    Column("unit", "Unit", "unit"),
    Column("used", "Used", "units"),
    Column("usual", "Usual", "units"),
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
    Column("by_item", "By invoice item", "number"),
    Column("dead", "Dead", "number"),
    Column("advice", "Advice"),
)


def book_lists(kit: PagesKit, overview: CustomerOverview) -> Sequence[OperatorList]:
    """Make the lists of spikes, degraded minutes, usage by state, unconfirmed closes, and books."""

    async def spiking(asked: PageRequest) -> Rows:
        found = await SpikesToday(kit.store).all()
        units = {name: meter.unit for name, meter in kit.catalog.meters.items()}
        names = ("customer", "meter", "span", "used", "usual")
        rows: list[Row] = [
            {
                **{name: getattr(one, name) for name in names},
                "at": from_ms(one.at_ms),
                "unit": units.get(one.meter, ""),
            }
            for one in found
        ]
        return page_of(rows, asked)

    async def degraded(asked: PageRequest) -> Rows:
        """Read the last 24 hours for ``day``, otherwise all."""
        found = await kit.store.degraded.read(DEGRADED_DAYS)
        since = kit.store.now_ms() // MINUTE_MS - DAY_MINUTES if asked.of == "day" else 0
        rows: list[Row] = [
            {"minute": from_ms(minute * MINUTE_MS), "requests": requests}
            for minute, requests in found.items()
            if minute > since
        ]
        units = describe_units(await ExcessUnits(kit.store).read(DEGRADED_DAYS))
        note = f"Admitted beyond limits in {DEGRADED_DAYS} days: {units}." if units else ""
        return page_of(rows, asked)._replace(note=note)

    async def unconfirmed(asked: PageRequest) -> Rows:
        found = await CloseQueue(kit.store, (await kit.store.admin()).for_delivery()).unconfirmed(most=_MOST)
        rows: list[Row] = [{"customer": one.customer, "period_end": from_ms(one.end_ms)} for one in found]
        return first_of(rows, asked, len(found) == _MOST)

    async def books(asked: PageRequest) -> Rows:
        """Read a customer's previous and current period; this asks Stripe."""
        period = (await kit.usage(check_customer(asked.of)))["period"]
        instants = (period["start"] - timedelta(milliseconds=1), period["start"])
        found = [one for at in instants for one in await kit.reconcile(asked.of, at=at)]
        return Rows([{column.name: getattr(one, column.name) for column in _BOOKS} for one in found])

    usage = partial(_read_delivered, overview)
    no_such, not_billed = "No customer has such usage.", "This customer has no billed usage."
    unconfirmed_title = "Periods without a confirmed invoice"
    all_confirmed = "Every ended period is confirmed or not due yet."
    return (
        OperatorList("spiking", "Unusually high usage today", _SPIKES, spiking, "No spike was found today."),
        OperatorList(
            "degraded", "Minutes without the store", _DEGRADED, degraded, "The store decided every request."
        ),
        OperatorList("delivered", "Usage: {of}", _USAGE, usage, no_such, needs_of=True),
        OperatorList("unconfirmed", unconfirmed_title, _UNCONFIRMED, unconfirmed, all_confirmed),
        OperatorList("books", "Delivered and invoiced: {of}", _BOOKS, books, not_billed, needs_of=True),
    )


async def _read_delivered(overview: CustomerOverview, asked: PageRequest) -> Rows:
    """Read usage of a state and a meter."""
    state, _, meter = asked.of.partition(" ")
    made = await made_of(overview)
    if state not in DELIVERY:
        return Rows([])
    usage = overview.tables().usage
    found = await in_thread(usage, made.at_ms, meter, state, after=asked.after, most=asked.most)
    return _make_page(found, asked.most, "customer", note=as_of(made))


_CUSTOMER_POSITION: Final = re.compile(r"(-?[0-9]{1,18}) (.+)", re.DOTALL)
"""Position of a customer: the share used, and the id."""
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_CUSTOMER: Final = Column("customer", "Customer", opens="ledger")
_CUSTOMERS: Final = (
    _CUSTOMER,
    Column("plan", "Plan"),
    Column("status", "Status"),
    Column("access", "Access"),
    Column("meter", "Nearest limit"),
    Column("unit", "Unit", "unit"),
    Column("used", "Used", "units"),
    Column("ceiling", "Limit", "units"),
    Column("per_mille", "Share used", "per_mille"),
    Column("unlinked", "Unlinked usage", "number"),
)
_REFUSED: Final = (
    *_CUSTOMERS[:4],
    Column("refused", "Refused by"),
    Column("accepted", "Accepted again"),
    Column("refused_until", "Until (UTC)", "time"),
)
_NO_END: Final = "not by waiting"
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
    Column("before", "One month ago", "micro"),
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
    "refused": ("Customers who are refused now", "No limit refuses a customer."),
    "near": ("Customers near a limit", "No customer has used 80 % of a limit."),
    "past_due": ("Customers past due", "No customer is past due."),
    "unlinked": ("Customers with usage and no Stripe customer", "All usage belongs to linked customers."),
    "plan": ("Customers on the plan {of}", "No customer is on this plan."),
    "status": ("Customers whose subscription is {of}", "There are no such customers."),
    "access": ("Customers whose access is {of}", "There are no such customers."),
}


def customer_lists(kit: PagesKit, overview: CustomerOverview) -> Sequence[OperatorList]:
    """Make the lists of customers, from the last snapshot."""
    return [
        OperatorList(
            name,
            title,
            _REFUSED if name == "refused" else _CUSTOMERS,
            partial(_read_customers, kit, overview, name),
            empty,
            needs_of=name in {"plan", "status", "access"},
        )
        for name, (title, empty) in _LISTS.items()
    ]


async def _read_customers(kit: PagesKit, overview: CustomerOverview, name: str, asked: PageRequest) -> Rows:
    made = await made_of(overview)
    position = _CUSTOMER_POSITION.fullmatch(asked.after)
    if asked.after and position is None:
        return Rows([], "", as_of(made))
    after = () if position is None else position.groups()
    customers = overview.tables().customers
    now_ms, is_refused = kit.store.now_ms(), name == "refused"
    value = str(now_ms) if is_refused else asked.of
    found = await in_thread(customers, made.at_ms, name, value, after=after, most=asked.most)
    number = "refused_until_ms" if is_refused else "per_mille"
    page, catalog = _make_page(found, asked.most, number, "customer", note=as_of(made)), kit.catalog
    currencies: dict[str, str] = {}
    if len(catalog.currencies) > 1:
        names = [row.customer for row in found if row.meter in catalog.meters]
        states = await CustomerStates(kit.store).find_many(names)
        currencies = {who: one.state.currency for who, one in zip(names, states, strict=True)}
    own = [catalog.in_currency(currencies.get(row.customer, "")).meters for row in found]
    units = [
        meters[row.meter].unit if row.meter in meters else "" for row, meters in zip(found, own, strict=True)
    ]
    waits = [_describe_wait(row.refused_until_ms, now_ms) for row in found]
    shown = zip(page.rows, units, waits, strict=True)
    return page._replace(rows=[{**row, "unit": unit, **wait} for row, unit, wait in shown])


def _describe_wait(until_ms: int, now_ms: int) -> Row:
    """Describe until when a customer is refused: the instant and the words, as far as they are known."""
    if not now_ms < until_ms < NO_END_MS:
        return {"refused_until": None, "accepted": _NO_END if until_ms == NO_END_MS else ""}
    until = from_ms(until_ms)
    return {"refused_until": until, "accepted": until_words(until, from_ms(now_ms))}


def revenue_lists(overview: CustomerOverview) -> Sequence[OperatorList]:
    """Make the lists of paying customers, changes of revenue, and billed usage."""
    unchanged = "No customer has such a change."
    listings = (
        ("paying", "Paying customers: {of}", _PAYING, _read_paying, "No customer pays."),
        ("moves", "Changes of revenue: {of}", _MOVED, _read_moves, unchanged),
        ("changes", "Changes of revenue in the last month: {of}", _CHANGED, _read_changes, unchanged),
        ("kept", "Customers one month ago: {of}", _KEPT, _read_kept, "No customer paid one month ago."),
        (
            "usage",
            "Usage billed in the last month: {of}",
            _CHARGED,
            _read_billed_usage,
            "No usage was billed.",
        ),
    )
    return [
        OperatorList(name, title, columns, partial(_read_revenue_list, overview, read), empty, needs_of=True)
        for name, title, columns, read, empty in listings
    ]


async def _read_revenue_list(
    overview: CustomerOverview, read: Callable[[RevenueLists, date, PageRequest], Rows], asked: PageRequest
) -> Rows:
    """Read a page for the day of the last revenue snapshot; empty without one."""
    revenue = (await made_of(overview)).figures["revenue"]
    if revenue is None:
        return Rows([])
    return await in_thread(read, overview.lists(), date.fromisoformat(revenue["day"]), asked)


def _read_paying(lists: RevenueLists, day: date, asked: PageRequest) -> Rows:
    """Read payments of a currency, of a currency and a plan, or of a day and a currency."""
    currency, _, plan = asked.of.partition(" ")
    if (of_day := _day_in(currency)) is not None:
        day, currency, plan = of_day, plan, ""
    found = lists.payments(day, currency, plan, after=asked.after, most=asked.most)
    return _make_page(found, asked.most, "customer")


def _read_moves(lists: RevenueLists, _: date, asked: PageRequest) -> Rows:
    """Read changes of a day, a currency and a movement."""
    day, currency, move = (*asked.of.split(" "), "", "")[:3]
    if (at := _day_in(day)) is None or move not in MOVES:
        return Rows([])
    found = lists.moves(at, currency, move, after=asked.after, most=asked.most)
    return _make_page(found, asked.most, "customer")


def _read_changes(lists: RevenueLists, day: date, asked: PageRequest) -> Rows:
    """Read changes of a currency and movements."""
    currency, *named = asked.of.split(" ")
    moves = [move for move in MOVES if move in named]
    if not moves:
        return Rows([])
    after = (*asked.after.split(" ", 2), "", "")[:3] if asked.after else ()
    found = lists.changes(day, currency, moves, after=after, most=asked.most)
    return Rows([{"day": at, **one._asdict()} for at, one in found.rows], " ".join(found.after))


def _read_kept(lists: RevenueLists, day: date, asked: PageRequest) -> Rows:
    """Read customers of a currency who paid one month ago."""
    found = lists.kept(day, asked.of, after=asked.after, most=asked.most)
    return _make_page(found, asked.most, "customer")


def _read_billed_usage(lists: RevenueLists, day: date, asked: PageRequest) -> Rows:
    ended, _, customer = asked.after.partition(" ")
    after = (customer, ended) if asked.after else ()
    found = lists.usage(day, asked.of, after=after, most=asked.most)
    return _make_page(found, asked.most, "day", "customer")


def _day_in(text: str) -> date | None:
    """Parse a day; None if the text is none."""
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _make_page(found: Sequence[Any], most: int, *position: str, note: str = "") -> Rows:
    """Make a page of named tuples; the fields ``position`` locate the next one."""
    rows: list[Row] = [one._asdict() for one in found]
    after = " ".join(str(rows[-1][name]) for name in position) if len(rows) == most else ""
    return Rows(rows, after, note)

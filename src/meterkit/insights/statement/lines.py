"""Lines of a statement, and the selection of audit rows that belong to each. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.decisions.periods import from_ms, to_ms
from meterkit.errors import MeterkitError
from meterkit.insights.audit.entries import RECORDED
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY, USAGE_KEY, is_usage_invoice, metadata_of
from meterkit.stripe.prices import taxes_on_top

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from meterkit.customers.billed_usage import OverageCost
    from meterkit.store.customer_usage import MeterUsage

_WORDS: Final = {"over_cap": "over the cap"}
ENTRY_WORDS: Final = {"burn": "usage", "expire": "expired", "void": "withdrawn"}
"""Words for entries of the ledger that do not say by their name what they are."""
_LACKS: Final = {
    "came too late": ("late",),
    "are not billed": ("dead",),
    "are being checked": ("parked",),
    "are not on it yet": ("pending", "unlinked", "queued", "leased"),
}
"""Words for the states of units that an invoice may lack."""
_SWITCHED_WITHIN: Final = timedelta(hours=1)
"""Time after a change of plan within which Stripe has ended the lines of the prices before."""
ENDLESS_MS: Final = 2**53
LATE_SINCE: Final = "meterkit_late_since"
LATE_METER: Final = "meterkit_meter"
"""Metadata of invoice items for late usage: the first instant of its period (ms), and its meter."""
_CREDIT_NOTES: Final = ("pre_payment_credit_notes_amount", "post_payment_credit_notes_amount")
_DAY: Final = timedelta(days=1)
LineKind = Literal["subscription", "proration", "usage", "other", "discount", "tax", "difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementEvent:
    """One recorded event of a line, in the meter's unit; below 0: taken back.

    Attributes:
        event: its name in the audit log.
        kind: ``recorded``, ``summed`` (many events with only their sum known), ``corrected`` or ``dropped``.
        occurred_at: when it happened, where that is not when it was recorded.
        billed: how much of it counts on the line.
        over_cap: how much of it was beyond the plan's cap, and is not billed.
        late: how much of it came too late for its own period.
        price_micros: of ``price_per`` units of overage then, in millionths of the currency; None: not known.
        why: in words, why it costs what it costs.
        subjects: kind to id of the customer's user, team or the like that used it; empty: none were named.
        event_id: the app's own id of the event; None: it gave none.
    """

    event: str
    meter: str
    kind: str
    recorded_at: datetime
    occurred_at: datetime | None
    quantity: int
    included: int
    granted: int
    credited: int
    overage: int
    over_cap: int
    billed: int
    late: int
    price_micros: int | None
    price_per: int | None
    model: str | None
    provider: str | None
    why: str
    subjects: Mapping[str, str]
    event_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementLine:
    """A line of an invoice, or what the plans file says of one that is not made yet. Money is in minor units.

    Attributes:
        id: of the invoice line; of other lines a name that is made up.
        invoice: the id of its invoice; None: it is on none.
        kind: ``usage`` has events; ``difference``: the part of the invoice's total that the other lines
            do not explain.
        meter: of ``usage``, else None.
        quantity: as on the invoice; of usage on none yet, its overage by the counters; None: it has none.
        unit_amount: the price of one, in minor units, as a decimal; empty: not known, or tiered.
        counted: the billed units of the line's events.
        included, granted, credited, overage: the units of these events by what paid for them.
        over_cap: those beyond the plan's cap, which are not billed.
        event_count: how many events the line has.
        events: the first of them, oldest first.
        after: where the next page of events begins; empty: there are no more.
        late_since: of an invoice item for late usage, the first instant of its period; else None.
        note: where ``quantity`` and ``counted`` differ, or a total: why; which units are not billed, or have
            no event or price; the later invoice that bills a month amid a paid year, or late units.
    """

    id: str
    invoice: str | None
    kind: LineKind
    description: str
    meter: str | None = None
    quantity: int | None = None
    unit_amount: str = ""
    amount_cents: int = 0
    start: datetime
    end: datetime
    counted: int = 0
    included: int = 0
    granted: int = 0
    credited: int = 0
    overage: int = 0
    over_cap: int = 0
    event_count: int = 0
    events: tuple[StatementEvent, ...] = ()
    after: str = ""
    late_since: datetime | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementInvoice:
    """An invoice of the statement.

    Attributes:
        credit_notes_cents: what credit notes give back of it, which leaves ``total_cents`` as it is.
        audit_root, audit_rows: pin down the audit log as it was when the invoice was made.
    """

    id: str
    number: str | None
    status: str
    total_cents: int
    credit_notes_cents: int
    audit_root: str | None
    audit_rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceEntry:
    """A change of a balance in money: ``grant`` (a top-up), ``burn`` (usage), ``debt``, ``refund``."""

    credit: str
    entry: str
    grant_id: str
    amount_micros: int
    meter: str | None
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A bill down to its events.

    Attributes:
        is_final: whether all lines are on invoices that do not change any more.
        invoices: of the period; empty: none is made yet, and the lines are those of the plans file.
        currency: of all amounts but balances, which are in US dollars.
        total_cents: the sum of the invoices' totals, and of the lines that are on no invoice.
        balance: changes of balances in money.
    """

    customer: str
    period_id: str
    period_start: datetime
    period_end: datetime
    currency: str
    is_final: bool
    invoices: tuple[StatementInvoice, ...]
    lines: tuple[StatementLine, ...]
    total_cents: int
    balance: tuple[BalanceEntry, ...]


class PlaceError(MeterkitError):
    """No page of events ends there."""


class EventSelection(NamedTuple):
    """Selection of the audit rows that a line bills.

    Attributes:
        meters: by their names in the audit log.
        since_ms: recorded then or later.
        until_ms: recorded before then.
    """

    meters: tuple[str, ...]
    since_ms: int = 0
    until_ms: int = ENDLESS_MS


class UnitsElsewhere(NamedTuple):
    """Units of a meter that the invoices of their period lack.

    Attributes:
        units: how many.
        place: where they are billed, in words: "invoice in_1".
    """

    units: int
    place: str


class EventSums(NamedTuple):
    """Sums of a line's events."""

    events: int = 0
    billed: int = 0
    included: int = 0
    granted: int = 0
    credited: int = 0
    overage: int = 0
    over_cap: int = 0


def invoice_lines(
    invoice: Mapping[str, Any], meter_of: Mapping[str, str], recurring: Iterable[str]
) -> list[StatementLine]:
    """The lines of an invoice, with its discounts, its taxes, and what they leave unexplained.

    Args:
        invoice: as Stripe shows it, with all its lines.
        meter_of: by price, the meter whose usage it bills.
        recurring: the prices that recur without a meter.
    """
    name, found = str(invoice["id"]), list[StatementLine]()
    is_recurring = frozenset(recurring)
    for line in invoice["lines"]["data"]:
        pricing: Mapping[str, Any] = line.get("pricing") or {}
        price = price_in(line)
        metadata: Mapping[str, str] = line.get("metadata") or {}
        late_since = metadata.get(LATE_SINCE)
        meter = metadata.get(LATE_METER) if late_since else meter_of.get(price)
        kind: LineKind = "usage" if meter else "subscription" if price in is_recurring else "other"
        span: Mapping[str, int] = line.get("period") or {}
        found.append(
            StatementLine(
                id=str(line["id"]),
                invoice=name,
                kind="proration" if is_proration(line) else kind,
                description=str(line.get("description") or ""),
                meter=meter,
                quantity=line.get("quantity"),
                unit_amount=str(pricing.get("unit_amount_decimal") or ""),
                amount_cents=int(line["amount"]),
                start=from_ms(1000 * int(span.get("start") or invoice["created"])),
                end=from_ms(1000 * int(span.get("end") or invoice["created"])),
                late_since=None if not late_since else from_ms(int(late_since)),
            )
        )
    return found + _invoice_remainder(invoice, sum(line.amount_cents for line in found))


def build_invoice(invoice: Mapping[str, Any]) -> StatementInvoice:
    """An invoice as a statement shows it."""
    metadata: Mapping[str, str] = invoice.get("metadata") or {}
    rows = metadata.get("meterkit_audit_rows", "")
    return StatementInvoice(
        id=str(invoice["id"]),
        number=invoice.get("number"),
        status=str(invoice["status"]),
        total_cents=int(invoice["total"]),
        credit_notes_cents=sum(int(invoice.get(name) or 0) for name in _CREDIT_NOTES),
        audit_root=metadata.get("meterkit_audit_root"),
        audit_rows=int(rows) if rows.isdecimal() else None,
    )


def is_of_period(invoice: Mapping[str, Any], start_s: int, end_s: int) -> bool:
    """Whether an invoice belongs to a period (Unix seconds): a first one, one of a change, or a renewal."""
    if is_usage_invoice(invoice, end_s * 1000):
        return True
    if not is_of_subscription(invoice):
        return False
    if invoice.get("billing_reason") == "subscription_create":
        return bool(start_s <= invoice["created"] < end_s)
    at_s = int(invoice["period_end"])
    if at_s in {start_s, end_s}:  # Two periods meet: a renewal ends the one, a change begins the other.
        return _charges_ahead(invoice) == (at_s == start_s)
    return start_s < at_s < end_s


def is_of_subscription(invoice: Mapping[str, Any]) -> bool:
    """Whether a subscription has made an invoice."""
    parent: Mapping[str, Any] = invoice.get("parent") or {}
    return parent.get("type") == "subscription_details"


def _charges_ahead(invoice: Mapping[str, Any]) -> bool:
    """Whether an invoice of a change charges a part of the period after it.

    One that begins a cycle anew charges whole periods, and the usage before it, as a renewal does.
    """
    shown: Mapping[str, Any] = invoice.get("lines") or {}
    lines: Sequence[Mapping[str, Any]] = shown.get("data") or ()
    charged = (line for line in lines if line["amount"] > 0 and is_proration(line))
    is_change = invoice.get("billing_reason") == "subscription_update"
    return is_change and any(line["period"]["end"] > invoice["period_end"] for line in charged)


def customer_of(invoice: Mapping[str, Any]) -> str | None:
    """The customer that an invoice's subscription names, or whose usage alone it bills; None: neither."""
    parent: Mapping[str, Any] = invoice.get("parent") or {}
    _, _, billed = metadata_of(invoice).get(USAGE_KEY, "").partition(":")
    return billed or metadata_of(parent.get("subscription_details") or {}).get(CUSTOMER_KEY)


def is_proration(line: Mapping[str, Any]) -> bool:
    """Whether an invoice line charges, or credits, the rest of a period."""
    parent: Mapping[str, Any] = line.get("parent") or {}
    details: Mapping[str, Any] = parent.get(str(parent.get("type"))) or {}
    return bool(details.get("proration"))


def price_in(line: Mapping[str, Any]) -> str:
    """The id of the price of an invoice line; empty: it has none."""
    pricing: Mapping[str, Any] = line.get("pricing") or {}
    details: Mapping[str, Any] = pricing.get("price_details") or {}
    return str(details.get("price") or "")


def _invoice_remainder(invoice: Mapping[str, Any], sum_cents: int) -> list[StatementLine]:
    """Discounts, taxes and the unexplained rest of an invoice, as lines."""
    name, at = str(invoice["id"]), from_ms(1000 * int(invoice["created"]))
    off = -sum(int(one["amount"]) for one in invoice.get("total_discount_amounts") or ())
    tax = taxes_on_top(invoice)
    rest: tuple[tuple[LineKind, int, str], ...] = (
        ("discount", off, "Discounts"),
        ("tax", tax, "Taxes"),
        ("difference", int(invoice["total"]) - sum_cents - off - tax, "Not explained by the lines"),
    )
    return [
        StatementLine(
            id=f"{name}/{kind}",
            invoice=name,
            kind=kind,
            description=words,
            amount_cents=amount,
            start=at,
            end=at,
            note="the invoice's total differs from the sum of its lines" if kind == "difference" else "",
        )
        for kind, amount, words in rest
        if amount
    ]


def select_events(
    lines: Sequence[StatementLine], names: Mapping[str, tuple[str, ...]], changes: Sequence[datetime]
) -> dict[str, EventSelection]:
    """By line id, the events that each usage line rests on; each event belongs to one line.

    Lines of one meter share its events by time: a change of plans parts them, or of the price alone, as by an
    override. Of lines that have one span, as tiers do, the first has all events.

    Args:
        lines: of all invoices of the period.
        names: of each meter, all that share its event name, as the audit log has them.
        changes: when the plan changed in the period, oldest first.
    """
    found: dict[str, EventSelection] = {}
    for meter, of in names.items():
        spans: dict[tuple[datetime, datetime], str] = {}
        own = [line for line in lines if (line.kind, line.meter, line.late_since) == ("usage", meter, None)]
        for line in sorted(own, key=lambda line: (line.end, line.start)):
            spans.setdefault((line.start, line.end), line.id)
        if not spans:
            continue
        parts = [end for _, end in spans][:-1]
        if len(changes) == len(parts) and all(
            abs(at - end) <= _SWITCHED_WITHIN for at, end in zip(changes, parts, strict=True)
        ):
            parts = [*changes]
        edges = [0, *(to_ms(at) for at in parts), ENDLESS_MS]
        for name, (since_ms, until_ms) in zip(spans.values(), pairwise(edges), strict=True):
            found[name] = EventSelection(of, since_ms, until_ms)
    return found


def explain_lack(meters: Mapping[str, MeterUsage]) -> str:
    """Word the units that an invoice may lack, to stand behind a difference; empty: there are none."""
    counts: list[Mapping[str, Any]] = [*meters.values()]
    told = [
        f"{units} {words}"
        for words, states in _LACKS.items()
        if (units := sum(one[state] for one in counts for state in states))
    ]
    return f" ({', '.join(told)})" if told else ""


def explain_lines(
    lines: Sequence[StatementLine],
    wanted: Mapping[str, EventSelection],
    sums: Mapping[str, EventSums],
    elsewhere: Mapping[str, Sequence[UnitsElsewhere]],
    why: str,
    since: datetime,
) -> list[StatementLine]:
    """Lines with the sums of their events, and a note where these are not the invoice's quantity.

    Args:
        lines: of a statement.
        wanted: see :func:`select_events`.
        sums: by line id.
        elsewhere: by meter, the units that no invoice of the statement has.
        why: what may cause a difference, for the note.
        since: the first instant of the period.
    """
    found: list[StatementLine] = []
    for line in lines:
        if line.kind != "usage":
            found.append(line)
            continue
        if line.late_since is not None:
            note = (
                f"late usage of the period from {line.late_since:%Y-%m-%d}, at the price it was recorded at"
            )
            found.append(replace(line, counted=line.quantity or 0, note=note))
            continue
        of = sums.get(line.id, EventSums())
        tiers = [
            one
            for one in lines
            if (one.kind, one.meter, one.start, one.end) == (line.kind, line.meter, line.start, line.end)
            and one.late_since is None
        ]
        late = [one for one in lines if (one.meter, one.late_since) == (line.meter, since)]
        moved = [UnitsElsewhere(one.quantity or 0, one.id) for one in late]
        moved += elsewhere.get(line.meter or "", ())
        quantity, note = sum(one.quantity or 0 for one in tiers), ""
        moved_units = sum(one.units for one in moved)
        places = "; ".join(f"{one.units} of its units are on {one.place}" for one in moved)
        if line.id not in wanted:
            note = f"its events are under line {tiers[0].id}"
        elif line.invoice is None and moved:
            line, note = replace(line, quantity=moved_units), places  # noqa: PLW2901 - it gets its units
        elif line.invoice is not None and moved_units and quantity + moved_units == of.billed:
            note = places
        elif line.invoice is not None and line.start < since - _DAY and quantity > of.billed:
            note = f"{quantity - of.billed} of its units are of earlier periods: see their statements{why}"
        elif line.invoice is not None and quantity != of.billed:
            note = f"the invoice has {quantity} units, and the events come to {of.billed}{why}"
        found.append(
            replace(
                line,
                counted=of.billed,
                event_count=of.events,
                included=of.included,
                granted=of.granted,
                credited=of.credited,
                overage=of.overage,
                over_cap=of.over_cap,
                note=note,
            )
        )
    return found


def price_line(
    line: StatementLine, costs: Sequence[OverageCost], recorded: int, own: Sequence[StatementLine]
) -> StatementLine:
    """A usage line that no invoice has, with quantity and amount from the counters.

    The counters have usage before the audit log has its events; the note says how many units have none.

    Args:
        line: with the sums of its events.
        costs: of its meters; empty: the counters have none of them any more.
        recorded: units of its meters in the period, by the counters.
        own: all lines of its meter; of invoices of changes, too.
    """
    if not costs:
        note = f"{line.overage} units have no price" if line.overage > 0 else ""
        return replace(line, quantity=line.overage, note=note)
    units = sum(one.units for one in costs)
    invoiced = [one for one in own if one.invoice is not None]
    if invoiced:
        units = max(
            0, min(units, sum(one.sent for one in costs) - sum(one.quantity or 0 for one in invoiced))
        )
    cents = sum(one.cents or 0 for one in costs) - sum(one.amount_cents for one in invoiced)
    costless = [one for one in costs if one.cents is None]
    unbilled = min(units, sum(max(0, one.units - one.sent) for one in costless))
    unpriced = min(units - unbilled, sum(one.units for one in costless) - unbilled)
    logged = sum(getattr(one, name) for one in own for name in RECORDED)
    notes = (
        (unbilled, "units beyond the included quantity are not billed"),
        (unpriced, "units have no price"),
        (recorded - logged, "units of the period are not among the events yet"),
        (logged - recorded, "units of its events are not counted yet"),
    )
    return replace(
        line,
        quantity=units,
        amount_cents=max(0, cents),
        note="; ".join(f"{count} {words}" for count, words in notes if count > 0),
    )


def without_amount(line: StatementLine, currency: str) -> StatementLine:
    """A line that no invoice has, without its amount: the customer's invoices are in another currency."""
    if line.invoice is not None or not line.amount_cents:
        return line
    return _uncharged(replace(line, unit_amount=""), f"its price is in {currency.upper()}")


def billed_later(line: StatementLine, later: Iterable[StatementLine]) -> StatementLine:
    """A usage line that no invoice of its period has, without its amount if a later invoice has it.

    ``later``: usage lines of invoices that bill several months, as that of a yearly plan does.
    """
    if line.invoice is not None or line.kind != "usage" or not line.amount_cents:
        return line
    reached, invoices = line.start, dict[str, None]()
    for one in sorted(later, key=lambda one: one.start):
        if one.meter == line.meter and one.start <= reached < one.end:
            reached = one.end
            invoices[one.invoice or ""] = None
    if reached < line.end:
        return line
    return _uncharged(line, f"invoice {', '.join(invoices)} bills it, with usage of other periods")


def never_billed(line: StatementLine, missed: Mapping[str, int]) -> StatementLine:
    """A usage line without its amount if final invoices lack its units; ``missed``: such units by meter."""
    units = missed.get(line.meter or "", 0)
    is_of_usage = line.invoice is None and line.kind == "usage" and line.amount_cents > 0
    if not is_of_usage or not units or units < (line.quantity or 0):
        return line
    return _uncharged(line, "not billed: it missed its invoice")


def unbilled(line: StatementLine) -> StatementLine:
    """A line whose invoice is void: nothing is paid for it."""
    if line.invoice is not None or line.kind != "usage":
        return line
    return _uncharged(line, "not billed: the renewal's invoice is void")


def _uncharged(line: StatementLine, why: str) -> StatementLine:
    return replace(line, amount_cents=0, note="; ".join(filter(None, (line.note, why))))


_NAMES: Final = ("event", "meter", "kind", "quantity", "late", "model", "provider", "event_id")
_OF_ROW: Final = (*_NAMES, *RECORDED, "price_micros", "price_per")
"""Attributes of an event that its row has under the same name."""


def build_event(row: Mapping[str, Any], reason: str) -> StatementEvent:
    """A row of the audit log as an event of a statement; ``reason``: of a correction, else empty."""
    occurred = row["occurred_at_ms"]
    return StatementEvent(
        **{name: row[name] for name in _OF_ROW},
        recorded_at=from_ms(row["recorded_at_ms"]),
        occurred_at=None if occurred is None else from_ms(occurred),
        billed=count_billed(row),
        why=_explain_event(row, reason),
        subjects=json.loads(row["subjects"] or "{}"),
    )


def count_billed(row: Mapping[str, Any]) -> int:
    """Units of a row that count on an invoice line."""
    return -int(row["quantity"]) if row["kind"] == "dropped" else int(row["reported"])


def _explain_event(row: Mapping[str, Any], reason: str) -> str:
    words = [f"{row[name]} {_WORDS.get(name, name)}" for name in RECORDED if row[name]]
    if row["kind"] == "dropped":
        words = ["not billed"]
    elif row["kind"] == "corrected":
        words.insert(0, "correction")
    elif row["kind"] == "summed":
        words.insert(0, "many events")
    if row["late_of_ms"] is not None:
        words.append(f"late for the period from {from_ms(row['late_of_ms']):%Y-%m-%d}")
    return ", ".join(words) + (f": {reason}" if reason else "")

"""Books of usage without meters at Stripe: our units against those on invoice lines, and their corrections.

The metadata of the line has an entry for each correction. So it is lowered once, and the units that were
written stay known.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.catalog.value_parsers import money
from meterkit.customers.history import read_all_links, read_former_links
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import line_switches
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.decisions.price_segments import unit_cents
from meterkit.delivery.invoice_lines import LABEL_KEY, PRICE_KEY, change_line, queued_ids_of
from meterkit.delivery.invoices import LOWERED_KEY, units_of, written_units
from meterkit.delivery.late_usage_withdrawal import report_late
from meterkit.delivery.stripe_books import none_if_gone
from meterkit.errors import StripeError
from meterkit.outbox.invoice_item_queue import amount_each, usage_key_of
from meterkit.outbox.meters_or_lines import USAGE_KEY, is_usage_line, item_of, metadata_of
from meterkit.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.delivery.invoices import InvoiceReader, InvoiceState, ListedLine
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_LETTERS: Final = "qdwfp"
_VOID: Final = "void"
_ITEMS: Final = "/v1/invoiceitems"
_DIGITS: Final = 24  # A key of metadata has at most 40 characters.


class LineBook(NamedTuple):
    """Units of a meter and period: ours, and those on lines.

    Attributes:
        queued: units whose line is to be written; after a restore, Stripe may have it.
        written: units whose lines were written.
        there: units on lines at Stripe, with those that corrections have taken off; None: there is no such
            customer.
        cents: the amount of these lines.
        state: of their invoices.
        is_changed: whether the price of a line is not its own, or its amount not that of its units.
        voided: units on void invoices, by invoice; no other figure includes them.
        prices: units by the price of a unit that their line was written at; without lines of several prices.
        invoices: ids of the invoices with these lines.
    """

    queued: int
    written: int
    there: int | None
    cents: int | None
    state: InvoiceState
    is_changed: bool
    voided: Mapping[str, int]
    prices: Mapping[Fraction, Decimal]
    invoices: Sequence[str]

    def advise(self, currency: str) -> str:
        """Advise the operator; empty: the books agree."""
        if self.there is None:
            return "Stripe has no such customer, or the customer is not linked any more" * bool(self.written)
        if self.there < self.written:
            if self.voided:
                names, units = ", ".join(self.voided), sum(self.voided.values())
                return (
                    f"invoice lines have {self.there} of {self.written} units; {names} had {units} and is"
                    " void: check who voided it, and why"
                )
            return (
                f"invoice lines have {self.there} of {self.written} units: one was changed or deleted at"
                " Stripe; if that was a mistake, bill the rest by an invoice item"
            )
        if self.there > self.written + self.queued:
            return f"invoice lines have {self.there} units, and {self.written} were billed: credit the rest"
        if self.is_changed:
            return (
                f"invoice lines have {money(self.cents or 0, currency)}, and their units and prices come to"
                " another amount: check who changed them"
            )
        return ""


async def line_books(
    store: Store,
    usage: CustomerUsage,
    stripe_customer: str | None,
    meters: Sequence[str],
    invoices: InvoiceReader,
    *,
    all_lines: bool = True,
) -> Mapping[str, LineBook]:
    """Compare the units of some meters in a period with the lines at Stripe.

    Args:
        store: has our units.
        usage: of the customer in the period.
        stripe_customer: at Stripe; None: there is none.
        meters: by name.
        invoices: reads invoices.
        all_lines: whether to read all lines of drafts, and pending items; otherwise, those that the list of
            invoices shows.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    if not meters:
        return {}
    customer, start_ms = usage["customer"], to_ms(usage["period"]["start"])
    admin, totals = await store.admin(), store.keys.customer(customer).totals
    fields = [f"{start_ms}|{meter_token(name)}{letter}" for name in meters for letter in _LETTERS]
    kept = iter(int(value or 0) for value in await admin.ask(admin.client.hmget(totals, fields)))
    lines: dict[str, list[_ShownLine]] | None = None
    for linked in await read_all_links(store, customer, stripe_customer):
        shown = await none_if_gone(_lines_by_key(invoices, linked, start_ms // 1000, all_lines=all_lines))
        for key, more in (shown or {}).items():
            lines = lines or {}
            lines[key] = [*lines.get(key, ()), *more]
        lines = lines if shown is None else lines or {}
    found: dict[str, LineBook] = {}
    for name in meters:
        queued, delivered, free, late, pending = (next(kept) for _ in _LETTERS)
        own = None if lines is None else lines.get(usage_key_of(customer, meter_token(name), start_ms), [])
        found[name] = _book_of(queued + pending, delivered - free + late, own)
    return found


async def lines_of_links(
    store: Store, customer: str, stripe_customer: str | None, invoices: InvoiceReader, since_s: int
) -> list[tuple[ListedLine, bool]]:
    """Read invoice lines and pending items since an instant, of former links too.

    Each has whether its span ended while the link lasted: outside, a Stripe customer may have been another's.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    former = await read_former_links(store, customer)
    found: list[tuple[ListedLine, bool]] = []
    for linked in dict.fromkeys((stripe_customer, *(one.stripe_customer for one in former))):
        if linked is not None:
            spans = [(one.since_s, one.until_s) for one in former if one.stripe_customer == linked]
            is_current, asked = linked == stripe_customer, _all_lines(invoices, linked, since_s)
            lines = await asked if is_current else await none_if_gone(asked) or ()
            found += [(one, is_current or _ended_within(one, spans)) for one in lines]
    return found


async def _all_lines(invoices: InvoiceReader, stripe_customer: str, since_s: int) -> list[ListedLine]:
    return [
        *await invoices.lines(stripe_customer, since_s),
        *await invoices.pending_lines(stripe_customer),
    ]


def _ended_within(one: ListedLine, spans: Iterable[tuple[int, int]]) -> bool:
    end_s = int(one.line["period"]["end"])
    return any(since_s < end_s <= until_s for since_s, until_s in spans)


async def _lines_by_key(
    invoices: InvoiceReader, stripe_customer: str, since_s: int, *, all_lines: bool
) -> dict[str, list[_ShownLine]]:
    """Read the lines for usage since an instant, pending ones included."""
    if all_lines:
        listed = await _all_lines(invoices, stripe_customer, since_s)
    else:
        listed = await invoices.shown_lines(stripe_customer, since_s)
    found: dict[str, list[_ShownLine]] = {}
    for invoice, line in listed:
        metadata = metadata_of(line)
        if USAGE_KEY in metadata:
            state = "pending" if invoice is None else str(invoice.get("status"))
            shown = _ShownLine(state, "" if invoice is None else str(invoice["id"]), line)
            found.setdefault(metadata[USAGE_KEY], []).append(shown)
    return found


class _ShownLine(NamedTuple):
    """A line as Stripe shows it, and its invoice; empty: it is pending."""

    state: str
    invoice: str
    line: Mapping[str, Any]


def _book_of(queued: int, written: int, shown: Sequence[_ShownLine] | None) -> LineBook:
    if shown is None:
        return LineBook(queued, written, None, None, "none", False, {}, {}, ())
    due, cents, is_repriced, voided = Fraction(0), 0, False, dict[str, int]()
    prices: dict[Fraction, Decimal] = {}
    for one in shown:
        if one.state == _VOID:
            voided[one.invoice] = voided.get(one.invoice, 0) + int(written_units(one.line))
    lines = [one for one in shown if one.state != _VOID]
    for _, _, line in lines:
        pricing: Mapping[str, Any] = line.get("pricing") or {}
        unit = Decimal(str(pricing.get("unit_amount_decimal") or 0))
        price = amount_each(unit, str(line.get("currency")))
        is_repriced = is_repriced or price != line["metadata"].get(PRICE_KEY)
        due += Fraction(unit) * Fraction(units_of(line))
        cents += int(line.get("amount") or 0)
        if (each := unit_cents(metadata_of(line).get(LABEL_KEY, ""))) is not None:
            prices[each] = prices.get(each, Decimal(0)) + written_units(line)
    states = {one.state for one in lines}
    state: InvoiceState = "none"
    if states:
        state = "pending" if "pending" in states else "draft" if "draft" in states else "final"
    there = int(sum(written_units(one.line) for one in lines))
    is_changed = is_repriced or abs(due - cents) > Fraction(len(lines), 2)
    invoices = sorted({one.invoice for one in lines if one.invoice})
    return LineBook(queued, written, there, cents, state, is_changed, voided, prices, invoices)


def written_line_token(line: Mapping[str, Any], customer: str, tokens: Iterable[str]) -> str | None:
    """Find the meter, among some, whose usage of a period a written line bills; None: none."""
    key, start_ms = metadata_of(line).get(USAGE_KEY), 1000 * int(line["period"]["start"])
    if key is None or not is_usage_line(line):
        return None
    return next((token for token in tokens if usage_key_of(customer, token, start_ms) == key), None)


def written_item(line: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Find the invoice item of a written line, and its queued lines; None: it is another line."""
    return (item_of(line), queued_ids_of(line)) if is_usage_line(line) else None


async def queue_ended_usage(store: Store, customer: str) -> None:
    """Queue lines for pending usage of ended periods, so that a correction finds them.

    Raises:
        StoreError: the store does not answer.
    """
    _, state = await CustomerStates(store).read(customer)
    if state.stripe_customer is not None and line_switches(state, store.catalog):
        outbox = Outbox(store, await store.admin())
        report_late((await outbox.seal_customer(customer)).late, await outbox.meters())


async def lower_line(api: StripeApi, item: str, units: int, *, correction: str, is_final: bool) -> bool:
    """Take units off a written line, once for each correction; False: the line is final and was not lowered.

    Args:
        api: the way to Stripe.
        item: the invoice item of the line.
        units: how many.
        correction: hex digits that identify the correction and the line.
        is_final: whether the invoice of the line is final.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    shown = await api.get(f"{_ITEMS}/{item}")
    metadata = metadata_of(shown)
    entry, left = f"{LOWERED_KEY}{correction[:_DIGITS]}", int(units_of(shown)) - units
    if entry in metadata or is_final:
        return entry in metadata
    if left < 0:
        raise StripeError(f"the line has {units_of(shown):f} units: a person has changed it")
    await change_line(api, shown, left, {entry: f"{units}"})
    return True

"""Advice of ``reconcile``: the operator's next step if our books differ from Stripe's. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from meterkit.catalog.value_parsers import exact_money, money, rounded_cents
from meterkit.delivery.invoices import MADE_WITHIN_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.delivery.invoices import InvoicedUnits, LineCharge


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBooks:
    """Books of all meters of one event name in a period: ours, Stripe's summaries and invoice lines.

    Attributes:
        confirmed: units that Stripe has counted; None: it has no such customer or meter.
        invoiced: units on invoice lines; None: they are not compared.
        invoice_ms: when Stripe made the invoice of the period, or will; None: no invoice bills it.
        price: of a unit, as a suffix for a quantity; empty: not known.
        parked: parked units, without ``parked_back``.
        parked_back: parked units of negative events.
        taken_back: delivered units of negative events.
        uninvoiced: late units that Stripe has counted and no invoice can have.
        recorded: units by the price at which they were recorded; None: not known.
    """

    confirmed: int | None
    invoiced: InvoicedUnits | None
    invoice_ms: int | None
    price: str
    delivered: int
    parked: int
    parked_back: int
    taken_back: int
    uninvoiced: int
    recorded: Mapping[Fraction, int] | None

    @property
    def difference(self) -> int | None:
        """Units that Stripe has counted beyond the delivered and the late ones; None: it has counted none."""
        return None if self.confirmed is None else self.confirmed - self.delivered - self.uninvoiced

    @property
    def mispriced(self) -> Sequence[PriceMismatch]:
        """Units on lines of other prices than they were recorded at."""
        if self.invoiced is None or self.invoiced.prices is None or self.recorded is None:
            return ()
        return mispriced(self.recorded, self.invoiced.prices)

    def format_surplus(self, currency: str) -> str:
        """Format the amount that lines charge beyond recorded usage; empty: none, or not known."""
        if self.invoiced is None or self.invoiced.cents is None or self.recorded is None:
            return ""
        due = sum((units * price for price, units in self.recorded.items()), Fraction(0))
        return money(rounded_cents(self.invoiced.cents - due), currency) if self.invoiced.cents > due else ""


def advice_on_event(side: EventBooks, currency: str, now_ms: int) -> str:
    """Advise on all differences between the books of an event name; empty: they agree.

    Args:
        side: the books.
        currency: of the plans file.
        now_ms: now.
    """
    difference, parked, invoiced = side.difference, format_parked(side), side.invoiced
    if side.confirmed is None or difference is None:
        gone = "Stripe has no such meter or customer, or the customer is not linked any more"
        return gone * bool(side.delivered or parked)
    if difference or parked:
        return advice_on_difference(side, difference, parked)
    if invoiced is None or side.invoice_ms is None:
        return ""
    is_awaited = now_ms < side.invoice_ms + MADE_WITHIN_MS
    return (
        advice_on_invoices(side, invoiced, side.confirmed, currency, is_awaited=is_awaited)
        or advice_on_prices(side.mispriced, invoiced.invoices, currency)
        or advice_on_amounts(invoiced.charges, invoiced.invoices, currency)
    )


def advice_on_difference(side: EventBooks, difference: int, parked: str) -> str:
    """Advise on units that Stripe has not counted as delivered, or that are parked."""
    if parked and -side.parked_back <= difference <= side.parked:
        return (
            f"{parked}, and Stripe may have {difference} of these: --repair compares them where it can,"
            " `meterkit outbox list --state parked` lists the others"
        )
    if 0 < difference <= side.taken_back:
        return (
            f"Stripe has {difference} more than was delivered, and {side.taken_back} were taken back"
            " there: it counts within minutes; otherwise, check its meter error reports and cancelled events"
        )
    if difference > 0:
        return f"Stripe has {difference} more than was delivered: something else sends to this meter"
    return (
        f"Stripe has counted {-difference} less than it accepted: it counts within minutes; otherwise, check"
        " its meter error reports, cancelled events, and the meter's formula (`meterkit doctor`)"
    )


def format_parked(side: EventBooks) -> str:
    """Describe the parked units of an event name; empty: none."""
    parts = [f"{side.parked}"] * bool(side.parked)
    parts += [f"{side.parked_back} that take units back"] * bool(side.parked_back)
    return f"{' and '.join(parts)} are parked" if parts else ""


class PriceMismatch(NamedTuple):
    """Units that were recorded at one price and are billed at another.

    Attributes:
        units: their number.
        recorded: price of a unit when it was recorded, in minor units.
        billed: price of a unit on its invoice line.
    """

    units: int
    recorded: Fraction
    billed: Fraction


def mispriced(recorded: Mapping[Fraction, int], invoiced: Mapping[Fraction, Decimal]) -> list[PriceMismatch]:
    """Match units to invoice lines of other prices, highest price first.

    Args:
        recorded: units by the price at which they were recorded.
        invoiced: units by the price of their invoice lines.
    """
    left = {
        price: int(invoiced.get(price, 0)) - recorded.get(price, 0)
        for price in sorted({*recorded, *invoiced}, reverse=True)
    }
    found: list[PriceMismatch] = []
    for was in (price for price, units in left.items() if units < 0):
        for billed in (price for price, units in left.items() if units > 0):
            units = min(-left[was], left[billed])
            left[was], left[billed] = left[was] + units, left[billed] - units
            if units:
                found.append(PriceMismatch(units, was, billed))
    return found


def advice_on_prices(found: Sequence[PriceMismatch], invoices: Sequence[str], currency: str) -> str:
    """Advise on units that are billed at other prices than they were recorded at; empty: no advice.

    It never asks to bill more: the price of the customer's own item gives no more.

    Args:
        found: those units.
        invoices: the ids of the invoices of the period.
        currency: of the prices.
    """
    if not found:
        return ""
    parts = [
        f"{one.units} units were recorded at {_each(one.recorded, currency)}"
        f" and are billed at {_each(one.billed, currency)}"
        for one in found
    ]
    cents = sum((one.units * (one.recorded - one.billed) for one in found), Fraction(0))
    return (
        f"{'; '.join(parts)} ({', '.join(invoices)}): check who changed the price{_outcome(cents, currency)}"
    )


def _outcome(missing: Fraction, currency: str) -> str:
    """Advise on an amount that invoice lines lack; below 0: that they have too much."""
    if missing < 0:
        return f", and credit {money(rounded_cents(-missing), currency)}"
    less = money(rounded_cents(missing), currency)
    return f"; that is {less} less, and the customer's own price gives no more" if missing else ""


def advice_on_amounts(charges: Sequence[LineCharge], invoices: Sequence[str], currency: str) -> str:
    """Advise on invoice lines whose amounts do not match their prices; empty: no advice.

    Args:
        charges: the lines by price and span, in order.
        invoices: the ids of their invoices.
        currency: of the plans file.
    """
    names = ", ".join(invoices)
    for one in charges:
        alone = one.price.charge(one.units)
        if alone is None or one.price.currency != currency:
            return ""
        if abs(one.cents - alone) > one.rounding:
            return (
                f"{one.units} units at {one.price.id} come to"
                f" {money(rounded_cents(alone), currency)}, and the lines"
                f" have {money(one.cents, currency)} ({names}): check who changed them"
                f"{_outcome(alone - one.cents, currency)}"
            )
    return _advice_on_tiers(charges, names, currency)


def _advice_on_tiers(charges: Sequence[LineCharge], names: str, currency: str) -> str:
    """Advise on tiers that started again within a period: the customer got or paid a tier twice."""
    before, due, billed, rounding = Decimal(0), Fraction(0), 0, Fraction(0)
    tiered = [one for one in charges if one.price.tiers]
    for one in tiered:
        due += one.price.charge(one.units, after=before) or 0
        before, billed, rounding = before + one.units, billed + one.cents, rounding + one.rounding
    switched = list(dict.fromkeys(one.price.id for one in tiered))
    if not tiered[1:] or abs(due - billed) <= rounding:
        return ""
    how = f"the tiers began again when {' was switched to '.join(switched)}"
    if not switched[1:]:
        how = f"the tiers of {switched[0]} began again when its item was removed and added"
    return (
        f"{how} ({names}):"
        f" {money(billed, currency)} are billed, and with each tier once it would be"
        f" {money(rounded_cents(due), currency)}: check who switched the price at once, such as a portal"
        f"{_outcome(due - billed, currency)}"
    )


def _each(price: Fraction, currency: str) -> str:
    exact = Decimal(price.numerator) / Decimal(price.denominator)
    return f"{exact_money(exact, currency)} each"


def advice_on_invoices(
    side: EventBooks, invoiced: InvoicedUnits, counted: int, currency: str, *, is_awaited: bool
) -> str:
    """Advise on invoice lines; empty: they have the counted units, or cannot be compared.

    Args:
        side: the books; no invoice needs to have its late units.
        invoiced: its units on invoice lines.
        counted: its units that Stripe has counted.
        currency: of the plans file.
        is_awaited: whether Stripe may yet make the invoice.
    """
    # An invoice has no less than 0 units.
    expected = max(0, counted - side.uninvoiced, min(counted, int(invoiced.quantity)))
    missing = expected - invoiced.quantity
    if invoiced.state == "unknown" or not missing:
        return ""
    names = ", ".join(invoiced.invoices)
    if invoiced.state == "draft":
        return (
            f"the draft {names} has {invoiced.quantity} of {expected}: Stripe brings it up to date when it"
            " becomes final"
        )
    if invoiced.state == "none" and not invoiced.voided and is_awaited:
        return f"{expected} are on no invoice yet: Stripe makes it within an hour or two"
    if missing > 0:
        where = f"invoice {names} has {invoiced.quantity}" if names else "no invoice line has them"
        if invoiced.state == "pending":
            where = f"with pending invoice items {names} have {invoiced.quantity}"
        begins = (
            f"{missing} of {expected} units that Stripe has counted{side.price} are on no invoice ({where}"
        )
        if invoiced.voided:
            units = sum(invoiced.voided.values(), Decimal(0))
            names = ", ".join(invoiced.voided)
            return f"{begins}; {names} had {units} and is void): check who voided it, and why"
        return (
            f"{begins}): check whether the subscription has the meter's price; if it was removed by mistake,"
            " bill them by an invoice item"
        )
    surplus = side.format_surplus(currency)
    credit = f"credit {-missing} units{f', {surplus}' if surplus else side.price}"
    if len(invoiced.subscriptions) > 1:
        return (
            f"billed twice: {names} have {invoiced.quantity}, and Stripe has counted {expected}: the"
            f" subscriptions {', '.join(invoiced.subscriptions)} bill the same meter; end one, and {credit}"
        )
    return f"{names} has {invoiced.quantity}, and Stripe has counted {expected}: {credit}"

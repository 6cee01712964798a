"""What a person must do where Stripe has not counted what was delivered. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from meterkit.catalog.amount_texts import money, rounded_cents
from meterkit.delivery.invoice_advice import mispriced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.delivery.invoice_advice import Mispriced
    from meterkit.delivery.invoices import Invoiced, Invoicing


@dataclass(frozen=True, slots=True, kw_only=True)
class OfEvent:
    """Our side of the comparison with Stripe: all meters of one event name.

    Attributes:
        invoiced: what is on invoice lines; None: that is not to be compared.
        invoicing: how Stripe bills the period; None: it does not.
        meter: one of those meters.
        confirmed: what Stripe has counted; None: it has no such customer or meter.
        parked: parked units, without ``parked_back``.
        parked_back: parked units that take others back.
        taken_back: delivered ones.
        uninvoiced: what Stripe has counted and no invoice can have: it is late.
        recorded: units by the price at which they were recorded; None: not known.
    """

    confirmed: int | None
    invoiced: Invoiced | None
    invoicing: Invoicing | None
    meter: str
    delivered: int
    parked: int
    parked_back: int
    taken_back: int
    uninvoiced: int
    recorded: Mapping[Fraction, int] | None

    @property
    def difference(self) -> int | None:
        """What Stripe has counted beyond what was delivered and what is late; None: it has none of both."""
        return None if self.confirmed is None else self.confirmed - self.delivered - self.uninvoiced

    @property
    def mispriced(self) -> Sequence[Mispriced]:
        """Units on lines of other prices than they were recorded at."""
        if self.invoiced is None or self.invoiced.prices is None or self.recorded is None:
            return ()
        return mispriced(self.recorded, self.invoiced.prices)

    def surplus_in_words(self, currency: str) -> str:
        """Amount that the lines charge beyond recorded usage; empty: nothing, or not known."""
        if self.invoiced is None or self.invoiced.cents is None or self.recorded is None:
            return ""
        due = sum((units * price for price, units in self.recorded.items()), Fraction(0))
        return money(rounded_cents(self.invoiced.cents - due), currency) if self.invoiced.cents > due else ""


def advice_on_difference(side: OfEvent, difference: int, parked: str) -> str:
    """What a person must do where Stripe has not counted what was delivered, or something is parked."""
    if parked and -side.parked_back <= difference <= side.parked:
        return (
            f"{parked}, and Stripe may have {difference} of these: --repair compares them where it can,"
            " `meterkit outbox list --state parked` has the rest"
        )
    if 0 < difference <= side.taken_back:
        return (
            f"Stripe has {difference} more than was delivered, and {side.taken_back} were taken back"
            " there: it counts within minutes, else see its meter error reports, and cancelled events"
        )
    if difference > 0:
        return f"Stripe has {difference} more than was delivered: something else sends to this meter"
    return (
        f"Stripe has counted {-difference} less than it accepted: it counts within minutes, else see its"
        " meter error reports, cancelled events, and the meter's formula (`meterkit doctor`)"
    )


def parked_in_words(side: OfEvent) -> str:
    """The parked units of an event name, in words; empty: none."""
    parts = [f"{side.parked}"] * bool(side.parked)
    parts += [f"{side.parked_back} that take units back"] * bool(side.parked_back)
    return f"{' and '.join(parts)} are parked" if parts else ""

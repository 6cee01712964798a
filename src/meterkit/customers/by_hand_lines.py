"""Invoice lines with units that corrections leave to credit notes. Pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from meterkit.catalog.amount_texts import rounded_cents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class BilledLine(NamedTuple):
    """An invoice line that bills usage of a meter and that no negative event can lower any more.

    Attributes:
        token: of the meter whose event it bills.
        name: stays the same from the pending invoice item to the final invoice; without blanks.
        instant_ms: the middle of the span that it bills.
        units: its quantity.
        price: of a unit, in minor units.
        invoice, line: their ids; None: not known, or not made yet.
    """

    token: str
    name: str
    instant_ms: int
    units: int
    price: Fraction
    invoice: str | None
    line: str | None

    def dump(self) -> list[Any]:
        """Serialize it for ``correct_usage.lua``; the part that the correction keeps is text."""
        kept = [self.name, self.invoice or "", self.line or "", str(self.price), str(self.units)]
        return [self.token, self.name, self.instant_ms, self.units, kept]


class BilledUsage(NamedTuple):
    """Usage on invoice lines of ended price segments and of earlier periods.

    Attributes:
        units: by token, an instant within each line (ms) and its units; lines that cost nothing included.
        items: by token, the units of this period that invoice items for late usage bill, or are to bill.
        lines: by meter, those that can be credited, newest first.
        changed: when the prices changed last, as the store had it before the lines were read; empty: never.
    """

    units: Mapping[str, Sequence[tuple[int, int]]]
    items: Mapping[str, int]
    lines: Mapping[str, Sequence[BilledLine]]
    changed: str

    def dump(self) -> dict[str, Any]:
        """Serialize it for ``correct_usage.lua``."""
        lines = {meter: [line.dump() for line in found] for meter, found in self.lines.items()}
        return {"units": self.units, "items": self.items, "lines": lines, "changed": self.changed}


class ByHandLine(NamedTuple):
    """Units on an invoice line that a credit note, or a person, gives back.

    Attributes:
        invoice: its id; None: the line is on no invoice yet, or no Stripe key is set.
        line: the id of the line, or of the invoice item that becomes it, at Stripe or in the queue
            (``kit.outbox.items``); None: no Stripe key is set.
        units: how many.
        cents: the amount they were billed at.
    """

    invoice: str | None
    line: str | None
    units: int
    cents: int


class IssuedCredit(NamedTuple):
    """A credit at Stripe for the units of one invoice line.

    Attributes:
        id: of the credit note, ``cn_…``; or of the entry of the customer's balance, ``cbtxn_…``, where a
            credit or the balance itself had paid a part of the invoice.
        invoice, line: what it credits.
        units: how many.
        cents: the amount they were billed at, without discounts and taxes.
    """

    id: str
    invoice: str
    line: str
    units: int
    cents: int


class AssignedLine(NamedTuple):
    """Units of an invoice line as a correction keeps them."""

    name: str
    invoice: str | None
    line: str | None
    units: int
    cents: int

    @classmethod
    def read(cls, kept: Sequence[Any]) -> AssignedLine:
        """Read an entry of ``assign_lines.lua``.

        The rest of the line is rounded as Stripe rounds a line, half up. So all corrections of a line
        together give back what it was billed at.
        """
        (name, invoice, line, price, quantity), before, part = kept
        left = [int(quantity) - int(before), int(quantity) - int(before) - int(part)]
        cents = [rounded_cents(Fraction(price) * units) for units in left]
        return cls(name, invoice or None, line or None, int(part), cents[0] - cents[1])

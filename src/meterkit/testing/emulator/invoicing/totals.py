"""What an invoice comes to: lines, less discounts, plus tax."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.testing.emulator.selling.amounts import to_cents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from decimal import Decimal

    from meterkit.testing.emulator.protocol import JsonObject
    from meterkit.testing.emulator.selling.coupons import Discount

TAX_RATE: Final = "txr_1emulated"


class Charged(Protocol):
    """A line of an invoice or of a page: what it charges, in minor units of the currency."""

    @property
    def amount(self) -> int:
        """What it comes to; a credit is negative."""
        ...

    @property
    def proration(self) -> bool:
        """Whether it corrects a period that is under way."""
        ...

    @property
    def product(self) -> str:
        """The id of what is sold."""
        ...

    @property
    def includes_tax(self) -> bool:
        """Whether its amount has the tax in it; else the tax comes on top."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTotal:
    """The discounts and the tax of one line, in minor units of the currency.

    Attributes:
        off: a discount's id to what it takes off.
        left: what discounts leave of its amount.
        tax: None: nothing is taxed.
        includes_tax: whether what is left has the tax in it.
    """

    off: dict[str, int]
    left: int
    tax: int | None
    includes_tax: bool

    @property
    def discount(self) -> int:
        """What all discounts take off."""
        return sum(self.off.values())

    @property
    def taxable(self) -> int:
        """The amount that the tax is a share of."""
        return self.left - self.tax_within

    @property
    def tax_within(self) -> int:
        """The tax that the amount has in it."""
        return (self.tax or 0) * self.includes_tax

    @property
    def total(self) -> int:
        """The amount with tax."""
        return self.taxable + (self.tax or 0)

    def taxes(self) -> list[JsonObject]:
        """Return the tax as Stripe shows it."""
        if self.tax is None:
            return []
        return [_shown_tax(self.tax, taxable=self.taxable, is_inclusive=self.includes_tax)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What an invoice comes to, in minor units of the currency.

    Attributes:
        lines: in the order of the invoice's.
        subtotal: before discounts, and before tax that comes on top.
    """

    lines: tuple[LineTotal, ...]
    subtotal: int
    discount: int

    @property
    def tax(self) -> int:
        """All tax."""
        return sum(line.tax or 0 for line in self.lines)

    @property
    def tax_within(self) -> int:
        """The tax that the subtotal has in it."""
        return sum(line.tax_within for line in self.lines)

    @property
    def without_tax(self) -> int:
        """What the lines come to after discounts."""
        return self.subtotal - self.discount - self.tax_within

    @property
    def total(self) -> int:
        """What the invoice comes to."""
        return self.without_tax + self.tax

    def discount_amounts(self) -> list[JsonObject]:
        """Return what each discount takes off all lines, as Stripe shows it."""
        sums = Counter[str]()
        for line in self.lines:
            sums.update(line.off)
        return shown_discounts(sums)

    def taxes(self) -> list[JsonObject]:
        """Return the taxes as Stripe shows them, each way of charging them by itself."""
        shown: list[JsonObject] = []
        for is_inclusive in (False, True):
            taxed = [
                line for line in self.lines if line.includes_tax is is_inclusive and line.tax is not None
            ]
            if taxed:
                tax, taxable = sum(line.tax or 0 for line in taxed), sum(line.taxable for line in taxed)
                shown.append(_shown_tax(tax, taxable=taxable, is_inclusive=is_inclusive))
        return shown


def work_out(lines: Sequence[Charged], discounts: Iterable[Discount], tax_percent: Decimal | None) -> Totals:
    """Work out what lines come to.

    Discounts are taken off one after the other, each off what is left, and spread over the lines by their
    amounts. They take nothing off prorations and credits: "discountable=false"
    (https://docs.stripe.com/billing/subscriptions/prorations).

    The tax comes on top, or is within the amounts of prices with ``tax_behavior=inclusive``
    (https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior): each is worked out on the total
    after discounts, and spread over the lines so that their taxes add up to it.
    """
    off: list[dict[str, int]] = [{} for _ in lines]
    left = [line.amount for line in lines]
    for discount in discounts:
        places = [
            place
            for place, line in enumerate(lines)
            if left[place] > 0 and not line.proration and discount.is_for(line.product)
        ]
        base = sum(left[place] for place in places)
        rate = Fraction(discount.off(base), base or 1)
        shares = _spread([left[place] for place in places], rate, floor)
        for place, share in zip(places, shares, strict=True):
            off[place][discount.id] = share
            left[place] -= share
    taxes = _taxes_of_lines(lines, left, tax_percent)
    return Totals(
        lines=tuple(
            LineTotal(off=off[place], left=left[place], tax=taxes[place], includes_tax=line.includes_tax)
            for place, line in enumerate(lines)
        ),
        subtotal=sum(line.amount for line in lines),
        discount=sum(line.amount for line in lines) - sum(left),
    )


def _taxes_of_lines(
    lines: Sequence[Charged], left: Sequence[int], percent: Decimal | None
) -> list[int | None]:
    """The tax of what discounts leave of each line; None: nothing is taxed."""
    taxes: list[int | None] = [None] * len(lines)
    if percent is None:
        return taxes
    on_top = Fraction(percent) / 100
    for is_inclusive, rate in ((False, on_top), (True, on_top / (1 + on_top))):
        places = [place for place, line in enumerate(lines) if line.includes_tax is is_inclusive]
        shares = _spread([left[place] for place in places], rate, to_cents)
        for place, share in zip(places, shares, strict=True):
            taxes[place] = share
    return taxes


def shown_discounts(off: dict[str, int]) -> list[JsonObject]:
    """Return what discounts take off, as Stripe shows it."""
    return [{"amount": amount, "discount": discount} for discount, amount in off.items()]


def _shown_tax(tax: int, *, taxable: int, is_inclusive: bool) -> JsonObject:
    """A tax as Stripe shows it (https://docs.stripe.com/api/invoices/object#invoice_object-total_taxes)."""
    return {
        "amount": tax,
        "tax_behavior": "inclusive" if is_inclusive else "exclusive",
        "tax_rate_details": {"tax_rate": TAX_RATE},
        "taxability_reason": "standard_rated",
        "taxable_amount": taxable,
        "type": "tax_rate_details",
    }


def tax_to_json(
    *, enabled: bool, is_invoice: bool = False, liability: JsonObject | None = None
) -> JsonObject:
    """Return ``automatic_tax`` as Stripe shows it in a subscription, or in an invoice or session."""
    liability = liability or ({"type": "self"} if enabled else None)
    if not is_invoice:
        return {"disabled_reason": None, "enabled": enabled, "liability": liability}
    status, provider = ("complete", "stripe") if enabled else (None, None)
    return {
        "disabled_reason": None,
        "enabled": enabled,
        "liability": liability,
        "provider": provider,
        "status": status,
    }


def _spread(amounts: Sequence[int], rate: Fraction, to_whole: Callable[[Fraction], int]) -> list[int]:
    """Take a rate of each amount, in whole units that add up to the rate of their sum."""
    shares: list[int] = []
    reached, given = 0, 0
    for amount in amounts:
        reached += amount
        shares.append(to_whole(reached * rate) - given)
        given += shares[-1]
    return shares

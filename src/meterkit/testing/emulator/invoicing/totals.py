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


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTotal:
    """The discounts and the tax of one line, in minor units of the currency.

    Attributes:
        off: a discount's id to what it takes off.
        taxable: what is left, which is taxed.
        tax: None: nothing is taxed.
    """

    off: dict[str, int]
    taxable: int
    tax: int | None

    @property
    def discount(self) -> int:
        """What all discounts take off."""
        return sum(self.off.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What an invoice comes to, in minor units of the currency.

    Attributes:
        lines: in the order of the invoice's.
        subtotal: before discounts and tax.
        tax: None: nothing is taxed.
    """

    lines: tuple[LineTotal, ...]
    subtotal: int
    discount: int
    tax: int | None

    @property
    def without_tax(self) -> int:
        """What the lines come to after discounts."""
        return self.subtotal - self.discount

    @property
    def total(self) -> int:
        """What the invoice comes to."""
        return self.without_tax + (self.tax or 0)

    def discount_amounts(self) -> list[JsonObject]:
        """Return what each discount takes off all lines, as Stripe shows it."""
        sums = Counter[str]()
        for line in self.lines:
            sums.update(line.off)
        return shown_discounts(sums)

    def taxes(self) -> list[JsonObject]:
        """Return the tax as Stripe shows it."""
        return shown_tax(self.tax, taxable=self.without_tax)


def work_out(lines: Sequence[Charged], discounts: Iterable[Discount], tax_percent: Decimal | None) -> Totals:
    """Work out what lines come to.

    Discounts are taken off one after the other, each off what is left, and spread over the lines by their
    amounts. They take nothing off prorations and credits: "discountable=false"
    (https://docs.stripe.com/billing/subscriptions/prorations).

    The tax is exclusive (https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior): it is worked
    out on the total after discounts, and spread over the lines so that their taxes add up to it.
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
    taxes = None if tax_percent is None else _spread(left, Fraction(tax_percent) / 100, to_cents)
    return Totals(
        lines=tuple(
            LineTotal(off=off[place], taxable=amount, tax=None if taxes is None else taxes[place])
            for place, amount in enumerate(left)
        ),
        subtotal=sum(line.amount for line in lines),
        discount=sum(line.amount for line in lines) - sum(left),
        tax=None if taxes is None else sum(taxes),
    )


def shown_discounts(off: dict[str, int]) -> list[JsonObject]:
    """Return what discounts take off, as Stripe shows it."""
    return [{"amount": amount, "discount": discount} for discount, amount in off.items()]


def shown_tax(tax: int | None, *, taxable: int) -> list[JsonObject]:
    """Return a tax as Stripe shows it (https://docs.stripe.com/api/invoices/object#invoice_object-total_taxes)."""
    if tax is None:
        return []
    return [
        {
            "amount": tax,
            "tax_behavior": "exclusive",
            "tax_rate_details": {"tax_rate": TAX_RATE},
            "taxability_reason": "standard_rated",
            "taxable_amount": taxable,
            "type": "tax_rate_details",
        }
    ]


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

"""Invoice totals: lines, less discounts, plus tax; tax rates, by id."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from stripe_emulator.coupons import Discount, active_discounts
from stripe_emulator.prices import to_cents
from stripe_emulator.protocol import JsonObject, null_fields, shown_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from decimal import Decimal

AUTOMATIC_TAX_RATE: Final = "txr_1emulated"


class AppliedRate(NamedTuple):
    """A rate of tax that a line has.

    Attributes:
        id: ``txr_…``.
        percentage: of the amount without tax.
        inclusive: whether the amount has the tax in it; else the tax comes on top.
    """

    id: str
    percentage: Decimal
    inclusive: bool


class LineTax(NamedTuple):
    """The tax of a line at one rate, and its taxable amount, in minor units of the currency."""

    rate: AppliedRate
    amount: int
    taxable: int


class ChargedLine(Protocol):
    """A line of an invoice or of a page: what it charges, in minor units of the currency."""

    @property
    def amount(self) -> int:
        """The amount; a credit is negative."""
        ...

    @property
    def proration(self) -> bool:
        """True if it prorates a running period."""
        ...

    @property
    def product(self) -> str:
        """The id of what is sold."""
        ...

    @property
    def includes_tax(self) -> bool:
        """True if its amount includes automatic tax."""
        ...

    @property
    def tax_rates(self) -> Sequence[AppliedRate]:
        """Its tax rates, used if tax is not automatic."""
        ...

    @property
    def discounts(self) -> Sequence[Discount]:
        """Its own discounts, taken off before those of all lines."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTotal:
    """The discounts and the tax of one line, in minor units of the currency.

    Attributes:
        off: a discount's id to what it takes off.
        left: what discounts leave of its amount.
        of_rates: its tax at each rate.
    """

    off: dict[str, int]
    left: int
    of_rates: tuple[LineTax, ...]

    @property
    def discount(self) -> int:
        """The sum of all discounts."""
        return sum(self.off.values())

    @property
    def tax(self) -> int:
        """All tax."""
        return sum(each.amount for each in self.of_rates)

    @property
    def tax_within(self) -> int:
        """The tax included in the amount."""
        return sum(each.amount for each in self.of_rates if each.rate.inclusive)

    @property
    def total(self) -> int:
        """The amount with tax."""
        return self.left - self.tax_within + self.tax

    def taxes(self) -> list[JsonObject]:
        """Return the taxes as Stripe shows them."""
        return [_tax_to_json(each) for each in self.of_rates]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceTotals:
    """The totals of an invoice, in minor units of the currency.

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
        return sum(line.tax for line in self.lines)

    @property
    def tax_within(self) -> int:
        """The tax included in the subtotal."""
        return sum(line.tax_within for line in self.lines)

    @property
    def without_tax(self) -> int:
        """The sum of lines after discounts, without tax."""
        return self.subtotal - self.discount - self.tax_within

    @property
    def total(self) -> int:
        """The total with tax."""
        return self.without_tax + self.tax

    def discount_amounts(self) -> list[JsonObject]:
        """Return the amount of each discount over all lines, as Stripe shows it."""
        sums = Counter[str]()
        for line in self.lines:
            sums.update(line.off)
        return discounts_to_json(sums)

    def taxes(self) -> list[JsonObject]:
        """Return the taxes as Stripe shows them, each rate by itself, those on top first."""
        taxes = [each for line in self.lines for each in line.of_rates]
        sums: dict[AppliedRate, LineTax] = {}
        for each in sorted(taxes, key=lambda tax: tax.rate.inclusive):
            known = sums.get(each.rate, LineTax(each.rate, 0, 0))
            sums[each.rate] = LineTax(each.rate, known.amount + each.amount, known.taxable + each.taxable)
        return [_tax_to_json(each) for each in sums.values()]


def compute_totals(
    lines: Sequence[ChargedLine], discounts: Iterable[Discount], tax_percent: Decimal | None, *, now: int
) -> InvoiceTotals:
    """Compute the totals of lines.

    A line's own discounts active ``now`` come first
    (https://docs.stripe.com/billing/subscriptions/coupons). The others are taken off one after the other,
    each off what is left, and spread over the lines by their amounts. Discounts take nothing off prorations
    and credits: "discountable=false" (https://docs.stripe.com/billing/subscriptions/prorations).

    Automatic tax comes on top, or is within the amounts of prices with ``tax_behavior=inclusive``
    (https://docs.stripe.com/tax/products-prices-tax-codes-tax-behavior); without it a line has its own tax
    rates (https://docs.stripe.com/billing/taxes/tax-rates). The tax of a rate is worked out on the total
    after discounts, and spread over the lines so that their taxes add up to it.
    """
    off: list[dict[str, int]] = [{} for _ in lines]
    left = [line.amount for line in lines]
    for place, line in enumerate(lines):
        for discount in active_discounts(line.discounts, now=now):
            if left[place] > 0 and not line.proration and discount.applies_to_product(line.product):
                off[place][discount.id] = discount.off(left[place])
                left[place] -= off[place][discount.id]
    for discount in discounts:
        places = [
            place
            for place, line in enumerate(lines)
            if left[place] > 0 and not line.proration and discount.applies_to_product(line.product)
        ]
        base = sum(left[place] for place in places)
        rate = Fraction(discount.off(base), base or 1)
        shares = _round_cumulatively([left[place] * rate for place in places], floor)
        for place, share in zip(places, shares, strict=True):
            off[place][discount.id] = share
            left[place] -= share
    taxes = _compute_taxes([_line_rates(line, tax_percent) for line in lines], left)
    return InvoiceTotals(
        lines=tuple(
            LineTotal(off=off[place], left=left[place], of_rates=tuple(taxes[place]))
            for place in range(len(lines))
        ),
        subtotal=sum(line.amount for line in lines),
        discount=sum(line.amount for line in lines) - sum(left),
    )


def _line_rates(line: ChargedLine, percent: Decimal | None) -> Sequence[AppliedRate]:
    """Return the rates of a line: automatic tax, or its own rates."""
    return (
        line.tax_rates if percent is None else (AppliedRate(AUTOMATIC_TAX_RATE, percent, line.includes_tax),)
    )


def _compute_taxes(rates: Sequence[Sequence[AppliedRate]], left: Sequence[int]) -> list[list[LineTax]]:
    """Return the taxes of each line's amount after discounts."""
    taxes: list[list[LineTax]] = [[] for _ in left]
    without = [
        amount / (1 + sum((_rate_fraction(rate) for rate in own if rate.inclusive), Fraction(0)))
        for amount, own in zip(left, rates, strict=True)
    ]
    for rate in dict.fromkeys(each for own in rates for each in own):
        places = [place for place, own in enumerate(rates) if rate in own]
        shares = _round_cumulatively([without[place] * _rate_fraction(rate) for place in places], to_cents)
        for place, amount in zip(places, shares, strict=True):
            taxes[place].append(LineTax(rate, amount, 0))
    for place, own in enumerate(taxes):
        taxable = left[place] - sum(each.amount for each in own if each.rate.inclusive)
        taxes[place] = [each._replace(taxable=taxable) for each in own]
    return taxes


def _rate_fraction(rate: AppliedRate) -> Fraction:
    return Fraction(rate.percentage) / 100


def discounts_to_json(off: dict[str, int]) -> list[JsonObject]:
    """Return the amounts of discounts as Stripe shows them."""
    return [{"amount": amount, "discount": discount} for discount, amount in off.items()]


def _tax_to_json(tax: LineTax) -> JsonObject:
    """Return a tax as Stripe shows it (https://docs.stripe.com/api/invoices/object#invoice_object-total_taxes)."""
    return {
        "amount": tax.amount,
        "tax_behavior": "inclusive" if tax.rate.inclusive else "exclusive",
        "tax_rate_details": {"tax_rate": tax.rate.id},
        "taxability_reason": "standard_rated",
        "taxable_amount": tax.taxable,
        "type": "tax_rate_details",
    }


def automatic_tax_to_json(
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


def _round_cumulatively(parts: Sequence[Fraction], to_whole: Callable[[Fraction], int]) -> list[int]:
    """Round parts to whole units that add up to their rounded sum."""
    shares: list[int] = []
    reached, given = Fraction(0), 0
    for part in parts:
        reached += part
        shares.append(to_whole(reached) - given)
        given += shares[-1]
    return shares


TAX_RATE_TEXTS: Final = ("country", "description", "jurisdiction", "state", "tax_type")
TAX_RATE_NULLS: Final = "effective_percentage flat_amount jurisdiction_level rate_type"


@dataclass(slots=True, kw_only=True)
class TaxRate:
    """A tax rate, on top of amounts or included in them."""

    id: str
    created: int
    display_name: str
    percentage: Decimal
    inclusive: bool
    active: bool = True
    livemode: bool = False
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    texts: dict[str, str | None] = field(default_factory=dict[str, "str | None"])

    @property
    def rate(self) -> AppliedRate:
        """The form that totals are computed with."""
        return AppliedRate(self.id, self.percentage, self.inclusive)

    def to_json(self) -> JsonObject:
        """Return the rate as Stripe shows it (https://docs.stripe.com/api/tax_rates/object)."""
        shown = {
            **shown_fields(self, "texts"),
            **dict.fromkeys(TAX_RATE_TEXTS),
            **self.texts,
            **null_fields(TAX_RATE_NULLS),
        }
        return {**shown, "object": "tax_rate", "percentage": float(self.percentage)}

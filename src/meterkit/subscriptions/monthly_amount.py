"""Monthly amount (MRR) of a subscription at Stripe, without usage and taxes. Pure."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.subscriptions.stripe_objects import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COUPONS: Final = "discounts.source.coupon"
"""Part of a subscription that Stripe must expand."""
_MICRO: Final = 1_000_000
# A price has twelve digits before the point and twelve after it, at most
# (https://docs.stripe.com/api/prices/object#price_object-unit_amount_decimal).
_DIGITS_MAX: Final = 15
_INTERVALS_A_MONTH: Final[Mapping[str, Fraction]] = {
    "day": Fraction(365, 12),
    "week": Fraction(52, 12),
    "month": Fraction(1),
    "year": Fraction(1, 12),
}


class MonthlyAmount(NamedTuple):
    """The monthly price of a subscription.

    Attributes:
        micro_cents: in millionths of the currency's smallest unit.
        currency: in lower case; empty: nothing is paid.
    """

    micro_cents: int
    currency: str


NOTHING: Final = MonthlyAmount(0, "")


def monthly_amount_of(found: Mapping[str, Any]) -> MonthlyAmount:
    """Monthly amount of a subscription, regardless of its status, without taxes and usage.

    A price with tiers counts as 0: Stripe does not show its tiers in a subscription. So does one whose amount
    in the subscription's currency is not known.

    Args:
        found: as Stripe shows it, with :data:`COUPONS` expanded, also those of its items, and with amounts in
            its own currency.
    """
    currency = text_in(found, "currency")
    paid = _sum_monthly(found, currency)
    return MonthlyAmount(round(paid * _MICRO), currency) if paid > 0 and currency else NOTHING


def is_free(found: Mapping[str, Any]) -> bool:
    """Whether a subscription costs nothing but usage, in whatever currency Stripe shows its prices."""
    return _sum_monthly(found, "") <= 0


def _sum_monthly(found: Mapping[str, Any], currency: str) -> Fraction:
    """Sum the monthly cost of items in a currency (smallest units); empty: in any."""
    items = list(_licensed(found, currency))
    if not items:
        return Fraction(0)
    paid = sum((amount * per_month for amount, per_month in items), Fraction(0))
    # An amount is taken off each invoice, one an interval.
    return _take_coupons_off(paid, found, currency, per_month=items[0][1])


def _licensed(found: Mapping[str, Any], currency: str) -> Iterator[tuple[Fraction, Fraction]]:
    """Licensed items: cost per interval after own coupons (smallest units), intervals per month."""
    for item in cast("list[Mapping[str, Any]]", part_of(found, "items").get("data") or []):
        price = part_of(item, "price")
        recurring = part_of(price, "recurring")
        per_month = _INTERVALS_A_MONTH.get(text_in(recurring, "interval"))
        is_known = not currency or text_in(price, "currency") in {"", currency}
        if per_month is not None and is_known and recurring.get("usage_type") != "metered":
            amount = _take_coupons_off(_amount(item, price), item, currency)
            yield amount, per_month / max(1, _integer_of(recurring.get("interval_count"), 1))


def _amount(item: Mapping[str, Any], price: Mapping[str, Any]) -> Fraction:
    quantity, packed = _integer_of(item.get("quantity"), 1), part_of(price, "transform_quantity")
    if packed:
        size = max(1, _integer_of(packed.get("divide_by"), 1))
        quantity = (quantity + (size - 1) * (text_in(packed, "round") == "up")) // size
    return _fraction_of(price.get("unit_amount_decimal") or price.get("unit_amount")) * quantity


def _take_coupons_off(
    amount: Fraction, found: Mapping[str, Any], currency: str, *, per_month: Fraction = Fraction(1)
) -> Fraction:
    """Take the lasting coupons of a subscription or an item off an amount, in their order.

    ``per_month``: how often in the amount's span a coupon's own amount is taken off.
    """
    discounts: object = found.get("discounts")
    for discount in cast("list[object]", discounts) if isinstance(discounts, list) else []:
        if not isinstance(discount, dict):
            continue
        shown = cast("dict[str, Any]", discount)
        coupon = part_of(part_of(shown, "source"), "coupon") or part_of(shown, "coupon")
        if text_in(coupon, "duration") == "forever":
            # Stripe shows a coupon's amount in its default currency only.
            if not currency or text_in(coupon, "currency") in {"", currency}:
                amount = max(Fraction(0), amount - _fraction_of(coupon.get("amount_off")) * per_month)
            amount *= 1 - _fraction_of(coupon.get("percent_off")) / 100
    return amount


def _integer_of(found: object, default: int) -> int:
    return found if isinstance(found, int) and not isinstance(found, bool) else default


def _fraction_of(found: object) -> Fraction:
    """Read a number or its text; 0 if it is missing or implausible."""
    try:
        number = Decimal(str(found))
    except (InvalidOperation, ValueError):
        return Fraction(0)
    is_usual = number.is_finite() and abs(number.adjusted()) <= _DIGITS_MAX
    return Fraction(number) if is_usual else Fraction(0)

"""Coupons and promotion codes, by id, and the discounts they give."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_boundary
from stripe_emulator.prices import PriceInterval, to_cents
from stripe_emulator.protocol import JsonObject, shown_fields

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

DURATIONS: Final = ("forever", "once", "repeating")


@dataclass(slots=True, kw_only=True)
class Coupon:
    """A coupon: a percentage or an amount off, for a time.

    Attributes:
        percent_off: None where an amount is taken off.
        amount_off: minor units of ``currency``; None where a percentage is taken off.
        duration: ``once``, ``repeating`` or ``forever``.
        redeem_by: the last second at which it can be redeemed; None: no end.
        products: ids of the products that it is for; empty: all.
    """

    id: str
    created: int
    percent_off: Decimal | None = None
    amount_off: int | None = None
    currency: str | None = None
    duration: str = "once"
    duration_in_months: int | None = None
    max_redemptions: int | None = None
    redeem_by: int | None = None
    name: str | None = None
    products: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    livemode: bool = False
    times_redeemed: int = 0

    @property
    def is_used_up(self) -> bool:
        """True if it has reached ``max_redemptions``."""
        return self.max_redemptions is not None and self.times_redeemed >= self.max_redemptions

    def is_expired(self, *, now: int) -> bool:
        """Return whether ``redeem_by`` has passed."""
        return self.redeem_by is not None and now > self.redeem_by

    def to_json(self, *, now: int) -> JsonObject:
        """Return the coupon as Stripe shows it (https://docs.stripe.com/api/coupons/object)."""
        return {
            **shown_fields(self, "products"),
            "object": "coupon",
            "percent_off": None if self.percent_off is None else float(self.percent_off),
            "valid": not (self.is_used_up or self.is_expired(now=now)),
        }


@dataclass(slots=True, kw_only=True)
class PromotionCode:
    """A code that customers type in, for a coupon.

    Attributes:
        code: what is typed in, in letters of either case.
        coupon: the id of the coupon.
        customer: the only customer who can use it; None: all.
        first_time: whether it is for customers who have paid nothing yet.
        minimum_amount: what has to be bought for it, in minor units of ``minimum_currency``.
    """

    id: str
    created: int
    code: str
    coupon: str
    active: bool = True
    customer: str | None = None
    expires_at: int | None = None
    max_redemptions: int | None = None
    first_time: bool = False
    minimum_amount: int | None = None
    minimum_currency: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    livemode: bool = False
    times_redeemed: int = 0

    def is_active(self, coupon: Coupon | None, *, now: int) -> bool:
        """Return whether it can be redeemed: active, not expired, not used up, and so is its coupon."""
        used_up = self.max_redemptions is not None and self.times_redeemed >= self.max_redemptions
        over = self.expires_at is not None and now >= self.expires_at
        if coupon is None or coupon.is_used_up or coupon.is_expired(now=now):
            return False
        return self.active and not used_up and not over

    def to_json(self, coupon: Coupon | None, *, now: int) -> JsonObject:
        """Return the code as Stripe shows it (https://docs.stripe.com/api/promotion_codes/object)."""
        return {
            **shown_fields(self, "coupon first_time minimum_amount minimum_currency"),
            "object": "promotion_code",
            "active": self.is_active(coupon, now=now),
            "customer_account": None,
            "promotion": {"coupon": self.coupon, "type": "coupon"},
            "restrictions": {
                "first_time_transaction": self.first_time,
                "minimum_amount": self.minimum_amount,
                "minimum_amount_currency": self.minimum_currency,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Discount:
    """A redeemed coupon.

    Attributes:
        coupon: as it was when it was redeemed; what becomes of it later changes nothing.
        start: Unix seconds, as is ``end``, which only a repeating coupon has.
        promotion_code: the id of the code by which it was redeemed.
        subscription: the id of the subscription that it is for; None: it is for one invoice.
    """

    id: str
    coupon: Coupon
    customer: str
    start: int
    end: int | None = None
    promotion_code: str | None = None
    subscription: str | None = None
    invoice: str | None = None

    def off(self, amount: int) -> int:
        """Return the discount of an amount, in whole minor units."""
        return to_cents(self.exact_discount(Fraction(amount)))

    def exact_discount(self, amount: Fraction) -> Fraction:
        """Return the discount of an amount, not rounded; at most the amount."""
        if self.coupon.amount_off is not None:
            return min(Fraction(self.coupon.amount_off), amount)
        return Fraction(self.coupon.percent_off or 0) * amount / 100

    def applies_to_product(self, product: str) -> bool:
        """Return whether its coupon applies to a product."""
        return not self.coupon.products or product in self.coupon.products

    def to_json(self) -> JsonObject:
        """Return the discount as Stripe shows it (https://docs.stripe.com/api/discounts/object)."""
        return {
            **shown_fields(self, "coupon"),
            "object": "discount",
            "checkout_session": None,
            "customer_account": None,
            "invoice_item": None,
            "source": {"coupon": self.coupon.id, "type": "coupon"},
            "subscription_item": None,
        }


def active_discounts(discounts: Iterable[Discount], *, now: int) -> list[Discount]:
    """Return the discounts that have not ended."""
    return [discount for discount in discounts if discount.end is None or now < discount.end]


def subtract_discounts(
    discounts: Iterable[Discount], amount: Fraction, *, product: str, now: int
) -> Fraction:
    """Return a proration less discounts.

    "Any adjustments from discounts are reflected in the proration invoice item's amount"
    (https://docs.stripe.com/billing/subscriptions/prorations). A discount of an amount is taken off whole, as
    in https://docs.stripe.com/changelog/clover/2025-09-30/itemize-proration-discount-amounts. A coupon for
    once waits for the next charge that is no proration.
    """
    for discount in active_discounts(discounts, now=now):
        if discount.applies_to_product(product) and discount.coupon.duration != "once" and amount > 0:
            amount -= discount.exact_discount(amount)
    return amount


def begin_discount(discount: Discount, *, subscription: str, now: int) -> Discount:
    """Return a discount as it begins for a subscription."""
    months = discount.coupon.duration_in_months
    end = None if months is None else period_boundary(now, PriceInterval(interval="month"), months)
    return replace(discount, subscription=subscription, start=now, end=end)

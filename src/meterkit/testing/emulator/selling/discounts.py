"""Discounts: coupons that are redeemed, for a subscription or an invoice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from meterkit.testing.emulator.registry import Registry
from meterkit.testing.emulator.selling.amounts import to_cents
from meterkit.testing.emulator.selling.prices import Recurring
from meterkit.testing.emulator.subscribing.billing_cycle import boundary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.testing.emulator.replies import JsonObject
    from meterkit.testing.emulator.selling.coupons import Coupon

__all__ = ["Discount", "Discounts", "begun", "in_force", "net_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discount:
    """A coupon that is redeemed.

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
        """Return what it takes off an amount, in whole minor units."""
        return to_cents(self.share_of(Fraction(amount)))

    def share_of(self, amount: Fraction) -> Fraction:
        """Return what it takes off an amount, not rounded; never more than the amount."""
        if self.coupon.amount_off is not None:
            return min(Fraction(self.coupon.amount_off), amount)
        return Fraction(self.coupon.percent_off or 0) * amount / 100

    def is_for(self, product: str) -> bool:
        """Tell whether its coupon is for a product."""
        return not self.coupon.products or product in self.coupon.products

    def to_json(self) -> JsonObject:
        """Return the discount as Stripe shows it (https://docs.stripe.com/api/discounts/object)."""
        return {
            "id": self.id,
            "object": "discount",
            "checkout_session": None,
            "customer": self.customer,
            "customer_account": None,
            "end": self.end,
            "invoice": self.invoice,
            "invoice_item": None,
            "promotion_code": self.promotion_code,
            "source": {"coupon": self.coupon.id, "type": "coupon"},
            "start": self.start,
            "subscription": self.subscription,
            "subscription_item": None,
        }


class Discounts(Registry[Discount]):
    """All discounts that were ever given: ``expand`` shows them, no call does."""

    what = "discount"

    def add(self, discount: Discount) -> None:
        """Take over a discount."""
        self._by_id[discount.id] = discount


def in_force(discounts: Iterable[Discount], *, now: int) -> list[Discount]:
    """Return the discounts that have not ended."""
    return [discount for discount in discounts if discount.end is None or now < discount.end]


def net_of(discounts: Iterable[Discount], amount: Fraction, *, product: str, now: int) -> Fraction:
    """Return what is left of a proration after discounts.

    "Any adjustments from discounts are reflected in the proration invoice item's amount"
    (https://docs.stripe.com/billing/subscriptions/prorations). A discount of an amount is taken off whole, as
    in https://docs.stripe.com/changelog/clover/2025-09-30/itemize-proration-discount-amounts. A coupon for
    once waits for the next charge that is no proration.
    """
    for discount in in_force(discounts, now=now):
        if discount.is_for(product) and discount.coupon.duration != "once" and amount > 0:
            amount -= discount.share_of(amount)
    return amount


def begun(discount: Discount, *, subscription: str, now: int) -> Discount:
    """Return a discount as it begins for a subscription."""
    months = discount.coupon.duration_in_months
    end = None if months is None else boundary(now, Recurring(interval="month"), months)
    return replace(discount, subscription=subscription, start=now, end=end)

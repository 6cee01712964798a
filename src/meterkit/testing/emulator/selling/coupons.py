"""Coupons and promotion codes, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.registry import Registry

if TYPE_CHECKING:
    from decimal import Decimal

    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["DURATIONS", "Coupon", "Coupons", "PromotionCode", "PromotionCodes"]

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
        """Whether it was redeemed as often as it may be."""
        return self.max_redemptions is not None and self.times_redeemed >= self.max_redemptions

    def is_over(self, *, now: int) -> bool:
        """Tell whether it was to be redeemed before."""
        return self.redeem_by is not None and now > self.redeem_by

    def to_json(self, *, now: int) -> JsonObject:
        """Return the coupon as Stripe shows it (https://docs.stripe.com/api/coupons/object)."""
        return {
            "id": self.id,
            "object": "coupon",
            "amount_off": self.amount_off,
            "created": self.created,
            "currency": self.currency,
            "duration": self.duration,
            "duration_in_months": self.duration_in_months,
            "livemode": self.livemode,
            "max_redemptions": self.max_redemptions,
            "metadata": dict(self.metadata),
            "name": self.name,
            "percent_off": None if self.percent_off is None else float(self.percent_off),
            "redeem_by": self.redeem_by,
            "times_redeemed": self.times_redeemed,
            "valid": not (self.is_used_up or self.is_over(now=now)),
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
        """Tell whether it can be redeemed: it is on, not over and not used up, and its coupon is neither."""
        used_up = self.max_redemptions is not None and self.times_redeemed >= self.max_redemptions
        over = self.expires_at is not None and now >= self.expires_at
        if coupon is None or coupon.is_used_up or coupon.is_over(now=now):
            return False
        return self.active and not used_up and not over

    def to_json(self, coupon: Coupon | None, *, now: int) -> JsonObject:
        """Return the code as Stripe shows it (https://docs.stripe.com/api/promotion_codes/object)."""
        return {
            "id": self.id,
            "object": "promotion_code",
            "active": self.is_active(coupon, now=now),
            "code": self.code,
            "created": self.created,
            "customer": self.customer,
            "customer_account": None,
            "expires_at": self.expires_at,
            "livemode": self.livemode,
            "max_redemptions": self.max_redemptions,
            "metadata": dict(self.metadata),
            "promotion": {"coupon": self.coupon, "type": "coupon"},
            "restrictions": {
                "first_time_transaction": self.first_time,
                "minimum_amount": self.minimum_amount,
                "minimum_amount_currency": self.minimum_currency,
            },
            "times_redeemed": self.times_redeemed,
        }


class Coupons(Registry[Coupon]):
    """All coupons of the emulated account, oldest first."""

    what = "coupon"

    def add(self, coupon: Coupon) -> None:
        """Take over a coupon."""
        self._by_id[coupon.id] = coupon

    def get(self, coupon_id: str) -> Coupon | None:
        """Return a coupon, or None where it was deleted."""
        return self._by_id.get(coupon_id)

    def delete(self, coupon: Coupon) -> None:
        """Delete a coupon; the discounts that it gave stay."""
        del self._by_id[coupon.id]


class PromotionCodes(Registry[PromotionCode]):
    """All promotion codes of the emulated account, oldest first."""

    what = "promotion code"

    def add(self, code: PromotionCode) -> None:
        """Take over a promotion code."""
        self._by_id[code.id] = code

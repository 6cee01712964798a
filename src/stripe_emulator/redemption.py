"""Redemption of coupons and promotion codes: the discounts that a call requests, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.coupons import Coupon, Discount, PromotionCode, begin_discount
from stripe_emulator.protocol import ApiError, missing_resource, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Params
    from stripe_emulator.subscriptions import Subscription

# https://docs.stripe.com/billing/subscriptions/coupons.
DISCOUNTS_MAX: Final = 20


def read_discounts(
    account: Account,
    params: Params,
    *,
    customer: str,
    currency: str,
    known: Sequence[Discount] = (),
    amount: int | None = None,
) -> list[Discount]:
    """Return the discounts that a call requests, in its order.

    Args:
        account: what it is of.
        params: the call's.
        customer: who redeems them.
        currency: of what they are for; coupons for an amount have to have the same.
        known: the discounts that there are, which ``discounts[0][discount]`` may name.
        amount: what is bought, in minor units; None where it is not known.

    Raises:
        ApiError: Stripe would refuse it.
    """
    given = params.hashes("discounts") if params.is_hash("discounts") else []
    if len(given) > DISCOUNTS_MAX:
        raise ApiError(f"You may pass at most {DISCOUNTS_MAX} discounts.", param=params.path("discounts"))
    found: list[Discount] = []
    for each in given:
        each.only("coupon discount promotion_code")
        if sum(name in each for name in ("coupon", "discount", "promotion_code")) != 1:
            message = "You must specify exactly one of: coupon, discount, promotion_code."
            raise ApiError(message, param=params.path("discounts"))
        named = each.nonempty_text("discount")
        if named is None:
            found.append(_read_discount(account, each, customer=customer, currency=currency, amount=amount))
            continue
        kept = [discount for discount in known if discount.id == named]
        if not kept:
            raise missing_resource("discount", named, param=each.path("discount"))
        found += kept
    return found


def _read_discount(
    account: Account, params: Params, *, customer: str, currency: str, amount: int | None
) -> Discount:
    code: PromotionCode | None = None
    coupon_id = params.nonempty_text("coupon")
    param = params.path("coupon" if coupon_id is not None else "promotion_code")
    if coupon_id is None:
        code = account.promotion_codes.find(params.required("promotion_code"), param=param)
        refuse_code(account, code, customer=customer, currency=currency, amount=amount, param=param)
        coupon_id = code.coupon
    coupon = account.coupons.find(coupon_id, param=param)
    refuse_coupon(coupon, currency=currency, now=account.now, param=param)
    return Discount(
        id=new_id("di_1", length=23),
        coupon=replace(coupon),
        customer=customer,
        start=account.now,
        promotion_code=None if code is None else code.id,
    )


def refuse_coupon(coupon: Coupon, *, currency: str, now: int, param: str) -> None:
    """Refuse a coupon that cannot be redeemed.

    Raises:
        ApiError: it is expired, used up or of another currency (https://docs.stripe.com/error-codes#coupon-expired).
    """
    if coupon.is_expired(now=now):
        raise ApiError(f"Coupon expired: {coupon.id}", code="coupon_expired", param=param)
    if coupon.is_used_up:
        message = f"Coupon {coupon.id} is used up and cannot be applied."
        raise ApiError(message, code="coupon_expired", param=param)
    if coupon.currency not in {None, currency}:
        message = (
            f"The coupon `{coupon.id}` cannot be applied: its currency is `{coupon.currency}`, and not "
            f"`{currency}`."
        )
        raise ApiError(message, param=param)


def refuse_code(
    account: Account,
    code: PromotionCode,
    *,
    customer: str | None,
    currency: str,
    amount: int | None,
    param: str,
) -> None:
    """Refuse a promotion code that a customer cannot redeem.

    https://docs.stripe.com/billing/subscriptions/coupons

    Raises:
        ApiError: it is over, for another customer, for new customers, or for more than is bought.
    """
    why: str | None = None
    if not code.is_active(account.coupons.get(code.coupon), now=account.now):
        why = "it is expired or inactive"
    elif code.customer not in {None, customer}:
        why = "it is for another customer"
    elif code.first_time and _has_paid_before(account, customer):
        # https://github.com/stripe/stripe-php/issues/1146 has Stripe's words.
        why = "the associated customer has prior transactions"
    elif code.minimum_amount is not None and amount is not None:
        is_less = code.minimum_currency != currency or amount < code.minimum_amount
        why = "the minimum amount is not reached" if is_less else None
    if why is not None:
        raise ApiError(f"This promotion code cannot be redeemed because {why}.", param=param)


def _has_paid_before(account: Account, customer: str | None) -> bool:
    return any(invoice.customer == customer and invoice.amount_paid for invoice in account.invoices)


def redeem(account: Account, discounts: Iterable[Discount]) -> None:
    """Count new discounts as redemptions of their coupons and codes, and emit events."""
    for discount in discounts:
        if discount.id in account.discounts:
            continue
        account.discounts.add(discount)
        coupon = account.coupons.get(discount.coupon.id)
        if coupon is not None:
            coupon.times_redeemed += 1
        if discount.promotion_code is not None:
            account.promotion_codes.find(discount.promotion_code).times_redeemed += 1
        account.emit("customer.discount.created", discount.to_json())


def change_discounts(account: Account, subscription: Subscription, wanted: Iterable[Discount]) -> None:
    """Give a subscription its discounts: new ones begin, others stay as they are.

    A coupon for once that was used up meanwhile does not come back.
    """
    before = subscription.discounts
    subscription.discounts = [
        discount
        if discount.id in account.discounts
        else begin_discount(discount, subscription=subscription.id, now=account.now)
        for discount in wanted
        if discount in before or discount.id not in account.discounts or discount.coupon.duration != "once"
    ]
    redeem(account, subscription.discounts)
    emit_ended_discounts(account, before, subscription.discounts)


def emit_ended_discounts(account: Account, before: Iterable[Discount], after: Iterable[Discount]) -> None:
    """Emit events of discounts that have ended or were removed."""
    left = {discount.id for discount in after}
    for discount in before:
        if discount.id not in left:
            account.emit("customer.discount.deleted", discount.to_json())

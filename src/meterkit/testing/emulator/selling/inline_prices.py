"""The prices that a call names, or describes by ``price_data``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.replies import ApiError, missing_parameter, new_id
from meterkit.testing.emulator.selling.price_params import read_price
from meterkit.testing.emulator.selling.prices import Price

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Params

__all__ = ["named_price"]

PRICE_DATA: Final = ("currency", "product", "tax_behavior", "unit_amount", "unit_amount_decimal")


def named_price(account: Account, params: Params, *, currency: str | None, recurs: bool) -> Price:
    """Return the price that a call names by ``price``, or describes by ``price_data``.

    Args:
        account: what it is of.
        params: where it is named.
        currency: what it must be in; None: any.
        recurs: whether it must be charged again and again, or once.

    Raises:
        ApiError: it does not fit.
    """
    data = params.hash("price_data")
    if data is not None:
        if "price" in params:
            message = "You may only specify one of these parameters: price, price_data."
            raise ApiError(message, param=params.path("price"))
        price, where = _inline(account, data, recurs=recurs), data.path("currency")
    else:
        where = params.path("price")
        price = account.prices.find(params.required("price"), param=where)
        if not price.active:
            message = "The price specified is inactive. This field only accepts active prices."
            raise ApiError(message, param=where)
    kind, other = ("recurring", "one_time") if recurs else ("one_time", "recurring")
    if (price.recurring is not None) != recurs:
        message = (
            f"The price specified is set to `type={other}` but this field only accepts prices with "
            f"`type={kind}`."
        )
        raise ApiError(message, param=where)
    if currency not in {None, price.currency}:
        message = (
            f"The price specified only supports `{price.currency}`. This doesn't match the expected "
            f"currency: `{currency}`."
        )
        raise ApiError(message, param=where)
    if data is not None:
        account.prices.add(price)
    return price


def _inline(account: Account, data: Params, *, recurs: bool) -> Price:
    """A price of its own, of a product that there is, which nothing else can use and no list shows.

    https://docs.stripe.com/api/subscriptions/create#create_subscription-items-price_data; "a list of your
    active prices, excluding inline prices" (https://docs.stripe.com/api/prices/list).
    """
    data.only(*PRICE_DATA, *(("recurring",) if recurs else ()))
    product = account.products.find(data.required("product"), param=data.path("product"))
    recurring = data.hash("recurring")
    if recurring is not None:
        recurring.only("interval", "interval_count")
    elif recurs:
        raise missing_parameter(data.path("recurring"))
    given = read_price(data, meters=account.meters)
    return Price(
        id=new_id("price_1", length=23),
        product=product.id,
        created=account.now,
        livemode=product.livemode,
        currency=given.currency,
        active=False,
        inline=True,
        pricing=given.pricing,
        recurring=given.recurring,
        tax_behavior=given.tax_behavior,
    )

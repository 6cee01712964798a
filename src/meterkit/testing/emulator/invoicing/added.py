"""What an invoice of a subscription charges once, besides its items: ``add_invoice_items``."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.invoicing.invoices import Line
from meterkit.testing.emulator.replies import ApiError, missing_parameter, new_id
from meterkit.testing.emulator.selling.amounts import amount_of, to_cents
from meterkit.testing.emulator.selling.inline_prices import named_price

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Params
    from meterkit.testing.emulator.subscribing.subscriptions import Subscription

__all__ = ["added_lines"]

ADDED_MAX: Final = 20
LINE_LENGTH: Final = 23
# Accepted and without effect.
IGNORED: Final = ("discounts", "metadata", "tax_rates")


def added_lines(account: Account, subscription: Subscription, params: Params) -> list[Line]:
    """Return the lines that ``add_invoice_items`` asks for, for the next invoice of a subscription.

    "A list of prices and quantities that will generate invoice items appended to the next invoice for this
    subscription. You may pass up to 20 items"
    (https://docs.stripe.com/api/subscriptions/create#create_subscription-add_invoice_items).

    Raises:
        ApiError: Stripe would refuse it: a price that recurs, or of another currency.
    """
    given = params.hashes("add_invoice_items")
    if len(given) > ADDED_MAX:
        message = f"You may add at most {ADDED_MAX} invoice items."
        raise ApiError(message, param=params.path("add_invoice_items"))
    return [_line(account, subscription, each) for each in given]


def _line(account: Account, subscription: Subscription, params: Params) -> Line:
    params.only("price", "price_data", "quantity", *IGNORED)
    if "price" not in params and "price_data" not in params:
        raise missing_parameter(params.path("price"))
    price = named_price(account, params, currency=subscription.currency, recurs=False)
    quantity = Decimal(1 if (asked := params.integer("quantity")) is None else asked)
    if quantity < 0:
        message = "This value must be greater than or equal to 0."
        raise ApiError(message, code="parameter_invalid_integer", param=params.path("quantity"))
    return Line(
        id=new_id("il_1", length=LINE_LENGTH),
        amount=to_cents(amount_of(price.pricing, quantity)),
        description=account.products.find(price.product).name,
        start=account.now,
        end=account.now,
        price=price,
        quantity=quantity,
        unit_amount=price.pricing.unit_amount or Decimal(0),
        subscription=subscription.id,
        item=None,
        invoice_item=new_id("ii_1", length=LINE_LENGTH),
    )

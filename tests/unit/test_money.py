"""Money as people write it."""

from __future__ import annotations

import pytest

from meterkit.catalog.amount_texts import money


@pytest.mark.parametrize(
    ("amount_cents", "currency", "written"),
    [
        (1450, "usd", "USD 14.50"),
        (0, "eur", "EUR 0.00"),
        (5, "eur", "EUR 0.05"),
        (-483, "usd", "USD -4.83"),
        (-5, "usd", "USD -0.05"),
        (123_456_789, "usd", "USD 1,234,567.89"),
        (1450, "jpy", "JPY 1,450"),  # F-116: "jpy cents".
        (-1450, "krw", "KRW -1,450"),
        (1450, "kwd", "KWD 1.450"),
        (500, "isk", "ISK 5.00"),
        (500, "ugx", "UGX 5.00"),
    ],
)
def test_money_has_its_currency_and_its_decimals(amount_cents: int, currency: str, written: str) -> None:
    # https://docs.stripe.com/currencies#zero-decimal and #special-cases
    assert money(amount_cents, currency) == written

"""Amounts in minor units as people write them, by the decimals of their currency. Pure.

https://docs.stripe.com/currencies#zero-decimal; amounts of ISK and UGX have two decimals at Stripe.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

_WITHOUT: Final = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
_WITH_THREE: Final = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})


def decimal_text(amount: Decimal) -> str:
    """Return a decimal as Stripe writes it: ``0.12``, ``2900``."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def price_text(unit_amount: Decimal, currency: str) -> str:
    """Return a unit amount as line descriptions have it: ``10 USD``, ``0.0012 EUR``, ``4000 JPY``."""
    return f"{decimal_text(_major(unit_amount, currency))} {currency.upper()}"


def money_text(amount: int, currency: str) -> str:
    """Return an amount with all its decimals: ``1,450.00 USD``, ``4,000 JPY``, ``9.000 KWD``."""
    return f"{_major(Decimal(amount), currency):,f} {currency.upper()}"


def refund_text(amount: int, currency: str) -> str:
    """Return an amount as a refused refund names it: ``$10.01``, ``4,000 JPY``."""
    return f"${_major(Decimal(amount), currency):f}" if currency == "usd" else money_text(amount, currency)


def _major(amount: Decimal, currency: str) -> Decimal:
    """An amount in major units."""
    decimals = 0 if currency in _WITHOUT else 3 if currency in _WITH_THREE else 2
    return amount.scaleb(-decimals)

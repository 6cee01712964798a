"""Amounts as people write them: ``USD 14.50``, ``9.5 GB``, ``2 h``. Pure."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

# https://docs.stripe.com/currencies#zero-decimal
_WITHOUT: Final = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
_WITH_THREE: Final = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# Amounts have two decimals at Stripe, which are 0 (https://docs.stripe.com/currencies#special-cases).
_WITH_ZEROS: Final = frozenset({"isk", "ugx"})


def minor_units(currency: str) -> int:
    """Minor units in one major unit of a currency: 100 cents a dollar."""
    return int(10 ** decimals_of(currency))


def charged_step(currency: str) -> int:
    """Minor units whose multiples Stripe charges: thousandths in tens, ISK and UGX without a fraction.

    https://docs.stripe.com/currencies#three-decimal
    """
    return 10 if currency in _WITH_THREE else 100 if currency in _WITH_ZEROS else 1


def micros_per_minor_unit(currency: str) -> int:
    """Millionths of a major unit in a minor unit: 10,000 a cent."""
    return 10**6 // minor_units(currency)


_HALF: Final = Fraction(1, 2)


def rounded_cents(amount: Fraction) -> int:
    """Round an amount to minor units as Stripe rounds an invoice line: half up."""
    return floor(amount + _HALF)


def money(amount_cents: int, currency: str) -> str:
    """An amount as people write it: ``USD 14.50``, ``JPY 1,450``, ``USD -4.83``.

    Args:
        amount_cents: in minor units of the currency.
        currency: its code of three letters.
    """
    decimals = decimals_of(currency)
    whole, rest = divmod(abs(amount_cents), 10**decimals)
    fraction = f".{rest:0{decimals}d}" if decimals else ""
    return f"{currency.upper()} {'-' * (amount_cents < 0)}{whole:,}{fraction}"


def exact_money(amount: Decimal, currency: str) -> str:
    """The price of one unit, in minor units and parts of them, as people write it: ``USD 0.00012``."""
    decimals = decimals_of(currency)
    whole, _, fraction = f"{amount.scaleb(-decimals):,f}".partition(".")
    fraction = fraction.rstrip("0").ljust(decimals, "0")
    return f"{currency.upper()} {whole}{'.' if fraction else ''}{fraction}"


MICRO_UNIT: Final = "micro-"
"""Begins the unit of a meter that counts millionths of a currency: ``micro-USD``."""


def is_money(unit: str) -> bool:
    """Whether a meter with this unit counts millionths of a currency."""
    return unit.startswith(MICRO_UNIT)


def rounded_money(micros: int, currency: str) -> str:
    """Millionths of a minor unit as people write an amount, rounded half up: ``USD 0.02``."""
    return money(rounded_cents(Fraction(micros, 1_000_000)), currency)


def micro_money(amount: int, unit: str) -> str:
    """A quantity of such a meter as people write it: ``USD 0.0195``."""
    currency = unit.removeprefix(MICRO_UNIT).lower()
    return exact_money(Decimal(amount).scaleb(decimals_of(currency) - 6), currency)


def decimals_of(currency: str) -> int:
    """Number of decimals of the smallest unit of a currency: 0, 2 or 3."""
    return 0 if currency in _WITHOUT else 3 if currency in _WITH_THREE else 2


_KILO: Final = 1000
_ROUNDS_UP: Final = Decimal("999.5")
"""From here on three digits would say 1000."""


def size_text(number: int) -> str:
    """Bytes as people write them, with three digits: ``9.5 GB``."""
    size, unit = Decimal(number), "byte" if number == 1 else "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < _ROUNDS_UP:
            break
        size, unit = size / _KILO, larger
    shown = Decimal(f"{size:.3g}").normalize() if size < _ROUNDS_UP else round(size, 0)
    return f"{shown:f} {unit}"


def units(quantities: Iterable[int]) -> str:
    """The sum of intents' quantities; negative ones take units back and are summed separately."""
    all_of_them = list(quantities)
    given = sum(quantity for quantity in all_of_them if quantity > 0)
    back = -sum(quantity for quantity in all_of_them if quantity < 0)
    parts = [f"{given:,}"] * (given > 0) + [f"{back:,} that take units back"] * (back > 0)
    return " and ".join(parts)


def date_and_time(moment: datetime) -> str:
    """An instant in a table: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(span_ms: int) -> str:
    """A span of time in the largest unit that gives at least two."""
    seconds = span_ms // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"

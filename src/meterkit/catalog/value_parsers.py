"""Texts of a plans file and the integers they stand for, both ways: quantities, durations, amounts."""

from __future__ import annotations

import re
from datetime import UTC, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from math import floor
from typing import TYPE_CHECKING, Final, Literal

from meterkit.catalog.errors import RefusedError, nearest
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.catalog.value_shapes import Scalar, T

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

SECOND_MS: Final = 1000
DAY_MS: Final = 86_400 * SECOND_MS
DURATION_MAX_MS: Final = 3660 * DAY_MS
AMOUNT_CENTS_MAX: Final = 99_999_999_999
MICRO: Final = 1_000_000

Unlimited = Literal["unlimited"]
UNLIMITED: Final[Unlimited] = "unlimited"

_DIGITS: Final = re.compile(r"[0-9]+(?:_[0-9]+)*")
_GROUPED: Final = re.compile(r"[0-9]{1,3}(?:[,. '][0-9]{3})+")
_SCALED: Final = re.compile(r"(?P<whole>[0-9]{1,6})(?:[.](?P<part>[0-9]{1,3}))? ?(?P<scale>[kKmMbB])")
_POWER: Final = re.compile(r"([0-9]{1,6})[eE][+]?([0-9])")
_SIZE: Final = re.compile(r"(?P<whole>[0-9]+(?:_[0-9]+)*)(?:[.](?P<part>[0-9]{1,9}))? ?(?P<unit>[A-Za-z]+)")
_DURATION: Final = re.compile("".join(f"(?:([0-9]{{1,12}}){unit})?" for unit in "wdhms"))
_LONG_DURATION: Final = re.compile(r"([0-9]+) ?([wdhms])(?:eeks?|ays?|rs?|ours?|ins?|inutes?|ecs?|econds?)?")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_COST: Final = re.compile(
    r"(?P<credits>[0-9][0-9_]*(?:[.][0-9]{1,6})?)(?: ?(?:per|/) ?(?P<units>[0-9][0-9_]*))?"
)

_PRICE: Final = re.compile(
    r"(?P<amount>[0-9][0-9_]{0,15}(?:[.][0-9]{1,12})?)(?: ?(?:per|/) ?(?P<units>[0-9][0-9_]*))?"
)
PRICE_MAX: Final = 10**9 * MICRO

_SIZES: Final[dict[str, int]] = {
    "B": 1,
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("kMGTP")},
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate("KMGTP")},
}
_DURATION_UNITS_MS: Final = (7 * DAY_MS, DAY_MS, 3600 * SECOND_MS, 60 * SECOND_MS, SECOND_MS)

_INTEGER_ALLOWED: Final = "a whole number such as 1_000"
_QUANTITY_ALLOWED: Final = "a whole number such as 1_000, or of a meter of bytes a size such as 5MB"
_DURATION_ALLOWED: Final = "a duration such as 7d, 12h or 1h30m (units w, d, h, m, s, from long to short)"
_TRIAL_DAYS_MAX: Final = 730
"""Longest trial that Stripe takes."""
_TRIAL_ALLOWED: Final = f"whole days such as 14d, from 1d to {_TRIAL_DAYS_MAX}d"
_NAME_ALLOWED: Final = "1 to 64 letters, digits, `_`, `.` or `-`, starting with a letter"
# https://docs.stripe.com/currencies#zero-decimal
_WITHOUT: Final = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
_WITH_THREE: Final = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# Amounts have two decimals at Stripe, which are 0 (https://docs.stripe.com/currencies#special-cases).
_WITH_ZEROS: Final = frozenset({"isk", "ugx"})


def parse_integer(
    text: str, *, least: int = 0, most: int = QUANTITY_MAX, allowed: str = _INTEGER_ALLOWED
) -> int:
    """Digits, with ``_`` between them where it helps the eye.

    Raises:
        RefusedError: it is none.
    """
    if not _DIGITS.fullmatch(text):
        raise RefusedError(f"allowed: {allowed}", meant=_meant_integer(text))
    digits = text.replace("_", "").lstrip("0") or "0"
    number = int(digits) if len(digits) <= len(str(most)) else most + 1
    if not least <= number <= most:
        raise RefusedError(f"allowed: {allowed}, from {least} to {most:_}")
    return number


def _meant_integer(text: str) -> str | None:
    if text.startswith("-") and text != "-1" and _DIGITS.fullmatch(text[1:]):
        return text[1:]
    if _GROUPED.fullmatch(text):
        return re.sub(r"[^0-9]", "_", text)
    if scaled := _SCALED.fullmatch(text):
        zeros = {"k": 3, "m": 6, "b": 9}[scaled["scale"].lower()]
        return f"{int(scaled['whole'] + (scaled['part'] or '').ljust(zeros, '0')):_}"
    if power := _POWER.fullmatch(text):
        return f"{int(power[1]) * 10 ** int(power[2]):_}"
    return None


def parse_quantity(text: str, *, least: int = 0) -> int:
    """An integer, or a size such as ``5MB`` (10^6) or ``1 GiB`` (2^30) in bytes.

    Raises:
        RefusedError: it is none.
    """
    size = _SIZE.fullmatch(text)
    if size is None or not text.endswith(("b", "B")):
        return parse_integer(text, least=least, allowed=_QUANTITY_ALLOWED)
    unit = "kB" if size["unit"] == "KB" else size["unit"]
    if unit not in _SIZES:
        near = nearest(unit, _SIZES) or {name.lower(): name for name in _SIZES}.get(unit.lower())
        reason = f"{unit!r} is not a unit of size; allowed: {', '.join(_SIZES)}"
        raise RefusedError(reason, meant=near and f"{size['whole']}{near}")
    whole, part = parse_integer(size["whole"]), size["part"] or ""
    shift: int = 10 ** len(part)
    number, rest = divmod(int(f"{whole}{part}") * _SIZES[unit], shift)
    if rest:
        raise RefusedError("that is not a whole number of bytes; allowed: a size such as 5MB or 1.5GB")
    if not least <= number <= QUANTITY_MAX:
        raise RefusedError(f"allowed: from {least} to {QUANTITY_MAX:_} bytes")
    return number


def parse_duration(text: str, *, least: int = 0, most: int = DURATION_MAX_MS) -> int:
    """``7d``, ``1h30m``: milliseconds from ``least`` to ``most``, which is whole days.

    Raises:
        RefusedError: it is none.
    """
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        long = _LONG_DURATION.fullmatch(text.lower())
        raise RefusedError(f"allowed: {_DURATION_ALLOWED}", meant=long and f"{long[1]}{long[2]}")
    total = sum(
        int(digits) * unit for digits, unit in zip(found.groups("0"), _DURATION_UNITS_MS, strict=True)
    )
    if total > most:
        raise RefusedError(f"allowed: at most {most // DAY_MS}d")
    if total < least:
        raise RefusedError("allowed: a duration above zero")
    return total


def parse_percent(text: str, *, least: int, most: int) -> int:
    """``80`` or ``80%``.

    Raises:
        RefusedError: it is none.
    """
    return parse_integer(
        text.removesuffix("%").rstrip(), least=least, most=most, allowed="a whole percentage such as 80%"
    )


def parse_price(text: str) -> Fraction:
    """``0.15 per 1_000_000``: micro-units of money per unit, exactly.

    Raises:
        RefusedError: it is none.
    """
    found = _PRICE.fullmatch(" ".join(text.split()))
    if found is None:
        raise RefusedError("allowed: an amount of money per units, such as `0.15 per 1_000_000`")
    units = parse_integer(found["units"] or "1", least=1)
    price = Fraction(found["amount"].replace("_", "")) * MICRO / units
    if price > PRICE_MAX:
        raise RefusedError(f"allowed: at most {PRICE_MAX // MICRO:_} per unit")
    return price


def parse_credit_cost(text: str) -> int:
    """``4 per 1000``: micro-credits per unit, exactly.

    Raises:
        RefusedError: it is none.
    """
    allowed = "allowed: credits per units, such as `4 per 1000`"
    found = _COST.fullmatch(" ".join(text.split()))
    if found is None:
        raise RefusedError(allowed)
    whole, _, decimals = found["credits"].partition(".")
    micro_credits = parse_integer(whole, least=0 if decimals else 1, most=10**9) * MICRO
    micro_credits += int(decimals.ljust(6, "0") or "0")
    if not 1 <= micro_credits <= 10**9 * MICRO:
        raise RefusedError("allowed: above 0, at most 1_000_000_000")
    units = parse_integer(found["units"] or "1", least=1)
    if micro_credits % units:
        below = micro_credits // units
        raise RefusedError(
            f"that is {below} and a fraction micro-credits per unit (1 credit = 1_000_000 micro-credits);"
            " allowed: a cost that comes out whole, such as `1 per 1000`"
        )
    return micro_credits // units


def parse_name(text: str) -> str:
    """The name of a meter, plan, feature, credit or unit.

    Raises:
        RefusedError: it is none.
    """
    if not _NAME.fullmatch(text):
        raise RefusedError(f"allowed: {_NAME_ALLOWED}")
    return text


def parse_flag(text: str) -> bool:
    """``true`` or ``false``.

    Raises:
        RefusedError: it is none.
    """
    if text not in {"true", "false"}:
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(
            text.lower(), nearest(text, ("true", "false"))
        )
        raise RefusedError("allowed: true or false", meant=meant)
    return text == "true"


_INTEGER_JSON: Final = r"^[0-9]+(_[0-9]+)*$"
_SIZE_JSON: Final = r"^[0-9]+(_[0-9]+)*([.][0-9]+)? ?([kKMGTP]i?)?B$"


def _number_schema(least: int, most: int, pattern: str) -> dict[str, object]:
    """A number in JSON Schema, or a text of this pattern that stands for one."""
    number = {"type": "integer", "minimum": least, "maximum": most}
    return {"anyOf": [number, {"type": "string", "pattern": pattern}]}


def integer(*, least: int = 0, most: int = QUANTITY_MAX, allowed: str = _INTEGER_ALLOWED) -> Scalar[int]:
    """The shape of a whole number within bounds."""
    parse = partial(parse_integer, least=least, most=most, allowed=allowed)
    return Scalar(parse, f"{allowed}, from {least} to {most:_}", _number_schema(least, most, _INTEGER_JSON))


def cents(hint: str = "") -> Scalar[int]:
    """The shape of an amount of money; ``hint`` says what to do about a smaller one."""
    allowed = f"a whole number of minor units (cents) such as 2900{hint}"
    return integer(most=AMOUNT_CENTS_MAX, allowed=allowed)


def quantity(*, least: int = 0) -> Scalar[int]:
    """The shape of a quantity of a meter."""
    json = _number_schema(least, QUANTITY_MAX, f"{_INTEGER_JSON}|{_SIZE_JSON}")
    return Scalar(partial(parse_quantity, least=least), _QUANTITY_ALLOWED, json)


def or_unlimited(inner: Scalar[int]) -> Scalar[int | Unlimited]:
    """The shape of a number or the word ``unlimited``."""

    def parse(text: str) -> int | Unlimited:
        if text == UNLIMITED:
            return UNLIMITED
        try:
            return inner.parse(text)
        except RefusedError as error:
            is_endless = text.lower() in {"-1", "none", "inf", "-inf", ".inf", "-.inf", "infinite"}
            meant = UNLIMITED if is_endless else error.meant or nearest(text, (UNLIMITED,))
            raise RefusedError(f"{error.reason}, or {UNLIMITED}", meant=meant) from None

    return Scalar(parse, f"{inner.allowed}, or unlimited", {"anyOf": [inner.schema(), {"const": UNLIMITED}]})


def percent(*, least: int, most: int) -> Scalar[int]:
    """The shape of a percentage within bounds."""
    allowed = f"a whole percentage such as 80%, from {least} to {most}"
    json = _number_schema(least, most, "^[0-9]+ *%?$")
    return Scalar(partial(parse_percent, least=least, most=most), allowed, json)


def duration(*, least: int = 0, most: int = DURATION_MAX_MS) -> Scalar[int]:
    """The shape of a duration of ``least`` to ``most`` milliseconds."""
    pattern = "^([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
    return scalar(partial(parse_duration, least=least, most=most), _DURATION_ALLOWED, pattern=pattern)


def trial_days() -> Scalar[int]:
    """The shape of a trial: milliseconds of whole days, as Stripe counts them at checkout."""
    inner = duration(least=1)

    def parse(value: str) -> int:
        if value.isascii() and value.isdecimal():
            raise RefusedError(f"allowed: {_TRIAL_ALLOWED}", meant=f"{value}d")
        try:
            found_ms = inner.parse(value)
        except RefusedError as error:
            raise RefusedError(f"allowed: {_TRIAL_ALLOWED}", meant=error.meant) from None
        if found_ms % DAY_MS or found_ms > _TRIAL_DAYS_MAX * DAY_MS:
            raise RefusedError(f"allowed: {_TRIAL_ALLOWED}")
        return found_ms

    return Scalar(parse, _TRIAL_ALLOWED, inner.schema())


def duration_or_0(*, most: int) -> Scalar[int]:
    """The shape of a duration up to ``most`` milliseconds, or the number 0, which needs no unit."""
    allowed = f"0, or {_DURATION_ALLOWED}, at most {most // DAY_MS}d"
    inner = duration(most=most)

    def parse(value: str) -> int:
        try:
            return 0 if value == "0" else inner.parse(value)
        except RefusedError as error:
            raise RefusedError(f"allowed: {allowed}", meant=error.meant) from None

    return Scalar(parse, allowed, {"anyOf": [{"const": 0}, inner.schema()]})


def text(most: int, *, pattern: str | None = None, allowed: str | None = None) -> Scalar[str]:
    """The shape of a printable text of 1 to ``most`` characters without spaces at its ends.

    Where ``pattern`` is given, it is of that spelling.
    """

    def parse(value: str) -> str:
        if pattern is not None and not re.fullmatch(pattern, value):
            raise RefusedError(f"allowed: {allowed}")
        if not 1 <= len(value) <= most or not value.isprintable() or value != value.strip():
            raise RefusedError(f"allowed: 1 to {most} printable characters, no spaces at the ends")
        return value

    limits: dict[str, object] = {"type": "string", "minLength": 1, "maxLength": most}
    if pattern is not None:
        limits["pattern"] = f"^(?:{pattern})$"
    return Scalar(parse, allowed or f"a text of 1 to {most} characters", limits)


def scalar(parse: Callable[[str], T], allowed: str, *, pattern: str) -> Scalar[T]:
    """The shape of a text with a grammar of its own, which ``pattern`` outlines for editors."""
    return Scalar(parse, allowed, {"type": "string", "pattern": pattern})


FLAG: Final = Scalar(parse_flag, "true or false", {"type": "boolean"})
NAME: Final = scalar(parse_name, _NAME_ALLOWED, pattern=f"^{_NAME.pattern}$")
PRICES: Final = "prices."
"""Begins what stands for a table of prices by model."""


def _parse_table(text: str) -> str:
    if not text.startswith(PRICES):
        raise RefusedError("allowed: `prices.NAME`")
    return parse_name(text.removeprefix(PRICES))


TABLE_OF_PRICES: Final = scalar(_parse_table, "`prices.NAME`", pattern=r"^prices[.][A-Za-z][A-Za-z0-9_.-]*$")
PRICE: Final = Scalar(
    parse_price,
    "an amount of money per units, such as `0.15 per 1_000_000`",
    {
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": r"^[0-9_]+([.][0-9]+)?( *(per|/) *[0-9_]+)?$"},
        ]
    },
)
COST: Final = Scalar(
    parse_credit_cost,
    "credits per units, such as `4 per 1000`",
    {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "string", "pattern": "^[0-9_]+([.][0-9]+)?( *(per|/) *[0-9_]+)?$"},
        ]
    },
)


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


# The symbols of CLDR for English. Other currencies have their code.
_SYMBOLS: Final = {
    "usd": "$",
    "eur": "€",
    "gbp": "£",
    "jpy": "¥",
    "aud": "A$",
    "brl": "R$",
    "cad": "CA$",
    "cny": "CN¥",
    "hkd": "HK$",
    "ils": "₪",
    "inr": "₹",
    "krw": "₩",
    "mxn": "MX$",
    "nzd": "NZ$",
    "php": "₱",
    "twd": "NT$",
    "vnd": "₫",
}


def money(amount_cents: int, currency: str) -> str:
    """An amount as people write it: ``$14.50``, ``¥1,450``, ``-$4.83``, ``CHF 0.50``.

    Args:
        amount_cents: in minor units of the currency.
        currency: its code of three letters.
    """
    return exact_money(Decimal(amount_cents), currency)


def exact_money(amount: Decimal, currency: str) -> str:
    """The price of one unit, in minor units and parts of them, as people write it: ``$0.00012``."""
    decimals = decimals_of(currency)
    whole, _, fraction = f"{abs(amount).scaleb(-decimals):,f}".partition(".")
    fraction = fraction.rstrip("0").ljust(decimals, "0")
    symbol = _SYMBOLS.get(currency, f"{currency.upper()} ")
    return f"{'-' * (amount < 0)}{symbol}{whole}{'.' if fraction else ''}{fraction}"


_WRITTEN_PER_MAX: Final = 1_000_000
_READABLE_PERS: Final = (1, 1_000, 1_000_000, 1_000_000_000)


def readable_per(amount: Fraction, per: int) -> int:
    """The quantity to show a price for: one of many decimals is kept as an amount for 10^12 units.

    Args:
        amount: of ``per`` units, in minor units of the currency.
        per: the quantity that the price is kept for.
    """
    if per <= _WRITTEN_PER_MAX or str(per).rstrip("0") != "1":  # Another one stands so in the plans file.
        return per
    return next((shown for shown in _READABLE_PERS if shown < per and amount * shown >= per), per)


def price_text(amount: Fraction, per: int, currency: str) -> str:
    """A price as people write it: ``$0.05 each``, ``$12.00 per 1,000``; arguments as above."""
    shown = readable_per(amount, per)
    exact = Decimal(amount.numerator * shown) / (amount.denominator * per)
    return f"{exact_money(exact, currency)} {'each' if shown == 1 else f'per {shown:,}'}"


_PRICE_ID_ALLOWED: Final = "the id of a price at Stripe, such as price_1Q2w3E4r5T6y7U8i"
_OF_A_PRICE: Final = text(255, pattern=r"\S+", allowed=_PRICE_ID_ALLOWED)
_OTHER_IDS: Final = {"prod_": "a product", "sub_": "a subscription", "si_": "an item", "cus_": "a customer"}
"""Prefixes of ids of other objects; ids of old prices have any form."""


def _parse_price_id(written: str) -> str:
    found = _OF_A_PRICE.parse(written)
    other = next((what for prefix, what in _OTHER_IDS.items() if found.startswith(prefix)), None)
    if other is not None:
        raise RefusedError(f"that is {other}; allowed: {_PRICE_ID_ALLOWED}")
    return found


PRICE_ID: Final = Scalar(_parse_price_id, _PRICE_ID_ALLOWED, _OF_A_PRICE.schema())
"""The id of a price at Stripe."""


MICRO_UNIT: Final = "micro-"
"""Begins the unit of a meter that counts millionths of a currency: ``micro-USD``."""


def is_money(unit: str | None) -> bool:
    """Whether a meter with this unit counts millionths of a currency."""
    return unit is not None and unit.startswith(MICRO_UNIT)


def micros_per_shown_unit(unit: str | None) -> int:
    """Counted units in one that clients are shown: in a cent where a meter counts money, otherwise 1."""
    return micros_per_minor_unit(_currency_of(unit)) if unit is not None and is_money(unit) else 1


def _currency_of(unit: str) -> str:
    return unit.removeprefix(MICRO_UNIT).lower()


def rounded_money(micros: int, currency: str) -> str:
    """Millionths of a minor unit as people write an amount, rounded half up: ``$0.02``."""
    return money(rounded_cents(Fraction(micros, 1_000_000)), currency)


def micro_money(amount: int, unit: str) -> str:
    """A quantity of such a meter as people write it: ``$0.0195``."""
    currency = _currency_of(unit)
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


SECONDS_UP_TO: Final = timedelta(minutes=2)
"""Shorter spans are written in seconds."""
_HOURS_UP_TO: Final = 48
_WEEK: Final = 7


def duration_text(length: timedelta) -> str:
    """Write a span in at most two units, rounded up: ``7 h 45 min``, ``41 s``, ``12 days``."""
    if length < SECONDS_UP_TO:
        return f"{-(-length // timedelta(seconds=1))} s"
    hours, minutes = divmod(-(-length // timedelta(minutes=1)), 60)
    if hours < _HOURS_UP_TO:
        return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0))
    days, hours = divmod(hours + (minutes > 0), 24)
    return f"{days} days {hours} h" if hours and days < _WEEK else f"{days} days"

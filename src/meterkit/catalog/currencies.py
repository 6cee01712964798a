"""``currency:`` of a plans file, and amounts of files that have several currencies."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from meterkit.catalog.errors import RefusedError, listed, quoted
from meterkit.catalog.value_parsers import cents, charged_step, money, scalar
from meterkit.catalog.value_shapes import AnyForm, ListOf, MappedShape
from meterkit.catalog.yaml_tree import Fields, Items, Text, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog.errors import Problems
    from meterkit.catalog.value_shapes import Json, Scalar, ValueShape
    from meterkit.catalog.yaml_tree import Node

T_co = TypeVar("T_co", covariant=True)

CURRENCY: Final = "currency"
_CODES: Final = (
    "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad"
    " cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd"
    " hnl hrk htg huf idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad"
    " mdl mga mkd mmk mnt mop mro mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr"
    " pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle sll sos srd std svc szl thb tjs tnd top try"
    " ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw"
)
CURRENCIES: Final = frozenset(_CODES.split())
"""https://docs.stripe.com/currencies#presentment-currencies"""
BALANCE_CURRENCY: Final = "usd"
"""Of balances in money and their top-ups, whatever a customer's invoices are in, as providers' prices are."""
_PATTERN: Final = "^[a-z]{3}$"
_CODE: Final = re.compile(r"[a-z]{3}")
_ALLOWED: Final = "the three small letters of a currency, such as usd"


def _parse_code(text: str) -> str:
    if not _CODE.fullmatch(text):
        lower = text.lower()
        raise RefusedError(f"allowed: {_ALLOWED}", meant=lower if lower in CURRENCIES else None)
    if text not in CURRENCIES:
        raise RefusedError(f"Stripe has no such currency; allowed: {_ALLOWED}")
    return text


_ONE: Final = scalar(_parse_code, _ALLOWED, pattern=_PATTERN)
CURRENCIES_SHAPE: Final[ValueShape[tuple[str, ...]]] = AnyForm(
    f"{_ALLOWED}, or a list of them",
    scalar=MappedShape(_ONE, lambda code: (code,)),
    items=ListOf(_ONE, "currencies", 1),
)


def written_currencies(root: Fields) -> tuple[str, ...]:
    """The codes that a file lists, in small letters, by which its amounts are read.

    Returns:
        Empty if a code is unknown or repeated: that is refused once, and not at each amount.
    """
    node = root.values.get(CURRENCY)
    items = node.items if isinstance(node, Items) else (node,)
    codes = [item.text.lower() for item in items if isinstance(item, Text) and not item.is_null]
    valid = CURRENCIES.issuperset(codes) and len(codes) == len(set(codes))
    return tuple(codes) if valid else ()


def refuse_repeated_currencies(items: Iterable[Text], problems: Problems) -> None:
    """Refuse a currency that is listed twice."""
    seen: set[str] = set()
    for item in items:
        if item.text in seen:
            problems.refuse(item.place, f"{item.text!r} is listed twice; keep one")
        seen.add(item.text)


@dataclass(frozen=True, slots=True)
class PerCurrency(Generic[T_co]):
    """An amount; in a file of several currencies a map with one for each.

    Attributes:
        inner: the amount in one currency.
        common: pattern of the texts that count in every currency, without a map; empty: none does.
        is_charged: whether Stripe charges it as it is.
    """

    inner: Scalar[T_co]
    common: str = ""
    is_charged: bool = False

    def read(self, node: Node, problems: Problems) -> T_co | None:
        """The amount in the currency that the file is read for."""
        currencies = problems.currencies
        if isinstance(node, Fields) and len(currencies) != 1:
            self._check_codes(node, currencies, problems)
            value = node.values.get(problems.currency)
            return None if value is None else self._read_one(value, problems)
        if len(currencies) > 1 and not self._is_common(node):
            message = f"found {kind_of(node)}, and this file has several currencies"
            problems.refuse(node.place, f"{message}; allowed: {by_currency(currencies)}")
            return None
        if isinstance(node, Fields) and problems.currency:
            message = (
                f"found a map, but `currency` has only {problems.currency}; allowed: {self.inner.allowed}"
            )
            problems.refuse(node.place, message)
            return None
        return self._read_one(node, problems)

    def _read_one(self, node: Node, problems: Problems) -> T_co | None:
        """The amount in one currency."""
        found = self.inner.read(node, problems)
        step = charged_step(problems.currency)
        if self.is_charged and isinstance(found, int) and found % step:
            message = (
                f"found {found}; Stripe charges {problems.currency.upper()} in steps of"
                f" {money(step, problems.currency)}; allowed: multiples of {step}"
            )
            problems.refuse(node.place, message)
        return found

    def _is_common(self, node: Node) -> bool:
        if not self.common or not isinstance(node, Text):
            return False
        return re.fullmatch(self.common, node.text) is not None

    def _check_codes(self, node: Fields, currencies: tuple[str, ...], problems: Problems) -> None:
        if not currencies:
            return  # They are refused themselves.
        for code, place in node.places.items():
            if code not in currencies:
                message = f"{quoted(code)} is no currency of this file; its currencies: {listed(currencies)}"
                problems.refuse(place, message)
        for code in currencies:
            if code not in node.values:
                missing = replace(node.place, path=node.place.child(code).path)
                message = f"{code} is missing; allowed: {by_currency(currencies)}"
                problems.refuse(missing, message)

    def schema(self) -> Json:
        """An amount, or a map from currencies to amounts."""
        one = self.inner.schema()
        names = {"pattern": _PATTERN}
        by_code = {"type": "object", "propertyNames": names, "additionalProperties": one, "minProperties": 1}
        return {"anyOf": [one, by_code]}


def by_currency(currencies: tuple[str, ...]) -> str:
    """The map that an amount is in a file of several currencies, in words."""
    return f"a map with each currency, {{{', '.join(f'{code}: …' for code in currencies)}}}"


AMOUNT: Final = PerCurrency(cents(" (for a smaller price, raise `per`)"))
"""The price of ``per`` units."""
CHARGED_AMOUNT: Final = PerCurrency(cents(), is_charged=True)

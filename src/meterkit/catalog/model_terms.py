"""``models:`` of a credit in money: prices by unit and factors, by pattern of a model's name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.catalog.document import Fields, kind_of
from meterkit.catalog.errors import RefusedError, listed, quoted, suggestion
from meterkit.catalog.model_prices import ModelTerms
from meterkit.catalog.price_table import is_listed
from meterkit.catalog.shapes import MapOf, Scalar, kept
from meterkit.catalog.units import TOKEN_METERS, UNIT_OF, UNITS, WHOLE_OF
from meterkit.catalog.value_parsers import PRICE, parse_integer, text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from meterkit.catalog.document import Node
    from meterkit.catalog.errors import Place, Problems
    from meterkit.catalog.shapes import Json

FACTORS: Final = ("service_tier", "speed", "inference_geo", "processing")
"""What a response may say of how a call was processed, where that changes its price."""
_USUAL: Final = (*(name for name in TOKEN_METERS if name != "total_tokens"), "requests")
_UNITS: Final = (*_USUAL, *sorted(UNITS - {*_USUAL}))
_PERCENT: Final = re.compile(r"([0-9][0-9_]*) ?%")
_PERCENT_MAX: Final = 10_000
_WHOLES: Final = ("input_tokens", "output_tokens")
_OF: Final = "prices by unit, such as `input_tokens: 0.15 per 1_000_000`, and factors"


def _parse_factor(written: str) -> int:
    found = _PERCENT.fullmatch(written)
    allowed = f"a whole percentage of the standard price, such as 200%, from 0% to {_PERCENT_MAX:_}%"
    if found is None:
        raise RefusedError(f"allowed: {allowed}")
    return parse_integer(found[1], most=_PERCENT_MAX, allowed=allowed)


_FACTOR: Final = Scalar(
    _parse_factor,
    "a percentage of the standard price, such as 200%",
    {"type": "string", "pattern": "^[0-9][0-9_]* ?%$"},
)
_FACTORS: Final[MapOf[int]] = MapOf(text(64), _FACTOR, "values and percentages", 1)


class _TermsShape:
    """Shape of what one pattern of model names says."""

    def read(self, node: Node, problems: Problems) -> ModelTerms | None:
        """The prices and factors; units written under two names are refused."""
        if not isinstance(node, Fields) or not node.values:
            problems.refuse(node.place, f"found {_found(node)}; allowed: a map of {_OF}")
            return None
        prices: dict[str, Fraction] = {}
        factors: dict[str, Mapping[str, int]] = {}
        written: dict[str, str] = {}
        is_whole = True
        for name, value in node.values.items():
            place = node.places[name]
            if name in FACTORS:
                read = _FACTORS.read(value, problems)
                factors[name] = kept(read)
            elif name not in _UNITS:
                known = (*_UNITS, *FACTORS)
                allowed = f"allowed: {listed(_USUAL)}, the other units of the price table, {listed(FACTORS)}"
                near = suggestion(name, known)
                problems.refuse(place, f"unknown unit or factor {quoted(name)}; {allowed}{near}")
                is_whole = False
            elif (other := written.setdefault(UNIT_OF.get(name, name), name)) != name:
                problems.refuse(place, f"{other} is the same unit; keep one of the two")
            elif (price := PRICE.read(value, problems)) is not None:
                prices[name] = price
            else:
                is_whole = False
        return ModelTerms(prices=prices, factors=factors) if is_whole else None

    def schema(self) -> Json:
        """A map with prices under units, and maps of percentages under factors."""
        return {
            "type": "object",
            "propertyNames": {"enum": [*_UNITS, *FACTORS]},
            "patternProperties": {f"^({'|'.join(FACTORS)})$": _FACTORS.schema()},
            "additionalProperties": PRICE.schema(),
            "minProperties": 1,
        }


MODEL_TERMS: Final = _TermsShape()


def _found(node: Node) -> str:
    return "an empty map" if isinstance(node, Fields) else kind_of(node)


def check_terms(pattern: str, terms: ModelTerms, place: Place, problems: Problems) -> None:
    """Refuse prices of only one direction, and factors alone, of models that the price table lacks.

    Args:
        pattern: of the models' names.
        terms: what the file says of them.
        place: where it stands.
        problems: the list to add to.
    """
    priced = {UNIT_OF.get(name, name) for name in terms.prices}
    has_tokens = any(unit in _WHOLES or unit in WHOLE_OF for unit in priced)
    missing = [whole for whole in _WHOLES if whole not in priced]
    if priced and not (has_tokens and missing):
        return
    lacks = " and ".join(missing) if has_tokens else "anything"
    known = is_listed(pattern)
    if known is None:
        message = (
            f"{lacks} has no price here; it is the price table's, for which genai-prices must be installed:"
            " pip install 'meterkit[prices]'"
        )
        problems.note(place, "informs", message)
    elif not known:
        write = ", ".join(f"`{whole}: … per 1_000_000`" for whole in missing)
        message = (
            f"no price of {lacks}, and the price table has no such model; write {write} as well"
            " (`0 per 1_000_000` if it costs nothing)"
        )
        problems.refuse(place, message)

"""Rates: ``100/hour``, ``20 per 5 minutes``, and the map form with an algorithm and a burst."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.document import Items, Node, Text
from meterkit.catalog.errors import RefusedError, nearest, quoted
from meterkit.catalog.models import Algorithm, Rate
from meterkit.catalog.shapes import AnyForm, Json, Key, MappedShape, Scalar, Table, ValueShape, WordChoice
from meterkit.catalog.value_parsers import (
    DAY_MS,
    SECOND_MS,
    UNLIMITED,
    parse_integer,
    parse_quantity,
    quantity,
)

if TYPE_CHECKING:
    from meterkit.catalog.errors import Problems

WINDOW_MAX_MS: Final = 366 * DAY_MS

_UNITS: Final = {
    "second": (SECOND_MS, "s", 1),
    "minute": (60 * SECOND_MS, "m", 1),
    "hour": (3600 * SECOND_MS, "h", 1),
    "day": (DAY_MS, "d", 1),
    "month": (30 * DAY_MS, "mo", 1),
    "year": (30 * DAY_MS, "mo", 12),
}
_SHORT: Final = {
    "s": "second", "sec": "second", "secs": "second",
    "m": "minute", "min": "minute", "mins": "minute",
    "h": "hour", "hr": "hour", "hrs": "hour",
    "d": "day", "mo": "month", "y": "year",
    "week": "7 days", "weeks": "7 days", "w": "7 days",
}  # fmt: skip
_ALLOWED: Final = "a rate such as 100/hour, 20 per 5 minutes or 1_000/7 days, a list of rates, or unlimited"
_RATE: Final = re.compile(
    r"(?P<limit>[0-9][0-9_]*(?:[.][0-9]+)?(?: ?[kKMGTP]?i?B)?) ?(?:/|(?i:per)) ?"
    r"(?P<count>[0-9][0-9_]*)? ?(?P<unit>[A-Za-z]+)"
)
_SEPARATOR: Final = re.compile(r"[,;|]")
_ONE_JSON: Final = (
    r"[0-9][0-9_]*([.][0-9]+)?( *[kKMGTP]?i?B)?\s*(/|[Pp][Ee][Rr])\s*([0-9][0-9_]*)?\s*[A-Za-z]+"
)
_SOME_JSON: Final = rf"^\s*{_ONE_JSON}(\s*[,;|]\s*{_ONE_JSON})*\s*$"


def parse_rate(text: str) -> Rate:
    """One rate in sliding windows.

    Raises:
        RefusedError: it is none.
    """
    found = _RATE.fullmatch(" ".join(text.split()))
    if found is None:
        raise RefusedError(f"allowed: {_ALLOWED}")
    unit = _parse_unit(found["unit"])
    if unit not in _UNITS:
        raise _unknown_unit(found["unit"])
    limit = parse_quantity(found["limit"], least=1)
    unit_ms, short, factor = _UNITS[unit]
    count = parse_integer(found["count"] or "1", least=1) * factor
    if count * unit_ms > WINDOW_MAX_MS:
        raise RefusedError(
            "allowed: a window of at most 366 days; a quantity per billing period is `included`"
        )
    return Rate(
        limit=limit,
        window_ms=count * unit_ms,
        algorithm="sliding-window",
        burst=limit,
        window=f"{count}{short}",
    )


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Rates with ``,``, ``;`` or ``|`` between them.

    Raises:
        RefusedError: it is none.
    """
    return tuple(parse_rate(part) for part in _SEPARATOR.split(text))


def _parse_unit(text: str) -> str:
    lower = text.lower()
    return lower.removesuffix("s") if lower not in _UNITS else lower


def _unknown_unit(text: str) -> RefusedError:
    meant = _SHORT.get(text.lower()) or nearest(text, _UNITS)
    return RefusedError(f"{quoted(text)} is not a unit of time; allowed: {', '.join(_UNITS)}", meant=meant)


ALGORITHMS: Final[WordChoice[Algorithm]] = WordChoice(("sliding-window", "fixed-window", "token-bucket"))
ONE_RATE: Final = Scalar(
    parse_rate, "a rate such as 100/hour", {"type": "string", "pattern": rf"^\s*{_ONE_JSON}\s*$"}
)
SOME_RATES: Final = Scalar(parse_rates, _ALLOWED, {"type": "string", "pattern": _SOME_JSON})


class RateTable(Table, what="a rate"):
    """The map form of a rate."""

    limit = Key(ONE_RATE, "The rate, such as 20/second.", required=True)
    algorithm: Key[Algorithm] = Key(ALGORITHMS, "How the window moves; default: sliding-window.")
    burst = Key(quantity(least=1), "Units that may be used at once; token-bucket only; default: the limit.")


def _with_algorithm(values: RateTable) -> tuple[Rate, ...]:
    rate = values.limit
    if rate is None:
        return ()
    algorithm: Algorithm = values.algorithm or rate.algorithm
    burst = values.burst
    if burst is not None and algorithm != "token-bucket" and not values.is_refused("algorithm"):
        values.refuse("burst", f"{algorithm} has no burst; add `algorithm: token-bucket` or remove it")
        burst = None
    return (replace(rate, algorithm=algorithm, burst=burst or rate.limit),)


_ONE_OR_MORE: Final[ValueShape[tuple[Rate, ...]]] = AnyForm(
    _ALLOWED, scalar=SOME_RATES, fields=MappedShape(RateTable, _with_algorithm)
)


class Rates:
    """The shape of ``rate``: a tuple of rates, at most one per window; empty for ``unlimited``."""

    def read(self, node: Node, problems: Problems) -> tuple[Rate, ...]:
        """The rates in the file's order."""
        if isinstance(node, Text) and node.text == UNLIMITED:
            return ()
        if isinstance(node, Items) and not node.items:
            problems.refuse(node.place, f"found an empty list; allowed: {_ALLOWED}")
        by_window: dict[int, Rate] = {}
        every: list[Rate] = []
        for item in node.items if isinstance(node, Items) else (node,):
            for rate in _ONE_OR_MORE.read(item, problems) or ():
                every.append(rate)
                first = by_window.setdefault(rate.window_ms, rate)
                if first is not rate:
                    both = f"{first.limit}/{first.window} and {rate.limit}/{rate.window}"
                    problems.refuse(item.place, f"two rates with the same window, {both}; keep one")
        return tuple(every)

    def schema(self) -> Json:
        """A rate, a map or a list of both."""
        one = _ONE_OR_MORE.schema()
        several = {"type": "array", "minItems": 1, "items": one}
        return {"anyOf": [{"const": UNLIMITED}, one, several]}

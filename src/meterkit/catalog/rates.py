"""Rates in the notation of `limits`, with sizes and ``_`` in numbers; a map form with algorithm and burst.

https://limits.readthedocs.io/en/stable/quickstart.html#rate-limit-string-notation
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import RefusedError, nearest, quoted
from meterkit.catalog.models import Algorithm, Rate
from meterkit.catalog.value_parsers import (
    DAY_MS,
    SECOND_MS,
    UNLIMITED,
    parse_integer,
    parse_quantity,
    quantity,
)
from meterkit.catalog.value_shapes import (
    AnyForm,
    Json,
    Key,
    MappedShape,
    Scalar,
    Table,
    ValueShape,
    WordChoice,
)
from meterkit.catalog.yaml_tree import Items, Node, Text

if TYPE_CHECKING:
    from limits import RateLimitItem

    from meterkit.catalog.errors import Problems

WINDOW_MAX_MS: Final = 366 * DAY_MS

_UNITS: Final = {
    "second": ("s", 1),
    "minute": ("m", 1),
    "hour": ("h", 1),
    "day": ("d", 1),
    "month": ("mo", 1),
    "year": ("mo", 12),
}
"""Granularities of `limits`, each with the unit of policy names and the number of those."""
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
    item = _parse_window(found["count"], found["unit"])
    limit = parse_quantity(found["limit"], least=1)
    window_ms = item.get_expiry() * SECOND_MS
    short, factor = _UNITS[item.GRANULARITY.name]
    if window_ms > WINDOW_MAX_MS:
        raise RefusedError(
            "allowed: a window of at most 366 days; a quantity per billing period is `included`"
        )
    return Rate(
        limit=limit,
        window_ms=window_ms,
        algorithm="sliding-window",
        burst=limit,
        window=f"{item.multiples * factor}{short}",
    )


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Rates with ``,``, ``;`` or ``|`` between them.

    Raises:
        RefusedError: it is none.
    """
    return tuple(parse_rate(part) for part in _SEPARATOR.split(text))


def rate_text(value: object) -> str | None:
    """A rate of `limits` in the notation of the plans file; None: the value is anything else."""
    if isinstance(value, str | int | float):
        return None
    from limits import RateLimitItem  # noqa: PLC0415 - takes long to import

    if not isinstance(value, RateLimitItem):
        return None
    count = "" if value.multiples == 1 else f"{value.multiples} "
    return f"{value.amount}/{count}{value.GRANULARITY.name}"


def _parse_window(count: str | None, unit: str) -> RateLimitItem:
    """Parse a window; `limits` would take a count of 0 for 1."""
    from limits import parse  # noqa: PLC0415 - takes long to import

    multiples = parse_integer(count or "1", least=1, allowed=f"a whole number before {quoted(unit)}")
    try:
        item = parse(f"1/{multiples} {unit}")
    except ValueError:
        raise _unknown_unit(unit) from None
    if item.GRANULARITY.name not in _UNITS:  # An app can add granularities to those of `limits`.
        raise _unknown_unit(unit)
    return item


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


def _build_rates(values: RateTable) -> tuple[Rate, ...]:
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
    _ALLOWED, scalar=SOME_RATES, fields=MappedShape(RateTable, _build_rates)
)


class RatesShape:
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

"""Interface of a reader of one API, and the readers' shared helpers: caches, sums by unit, contexts.

- https://openrouter.ai/docs/guides/usage-accounting
- https://docs.perplexity.ai/api-reference, https://docs.x.ai/docs/api-reference
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage.call_usage import figure
from llm_usage.json_values import dig, rows, table, text
from llm_usage.units import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_usage.json_values import Counts, Table
    from llm_usage.reported_calls import EventUsage

_SHORT: Final = "cache_write_5m_tokens"
_LONG: Final = "cache_write_1h_tokens"
OPENROUTER: Final = "openrouter"
_GATEWAYS: Final = (OPENROUTER,)
_USUAL: Final = frozenset({"standard", "default", "auto", "on_demand", "global", "not_available"})
_UNSPECIFIED: Final = "unspecified"
_MICROS: Final = 10**6
_MICROS_MAX: Final = 10**9 * _MICROS
_TICKS_PER_MICRO: Final = 10**4  # xAI: 10^10 ticks are a dollar.
_DOLLAR_MICROS: Final = Fraction(_MICROS)
_TICK_MICROS: Final = Fraction(1, _TICKS_PER_MICRO)


class UsageShape(NamedTuple):
    """A shape in which an API reports usage: a part of the table in README.md, which is made of these.

    Attributes:
        name: of endpoints or objects.
        place: of the figures in a response.
        fields: our name of a figure to the paths where it may stand, from that place; the first one counts.
    """

    name: str
    place: str
    fields: Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApi:
    """Reader of one API's usage.

    Attributes:
        name: the word for it, as in ``ResponseReader.open("openai", …)``.
        provider: as OpenTelemetry names it; None where each object has its own.
        usage_in: what an event or document says about usage, None where it says nothing. With ``strict`` the
            whole of it must have the API's shape; without, a usage object of the right shape suffices.
        recognises: whether an event or document is certainly the API's, with or without usage.
        marks: the first event of a stream that is recognised has one of these, or token figures.
        shapes: the shapes that it reads.
    """

    name: str
    provider: str | None
    usage_in: Callable[[Table, bool], EventUsage | None]
    recognises: Callable[[Table], bool]
    marks: tuple[bytes, ...] = ()
    shapes: tuple[UsageShape, ...] = ()


def cache_included(counts: Counts) -> Counts:
    """Add cache reads and writes to the input of an API that leaves them out of it."""
    counts = {**counts, **_cache_writes(counts)}
    if "input_tokens" not in counts:
        return counts
    parts = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    return {**counts, "input_tokens": sum(counts.get(part, 0) for part in parts)}


def _cache_writes(counts: Counts) -> Counts:
    """Cache writes and their parts by time to live.

    Some servers name only the parts, and 0 as the whole. Parts beyond a larger whole are cut, the dearest
    first.
    """
    short, long = counts.get(_SHORT, 0), counts.get(_LONG, 0)
    if not short + long:
        return {}
    whole = counts.get("cache_write_tokens", 0) or short + long
    short = min(short, whole)
    parts = {_SHORT: short, _LONG: min(long, whole - short)}
    if whole > FIGURE_MAX:
        parts = dict.fromkeys(parts, whole)  # They are refused with it.
    return {"cache_write_tokens": whole, **{name: n for name, n in parts.items() if name in counts}}


def sum_rows(array: object, kind: str, count: str, units: Mapping[str, str]) -> tuple[dict[str, int], bool]:
    """Sum the figures of an array by unit; and whether one was refused.

    Args:
        array: objects that have a kind and a figure.
        kind: the member that names the kind, or has its number.
        count: the member that has the figure; alternatives are parted by blanks.
        units: by kind, in lower case or as `#` and its number; other kinds are left out.
    """
    sums = Counter[str]()
    refused = False
    for row in filter(None, map(table, rows(array))):
        named = row.get(kind)
        unit = units.get(f"#{named}" if type(named) is int else (text(named) or "").lower())
        found = next((row[name] for name in count.split() if row.get(name) is not None), None)
        if unit is None or found is None:
            continue
        number = figure(found)
        if number is None:
            refused = True
        else:
            sums[unit] += number
    return sums, refused


def context_of(**words: object) -> dict[str, str]:
    """The context of a call in lower case, without what is the usual case.

    Args:
        words: what the response names: its service tier, its speed.
    """
    named = {name: value.lower() for name, found in words.items() if (value := text(found)) is not None}
    if named.get("service_tier") == "batch":
        named["processing"] = named.pop("service_tier")
    return {name: v for name, v in named.items() if v not in _USUAL and not v.endswith(_UNSPECIFIED)}


def is_openrouter(holder: Table, usage: Table) -> bool:
    """Whether an answer shows that it is OpenRouter's: that names the provider it has asked, or its costs.

    Args:
        holder: of the usage.
        usage: the usage object.
    """
    names_asked = text(holder.get("provider")) is not None or "cost_details" in usage
    return "cost" in usage and (names_asked or "seconds" in usage)


def read_cost(usage: Table) -> tuple[Fraction | None, bool]:
    """Amount that a usage object reports for its call, and whether one was refused."""
    reported, unit = usage.get("cost"), _DOLLAR_MICROS
    if table(reported) is not None:
        reported = dig(reported, ("total_cost",))
    elif reported is None:
        reported, unit = usage.get("cost_in_usd_ticks"), _TICK_MICROS
    if reported is None:
        return None, False
    cost = _amount(reported, unit)
    upstream = dig(usage, ("cost_details", "upstream_inference_cost"))
    if cost is None or usage.get("is_byok") is not True or upstream is None:
        return cost, cost is None
    # With the app's own key at the model's provider the gateway charges its fee alone.
    paid = _amount(upstream, _DOLLAR_MICROS)
    return cost + (paid or 0), paid is None


def _amount(value: object, unit: Fraction) -> Fraction | None:
    """An amount; None for a text, NaN, and what is below 0 or above 10^9 dollars."""
    if isinstance(value, float):
        amount = unit * Fraction(str(value)) if isfinite(value) else None
    elif isinstance(value, int) and not isinstance(value, bool):
        amount = unit * value
    else:
        amount = None
    return amount if amount is not None and 0 <= amount <= _MICROS_MAX else None


def read_gateway_cost(provider: str | None, dollars: object) -> Fraction | None:
    """The amount that a gateway says it charges, in micro-units; None: it is no gateway, or says none."""
    if provider not in _GATEWAYS:
        return None
    if isinstance(dollars, str):
        # As a float: an exact fraction with a large exponent takes minutes.
        with suppress(ValueError, OverflowError):
            dollars = float(dollars)
    return read_cost({"cost": dollars})[0]

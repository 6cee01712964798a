"""Interface of a reader of one API, and helpers that the readers share: cache tokens, sums, contexts, costs.

Responses that report a cost:

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

_WRITES_5M: Final = "cache_write_5m_tokens"
_WRITES_1H: Final = "cache_write_1h_tokens"
OPENROUTER: Final = "openrouter"
_GATEWAYS: Final = (OPENROUTER,)
_STANDARD: Final = frozenset({"standard", "default", "auto", "on_demand", "global", "not_available"})
_UNSPECIFIED: Final = "unspecified"
_MICROS: Final = 10**6  # Of a dollar.
_COST_MAX_MICROS: Final = 10**9 * _MICROS
_TICKS_PER_MICRO: Final = 10**4  # xAI: 10^10 ticks are a dollar.
_DOLLAR_MICROS: Final = Fraction(_MICROS)
_TICK_MICROS: Final = Fraction(1, _TICKS_PER_MICRO)


class UsageShape(NamedTuple):
    """A shape in which an API reports usage: documentation only, for the table in README.md.

    Attributes:
        name: of endpoints or objects.
        place: of the figures in a response, for people to read.
        fields: our name of a figure to the paths where it may stand, from that place; the first one counts.
    """

    name: str
    place: str
    fields: Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApi:
    """Reader of one API's usage.

    Attributes:
        name: the API's name, as in ``ResponseReader.open("openai", …)``.
        provider: as OpenTelemetry names it; None if each response names its own.
        usage_in: reads the usage of an event or document; None: it has none. With ``strict`` the whole of it
            must have the API's shape; otherwise a usage object of the right shape suffices.
        recognises: whether an event or document is certainly the API's, with or without usage.
        marks: bytes for a search before an event is parsed: without token figures, an event that
            ``recognises`` accepts at the start of a stream has one of them.
        shapes: the shapes that it reads, for README.md.
    """

    name: str
    provider: str | None
    usage_in: Callable[[Table, bool], EventUsage | None]
    recognises: Callable[[Table], bool]
    marks: tuple[bytes, ...] = ()
    shapes: tuple[UsageShape, ...] = ()


def include_cache_tokens(counts: Counts) -> Counts:
    """Add cache reads and writes to the input tokens, for an API whose input tokens leave them out."""
    counts = {**counts, **_cache_writes(counts)}
    if "input_tokens" not in counts:
        return counts
    parts = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
    return {**counts, "input_tokens": sum(counts.get(part, 0) for part in parts)}


def _cache_writes(counts: Counts) -> Counts:
    """Cache writes, and their parts by time to live; empty without parts.

    Some servers report only the parts, and 0 as the whole. If the parts exceed a whole that is not 0, they
    are cut, the dearer one (1 hour) first.
    """
    writes_5m, writes_1h = counts.get(_WRITES_5M, 0), counts.get(_WRITES_1H, 0)
    if not writes_5m + writes_1h:
        return {}
    whole = counts.get("cache_write_tokens", 0) or writes_5m + writes_1h
    writes_5m = min(writes_5m, whole)
    parts = {_WRITES_5M: writes_5m, _WRITES_1H: min(writes_1h, whole - writes_5m)}
    if whole > FIGURE_MAX:
        parts = dict.fromkeys(parts, whole)  # The whole is refused as too large, and so are these.
    return {"cache_write_tokens": whole, **{name: n for name, n in parts.items() if name in counts}}


def sum_rows(array: object, kind: str, count: str, units: Mapping[str, str]) -> tuple[dict[str, int], bool]:
    """Sum the figures of an array by unit; and whether one was refused.

    Args:
        array: objects that have a kind and a figure.
        kind: the member that names the kind, or has its number; empty: the objects have no kind.
        count: the members that may have the figure, separated by blanks; the first that is there counts.
        units: unit by kind: its name in lower case, ``#`` and its number, or the empty text for no kind.
            Other kinds are left out.
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
    """The context of a call, such as its service tier, in lower case and without standard values.

    Args:
        words: name to the value in the response. The service tier ``batch`` becomes ``processing``, under
            which prices have it.
    """
    named = {name: value.lower() for name, found in words.items() if (value := text(found)) is not None}
    if named.get("service_tier") == "batch":
        named["processing"] = named.pop("service_tier")
    return {name: v for name, v in named.items() if v not in _STANDARD and not v.endswith(_UNSPECIFIED)}


def is_openrouter(holder: Table, usage: Table) -> bool:
    """Whether a response is OpenRouter's: it has a cost, and a provider, cost details or seconds of sound.

    Args:
        holder: the object that has the usage object.
        usage: the usage object.
    """
    has_details = text(holder.get("provider")) is not None or "cost_details" in usage
    return "cost" in usage and (has_details or "seconds" in usage)


def read_cost(usage: Table) -> tuple[Fraction | None, bool]:
    """Cost of a call in micro-dollars, as its usage object reports it; and whether an amount was refused."""
    reported, unit = usage.get("cost"), _DOLLAR_MICROS
    if table(reported) is not None:
        reported = dig(reported, ("total_cost",))  # Perplexity.
    elif reported is None:
        reported, unit = usage.get("cost_in_usd_ticks"), _TICK_MICROS  # xAI.
    if reported is None:
        return None, False
    cost = _amount_micros(reported, unit)
    upstream = dig(usage, ("cost_details", "upstream_inference_cost"))
    if cost is None or usage.get("is_byok") is not True or upstream is None:
        return cost, cost is None
    # OpenRouter: with the app's own key at a provider, `cost` is only the gateway's fee.
    upstream_cost = _amount_micros(upstream, _DOLLAR_MICROS)
    return cost + (upstream_cost or 0), upstream_cost is None


def _amount_micros(value: object, unit: Fraction) -> Fraction | None:
    """An amount in micro-dollars; None for a text, NaN, and an amount below 0 or above 10^9 dollars."""
    if isinstance(value, float):
        amount = unit * Fraction(str(value)) if isfinite(value) else None
    elif isinstance(value, int) and not isinstance(value, bool):
        amount = unit * value
    else:
        amount = None
    return amount if amount is not None and 0 <= amount <= _COST_MAX_MICROS else None


def read_gateway_cost(provider: str | None, dollars: object) -> Fraction | None:
    """Cost in micro-dollars that a gateway charges, as a framework has it; None: no gateway, or no cost.

    Args:
        provider: as OpenTelemetry names it. The cost of any other than a gateway is ignored.
        dollars: a number, or its text.
    """
    if provider not in _GATEWAYS:
        return None
    if isinstance(dollars, str):
        # A float, since an exact fraction of a number with a large exponent takes minutes.
        with suppress(ValueError, OverflowError):
            dollars = float(dollars)
    return read_cost({"cost": dollars})[0]

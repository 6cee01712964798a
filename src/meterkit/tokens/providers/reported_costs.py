"""Costs that gateways and providers report with the usage of a call.

- https://openrouter.ai/docs/guides/usage-accounting
- https://docs.perplexity.ai/api-reference, https://docs.x.ai/docs/api-reference
"""

from __future__ import annotations

from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Final

from meterkit.tokens.json_values import dig, table

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Table

_MICROS: Final = 10**6
_MICROS_MAX: Final = 10**9 * _MICROS
_TICKS_PER_MICRO: Final = 10**4  # xAI: 10^10 ticks are a dollar.
_DOLLAR_MICROS: Final = Fraction(_MICROS)
_TICK_MICROS: Final = Fraction(1, _TICKS_PER_MICRO)


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

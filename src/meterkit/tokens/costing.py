"""What the provider of a language model charges for a call, by the meter that counts its tokens."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from meterkit.tokens.call_usage import charged_tokens, costs_at
from meterkit.tokens.charging import Charges
from meterkit.tokens.provider_prices import is_installed, table_version

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime
    from fractions import Fraction

    from meterkit.tokens.call_usage import CallUsage

_COUNTED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "input": ("input_tokens", "total_tokens"),
    "cache_read": ("cached_input_tokens", "input_tokens", "total_tokens"),
    "cache_write": ("cache_write_tokens", "input_tokens", "total_tokens"),
    "output": ("output_tokens", "total_tokens"),
    "reasoning": ("reasoning_tokens", "output_tokens", "total_tokens"),
    "request": ("input_tokens", "output_tokens", "total_tokens"),
}
"""The meters that may show a kind's cost: the first one that counts tokens of the call does."""


class CallCosts:
    """What providers charge for calls, exactly, in micro-units of US dollars.

    Args:
        charges: what calls are charged, with the seller's own prices; None: they are not charged.
        meter: that counts what calls are charged; it shows the cost where no meter counts tokens.
        counters: the meters that are counted on.
        plans: the version of the plans file.
    """

    def __init__(
        self, charges: Charges | None, meter: str | None, counters: Collection[str], plans: str
    ) -> None:
        is_installed()
        self._charges = charges
        self._meter = meter
        self._counters = counters
        self._plans = plans
        self.version = f"{plans},{table_version()}"

    def of(self, call: CallUsage, at: datetime) -> dict[str, Fraction]:
        """The cost by meter, without markup; empty: no provider's price is known, or nothing was used."""
        if charged_tokens(call) == (None, None):
            return {}
        prices = Charges.list_prices(self._charges, call, at)
        if prices is None:
            return {}
        counted = {name for name, quantity in call.quantities().items() if quantity} & {*self._counters}
        found: dict[str, Fraction] = {}
        for kind, cost in costs_at(prices, call).items():
            meter = next((name for name in _COUNTED_BY[kind] if name in counted), None)
            name = meter or self._meter or next(iter(sorted(counted)), "")
            found[name] = found.get(name, 0) + cost
        return found


def call_costs(charges: Mapping[str, Charges], counters: Collection[str], plans: str) -> CallCosts | None:
    """What calls cost; None: the package ``genai-prices`` is not installed."""
    if find_spec("genai_prices") is None:
        return None
    meter, one = next(iter(charges.items()), (None, None))
    return CallCosts(one, meter, counters, plans)

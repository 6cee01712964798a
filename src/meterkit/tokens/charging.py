"""What calls of language models are charged: prices of their providers, or the seller's own, and a markup."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil, floor
from threading import Lock
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.tokens.call_usage import charged_tokens, cost_at
from meterkit.tokens.provider_prices import TokenPrices, highest_prices, is_installed, prices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog.model_prices import ProviderPrices
    from meterkit.tokens.call_usage import CallUsage

_logger = logging.getLogger("meterkit.tokens")
_NAME_MAX: Final = 256
_NAMES_LOGGED: Final = 100
_CARRIED_MOST: Final = 100_000
_PROVIDERS: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "bedrock": "aws",
    "cohere": "cohere",
    "mistral": "mistral",
}
"""The words of ``usage:`` for answers of one provider, and what its prices are found under."""


class Charges:
    """What calls are charged, in micro-units of US dollars.

    Args:
        prices: what the plans file says of them.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """

    def __init__(self, prices: ProviderPrices) -> None:
        is_installed()
        self._factor = Fraction(100 + prices.markup_percent, 100)
        self._own = tuple((pattern, TokenPrices.of(own)) for pattern, own in prices.models)
        self._unpriced: set[str] = set()

    def of(self, call: CallUsage, at: datetime) -> Fraction:
        """What a call that has been made is charged, exactly; 0 where nothing says what it costs.

        That is logged once for each model: a provider's name is needed where the model is not known, too.
        """
        if charged_tokens(call) == (None, None):
            return Fraction(0)
        prices = self.list_prices(call, at)
        if prices is None:
            self._say_unpriced((call.model or "")[:_NAME_MAX])
            return Fraction(0)
        return self._factor * cost_at(prices, call)

    def list_prices(self: Charges | None, call: CallUsage, at: datetime) -> TokenPrices | None:
        """The prices of a call without markup: the seller's own, else those of its provider."""
        model = (call.model or "")[:_NAME_MAX]
        own = None if self is None else self._own_of(model)
        return own or prices_of(call.provider, model, at)

    def held(self, models: Sequence[str], usage: str, *, entered: int, left: int, at: datetime) -> int:
        """What a call may be charged at most that is about to be made, rounded up.

        Args:
            models: that the request may be of; of several the dearest counts, and where there is none, or one
                without a known price, the highest prices of the provider, or of all.
            usage: the route's word for whose answers it gives.
            entered: tokens that go in.
            left: tokens that come out.
            at: when (aware): prices have dates.
        """
        provider = _PROVIDERS.get(usage)
        found = [self._own_of(model) or prices_of(provider, model, at) for model in models or ("",)]
        costs = [
            (highest_prices(at) if prices is None else prices).most(entered=entered, left=left)
            for prices in found
        ]
        return min(ceil(self._factor * max(costs)), QUANTITY_MAX)

    def _own_of(self, model: str) -> TokenPrices | None:
        return next(
            (prices for pattern, prices in self._own if fnmatchcase(model[:_NAME_MAX], pattern)), None
        )

    def _say_unpriced(self, model: str) -> None:
        if model not in self._unpriced and len(self._unpriced) < _NAMES_LOGGED:
            self._unpriced.add(model)
            _logger.error(
                "nothing is charged for calls of model %r: no provider is known of it; give its prices in the"
                " plans file, under `models` of the credit",
                model,
            )


class Remainders:
    """The parts of a unit that amounts leave when whole units are counted, for the customer's next amount.

    They are of this process: when that ends, each customer has been charged less than a unit too little.
    """

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Fraction] = {}
        self._lock = Lock()

    def whole(self, customer: str, meter: str, amount: Fraction) -> int:
        """The whole units of an amount and of what was left before."""
        with self._lock:
            total = self._left.pop((customer, meter), Fraction(0)) + amount
            units = floor(total)
            if total != units:
                self._left[customer, meter] = total - units
                if len(self._left) > _CARRIED_MOST:
                    del self._left[next(iter(self._left))]
        return min(units, QUANTITY_MAX)


def charged_of(charges: Mapping[str, Charges], call: CallUsage, at: datetime) -> dict[str, Fraction]:
    """What a call is charged, by the meter that counts it."""
    return {meter: amount for meter, one in charges.items() if (amount := one.of(call, at))}

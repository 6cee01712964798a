"""What calls of language models are charged: prices of their providers, or the seller's own, and a markup."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil, floor
from threading import Lock
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.catalog.units import UNIT_OF
from meterkit.tokens.call_usage import billed_units
from meterkit.tokens.provider_prices import (
    STANDARD,
    UnitPrices,
    at_any_length,
    dearest_prices,
    is_installed,
    list_prices,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog.model_prices import ProviderPrices
    from meterkit.tokens.call_usage import CallUsage
    from meterkit.tokens.provider_prices import Context, Tiers

_logger = logging.getLogger("meterkit.tokens")
_NAME_MAX: Final = 256
_NAMES_LOGGED: Final = 100
_CARRIED_MOST: Final = 100_000
_WITHOUT_MODEL: Final = (
    "nothing is charged for tokens without a model: their price is not known; give record_usage() a response"
    " that names its model, or name it yourself: reservation.capture(…, model=…); logged once"
)
_SHAPES: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "bedrock": "aws",
    "cohere": "cohere",
    "mistral": "mistral",
    "ollama": "ollama",
}
"""The words of ``usage:``, each with the provider whose API has that shape."""

_SHAPE_PROVIDERS: Final = frozenset(
    {None, "openai", "anthropic", "gcp.gemini", "aws.bedrock", "cohere", "mistral_ai", "ollama"}
)
"""What the shape of a response alone says of its provider. None of these reports amounts of money."""


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
        self._own = tuple(prices.models)
        self._overlaid: dict[tuple[str, UnitPrices | None], UnitPrices] = {}
        self._unpriced: set[str] = set()

    def of(self, call: CallUsage, at: datetime) -> Fraction:
        """What a call that has been made is charged, exactly; 0 where no price of its model is known.

        That is logged once for each model.
        """
        cost = sum(self.costs(call, at).values(), Fraction(0))
        return self._factor * cost

    def costs(self, call: CallUsage, at: datetime) -> dict[str, Fraction]:
        """The cost of a call by unit, without markup; see :func:`costs_of`."""
        units = billed_units(call)
        found = costs_of(call, units, at, self)
        if found is None:
            if units:
                self._say_unpriced((call.model or "")[:_NAME_MAX])
            return {}
        return found

    def prices(self, model: str, provider: str | None, at: datetime, context: Context) -> UnitPrices | None:
        """The prices of a model: the seller's own over those of its provider; None: neither is known."""
        listed = list_prices(provider, model, at, context)
        own = self.own_prices(model)
        if own is None:
            return listed
        pattern, given = own
        found = self._overlaid.get((pattern, listed))
        if found is None:
            known: Mapping[str, Tiers] = {} if listed is None else listed.prices
            merged = {
                **known,
                **{UNIT_OF.get(unit, unit): at_any_length(price) for unit, price in given.items()},
            }
            if len(self._overlaid) >= _CARRIED_MOST:
                self._overlaid.clear()
            found = self._overlaid[pattern, listed] = UnitPrices(merged)
        return found

    def own_prices(self, model: str) -> tuple[str, Mapping[str, Fraction]] | None:
        """The first pattern of the plans file that matches a model, and its prices."""
        name = model[:_NAME_MAX]
        return next((own for own in self._own if fnmatchcase(name, own[0])), None)

    def held(
        self,
        models: Sequence[str],
        usage: str,
        *,
        entered: int,
        left: int,
        at: datetime,
        provider: str | None = None,
        has_media: bool = True,
    ) -> int:
        """What a call may be charged at most that is about to be made, rounded up.

        Args:
            models: that the request may be of; of several the dearest counts. Where there is none, it is the
                dearest of the provider. One without a known price costs nothing, as when it is charged.
            usage: the route's word for the shape of its responses.
            entered: tokens that go in.
            left: tokens that come out.
            at: when (aware): prices have dates.
            provider: whose models the route calls, as the table names it; None: not said.
            has_media: whether sound, images or video may go in.
        """
        if models:
            found = [self.prices(model, provider or _SHAPES.get(usage), at, STANDARD) for model in models]
        else:
            found = [dearest_prices(provider or _SHAPES.get(usage), at)]
        costs = (
            one.most(entered=entered, left=left, has_media=has_media) for one in found if one is not None
        )
        return min(ceil(self._factor * max(costs, default=Fraction(0))), QUANTITY_MAX)

    def is_free(
        self, models: Sequence[str], usage: str, at: datetime, *, provider: str | None = None
    ) -> bool:
        """Whether a call certainly costs nothing, whichever of the models it is of; see :meth:`held`.

        No model named, or one without a known price: the response may name one that has a price.
        """
        if not self._factor:
            return True
        found = [self.prices(model, provider or _SHAPES.get(usage), at, STANDARD) for model in models]
        return bool(found) and all(one is not None and one.is_free for one in found)

    def _say_unpriced(self, model: str) -> None:
        if model not in self._unpriced and len(self._unpriced) < _NAMES_LOGGED:
            self._unpriced.add(model)
            if not model:
                _logger.error(_WITHOUT_MODEL)
                return
            _logger.error(
                "nothing is charged for calls of model %r: no price of it is known; give its prices in the"
                " plans file, under `models` of the credit, or name the `provider` of the route",
                model,
            )


def costs_of(
    call: CallUsage, units: Mapping[str, int], at: datetime, charges: Charges | None
) -> dict[str, Fraction] | None:
    """The cost of a call by unit; None: nothing says what its model costs.

    The seller's own prices come first, then the amount that the provider reports, then list prices. The
    provider's amount stands under ``requests``.

    Args:
        call: the call.
        units: of it, as they are billed.
        at: when it was made (aware).
        charges: knows the seller's own prices; None: there are none.
    """
    model = call.model or ""
    is_reported = call.reported_cost_micros is not None and call.provider not in _SHAPE_PROVIDERS
    if is_reported and (charges is None or charges.own_prices(model) is None):
        return {"requests": call.reported_cost_micros or Fraction(0)}
    if not units:
        return None
    found = (
        list_prices(call.provider, model, at, call.context)
        if charges is None
        else charges.prices(model, call.provider, at, call.context)
    )
    return None if found is None else found.costs(units, is_sum="summed" in call.notes)


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

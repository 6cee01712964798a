"""Charges for language model calls: providers' prices or the seller's own, and a markup."""

from __future__ import annotations

import logging
from fractions import Fraction
from functools import cache
from itertools import islice, product
from math import ceil, floor, prod
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_usage import list_prices
from llm_usage.call_usage import billed_units
from llm_usage.listed_models import (
    STANDARD,
    dearest_prices,
    half_hour,
    model_names,
    providers_of,
    varying_contexts,
)
from llm_usage.llm_request import WAYS
from llm_usage.price_table import installed_table, is_listed
from llm_usage.unit_prices import UnitPrices, at_any_length, highest_prices
from llm_usage.units import UNIT_OF, WHOLE_OF
from meterkit.catalog.model_prices import first_match, is_pattern, may_overlap
from meterkit.catalog.models import QUANTITY_MAX
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from llm_usage import CallUsage
    from llm_usage.published_factors import Context
    from llm_usage.unit_prices import Tiers
    from meterkit.catalog.model_prices import ProviderPrices

_logger = logging.getLogger("meterkit.prices")
_NAME_MAX: Final = 256
_NAMES_LOGGED: Final = 100
_MATCHES_MOST: Final = 4096
_CONTEXTS_MOST: Final = 64
_NO_UNITS: Final[Mapping[str, int]] = {}
_WHOLE: Final = Fraction(1)
_NO_FACTORS: Final[Mapping[str, Mapping[str, int]]] = {}
_OWN_PRICES: Final = "give its prices in the plans file, under `models` of the credit"
_CURE: Final = f"{_OWN_PRICES}, or name the `provider` of the route"
_SHAPES: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "gcp.gemini",
    "bedrock": "aws.bedrock",
    "cohere": "cohere",
    "mistral": "mistral_ai",
    "ollama": "ollama",
}
"""The words of ``usage:``, each with the provider whose API has that shape."""
_NAMED_APART: Final = _SHAPES["bedrock"]
"""The provider of a shape whose models the table does not find by their names alone."""
_SHAPE_PROVIDERS: Final = frozenset({None, *_SHAPES.values()})
"""Providers recognised by the response's shape alone. None of these reports amounts of money."""
_DIRECTIONS: Final = ("input_tokens", "output_tokens")


def require_table() -> None:
    """Raise a `MeterkitError` where the price table is not installed."""
    if installed_table() is None:
        raise MeterkitError(
            "providers' prices need genai-prices; install it with: pip install 'meterkit[prices]'"
        )


class ModelCharges:
    """Charges for calls, in micro-units of US dollars.

    Args:
        prices: what the plans file says of them.

    Attributes:
        has_own_prices: whether the file has prices or factors of models.

    Raises:
        MeterkitError: the package ``genai-prices`` is not installed.
    """

    def __init__(self, prices: ProviderPrices) -> None:
        require_table()
        self._markup = Fraction(100 + prices.markup_percent, 100)
        self._own = {
            pattern: _SellerTerms(
                pattern,
                {UNIT_OF.get(unit, unit): at_any_length(price) for unit, price in given.items()},
                {
                    (name, value): Fraction(percent, 100)
                    for name, percents in prices.factors.get(pattern, _NO_FACTORS).items()
                    for value, percent in percents.items()
                },
            )
            for pattern, given in prices.models
        }
        self.has_own_prices = bool(self._own)
        self._own_factors = frozenset(pair for one in self._own.values() for pair in one.factors)
        self._matches: dict[str, _SellerTerms | None] = {}
        self._overlaid: dict[tuple[str, UnitPrices | None, Fraction], UnitPrices | None] = {}
        self._highest: dict[tuple[str | None, datetime, frozenset[Context]], UnitPrices] = {}
        self._of_patterns: dict[tuple[str, str | None, datetime, Context], UnitPrices] = {}
        self._log = UnpricedLog()

    def of(self, call: CallUsage, at: datetime) -> Fraction:
        """Price a call that has been made, exactly; 0 where no price of its model is known.

        That is logged once for each model.
        """
        found = self.amount(call, at)
        if found is None:
            self.log_unpriced(call)
        return found or Fraction(0)

    def log_unpriced(self, call: CallUsage) -> None:
        """Log that no price of a call's model is known, once for each model."""
        name = call.model or ""
        choices = providers_of(name)
        if not choices:
            self._log.log(name)
            return
        why = f"its price depends on the provider, which may be: {', '.join(choices)}"
        self._log.log(name, f"write the `provider` on the route, or {_OWN_PRICES}", why=why)

    def amount(self, call: CallUsage, at: datetime) -> Fraction | None:
        """Price a call; None: it used something, and no price of its model is known."""
        units = billed_units(call)
        reported = find_reported_cost(call, self)
        if reported is not None:
            return self._markup * reported
        prices = find_prices(call, units, at, self)
        if prices is None:
            return None if units else Fraction(0)
        return prices.cost(units, self._markup, is_sum="summed" in call.notes)

    def prices(self, model: str, provider: str | None, at: datetime, context: Context) -> UnitPrices | None:
        """The prices of a model: the seller's own over those of its provider; None: neither is known."""
        own = self.seller_terms(model)
        if own is None:
            return list_prices(provider, model, at, context)
        factor, rest = own.factor_of(context)
        listed = list_prices(provider, model, at, rest)
        key = own.pattern, listed, factor
        if key not in self._overlaid:
            if len(self._overlaid) >= _MATCHES_MOST:
                self._overlaid.clear()
            over = self._overlaid[key] = own.over(listed, factor)
            if listed is None and over is not None and model and (missing := own.missing):
                names = " and ".join(f"`{whole}`" for whole in missing)
                cure = f"write {names} in the entry {own.pattern!r} of `models` in the plans file as well"
                self._log.log(model, cure, what=" and ".join(missing))
        return self._overlaid[key]

    def _highest_prices(self, provider: str | None, at: datetime, contexts: Sequence[Context]) -> UnitPrices:
        """The highest price that each unit may have if the model is not known: the table's, or the file's."""
        key = provider, half_hour(at), frozenset(contexts)
        found = self._highest.get(key)
        if found is None:
            listed = dearest_prices(provider, at, contexts)
            factors = (max(own.factor_of(one)[0] for one in contexts) for own in self._own.values())
            over = (own.over(listed, factor) for own, factor in zip(self._own.values(), factors, strict=True))
            found = highest_prices([listed.prices, *(one.prices for one in over if one is not None)])
            if len(self._highest) >= _CONTEXTS_MOST:
                self._highest.clear()
            self._highest[key] = found
        return found

    def _pattern_prices(
        self, pattern: str, usage: str, provider: str | None, at: datetime, context: Context
    ) -> UnitPrices:
        """The highest price that each unit has among the models that a pattern of a route stands for."""
        whose = provider or _SHAPES.get(usage)
        key = pattern, whose, half_hour(at), context
        found = self._of_patterns.get(key)
        if found is None:
            names = (name for name in model_names(whose) if first_match((pattern,), name))
            listed = [self._requested_prices(name, usage, provider, at, context) for name in names]
            own = (
                one for one in self._own.values() if may_overlap(pattern.casefold(), one.pattern.casefold())
            )
            listed += [one.over(None, one.factor_of(context)[0]) for one in own]
            found = highest_prices(one.prices for one in listed if one is not None)
            if len(self._of_patterns) >= _CONTEXTS_MOST:
                self._of_patterns.clear()
            self._of_patterns[key] = found
        return found

    def has_price(self, model: str, usage: str, at: datetime, provider: str | None = None) -> bool:
        """Whether the prices of a model are known, before its call is made; see :meth:`held`."""
        whose = provider or _SHAPES.get(usage)
        asked = (None, _NAMED_APART) if whose is None else (whose,)
        if all(self.lacks_prices(model, one, at) for one in asked):
            return False
        return self._requested_prices(model, usage, provider, at, STANDARD) is not None

    def lacks_prices(self, model: str, provider: str | None, at: datetime) -> bool:
        """Whether the file has a price of a model, and neither it nor the table has those of all tokens."""
        own = self.seller_terms(model) if model else None
        return own is not None and bool(own.missing) and list_prices(provider, model, at) is None

    def _requested_prices(
        self, model: str, usage: str, provider: str | None, at: datetime, context: Context
    ) -> UnitPrices | None:
        """The prices of a model that a request names, as its response may find them by its provider."""
        whose = provider or _SHAPES.get(usage)
        found = self.prices(model, whose, at, context)
        return self.prices(model, _NAMED_APART, at, context) if found is None and whose is None else found

    def seller_terms(self, model: str) -> _SellerTerms | None:
        """The first entry of the plans file whose pattern matches a model."""
        if not self._own:
            return None
        name = model[:_NAME_MAX]
        try:
            return self._matches[name]
        except KeyError:
            pass
        if len(self._matches) >= _MATCHES_MOST:
            self._matches.clear()
        pattern = first_match(self._own, name)
        found = self._matches[name] = None if pattern is None else self._own[pattern]
        return found

    def held(
        self,
        models: Sequence[str],
        usage: str,
        *,
        input_tokens: int,
        output_tokens: int,
        at: datetime,
        provider: str | None = None,
        has_media: bool = True,
        is_listed: bool = False,
        context: Iterable[tuple[str, str]] | None = (),
        others: Mapping[str, int] = _NO_UNITS,
    ) -> int:
        """Price a call that is about to be made at the most that it may be charged, rounded up.

        Args:
            models: that the request may be of; of several the dearest counts. Where there is none, it is the
                dearest of the provider and of the plans file. One without a known price costs nothing.
            usage: the route's word for the shape of its responses.
            input_tokens: tokens that go in.
            output_tokens: tokens that come out.
            at: when (aware): prices have dates.
            provider: whose models the route calls, as the table names it; None: not said.
            has_media: whether sound, images or video may go in.
            is_listed: whether the plans file lists the models, so that they may be patterns.
            context: ways of processing that the request asks for, as the provider may process it otherwise;
                None: not known, so it may ask for any.
            others: quantities of further units that are set aside, such as ``web_searches``.
        """
        contexts = self._possible(context)
        if models:
            found = [
                self._pattern_prices(model, usage, provider, at, one)
                if is_listed and is_pattern(model)
                else self._requested_prices(model, usage, provider, at, one)
                for model in models
                for one in contexts
            ]
        else:
            found = [self._highest_prices(provider or _SHAPES.get(usage), at, contexts)]
        costs = (
            one.most(
                input_tokens=input_tokens, output_tokens=output_tokens, has_media=has_media, others=others
            )
            for one in found
            if one is not None
        )
        return min(ceil(self._markup * max(costs, default=Fraction(0))), QUANTITY_MAX)

    def is_free(
        self, models: Sequence[str], usage: str, at: datetime, *, provider: str | None = None
    ) -> bool:
        """Whether a call certainly costs nothing, whichever of the models it is of; see :meth:`held`.

        No model named, or one without a known price: the response may name one that has a price.
        """
        if not self._markup:
            return True
        found = [self.prices(model, provider or _SHAPES.get(usage), at, STANDARD) for model in models]
        return bool(found) and all(one is not None and one.is_free for one in found)

    def _possible(self, asked: Iterable[tuple[str, str]] | None) -> Sequence[Context]:
        """The ways in which a request may be processed that asks for some, where they change a price."""
        ways: dict[str, list[tuple[tuple[str, str], ...]]] = {}
        varying = self._own_factors | varying_contexts()
        for pair in varying if asked is None else dict.fromkeys(asked):
            if pair in varying and pair[0] in WAYS:
                ways.setdefault(pair[0], [()]).append((pair,))
        found = (tuple(sorted(pair for way in one for pair in way)) for one in product(*ways.values()))
        return list(islice(found, _CONTEXTS_MOST))


_is_listed: Final = cache(is_listed)


class _SellerTerms(NamedTuple):
    """Prices and factors of a pattern of the plans file."""

    pattern: str
    prices: Mapping[str, Tiers]
    factors: Mapping[tuple[str, str], Fraction]

    @property
    def missing(self) -> Sequence[str]:
        """The directions of tokens without a price here.

        None where it prices calls or searches alone, of models that the table lacks: their tokens are free.
        """
        has_tokens = any(unit in WHOLE_OF or unit in _DIRECTIONS for unit in self.prices)
        if not (has_tokens or _is_listed(self.pattern)):
            return ()
        return [whole for whole in _DIRECTIONS if whole not in self.prices]

    def factor_of(self, context: Context) -> tuple[Fraction, Context]:
        """The product of the factors that a context has, and the rest of it, which the table prices.

        A factor of the file is on the standard price: the table's own price of that way does not count.
        """
        factors = [self.factors[pair] for pair in context if pair in self.factors]
        rest = tuple(pair for pair in context if pair not in self.factors)
        return prod(factors, start=_WHOLE), rest

    def over(self, listed: UnitPrices | None, factor: Fraction) -> UnitPrices | None:
        """The prices of the file over those of the table, times a factor; None: there is none of either."""
        known: Mapping[str, Tiers] = {} if listed is None else listed.prices
        merged = {**known, **self.prices}
        if not merged:
            return None
        if factor != 1:
            merged = {
                unit: tuple((start, price * factor) for start, price in tiers)
                for unit, tiers in merged.items()
            }
        return UnitPrices(merged)


class UnpricedLog:
    """Error log of models without a price, once for each model."""

    def __init__(self) -> None:
        self._models: set[str] = set()

    def log(
        self,
        model: str,
        cure: str = _CURE,
        *,
        what: str = "calls",
        why: str = "no price of it is known",
    ) -> None:
        """Log that nothing is charged for the calls of a model.

        Args:
            model: its name; empty: not known.
            cure: what to write where.
            what: of the model has no price.
            why: it has none.
        """
        name = model[:_NAME_MAX]
        if name not in self._models and len(self._models) < _NAMES_LOGGED:
            self._models.add(name)
            if not name:
                _logger.error(
                    "nothing is charged for tokens without a model: their price is not known; give"
                    " record_usage() a response that names its model, or name it yourself:"
                    " reservation.capture(…, model=…); logged once"
                )
                return
            _logger.error("nothing is charged for %s of model %r: %s; %s", what, name, why, cure)


def find_reported_cost(call: CallUsage, charges: ModelCharges | None) -> Fraction | None:
    """The amount that the provider reports, where it counts."""
    if call.reported_cost_micros is None or call.provider in _SHAPE_PROVIDERS:
        return None
    is_own = charges is not None and charges.seller_terms(call.model or "") is not None
    return None if is_own else call.reported_cost_micros


def find_prices(
    call: CallUsage, units: Mapping[str, int], at: datetime, charges: ModelCharges | None
) -> UnitPrices | None:
    """The prices of a call, the seller's own first; None: it used nothing, or they are not known."""
    if not units:
        return None
    model = call.model or ""
    if charges is None:
        return list_prices(call.provider, model, at, call.context)
    return charges.prices(model, call.provider, at, call.context)


def price_call(
    charges: Mapping[str, ModelCharges], call: CallUsage, at: datetime
) -> tuple[dict[str, Fraction], bool]:
    """Price a call by the meter that counts it, and say whether a price of its model is lacking."""
    found: dict[str, Fraction] = {}
    is_unpriced = False
    for meter, one in charges.items():
        amount = one.amount(call, at)
        if amount is None:
            one.log_unpriced(call)
            is_unpriced = True
            continue
        if one.has_own_prices and one.lacks_prices(call.model or "", call.provider, at):
            is_unpriced = True
        if amount:
            found[meter] = amount
    return found, is_unpriced


_REMAINDERS_MAX: Final = 100_000


class ChargeRemainders:
    """The parts of a unit that amounts leave when whole units are counted, for the customer's next amount.

    They are of this process: when that ends, each customer has been charged less than a unit too little.
    """

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Fraction] = {}
        self._lock = Lock()

    def count_units(self, customer: str, meter: str, amount: Fraction) -> int:
        """The whole units of an amount and of what was left before."""
        with self._lock:
            total = self._left.pop((customer, meter), Fraction(0)) + amount
            units = floor(total)
            if total != units:
                self._left[customer, meter] = total - units
                if len(self._left) > _REMAINDERS_MAX:
                    del self._left[next(iter(self._left))]
        return min(units, QUANTITY_MAX)

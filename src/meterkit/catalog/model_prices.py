"""Prices by model: micro-credits per unit, rows of a price table, providers' prices with a markup."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from fractions import Fraction

T = TypeVar("T")

_FREE_PERCENT: Final = -100
UnknownModel = Literal["free", "deny"]
"""The word for a model without a price: it costs nothing, or a request that names it is refused."""
_SPECIAL: Final = frozenset("?[")
_WILD: Final = frozenset("*?[")
_WILD_PART: Final = re.compile(r"[*?\[]|\]")
_NAME_MAX: Final = 256


def first_match(patterns: Iterable[str], model: str) -> str | None:
    """The first pattern that matches a model's name, in capitals or small letters; None: none does."""
    name = model[:_NAME_MAX].casefold()
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern.casefold())), None)


def _values_for_models(models: tuple[tuple[str, T], ...], names: Iterable[str], *, default: T) -> Iterator[T]:
    """Yield the values of all models that names or patterns of names may stand for."""
    for name in names:
        folded = name[:_NAME_MAX].casefold()
        for pattern, value in models:
            if may_overlap(folded, pattern.casefold()):
                yield value
                if not is_pattern(folded) or covers_pattern(pattern.casefold(), folded):
                    break
        else:
            yield default


def _value_for_model(models: tuple[tuple[str, T], ...], model: str | None, *, default: T, highest: T) -> T:
    if model == "":
        return highest
    by_pattern = dict(models)
    pattern = None if model is None else first_match(by_pattern, model)
    return default if pattern is None else by_pattern[pattern]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """Prices of a unit by model, in micro-credits, at least 1 each.

    Attributes:
        default: of a model that no pattern matches, and of usage that the app records without a model; 0:
            there is no default, and these cost nothing.
        models: glob patterns of model names, each with its price; the first one that matches counts.
        unknown_model: what happens to a request that names a model without a price.
    """

    default: int
    models: tuple[tuple[str, int], ...]
    unknown_model: UnknownModel = "free"

    def of(self, model: str | None) -> int:
        """Price of a unit for a model; None: no model was used; empty: its name is unknown."""
        return _value_for_model(self.models, model, default=self.default, highest=self.highest)

    def most(self, models: Sequence[str]) -> int:
        """Highest price of a unit among models, by name or pattern; without one, or one unknown, of all."""
        if not models or "" in models:
            return self.highest
        return max(_values_for_models(self.models, models, default=self.default))

    def has_price(self, model: str) -> bool:
        """Whether a model has a price: one of its own, or the default."""
        return bool(self.default) or first_match(dict(self.models), model) is not None

    @property
    def refuses_others(self) -> bool:
        """Whether requests for models without a price are refused."""
        return not self.default and self.unknown_model == "deny"

    def covers(self, pattern: str) -> bool:
        """Whether one of the patterns surely matches each model that another pattern does."""
        return any(covers_pattern(own, pattern) for own, _ in self.models)

    @property
    def highest(self) -> int:
        """Highest price of a unit, whatever the model."""
        return max((self.default, *(price for _, price in self.models)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRows:
    """The prices of a table by model, each by the meter that counts what is billed at it.

    Attributes:
        default: the meter of a model that no pattern matches, and of usage without a model.
        models: glob patterns of model names, each with its meter; the first one that matches counts.
        highest: the meter of the highest price.
        has_default: whether models of no pattern have a price; else they cost nothing.
        refuses_others: whether a request that names such a model is refused.
    """

    default: str
    models: tuple[tuple[str, str], ...]
    highest: str
    has_default: bool = True
    refuses_others: bool = False

    def of(self, model: str | None) -> str:
        """The meter of a model; None: of no model; empty: of one whose name is not known."""
        return _value_for_model(self.models, model, default=self.default, highest=self.highest)

    def of_models(self, models: Iterable[str]) -> frozenset[str]:
        """The meters of models, by name or pattern."""
        return frozenset(_values_for_models(self.models, models, default=self.default))

    def has_price(self, model: str) -> bool:
        """Whether a model has a price: one of its own, or the default."""
        return self.has_default or first_match(dict(self.models), model) is not None

    @property
    def all(self) -> tuple[str, ...]:
        """Every meter, the default's last."""
        return (*(row for _, row in self.models), self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """Terms of a plans file for the models of one pattern.

    Attributes:
        prices: unit of the price table, or our meter's name for it, to micro-units of US dollars for one;
            ``requests``: for a call.
        factors: how a call was processed, such as ``service_tier``, to a value of it and the percentage of
            all prices that such a call costs.
    """

    prices: Mapping[str, Fraction]
    factors: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPrices:
    """Charge for language model calls: the provider's prices and a markup.

    Attributes:
        markup_percent: what is added to a price, at least -100.
        models: glob patterns of model names, each with prices in place of the provider's; the first one that
            matches counts. See :class:`ModelTerms`.
        factors: pattern to its factors, where it has some.
        unknown_model: what happens to a request that names a model without a price.
    """

    markup_percent: int = 0
    models: tuple[tuple[str, Mapping[str, Fraction]], ...] = ()
    factors: Mapping[str, Mapping[str, Mapping[str, int]]] = field(
        default_factory=dict[str, "Mapping[str, Mapping[str, int]]"]
    )
    unknown_model: UnknownModel = "free"

    @property
    def is_free(self) -> bool:
        """Whether no call is charged anything, whatever its model."""
        return self.markup_percent == _FREE_PERCENT


def is_pattern(model: str) -> bool:
    """Whether this stands for several models."""
    return not _WILD.isdisjoint(model)


def may_overlap(one: str, other: str) -> bool:
    """Whether a name may match both of two patterns; False only where surely none does."""
    if not is_pattern(one):
        return fnmatchcase(one, other)
    if not is_pattern(other):
        return fnmatchcase(other, one)
    heads, tails = ([part[end] for part in map(_split_wild, (one, other))] for end in (0, -1))
    return (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])) and (
        tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])
    )


def _split_wild(pattern: str) -> list[str]:
    return _WILD_PART.split(pattern)


def covers_pattern(pattern: str, other: str) -> bool:
    """Whether a pattern matches all that another one does; only said where that is sure."""
    is_sure = not _SPECIAL & {*pattern} and "[" not in other
    return pattern == other or (is_sure and fnmatchcase(other, pattern))

"""Credits, and what a unit costs of them by the model that used it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

_FREE_PERCENT: Final = -100
_SPECIAL: Final = frozenset("?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """What a unit costs by model, in micro-credits, at least 1 each.

    Attributes:
        default: of a model that no pattern matches, and of usage that the app records without a model.
        models: glob patterns of model names, each with its price; the first one that matches counts.
    """

    default: int
    models: tuple[tuple[str, int], ...]

    def of(self, model: str | None) -> int:
        """What a unit costs that a model used; None: by no model; empty: by one whose name is not known."""
        if model == "":
            return self.highest
        if model is not None:
            for pattern, price in self.models:
                if fnmatchcase(model, pattern):
                    return price
        return self.default

    def covers(self, pattern: str) -> bool:
        """Whether one of the patterns surely matches each model that another pattern does."""
        return any(has_all_of(own, pattern) for own, _ in self.models)

    @property
    def highest(self) -> int:
        """What a unit costs at most, whatever the model."""
        return max(self.default, *(price for _, price in self.models))


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRows:
    """The prices of a table by model, each by the meter that counts what is billed at it.

    Attributes:
        default: the meter of a model that no pattern matches, and of usage without a model.
        models: glob patterns of model names, each with its meter; the first one that matches counts.
        highest: the meter of the highest price.
    """

    default: str
    models: tuple[tuple[str, str], ...]
    highest: str

    def of(self, model: str | None) -> str:
        """The meter of a model; None: of no model; empty: of one whose name is not known."""
        if model == "":
            return self.highest
        if model is not None:
            for pattern, row in self.models:
                if fnmatchcase(model, pattern):
                    return row
        return self.default

    @property
    def all(self) -> tuple[str, ...]:
        """Every meter, the default's last."""
        return (*(row for _, row in self.models), self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPrices:
    """What calls of language models are charged: the prices of their providers, and a markup.

    Attributes:
        markup_percent: what is added to a price, at least -100.
        models: glob patterns of model names, each with prices in place of the provider's; the first one that
            matches counts. By meter of tokens: micro-units of US dollars a token; ``requests``: of a call.
    """

    markup_percent: int = 0
    models: tuple[tuple[str, Mapping[str, Fraction]], ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether no call is charged anything, whatever its model."""
        return self.markup_percent == _FREE_PERCENT


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoTopUp:
    """A top-up that is bought by itself, with the customer's saved card.

    Attributes:
        below_cents: the balance below which it is, in minor units of the currency.
        amount_cents: what it is of.
        at_most: how many there may be in a month of UTC.
    """

    below_cents: int
    amount_cents: int
    at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUps:
    """What customers can buy of a balance in money.

    Attributes:
        packs: the amounts, in minor units of the currency.
        auto: what is bought by itself; None: nothing.
        url: the page where they are bought; None: `billing.portal_url`.
    """

    packs: tuple[int, ...]
    auto: AutoTopUp | None = None
    url: str | None = None

    @property
    def amounts(self) -> tuple[int, ...]:
        """Every amount that is sold, the smallest first."""
        return tuple(sorted({*self.packs, *(() if self.auto is None else (self.auto.amount_cents,))}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """A prepaid unit that meters may be paid with.

    Attributes:
        costs: meter to its cost per unit in micro-credits, at least 1; where it depends on the model, the
            default.
        low_balance_percent: the share of the last grant at which the balance is low; None: never.
        by_model: the meters whose cost depends on the model.
        is_money: whether one is a US dollar.
        top_up: what customers can buy of it; None: nothing.
    """

    name: str
    costs: Mapping[str, int]
    low_balance_percent: int | None
    by_model: Mapping[str, ModelPrices] = field(default_factory=dict[str, ModelPrices])
    is_money: bool = False
    top_up: TopUps | None = None


def has_all_of(pattern: str, other: str) -> bool:
    """Whether a pattern matches all that another one does; only said where that is sure."""
    is_sure = not _SPECIAL & {*pattern} and "[" not in other
    return pattern == other or (is_sure and fnmatchcase(other, pattern))


def sold_in(credits_: Mapping[str, Credit]) -> tuple[str, TopUps] | None:
    """The balance that customers can buy, and its top-ups; a file has one at most."""
    found = ((one.name, one.top_up) for one in credits_.values() if one.top_up is not None)
    return next(found, None)

"""Frozen values of prepaid credits, which pay for meters, and of their top-ups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meterkit.catalog.model_prices import ModelPrices

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoTopUp:
    """A top-up that is bought by itself, with the customer's saved card.

    Attributes:
        below_cents: the balance below which it is, in US cents.
        amount_cents: what it is of.
        at_most: how many there may be in a month of UTC.
    """

    below_cents: int
    amount_cents: int
    at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUps:
    """Top-ups of a balance in money that customers can buy.

    Attributes:
        packs: the amounts, in US cents.
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


def find_top_ups(credits_: Mapping[str, Credit]) -> tuple[str, TopUps] | None:
    """The balance that customers can buy, and its top-ups; a file has one at most."""
    found = ((one.name, one.top_up) for one in credits_.values() if one.top_up is not None)
    return next(found, None)

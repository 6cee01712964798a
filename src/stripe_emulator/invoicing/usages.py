"""Usage that an invoice charges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.selling.coupons import Discount
    from stripe_emulator.selling.prices import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Usage that an invoice charges: of an item, within a span of Unix seconds, at the price of that time.

    Attributes:
        arrived_from: how many events arrived too early to count; see :class:`Item`.
        removed: whether the item is gone, or has another price: then an invoice item charges the usage.
        rate_ids: the item's own tax rates.
        discounts: the item's.
        ids: of its lines and of their invoice items, by place: they stay while a draft is counted anew.
    """

    item: str
    price: Price
    start: int
    end: int
    arrived_from: int = 0
    removed: bool = False
    rate_ids: Sequence[str] = ()
    discounts: Sequence[Discount] = ()
    ids: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]], compare=False)

"""Prices of subscription items as a customer's state changes: learned ones, and those that end. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.decisions.customer_state import CustomerState


def with_learned_prices(before: CustomerState, after: CustomerState) -> CustomerState:
    """A state with what is known by now of prices that its subscription had already: no price ends then.

    A price at Stripe never changes. A release before this one did not read what it charges.
    """
    old, new = before.subscription, after.subscription
    if (
        old is None
        or new is None
        or old.prices == new.prices
        or (old.id, old.metered) != (new.id, new.metered)
    ):
        return before
    return replace(before, subscription=replace(old, prices=new.prices))


def with_former_prices(before: CustomerState, after: CustomerState, now_ms: int) -> CustomerState:
    """A state that also keeps the prices of the subscription's items that end with this change."""
    old, new = before.subscription, after.subscription
    if old is None or new is None or old is new:
        return after
    return replace(after, subscription=new.with_former_prices(old, now_ms))

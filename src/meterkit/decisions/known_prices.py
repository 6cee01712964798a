"""Prices of subscription items as a customer's state changes: learned ones, and those that end. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.decisions.item_prices import NO_PRICES

if TYPE_CHECKING:
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.subscription import SubscriptionState

_FORMER_MAX: Final = 24
_KEPT_MS: Final = 400 * 86_400_000


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
    return replace(after, subscription=add_former_prices(old, new, now_ms))


def add_former_prices(known: SubscriptionState, new: SubscriptionState, now_ms: int) -> SubscriptionState:
    """Keep the prices that end now: the close of a period that has ended still needs them.

    Args:
        known: the customer's subscription as it was known until now.
        new: the same one, or the next one.
        now_ms: the instant.
    """
    kept = tuple(one for one in known.former_prices if one[0] > now_ms - _KEPT_MS)
    before, until_ms, is_same = known.prices, now_ms, known.id == new.id
    if known.pending_at_ms is not None and known.pending_at_ms < now_ms:
        until_ms = known.pending_at_ms
    has_ended = before != new.prices and known.metered != new.metered if is_same else True
    if before and has_ended:
        # Usage of the time before the subscription has other prices.
        begun = (known.created_ms, NO_PRICES)
        until_ms = until_ms if is_same else min(until_ms, known.ends_ms())
        kept = (*kept, *(() if begun in kept else (begun,)), (until_ms, before))[-_FORMER_MAX:]
    return replace(new, former_prices=kept)

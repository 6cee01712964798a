"""Resend window: a retry is sent again within 23 hours of the first attempt, and compared after 26. Pure."""

from __future__ import annotations

from typing import Final

RESEND_MAX_MS: Final = 23 * 3_600_000
"""A retry within this time is counted once: an identifier is unique "within a rolling period of at least
24 hours" (https://docs.stripe.com/api/billing/meter-event/create), and a request takes its time."""

COMPARABLE_AFTER_MS: Final = 26 * 3_600_000
"""After this time Stripe's summaries show an accepted intent: its last attempt is three hours old.

`lua/rebuild_counters.lua` parks an intent as if first tried a day ago, and compares it two hours later."""


def can_resend(first_ms: int, now_ms: int) -> bool:
    """Whether Stripe certainly counts a retry under the same identifier once.

    Args:
        first_ms: instant of the first attempt; 0: Stripe certainly does not have the intent.
        now_ms: now.
    """
    return first_ms == 0 or now_ms - first_ms <= RESEND_MAX_MS


def compare_in_ms(first_ms: int, now_ms: int) -> int:
    """Time until an intent may be compared with Stripe's summaries, by its first attempt."""
    return max(0, first_ms + COMPARABLE_AFTER_MS - now_ms)
